"""What a system is asked and what it gives back: `Item` and the protocol `System`. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dualslm.conversation import Conversation, History, Part, Reply, Speech, View
from dualslm.recipe import TaskKind

FOLDER_KEYS = ("encoder", "llm", "model", "asr")  # keys of `System.about` that may hold a folder


@dataclass(frozen=True)
class Item:
    """One question of a test set.

    Attributes:
        id: corpus, split, line and task.
        task: "asr", an attribute, or "respond".
        kind: kind of the task.
        corpus: name of the corpus.
        split: name of the manifest.
        cluster: the dialogue, group, speaker or transcript that it shares with others; clusters are resampled whole.
        conversation: ends with the user's spoken turn.
        speech: the recording that the question is about.
        direction: "forward", or "reversed" where user and assistant changed roles, and the circumstance of a second
            figure; None but for replies.
        choices: the choices that the question lists.
        truth: the label, the transcript, or the reference reply where there is one.
        target: the reference answer; where there are choices, the sentence that names the true one.
        seconds: length of the recording in s, where it is known.
        history: whether spoken turns before the last one are read or heard, by a system that can hear them.
        second: whether this is asked for a second figure, under other circumstances; then through one view alone.
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
    history: History = "speech"
    second: bool = False

    def options(self) -> dict[str, str]:
        """Each choice with the sentence that names it; empty where there are no choices."""
        if not self.choices or self.truth is None or self.target is None:
            return {}
        # The last occurrence: the sentence may use the word before it names the choice.
        before, _, after = self.target.rpartition(self.truth)
        return {choice: before + choice + after for choice in self.choices}


class System(Protocol):
    """Answers items. Any object with these members will do: no base class is asked for.

    One that never reads a prompt, such as a classifier, says `reads_prompts = False`: it has no second figures.
    """

    @property
    def name(self) -> str:
        """Name in reports."""

    @property
    def about(self) -> Mapping[str, Any]:
        """Models, revisions and decoding: systems that are equal here answer alike."""

    def views(self, item: Item) -> Sequence[View | None]:
        """The views to ask it through unless the user names some; (None,) for a system that knows no views."""

    def unfit(self, item: Item) -> str | None:
        """Why it cannot be asked an item; None where it can."""

    def answer(self, items: Sequence[Item], view: View | None) -> list[Reply]:
        """Its answers, in order."""


def card(system: System) -> dict[str, Any]:
    """A system's name and what it is, without the folders of this machine."""
    # Predictions are shared: a path would show whose machine it was, and differ on the next one.
    about = {key: report_name(value) if key in FOLDER_KEYS and value else value for key, value in system.about.items()}
    return {"name": system.name, **about}


def report_name(source: str) -> str:
    """A model's name in reports: the last two parts of a folder, such as run and stage, and a hub id as it is."""
    path = Path(source)
    return "/".join(path.resolve().parts[-2:]) if path.is_dir() else source


def transcript_unless_asked(part: Part, asked: Speech) -> str | Speech:
    """A part of a turn for a system that takes one recording a request: other recordings become their transcripts.

    Args:
        part: text or recording.
        asked: the recording in question, which stays as it is; so does one without a transcript.
    """
    if isinstance(part, Speech) and part is not asked and part.transcript:
        return part.transcript
    return part
