"""Attributes of a voice, asked with a list of choices and answered in a sentence (paper §III-B).

An attribute is one entry of `ATTRIBUTES`: its values, the other spellings of them that corpora use, its
questions and its sentence. The choices are shuffled for every conversation, so that their order carries no
information.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dualslm.data.tasks.task import Clip
from dualslm.recipe import TaskKind

FRAMES = (
    "{question} Choices: {choices}. Answer in a sentence.",
    "Listen to the voice. {question} Choose from {choices}, and answer with one sentence.",
    "You judge how somebody speaks, not what is said. {question} The options are {choices}. Reply in a sentence.",
    "{question} It is one of these: {choices}. Say which one in a full sentence.",
    "Pay attention to how the user speaks. {question} ({choices}) Write one sentence.",
    "You are an expert in voices. {question} Pick one of {choices} and put it in a sentence.",
    "Here is a recording. {question} Possible answers: {choices}. One sentence, please.",
    "Tell what you hear in the voice and do not reply to the words. {question} Select from {choices}; use a sentence.",
    "{question} Decide between {choices} and state your decision in one sentence.",
)
# In these frames, with questions of their own, evaluation asks for a second figure; training never does.
UNSEEN_FRAMES = (
    "Ignore the meaning of the words. {question} Your options: {choices}. Give a complete sentence.",
    "A colleague wants to know about this voice message. {question} Say whether it is {choices}, in a sentence.",
    "{question} Only one of {choices} is right. State it as a sentence.",
)


@dataclass(frozen=True)
class Attribute:
    """One attribute of a voice.

    Attributes:
        name: name of the attribute, and its key in a recording's `labels`.
        values: choices, where a recording does not name its own `choices`.
        questions: wordings of the question, each used in every one of `FRAMES`.
        unseen_questions: wordings for `UNSEEN_FRAMES`.
        sentence: template of the answer, with the field {value}.
        spellings: other spellings of the values in corpora, in lower case → our spelling.
        kind: kind of the task.
        metric: metric of the answers; "wa" is the accuracy.
    """

    name: str
    values: tuple[str, ...]
    questions: tuple[str, ...]
    unseen_questions: tuple[str, ...]
    sentence: str
    spellings: Mapping[str, str] = field(default_factory=dict)
    kind: TaskKind = "paralinguistic"
    metric: str = "wa"

    @property
    def prompts(self) -> tuple[str, ...]:
        """Every frame with every question; the field {choices} is left unfilled."""
        return _filled(FRAMES, self.questions)

    @property
    def unseen_prompts(self) -> tuple[str, ...]:
        """Every frame with every question that no training draws."""
        return _filled(UNSEEN_FRAMES, self.unseen_questions)

    def value(self, clip: Clip) -> str | None:
        """The recording's value in our spelling; None where it is unknown."""
        label = (clip.get("labels") or {}).get(self.name)
        if label is None:
            return None
        text = str(label).strip().lower()
        # Unknown spellings are kept: `lacks` then names them in reports.
        return self._own(clip).get(text, self.spellings.get(text, text)) or None

    def choices(self, clip: Clip) -> tuple[str, ...]:
        """The choices: the recording's own list, for a corpus with other classes, or `values`."""
        return tuple(self._own(clip).values()) or self.values

    def _own(self, clip: Clip) -> dict[str, str]:
        """The recording's own choices, in lower case → in our spelling."""
        listed: Sequence[Any] = (clip.get("choices") or {}).get(self.name) or ()
        if not listed:
            return {}
        names = [str(one).lower() for one in listed]
        ours = [self.spellings.get(one, one) for one in names]
        # A corpus may tell apart what our spelling merges, such as calm and neutral in RAVDESS: it keeps its own.
        return dict(zip(names, ours if len({*ours}) == len({*names}) else names, strict=True))

    def lacks(self, clip: Clip) -> str | None:
        """The reason where there is no label, or one that is not among the choices."""
        value = self.value(clip)
        if value is None:
            return f"no label {self.name}"
        return None if value in self.choices(clip) else f"unknown {self.name} {value!r}"

    def ask(self, clip: Clip, rng: random.Random, prompts: Sequence[str]) -> str:
        """A question with its choices in random order."""
        choices = list(self.choices(clip))
        rng.shuffle(choices)
        return rng.choice(prompts).format(choices=_listed(choices))

    def answer(self, clip: Clip) -> str:
        """A sentence with the value."""
        return self.sentence.format(value=self.value(clip))


def _filled(frames: Sequence[str], questions: Sequence[str]) -> tuple[str, ...]:
    return tuple(frame.format(question=question, choices="{choices}") for frame in frames for question in questions)


def _listed(words: Sequence[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


LEVELS = ("low", "normal", "high")
# The values are those of TextrolSpeech. Adapters are trained on these very texts: another wording means training again.
_ATTRIBUTES = (
    Attribute(
        "gender",
        ("male", "female"),
        ("What is the gender of the speaker?", "Is the speaker a man or a woman?", "Whose voice is it, by gender?"),
        ("Does a man or a woman talk here?", "Which gender does this voice have?"),
        "The speaker is {value}.",
        {"m": "male", "man": "male", "f": "female", "woman": "female"},
    ),
    Attribute(
        "pitch",
        LEVELS,
        ("How high is the pitch of the voice?", "What is the pitch?", "At which pitch does the user speak?"),
        ("Where does the pitch of this voice lie?", "How would you rate the pitch that you hear?"),
        "The pitch of the voice is {value}.",
        {"medium": "normal", "middle": "normal", "moderate": "normal"},
    ),
    Attribute(
        "tempo",
        ("slow", "normal", "fast"),
        ("How fast does the user speak?", "What is the tempo of the speech?", "At what speed are the words spoken?"),
        ("At what pace does the speech run?", "What can you say of the pace of talking?"),
        "The tempo of the speech is {value}.",
        {"low": "slow", "high": "fast", "medium": "normal", "steady": "normal", "moderate": "normal"},
    ),
    Attribute(
        "energy",
        LEVELS,
        ("How much energy has the voice?", "What is the energy of the speech?", "How loud does the user speak?"),
        ("How strong is the voice?", "With what energy is this said?"),
        "The energy of the voice is {value}.",
        {"quiet": "low", "soft": "low", "loud": "high", "medium": "normal", "moderate": "normal"},
    ),
    Attribute(
        "emotion",
        ("neutral", "happy", "sad", "angry", "surprised", "fearful", "disgusted", "contemptuous"),
        ("What is the emotion of the speaker?", "How does the user feel?", "Which emotion does the voice carry?"),
        ("In what mood is the person who talks?", "What feeling do you hear?"),
        "The speaker sounds {value}.",
        {
            "no emotion": "neutral",
            "none": "neutral",
            "calm": "neutral",
            "joy": "happy",
            "joyful": "happy",
            "happiness": "happy",
            "sadness": "sad",
            "anger": "angry",
            "surprise": "surprised",
            "fear": "fearful",
            "afraid": "fearful",
            "disgust": "disgusted",
            "contempt": "contemptuous",
        },
    ),
)
ATTRIBUTES: Mapping[str, Attribute] = {one.name: one for one in _ATTRIBUTES}
