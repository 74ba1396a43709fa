"""What the study asks a model about every test utterance: counts by utterance, so that rows can be compared in pairs.

Sources name what stands in the prompt: "both" is normal use, "P" and "L" are one channel alone, "caption+L" and
"P+transcript" have one channel replaced by its text. For a single adapter "both" is its one channel.
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
from dualslm.tiny.build.exam import without_answer
from dualslm.tiny.build.recordings import Recordings, Take

Counts: TypeAlias = dict[str, list[list[float]]]
"""By measure such as "words/L": [part, whole] of each utterance; a figure is the sum of parts by the sum of wholes."""

VIEWS = {
    "both": View(),
    "P": View("speech", "none"),
    "L": View("none", "speech"),
    "caption+L": View("text", "speech"),
    "P+transcript": View("speech", "text"),
}
TEXT = View("text", "text")
ASKED = {  # the sources of each question
    "words": ("both", "L", "caption+L"),
    "emotion": ("both", "P", "L"),
    "energy": ("both", "P", "L"),
    "reply": ("both", "caption+L", "P+transcript"),
}
MAX_NEW_TOKENS = {"words": 24, "emotion": 12, "energy": 12, "reply": 48}  # tokens of an answer
DEPTHS = (0, 1, 2, 3, 5)  # exchanges before the last turn; the LLM itself was trained on 0 to 3


def examine(model: DualSLM, tested: Recordings, *, single: bool) -> Counts:
    """All counts of a model.

    Args:
        model: model with trained adapters.
        tested: test utterances.
        single: whether the model has L alone, so that P is left out of every prompt.
    """
    counts: Counts = {}
    views = {"both": View("none", "speech")} if single else VIEWS
    for question, sources in ASKED.items():
        for source in sources:
            if source in views:
                counts |= _counted(model, tested, question, source, views[source])
    for source in ASKED["words"]:
        if source in views:
            # How unlikely the right words are, in nats, and their number of tokens: it still tells models apart where
            # all of them misread nearly every word.
            asked = [world.transcription(t.speech, random.Random(f"exam/{i}")) for i, t in enumerate(tested.takes)]
            prompts = [render(one, model.llm.tokenizer, views[source], supervise="last") for one in asked]
            with torch.no_grad():
                loss = model(prompts, tested.hear)
            pairs = zip(loss.nll_B.tolist(), loss.tokens_B.tolist(), strict=True)
            counts[f"nats/{source}"] = [[round(nll, 4), tokens] for nll, tokens in pairs]
    return counts


def context(model: DualSLM, tested: Recordings) -> Counts:
    """The replies after histories of several lengths, from speech and, for comparison, from text alone.

    Args:
        model: model with trained adapters.
        tested: test utterances.
    """
    counts: Counts = {}
    for depth in DEPTHS:
        samples = [_with_history(take, depth) for take in tested.takes]
        for source, view in (("both", VIEWS["both"]), ("text", TEXT)):
            checked = _checked_replies(model, tested, samples, view)
            for part in ("content", "memory"):
                counts[f"depth {depth} {part}/{source}"] = [[int(parts[part]), 1] for parts in checked]
    return counts


def _counted(model: DualSLM, tested: Recordings, question: str, source: str, view: View) -> Counts:
    """The counts of one question by one view."""
    takes = tested.takes
    # The seeds of the shipped model's own exam: both ask in the same words.
    rngs = [random.Random(f"exam/{index}") for index in range(len(takes))]
    if question == "reply":
        samples = [world.sample_talk(rng, t.speech, t.utterance, t.style) for rng, t in zip(rngs, takes, strict=True)]
        checked = _checked_replies(model, tested, samples, view)
        counts: Counts = {f"{part}/{source}": [[int(parts[part]), 1] for parts in checked] for part in checked[0]}
        return {**counts, f"reply/{source}": [[int(all(parts.values())), 1] for parts in checked]}
    if question == "words":
        asked = [without_answer(world.transcription(t.speech, rng)) for rng, t in zip(rngs, takes, strict=True)]
        answers = _answers(model, tested, asked, view, MAX_NEW_TOKENS[question])
        pairs = [(words(t.utterance.text), words(answer)) for t, answer in zip(takes, answers, strict=True)]
        return {f"words/{source}": [[word_errors(a, b), len(a)] for a, b in pairs]}
    asked = [without_answer(world.questions(t.speech, rng, (question,))) for rng, t in zip(rngs, takes, strict=True)]
    answers = _answers(model, tested, asked, view, MAX_NEW_TOKENS[question])
    right = [world.chosen(a, question) == t.speech.labels[question] for a, t in zip(answers, takes, strict=True)]
    return {f"{question}/{source}": [[int(one), 1] for one in right]}


def _checked_replies(
    model: DualSLM, tested: Recordings, samples: Sequence[world.ConversationSample], view: View
) -> list[dict[str, bool]]:
    """Which parts of each reply are right."""
    answers = _answers(model, tested, [sample.conversation for sample in samples], view, MAX_NEW_TOKENS["reply"])
    return [world.check(answer, sample.reply) for answer, sample in zip(answers, samples, strict=True)]


def _answers(
    model: DualSLM, tested: Recordings, conversations: Sequence[Conversation], view: View, max_new_tokens: int
) -> list[str]:
    prompts = [render(conversation, model.llm.tokenizer, view) for conversation in conversations]
    return model.generate(prompts, hear=tested.hear, generation=GenerationSettings(max_new_tokens=max_new_tokens))


def _with_history(take: Take, depth: int) -> world.ConversationSample:
    """A conversation with so many exchanges before its last turn, one of them with a fact where there are any."""
    drawn_depth = min(depth, 3)  # the world draws three at most
    for attempt in itertools.count():
        rng = random.Random(f"depth/{drawn_depth}/{take.speech.audio!s}/{attempt}")
        sample = world.sample_talk(rng, take.speech, take.utterance, take.style)
        exchanges = len(sample.conversation.turns) // 2
        if exchanges == drawn_depth and (sample.memory is not None) == (drawn_depth > 0):
            break
    # Further exchanges go in front, so that the fact lies as deep as in the shorter history and the prompt is longer.
    longer = Conversation(sample.conversation.system)
    for _ in range(depth - drawn_depth):
        stated, part = world.typed(rng, "small")
        assert stated.family is not None
        longer.user(part).assistant(stated.family.content)
    longer.turns += sample.conversation.turns
    return world.ConversationSample(longer, sample.reply, sample.memory)
