"""What comes through each channel, on speakers that nothing was learnt from: asked in words, answered by the LLM.

P, L and both are asked for emotion, gender and the words; what a channel should not know stands beside (leak).
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
from dualslm.data.tasks import ATTRIBUTES, last_clip, one_task
from dualslm.evaluation.metrics.figure import Figure, share
from dualslm.evaluation.metrics.wer import word_error_rate, words
from dualslm.model.dualslm import DualSLM
from dualslm.model.encoder import Frames
from dualslm.model.generation import GenerationSettings
from dualslm.prompt import render
from studies.real_speech.wording import EMOTIONS

TOLD = {"P": P_ONLY, "L": L_ONLY, "P and L": NORMAL}
AT_ONCE = 60
CHOICES: Mapping[str, Sequence[str]] = {"emotion": EMOTIONS, "gender": ATTRIBUTES["gender"].values}
Hear = Callable[[Sequence[Speech]], Frames]
Question = list[tuple[Conversation, Mapping[str, Any]]]


def questions(manifests: Sequence[Path], task: str, seed: int = 0) -> Question:
    """One talk for every recording of some manifests that a task can be asked of, without its answer, and the clip."""
    found = []
    for path in manifests:
        for _, row in rows(path):
            if task in row["tasks"]:
                asked = one_task(row, task, seed)
                conversation = read_conversation(asked, path.parent, seed)
                found.append((Conversation(conversation.system, conversation.turns[:1]), last_clip(row)))
    return found


def answers(model: DualSLM, asked: Question, view: View, hear: Hear | None, longest: int = 24) -> list[str]:
    """What the LLM says."""
    prompts = [render(conversation, model.llm.tokenizer, view) for conversation, _ in asked]
    said: list[str] = []
    for start in range(0, len(prompts), AT_ONCE):
        said += model.generate(
            prompts[start : start + AT_ONCE], hear=hear, generation=GenerationSettings(max_new_tokens=longest)
        )
    return said


def named(answer: str, choices: Sequence[str]) -> str | None:
    """The one choice that an answer names; None where it names none or several."""
    said = set(words(answer))
    found = [choice for choice in choices if choice in said]
    return found[0] if len(found) == 1 else None


def attribute(
    model: DualSLM, asked: Question, name: str, view: View, hear: Hear | None = None
) -> tuple[Figure, list[Any]]:
    """How often the right value is named, and what was named for what."""
    heard = [named(answer, CHOICES[name]) for answer in answers(model, asked, view, hear)]
    pairs = [(clip["labels"][name], value) for (_, clip), value in zip(asked, heard, strict=True)]
    return share([right == value for right, value in pairs]), pairs


def ceiling(model: DualSLM, manifests: Sequence[Path]) -> dict[str, Any]:
    """What the LLM answers when it reads caption and transcript: nothing that is heard can do better."""
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
        for told, view in TOLD.items():
            figure, pairs = attribute(model, asked, name, view, hear)
            found[f"{name}, {told}"] = asdict(figure)
            if name == "emotion" and told == "P":
                found["confusion"] = confusion(pairs)
        truth = Counter(clip["labels"][name] for _, clip in asked)
        most = max(truth.values())
        found[f"{name}, commonest"] = asdict(share([True] * most + [False] * (len(asked) - most)))
    asked = questions(manifests, "asr")
    for told, view in TOLD.items():
        found[f"words, {told}"] = _words(model, asked, view, hear)
    return found


def confusion(pairs: Sequence[tuple[str, str | None]]) -> list[list[int]]:
    """Rows: what was acted; columns: what was named, the last one for answers that name none or several."""
    counts = Counter(pairs)
    return [[counts[right, value] for value in (*EMOTIONS, None)] for right in EMOTIONS]


def swap(model: DualSLM, manifests: Sequence[Path], hear: Hear | None = None) -> dict[str, Any]:
    """P of an angry clip with L of a calm one: how often the talk is heard as angry, and its words as the calm one's.

    Both clips are of one actor; the calm one says the other sentence.
    """
    asked = questions(manifests, "emotion")
    by = {emotion: [one for one in asked if one[1]["labels"]["emotion"] == emotion] for emotion in ("angry", "calm")}
    pairs = [(tone, said) for tone in by["angry"] if (said := _partner(tone, by["calm"]))]
    emotion = [(_swapped(said[0], tone[0]), said[1]) for tone, said in pairs]
    heard = [named(answer, EMOTIONS) for answer in answers(model, emotion, NORMAL, hear)]
    alone = [named(answer, EMOTIONS) for answer in answers(model, [said for _, said in pairs], NORMAL, hear)]
    again = [named(answer, EMOTIONS) for answer in answers(model, [tone for tone, _ in pairs], NORMAL, hear)]
    system = one_task_system(manifests)
    spoken = [(Conversation(system, _swapped(said[0], tone[0]).turns), said[1]) for tone, said in pairs]
    written = answers(model, spoken, NORMAL, hear)
    right = [words(answer) == words(clip["transcript"]) for answer, (_, clip) in zip(written, spoken, strict=True)]
    figures = {
        "heard as angry": share([value == "angry" for value in heard]),
        "heard as calm": share([value == "calm" for value in heard]),
        "the calm clip itself heard as angry": share([value == "angry" for value in alone]),
        "the angry clip itself heard as angry": share([value == "angry" for value in again]),
        "the calm clip's words written down": share(right),
    }
    return {name: asdict(figure) for name, figure in figures.items()}


def _partner(
    tone: tuple[Conversation, Mapping[str, Any]], calm: Question
) -> tuple[Conversation, Mapping[str, Any]] | None:
    """A calm clip of the same actor with the other sentence and, where there is one, a place of its own."""
    actor = Path(tone[1]["audio"]).stem[-2:]
    own = [c for c in calm if Path(c[1]["audio"]).stem[-2:] == actor and c[1]["transcript"] != tone[1]["transcript"]]
    return random.Random(str(tone[1]["audio"])).choice(own) if own else None


def _swapped(said: Conversation, tone: Conversation) -> Conversation:
    speech = said.turns[0].speeches[0].in_the_tone_of(tone.turns[0].speeches[0])
    return Conversation(said.system).user(speech)


def one_task_system(manifests: Sequence[Path]) -> str:
    """A system text that asks for the words."""
    system = questions(manifests[:1], "asr")[0][0].system
    assert system is not None
    return system


def spoken(
    model: DualSLM,
    manifests: Sequence[Path],
    hear: Hear | None = None,
    longest: int = 24,
    told: Sequence[str] = ("L", "P and L"),
) -> dict[str, Any]:
    """Words alone, by view: digits, or LibriSpeech."""
    asked = questions(manifests, "asr")
    return {f"words, {name}": _words(model, asked, TOLD[name], hear, longest) for name in told}


def _words(model: DualSLM, asked: Question, view: View, hear: Hear | None, longest: int = 24) -> dict[str, Any]:
    said = answers(model, asked, view, hear, longest)
    right = [clip["transcript"] for _, clip in asked]
    whole = share([words(a) == words(b) for a, b in zip(said, right, strict=True)])
    return {"wer": asdict(word_error_rate(right, said)), "exact": asdict(whole)}


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
