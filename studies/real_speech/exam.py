"""What comes through each channel, on speakers outside the training data: asked in words, answered by the LLM.

P, L and both are asked for the emotion, the gender and the words; a leak is what a channel answers about things that it
should not know.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dualslm.conversation import L_ONLY, NORMAL, ORACLE, P_ONLY, Conversation, Speech, View
from dualslm.data.manifest import read_conversation
from dualslm.data.manifest_index import rows
from dualslm.data.tasks import last_clip, one_task
from dualslm.data.tasks.attributes import ATTRIBUTES
from dualslm.evaluation.metrics.figure import Figure, share
from dualslm.evaluation.metrics.wer import word_error_rate, words
from dualslm.model.dualslm import DualSLM
from dualslm.model.encoder import Frames
from dualslm.model.generation import GenerationSettings
from dualslm.prompt import render
from studies.real_speech.wording import EMOTIONS

VIEWS = {"P": P_ONLY, "L": L_ONLY, "P and L": NORMAL}
BATCH = 60  # prompts
MAX_NEW_TOKENS = 24  # of an answer
CHOICES: Mapping[str, Sequence[str]] = {"emotion": EMOTIONS, "gender": ATTRIBUTES["gender"].values}
Hear = Callable[[Sequence[Speech]], Frames]
Question = tuple[Conversation, Mapping[str, Any]]
"""A conversation without its answer, and the manifest's entry of its recording, with transcript and labels."""


def questions(manifests: Sequence[Path], task: str, seed: int = 0) -> list[Question]:
    """One question for each recording of some manifests that has a task.

    Args:
        manifests: files of the manifests.
        task: name of the task, such as "emotion".
        seed: seed of the wording.
    """
    found = []
    for path in manifests:
        for _, row in rows(path):
            if task in row["tasks"]:
                asked = one_task(row, task, seed)
                conversation = read_conversation(asked, path.parent, seed)
                found.append((Conversation(conversation.system, conversation.turns[:1]), last_clip(row)))
    return found


def answers(
    model: DualSLM,
    asked: Sequence[Question],
    view: View,
    hear: Hear | None,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> list[str]:
    """The LLM's answers.

    Args:
        model: model that is asked.
        asked: questions.
        view: what stands in the prompt for each channel.
        hear: function that gives the frames of recordings; None encodes them.
        max_new_tokens: limit of an answer, in tokens.
    """
    prompts = [render(conversation, model.llm.tokenizer, view) for conversation, _ in asked]
    generation = GenerationSettings(max_new_tokens=max_new_tokens)
    found: list[str] = []
    for start in range(0, len(prompts), BATCH):
        found += model.generate(prompts[start : start + BATCH], hear=hear, generation=generation)
    return found


def named(answer: str, choices: Sequence[str]) -> str | None:
    """The one choice that an answer names; None where it names none or several."""
    answered = set(words(answer))
    found = [choice for choice in choices if choice in answered]
    return found[0] if len(found) == 1 else None


def attribute(
    model: DualSLM, asked: Sequence[Question], name: str, view: View, hear: Hear | None = None
) -> tuple[Figure, list[Any]]:
    """The accuracy of an attribute, and the pairs of label and answer."""
    values = [named(answer, CHOICES[name]) for answer in answers(model, asked, view, hear)]
    pairs = [(clip["labels"][name], value) for (_, clip), value in zip(asked, values, strict=True)]
    return share([right == value for right, value in pairs]), pairs


def ceiling(model: DualSLM, manifests: Sequence[Path]) -> dict[str, Any]:
    """The figures when the LLM reads caption and transcript: no adapter can do better."""
    found: dict[str, Any] = {}
    for name in CHOICES:
        found[name] = asdict(attribute(model, questions(manifests, name), name, ORACLE)[0])
    found["words"] = _words(model, questions(manifests, "asr"), ORACLE, None)
    return found


def voices(model: DualSLM, manifests: Sequence[Path], hear: Hear | None = None) -> dict[str, Any]:
    """Emotion, gender and words of RAVDESS by view, the confusions of P, and the commonest emotion's share."""
    found: dict[str, Any] = {}
    for name in CHOICES:
        asked = questions(manifests, name)
        for channel, view in VIEWS.items():
            figure, pairs = attribute(model, asked, name, view, hear)
            found[f"{name}, {channel}"] = asdict(figure)
            if name == "emotion" and channel == "P":
                found["confusion"] = confusion(pairs)
        # RAVDESS has half as many neutral clips as others: chance is not one in eight.
        truth = Counter(clip["labels"][name] for _, clip in asked)
        most = max(truth.values())
        found[f"{name}, commonest"] = asdict(share([True] * most + [False] * (len(asked) - most)))
    asked = questions(manifests, "asr")
    for channel, view in VIEWS.items():
        found[f"words, {channel}"] = _words(model, asked, view, hear)
    return found


def confusion(pairs: Sequence[tuple[str, str | None]]) -> list[list[int]]:
    """Counts by acted emotion (rows) and answered emotion (columns); the last column is for no answer or several."""
    counts = Counter(pairs)
    return [[counts[right, value] for value in (*EMOTIONS, None)] for right in EMOTIONS]


def swap(model: DualSLM, manifests: Sequence[Path], hear: Hear | None = None) -> dict[str, Any]:
    """How a prompt with P of an angry clip and L of a calm one is answered: with which emotion, and with which words.

    Both clips are of one actor, and the calm one says the other sentence.
    """
    asked = questions(manifests, "emotion")
    by = {emotion: [one for one in asked if one[1]["labels"]["emotion"] == emotion] for emotion in ("angry", "calm")}
    pairs = [(angry, calm) for angry in by["angry"] if (calm := _partner(angry, by["calm"]))]

    def emotions(some: Sequence[Question]) -> list[str | None]:
        return [named(answer, EMOTIONS) for answer in answers(model, some, NORMAL, hear)]

    swapped = emotions([(_swapped(calm[0], angry[0]), calm[1]) for angry, calm in pairs])
    # The two clips by themselves: without them, "angry" for a swap might be what the model says of any clip.
    calm_alone = emotions([calm for _, calm in pairs])
    angry_alone = emotions([angry for angry, _ in pairs])
    system = questions(manifests[:1], "asr")[0][0].system
    assert system is not None
    transcribed = [(Conversation(system, _swapped(calm[0], angry[0]).turns), calm[1]) for angry, calm in pairs]
    written = answers(model, transcribed, NORMAL, hear)
    right = [words(answer) == words(clip["transcript"]) for answer, (_, clip) in zip(written, transcribed, strict=True)]
    figures = {
        "heard as angry": share([value == "angry" for value in swapped]),
        "heard as calm": share([value == "calm" for value in swapped]),
        "the calm clip itself heard as angry": share([value == "angry" for value in calm_alone]),
        "the angry clip itself heard as angry": share([value == "angry" for value in angry_alone]),
        "the calm clip's words written down": share(right),
    }
    return {name: asdict(figure) for name, figure in figures.items()}


def _partner(angry: Question, calm: Sequence[Question]) -> Question | None:
    """A calm clip of the same actor with the other sentence; None where there is none."""
    audio = str(angry[1]["audio"])
    actor = Path(audio).stem[-2:]  # the last field of RAVDESS' file names
    own = [c for c in calm if Path(c[1]["audio"]).stem[-2:] == actor and c[1]["transcript"] != angry[1]["transcript"]]
    return random.Random(audio).choice(own) if own else None


def _swapped(words_of: Conversation, tone_of: Conversation) -> Conversation:
    speech = words_of.turns[0].speeches[0].in_the_tone_of(tone_of.turns[0].speeches[0])
    return Conversation(words_of.system).user(speech)


def spoken(
    model: DualSLM,
    manifests: Sequence[Path],
    hear: Hear | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    channels: Sequence[str] = ("L", "P and L"),
) -> dict[str, Any]:
    """The words of digits or of LibriSpeech, by channel.

    Args:
        model: model that is asked.
        manifests: files of the manifests.
        hear: function that gives the frames of recordings; None encodes them.
        max_new_tokens: limit of an answer, in tokens.
        channels: keys of `VIEWS`.
    """
    asked = questions(manifests, "asr")
    return {f"words, {name}": _words(model, asked, VIEWS[name], hear, max_new_tokens) for name in channels}


def _words(
    model: DualSLM,
    asked: Sequence[Question],
    view: View,
    hear: Hear | None,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> dict[str, Any]:
    """Word error rate and share of exact transcripts."""
    written = answers(model, asked, view, hear, max_new_tokens)
    right = [clip["transcript"] for _, clip in asked]
    exact = share([words(a) == words(b) for a, b in zip(written, right, strict=True)])
    return {"wer": asdict(word_error_rate(right, written)), "exact": asdict(exact)}


def line(found: Mapping[str, Any]) -> str:
    """The main figures in a line, for the terminal."""
    keys = ("emotion, P", "emotion, L", "emotion, P and L", "gender, P")
    parts = [f"{key} {found[key]['value']:.1f}" for key in keys if key in found]
    return "  ".join([*parts, json.dumps({k: round(v["exact"]["value"], 1) for k, v in found.items() if "words" in k})])


def tone(model: DualSLM, manifests: Sequence[Path], hear: Hear | None = None) -> dict[str, Any]:
    """Emotion and gender from P alone."""
    return {
        f"{name}, P": asdict(attribute(model, questions(manifests, name), name, P_ONLY, hear)[0]) for name in CHOICES
    }
