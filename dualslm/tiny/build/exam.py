"""The figures of the tiny world: what comes through each channel, and how well it answers (Tables I, III and IV
in miniature).

Everything is asked in words and answered by the frozen LLM. Leak cells stand beside: what a channel should not
know.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict

from dualslm.conversation import (
    CAPTION_AND_L,
    L_ONLY,
    NORMAL,
    P_AND_TRANSCRIPT,
    P_ONLY,
    Conversation,
    Part,
    View,
)
from dualslm.evaluation.metrics import Figure, share, word_error_rate
from dualslm.model.dualslm import DualSLM
from dualslm.model.generation import GenerationSettings
from dualslm.prompt import render
from dualslm.tiny import world
from dualslm.tiny.build.recordings import Recordings, Take
from dualslm.tiny.style import ATTRIBUTES

SLOTS = ("tone", "content", "memory")
Figures = dict[str, dict[str, object]]
Say = Callable[[str], None]


def examine(
    model: DualSLM,
    sets: dict[str, Recordings],
    *,
    asked: Sequence[str] = tuple(ATTRIBUTES),
    batch: int = 100,
    longest: int = 48,
    say: Say = print,
) -> Figures:
    """All figures on each set of recordings.

    Args:
        model: with trained adapters.
        sets: by name, for example "seen" and "unseen" voices.
        asked: the attributes that are asked about.
        batch: prompts answered side by side.
        longest: tokens of an answer.
        say: gets a line for each figure.

    Returns:
        Figures by a key such as "seen/wer/none,speech": value, low, high (percent) and n.
    """
    found: Figures = {}
    for name, recordings in sets.items():
        desk = _Desk(model, recordings, batch, GenerationSettings(max_new_tokens=longest))
        for key, figure in {**desk.words(), **desk.attributes(asked), **desk.replies(), **desk.remembered()}.items():
            found[f"{name}/{key}"] = asdict(figure)
            say(f"{name}/{key:<40} {figure}")
    return found


class _Desk:
    """Examines one set of recordings."""

    def __init__(self, model: DualSLM, recordings: Recordings, batch: int, generation: GenerationSettings) -> None:
        self.model, self.recordings, self.batch, self.generation = model, recordings, batch, generation

    def words(self) -> dict[str, Figure]:
        """Word error rates by view."""
        right = [take.utterance.text for take in self.recordings.takes]
        conversations = [
            _question(world.transcription(take.speech, random.Random(f"exam/{index}")))
            for index, take in enumerate(self.recordings.takes)
        ]
        views = (L_ONLY, NORMAL, CAPTION_AND_L)
        return {f"wer/{view}": word_error_rate(right, self._answers(conversations, view)) for view in views}

    def attributes(self, asked: Sequence[str]) -> dict[str, Figure]:
        """Accuracy of each attribute by view; an answer that names no choice, or two, is wrong."""
        found = {}
        for attribute in asked:
            conversations = [
                _question(world.questions(take.speech, random.Random(f"exam/{index}"), (attribute,)))
                for index, take in enumerate(self.recordings.takes)
            ]
            truth = [take.speech.labels[attribute] for take in self.recordings.takes]
            for view in (P_ONLY, NORMAL, L_ONLY):
                heard = [world.chosen(answer, attribute) for answer in self._answers(conversations, view)]
                found[f"{attribute}/{view}"] = share([a == b for a, b in zip(heard, truth, strict=True)])
            most = max(truth.count(value) for value in set(truth))
            found[f"{attribute}/majority"] = share([True] * most + [False] * (len(truth) - most))
        return found

    def replies(self) -> dict[str, Figure]:
        """Which parts of the reply are those that a good listener gives, by view."""
        drawn = [
            world.sample_talk(random.Random(f"exam/{index}"), take.speech, take.utterance, take.style)
            for index, take in enumerate(self.recordings.takes)
        ]
        found = {}
        for view in (NORMAL, L_ONLY, P_ONLY, P_AND_TRANSCRIPT, CAPTION_AND_L):
            answers = self._answers([conversation.conversation for conversation in drawn], view)
            marks = [
                world.check(answer, conversation.reply) for answer, conversation in zip(answers, drawn, strict=True)
            ]
            for slot in SLOTS:
                found[f"reply {slot}/{view}"] = share([mark[slot] for mark in marks])
            found[f"reply/{view}"] = share([all(mark.values()) for mark in marks])
        return found

    def remembered(self) -> dict[str, Figure]:
        """Whether the reply ends with the fact that was said aloud earlier; nothing where no facts were recorded."""
        if not self.recordings.told:
            return {}
        conversations = [self._after_a_fact(take, index) for index, take in enumerate(self.recordings.takes)]
        answers = self._answers([conversation.conversation for conversation in conversations], NORMAL)
        right = [
            world.check(answer, conversation.reply)["memory"]
            for answer, conversation in zip(answers, conversations, strict=True)
        ]
        return {f"reply memory of speech/{NORMAL}": share(right)}

    def _after_a_fact(self, take: Take, index: int) -> world.Talk:
        """A talk that ends with a take, and before it a spoken fact among typed small talk."""

        def earlier(rng: random.Random, kind: world.Kind) -> tuple[world.Utterance, Part]:
            told = rng.choice(self.recordings.told)
            return (told.utterance, told.speech) if kind == "fact" else world.typed(rng, kind)

        draws = (random.Random(f"exam/{index}/{number}") for number in itertools.count())
        conversations = (world.sample_talk(rng, take.speech, take.utterance, take.style, earlier) for rng in draws)
        return next(conversation for conversation in conversations if conversation.memory)

    def _answers(self, conversations: Sequence[Conversation], view: View) -> list[str]:
        prompts = [render(conversation, self.model.llm.tokenizer, view) for conversation in conversations]
        answers: list[str] = []
        for start in range(0, len(prompts), self.batch):
            some = prompts[start : start + self.batch]
            answers += self.model.generate(some, hear=self.recordings.hear, generation=self.generation)
        return answers


def _question(conversation: Conversation) -> Conversation:
    """The talk without its answer."""
    return Conversation(conversation.system, conversation.turns[:-1])
