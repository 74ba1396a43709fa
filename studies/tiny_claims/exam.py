"""What the study asks a model about every test utterance: counts by utterance, so that rows can be compared in pairs.

Companies name what stands in the prompt: "both" is normal use, "P" and "L" one channel alone, "caption+L" and
"P+transcript" one channel replaced by its text. A single adapter has one channel: "both" is it, alone.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import TypeAlias

import torch

from dualslm.conversation import Conversation, View
from dualslm.evaluation.metrics.wer import word_errors, words
from dualslm.model.dualslm import DualSLM
from dualslm.model.generation import GenerationSettings
from dualslm.prompt import render
from dualslm.tiny import world
from dualslm.tiny.build.recordings import Recordings, Take

Marks: TypeAlias = dict[str, list[list[float]]]
"""By key such as "words/L": [part, whole] of each utterance; a figure is the sum of parts by the sum of wholes."""

VIEWS = {
    "both": View(),
    "P": View("speech", "none"),
    "L": View("none", "speech"),
    "caption+L": View("text", "speech"),
    "P+transcript": View("speech", "text"),
}
TEXT = View("text", "text")
ASKED = {  # the companies of each question
    "words": ("both", "L", "caption+L"),
    "emotion": ("both", "P", "L"),
    "energy": ("both", "P", "L"),
    "reply": ("both", "caption+L", "P+transcript"),
}
LONGEST = {"words": 24, "emotion": 12, "energy": 12, "reply": 48}  # tokens of an answer
DEPTHS = (0, 1, 2, 3, 5)  # exchanges before the last turn; the LLM itself was trained on 0 to 3


def examine(model: DualSLM, tested: Recordings, *, single: bool) -> Marks:
    """All marks of a model.

    Args:
        model: with trained adapters.
        tested: the utterances.
        single: P stays out of every prompt, for it does not exist.
    """
    found: Marks = {}
    for question, companies in ASKED.items():
        for company in ("both",) if single else companies:
            view = View("none", "speech") if single else VIEWS[company]
            found |= _marked(model, tested, question, company, view)
    for company in ("both",) if single else ASKED["words"]:
        view = View("none", "speech") if single else VIEWS[company]
        found[f"nats/{company}"] = _nats(model, tested, view)
    return found


def context(model: DualSLM, tested: Recordings) -> Marks:
    """Whether the reply still remembers what was told so many exchanges before; and the LLM that reads the text."""
    found: Marks = {}
    for depth in DEPTHS:
        drawn = [_deep(take, depth) for take in tested.takes]
        for company, view in (("both", VIEWS["both"]), ("text", TEXT)):
            answers = _answers(
                model, tested, [conversation.conversation for conversation in drawn], view, LONGEST["reply"]
            )
            marks = [
                world.check(answer, conversation.reply) for answer, conversation in zip(answers, drawn, strict=True)
            ]
            for slot in ("content", "memory"):
                found[f"depth {depth} {slot}/{company}"] = [[int(mark[slot]), 1] for mark in marks]
    return found


def _marked(model: DualSLM, tested: Recordings, question: str, company: str, view: View) -> Marks:
    takes = tested.takes
    rngs = [random.Random(f"exam/{index}") for index in range(len(takes))]
    if question == "reply":
        drawn = [world.sample_talk(rng, t.speech, t.utterance, t.style) for rng, t in zip(rngs, takes, strict=True)]
        answers = _answers(
            model, tested, [conversation.conversation for conversation in drawn], view, LONGEST[question]
        )
        marks = [world.check(answer, conversation.reply) for answer, conversation in zip(answers, drawn, strict=True)]
        slots = {f"{slot}/{company}": [[int(mark[slot]), 1] for mark in marks] for slot in marks[0]}
        return {**slots, f"reply/{company}": [[int(all(mark.values())), 1] for mark in marks]}
    if question == "words":
        asked = [_unanswered(world.transcription(t.speech, rng)) for rng, t in zip(rngs, takes, strict=True)]
        answers = _answers(model, tested, asked, view, LONGEST[question])
        pairs = [(words(t.utterance.text), words(answer)) for t, answer in zip(takes, answers, strict=True)]
        return {f"words/{company}": [[word_errors(a, b), len(a)] for a, b in pairs]}
    asked = [_unanswered(world.questions(t.speech, rng, (question,))) for rng, t in zip(rngs, takes, strict=True)]
    heard = [world.chosen(answer, question) for answer in _answers(model, tested, asked, view, LONGEST[question])]
    right = [a == t.speech.labels[question] for a, t in zip(heard, takes, strict=True)]
    return {f"{question}/{company}": [[int(one), 1] for one in right]}


@torch.no_grad()
def _nats(model: DualSLM, tested: Recordings, view: View) -> list[list[float]]:
    """How unlikely the right words are, in nats, and how many tokens they have: tells apart what all misread."""
    asked = [world.transcription(t.speech, random.Random(f"exam/{i}")) for i, t in enumerate(tested.takes)]
    prompts = [render(conversation, model.llm.tokenizer, view, supervise="last") for conversation in asked]
    loss = model(prompts, tested.hear)
    return [[round(nll, 4), tokens] for nll, tokens in zip(loss.nll_B.tolist(), loss.tokens_B.tolist(), strict=True)]


def _answers(
    model: DualSLM, tested: Recordings, conversations: Sequence[Conversation], view: View, longest: int
) -> list[str]:
    prompts = [render(conversation, model.llm.tokenizer, view) for conversation in conversations]
    return model.generate(prompts, hear=tested.hear, generation=GenerationSettings(max_new_tokens=longest))


def _unanswered(conversation: Conversation) -> Conversation:
    return Conversation(conversation.system, conversation.turns[:-1])


def _deep(take: Take, depth: int) -> world.Talk:
    """A talk with so many exchanges before its last turn, a fact among them where there are any."""
    within = min(depth, 3)
    for attempt in itertools.count():
        rng = random.Random(f"depth/{within}/{take.speech.audio!s}/{attempt}")
        conversation = world.sample_talk(rng, take.speech, take.utterance, take.style)
        exchanges = len(conversation.conversation.turns) // 2
        if exchanges == within and (conversation.memory is not None) == (within > 0):
            break
    earlier = Conversation(conversation.conversation.system)
    for _ in range(depth - within):
        said, part = world.typed(rng, "small")
        assert said.family is not None
        earlier.user(part).assistant(said.family.content)
    earlier.turns += conversation.conversation.turns
    return world.Talk(earlier, conversation.reply, conversation.memory)
