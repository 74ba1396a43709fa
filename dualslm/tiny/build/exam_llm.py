"""What the tiny LLM can do in text, on held-out sentences: the ceiling for everything that is spoken (ours)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from dualslm.conversation import ORACLE, Conversation, Speech
from dualslm.evaluation.metrics.figure import share
from dualslm.model.generation import GenerationSettings
from dualslm.model.llm import FrozenLM
from dualslm.prompt import Text, render
from dualslm.tiny import world
from dualslm.tiny.style import ATTRIBUTES, sample_style

BATCH_SIZE = 100  # prompts


def evaluate(folder: Path, *, n: int = 500, device: str = "cpu") -> dict[str, Any]:
    """The share of exact answers in percent, each with its interval and n.

    Args:
        folder: folder of the LLM.
        n: number of held-out sentences.
        device: where the LLM runs, such as "cpu".
    """
    llm = FrozenLM.from_pretrained(str(folder), device=device)
    rng = random.Random("llm exam")
    drawn = [(world.sample_utterance(rng, held_out=True, kinds=("event",)), sample_style(rng)) for _ in range(n)]
    speeches = [
        Speech(transcript=utterance.text, caption=world.caption(style), labels=style.labels())
        for utterance, style in drawn
    ]
    # One generator draws all tasks: their order here is part of what the figures in card.json mean.
    exact = {"transcription": _exact(llm, [world.transcription(speech, rng) for speech in speeches])}
    for name in ATTRIBUTES:
        exact[name] = _exact(llm, [world.questions(speech, rng, (name,)) for speech in speeches])
    samples = [world.sample_talk(rng, speech, *pair) for speech, pair in zip(speeches, drawn, strict=True)]
    exact["dialogue"] = _exact(llm, [sample.conversation.copy().assistant(sample.reply.text) for sample in samples])
    return {name: {k: round(v, 2) for k, v in asdict(share(right)).items()} for name, right in exact.items()}


def _exact(llm: FrozenLM, conversations: Sequence[Conversation]) -> list[bool]:
    """Whether the LLM's answer is the last turn of each conversation, word for word."""
    exact: list[bool] = []
    for start in range(0, len(conversations), BATCH_SIZE):
        batch = conversations[start : start + BATCH_SIZE]
        answers = _answers(llm, batch)
        exact += [answer == one.turns[-1].parts[0] for answer, one in zip(answers, batch, strict=True)]
    return exact


def _answers(llm: FrozenLM, conversations: Sequence[Conversation]) -> list[str]:
    """The LLM's answers in place of the last turns."""
    rows = []
    for conversation in conversations:
        prompt = render(Conversation(conversation.system, conversation.turns[:-1]), llm.tokenizer, ORACLE)
        ids = [token for segment in prompt.segments if isinstance(segment, Text) for token in segment.ids]
        rows.append(llm.embed(torch.tensor(ids, device=llm.device)))
    answers: list[list[int]] = [[] for _ in conversations]
    for tokens in llm.decode(llm.prefill(rows), GenerationSettings(max_new_tokens=64)):
        for answer, token in zip(answers, tokens, strict=True):
            answer += [] if token is None else [token]  # None: this row has ended and waits for the others
    return [llm.tokenizer.decode(answer, skip_special_tokens=True) for answer in answers]
