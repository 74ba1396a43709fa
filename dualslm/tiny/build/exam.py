"""The figures of the tiny world: what comes through each channel, and how good the replies are (Tables I, III and IV
in miniature).

Everything is asked in words and answered by the frozen LLM. Leak figures are measured too: what a channel answers about
things that it should not know.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

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
from dualslm.evaluation.metrics.figure import Figure, share
from dualslm.evaluation.metrics.wer import word_error_rate
from dualslm.model.dualslm import DualSLM
from dualslm.model.generation import GenerationSettings
from dualslm.prompt import render
from dualslm.tiny import world
from dualslm.tiny.build.recordings import Recordings, Take
from dualslm.tiny.style import ATTRIBUTES

REPLY_PARTS = ("tone", "content", "memory")
Figures = dict[str, dict[str, object]]


def examine(
    model: DualSLM,
    sets: dict[str, Recordings],
    *,
    asked: Sequence[str] = tuple(ATTRIBUTES),
    batch_size: int = 100,
    max_new_tokens: int = 48,
    show: Callable[[str], None] = print,
) -> Figures:
    """Measures all figures on each set of recordings.

    Args:
        model: model with trained adapters.
        sets: sets of recordings by name, such as "seen" and "unseen" voices.
        asked: attributes to ask for.
        batch_size: number of prompts of a batch.
        max_new_tokens: limit of an answer, in tokens.
        show: function that gets a line for each figure.

    Returns:
        Figures by a key such as "seen/wer/none,speech": value, low and high in percent, and n.
    """
    figures: Figures = {}
    for name, recordings in sets.items():
        examiner = _Examiner(model, recordings, batch_size, GenerationSettings(max_new_tokens=max_new_tokens))
        for measure in (
            examiner.words(),
            examiner.attributes(asked),
            examiner.replies(),
            examiner.memory_of_speech(),
        ):
            for key, figure in measure.items():
                figures[f"{name}/{key}"] = asdict(figure)
                show(f"{name}/{key:<40} {figure}")
    return figures


@dataclass(frozen=True)
class _Examiner:
    """Asks a model about one set of recordings.

    Every question is drawn with the seed "exam/INDEX", so that all views and all models get the same wording.
    """

    model: DualSLM
    recordings: Recordings
    batch_size: int
    generation: GenerationSettings

    def words(self) -> dict[str, Figure]:
        """Word error rates by view."""
        right = [take.utterance.text for take in self.recordings.takes]
        conversations = [
            without_answer(world.transcription(take.speech, random.Random(f"exam/{index}")))
            for index, take in enumerate(self.recordings.takes)
        ]
        views = (L_ONLY, NORMAL, CAPTION_AND_L)
        return {f"wer/{view}": word_error_rate(right, self._answers(conversations, view)) for view in views}

    def attributes(self, asked: Sequence[str]) -> dict[str, Figure]:
        """Accuracy of each attribute by view; an answer that names no choice, or two, is wrong."""
        figures = {}
        for attribute in asked:
            conversations = [
                without_answer(world.questions(take.speech, random.Random(f"exam/{index}"), (attribute,)))
                for index, take in enumerate(self.recordings.takes)
            ]
            truth = [take.speech.labels[attribute] for take in self.recordings.takes]
            for view in (P_ONLY, NORMAL, L_ONLY):
                answers = [world.chosen(answer, attribute) for answer in self._answers(conversations, view)]
                figures[f"{attribute}/{view}"] = share([a == b for a, b in zip(answers, truth, strict=True)])
            # What always naming the commonest value would score: a leak is no leak below it.
            most = max(truth.count(value) for value in set(truth))
            figures[f"{attribute}/majority"] = share([True] * most + [False] * (len(truth) - most))
        return figures

    def replies(self) -> dict[str, Figure]:
        """Which parts of the reply are those that a good listener gives, by view."""
        samples = [
            world.sample_talk(random.Random(f"exam/{index}"), take.speech, take.utterance, take.style)
            for index, take in enumerate(self.recordings.takes)
        ]
        figures = {}
        for view in (NORMAL, L_ONLY, P_ONLY, P_AND_TRANSCRIPT, CAPTION_AND_L):
            answers = self._answers([sample.conversation for sample in samples], view)
            correct = [world.check(answer, sample.reply) for answer, sample in zip(answers, samples, strict=True)]
            for part in REPLY_PARTS:
                figures[f"reply {part}/{view}"] = share([parts[part] for parts in correct])
            figures[f"reply/{view}"] = share([all(parts.values()) for parts in correct])
        return figures

    def memory_of_speech(self) -> dict[str, Figure]:
        """How often the reply uses a fact that an earlier turn said aloud; nothing where no facts were recorded."""
        if not self.recordings.facts:
            return {}
        samples = [self._after_spoken_fact(take, index) for index, take in enumerate(self.recordings.takes)]
        answers = self._answers([sample.conversation for sample in samples], NORMAL)
        right = [world.check(answer, sample.reply)["memory"] for answer, sample in zip(answers, samples, strict=True)]
        return {f"reply memory of speech/{NORMAL}": share(right)}

    def _after_spoken_fact(self, take: Take, index: int) -> world.ConversationSample:
        """A conversation that ends with a take, and before it has a spoken fact among typed small talk."""

        def earlier(rng: random.Random, kind: world.Kind) -> tuple[world.Utterance, Part]:
            fact = rng.choice(self.recordings.facts)
            return (fact.utterance, fact.speech) if kind == "fact" else world.typed(rng, kind)

        number = 0
        while True:  # some conversations have no fact at all: draw until one has
            rng = random.Random(f"exam/{index}/{number}")
            sample = world.sample_talk(rng, take.speech, take.utterance, take.style, earlier)
            if sample.memory:
                return sample
            number += 1

    def _answers(self, conversations: Sequence[Conversation], view: View) -> list[str]:
        prompts = [render(conversation, self.model.llm.tokenizer, view) for conversation in conversations]
        answers: list[str] = []
        for start in range(0, len(prompts), self.batch_size):
            batch = prompts[start : start + self.batch_size]
            answers += self.model.generate(batch, hear=self.recordings.hear, generation=self.generation)
        return answers


def without_answer(conversation: Conversation) -> Conversation:
    """A conversation without its last turn."""
    return Conversation(conversation.system, conversation.turns[:-1])
