"""What the tiny LLM can do in text, on held-out sentences: the ceiling of everything that speech adds (ours)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from dualslm.conversation import ORACLE, Conversation, Speech
from dualslm.evaluation.metrics import share
from dualslm.model.generation import GenerationSettings
from dualslm.model.llm import FrozenLM
from dualslm.prompt import Text, render
from dualslm.tiny import world
from dualslm.tiny.style import ATTRIBUTES, sample_style

BATCH = 100


def evaluate(folder: Path, *, n: int = 500, device: str = "cpu") -> dict[str, Any]:
    """Shares of exact answers in percent, each with its interval and n.

    Args:
        folder: an LLM folder.
        n: held-out sentences.
        device: where it runs.
    """
    llm = FrozenLM.from_pretrained(str(folder), device=device)
    rng = random.Random("llm exam")
    drawn = [(world.sample_utterance(rng, held_out=True, kinds=("event",)), sample_style(rng)) for _ in range(n)]
    speeches = [
        Speech(transcript=said.text, caption=world.caption(style), labels=style.labels()) for said, style in drawn
    ]
    conversations = [world.transcription(speech, rng) for speech in speeches]
    found = {"transcription": _exact(llm, conversations)}
    for name in ATTRIBUTES:
        found[name] = _exact(llm, [world.questions(speech, rng, (name,)) for speech in speeches])
    listening = [world.sample_talk(rng, speech, *pair) for speech, pair in zip(speeches, drawn, strict=True)]
    found["dialogue"] = _exact(
        llm, [conversation.conversation.copy().assistant(conversation.reply.text) for conversation in listening]
    )
    return {name: {k: round(v, 2) for k, v in asdict(share(right)).items()} for name, right in found.items()}


def _exact(llm: FrozenLM, conversations: Sequence[Conversation]) -> list[bool]:
    """Whether each talk's last answer is what the LLM says."""
    right: list[bool] = []
    for start in range(0, len(conversations), BATCH):
        some = conversations[start : start + BATCH]
        asked = [Conversation(conversation.system, conversation.turns[:-1]) for conversation in some]
        answers = _answer(llm, asked)
        right += [answer == conversation.turns[-1].parts[0] for answer, conversation in zip(answers, some, strict=True)]
    return right


def _answer(llm: FrozenLM, conversations: Sequence[Conversation]) -> list[str]:
    rows = []
    for conversation in conversations:
        prompt = render(conversation, llm.tokenizer, ORACLE)
        ids = [token for segment in prompt.segments if isinstance(segment, Text) for token in segment.ids]
        rows.append(llm.embed(torch.tensor(ids, device=llm.device)))
    answers: list[list[int]] = [[] for _ in conversations]
    for tokens in llm.decode(llm.prefill(rows), GenerationSettings(max_new_tokens=64)):
        for answer, token in zip(answers, tokens, strict=True):
            answer += [] if token is None else [token]
    return [llm.tokenizer.decode(answer, skip_special_tokens=True) for answer in answers]
