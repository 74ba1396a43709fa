"""What a system is asked and what it gives back: `Item`, `Answer`, `System`. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dualslm.conversation import Conversation, Part, Reply, Speech, View
from dualslm.recipe import TaskKind

PLACES = ("encoder", "llm", "model", "asr")  # keys of `System.about` that may hold a folder


@dataclass(frozen=True)
class Item:
    """One question of a test set.

    Attributes:
        id: corpus, split, line and task.
        task: "asr", an attribute, or "respond".
        kind: of the task.
        corpus: where it is from.
        split: the manifest's name.
        cluster: the dialogue, group, speaker or transcript that it shares with others: what is resampled.
        conversation: ends with the user's spoken turn.
        speech: the recording that the question is about.
        direction: of a conversation, "forward", or "reversed" where user and assistant changed roles.
        choices: that the question lists.
        truth: the label, the transcript, or the reference reply where there is one.
        target: the sentence that names the true choice, for the likelihood of the others.
        seconds: length of the recording, where it is known.
    """

    id: str
    task: str
    kind: TaskKind
    corpus: str
    split: str
    cluster: str
    conversation: Conversation
    speech: Speech
    direction: str | None = None
    choices: tuple[str, ...] | None = None
    truth: str | None = None
    target: str | None = None
    seconds: float | None = None

    def options(self) -> dict[str, str]:
        """Each choice with the sentence that names it; empty where there are no choices."""
        if not self.choices or self.truth is None or self.target is None:
            return {}
        before, _, after = self.target.rpartition(self.truth)
        return {choice: before + choice + after for choice in self.choices}


class System(Protocol):
    """Answers items; an object of any class with these serves."""

    @property
    def name(self) -> str:
        """As reports call it."""

    @property
    def about(self) -> Mapping[str, Any]:
        """What it is: models, revisions, decoding. What is equal here answers equally."""

    def views(self, item: Item) -> Sequence[View | None]:
        """The views it can be asked through where none is named; (None,) for a system that knows no views."""

    def unfit(self, item: Item) -> str | None:
        """Why it cannot be asked an item; None where it can."""

    def answer(self, items: Sequence[Item], view: View | None) -> list[Reply]:
        """Its answers, in order."""


def card(system: System) -> dict[str, Any]:
    """A system's name and what it is, without the folders of this machine."""
    told = {key: called(value) if key in PLACES and value else value for key, value in system.about.items()}
    return {"name": system.name, **told}


def called(folder: str) -> str:
    """A model's name in reports: the last two parts of a folder, such as run and stage, and a hub id as it is."""
    path = Path(folder)
    return "/".join(path.resolve().parts[-2:]) if path.is_dir() else folder


def given(part: Part, heard: Speech) -> str | Speech:
    """A part as a system gets it that hears one recording at a time: other recordings as their transcripts.

    Args:
        part: of a turn.
        heard: the recording in question, which stays one; so does one without a transcript.
    """
    if isinstance(part, Speech) and part is not heard and part.transcript:
        return part.transcript
    return part
