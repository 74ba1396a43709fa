"""Manifests → talks (docs/manifest.md): counted when they are opened, read from disk when they are wanted.

A line with `kind` is one talk with its answer; a line with `tasks` is one talk for each task that its recording
has a label for (`dualslm.tasks`). Only the place of every talk is kept, 11 bytes each (`places.py`), so that a
manifest of millions of lines fits in memory. No torch.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dualslm.conversation import Conversation, Part, Speech
from dualslm.errors import DualSLMError
from dualslm.places import AS_IT_IS, NAMES, Places, llm_of, places, talks_of
from dualslm.places import TARGETS as TARGETS  # others import it from here
from dualslm.places import rows as rows
from dualslm.recipe import TASK_KINDS, TaskKind
from dualslm.tasks import NO_ANSWER, caption, draw, left_out, one_task

PLACE = np.dtype([("file", "u2"), ("task", "u1"), ("offset", "i8")])
WAITS = f"respond: {NO_ANSWER}"


class Told(NamedTuple):
    """A talk of a manifest.

    Attributes:
        id: of its line, and the task where the line has tasks.
        talk: with its answer.
        cut_off: the answer does not end where it stops (`"early_stop": false`).
    """

    id: str
    talk: Conversation
    cut_off: bool = False


class Talks:
    """The talks of some manifests, by kind.

    Args:
        paths: of the manifests.
        seed: of the prompts, choices and captions that are drawn for lines with tasks.

    Attributes:
        left_out: how many talks are not given though a line asks for them, by task and reason; among them those
            of `respond` that are more than there are targets of `dualslm targets`.
        answers: how many of these targets there are.
        writer: the provenance of the first target; all have its LLM and revision. None where no line tells.

    Raises:
        DualSLMError: a manifest that cannot be read, a line that is no talk (file and line are named), or targets
            of two LLMs.
    """

    def __init__(self, paths: Sequence[str | Path], seed: int = 0) -> None:
        self.paths, self.seed = [Path(path) for path in paths], seed
        self.left_out: Counter[str] = Counter()
        self.answers = 0
        self.writer: Mapping[str, Any] | None = None
        opened: list[Places] = []
        for path in self.paths:
            found = places(path)
            self._check_writers(found.writers, path)
            self.left_out += found.left_out
            self.answers += found.answers
            opened.append(found)
        self.heard = [found.heard for found in opened]
        if self.left_out[WAITS] <= self.answers:
            del self.left_out[WAITS]
        else:
            self.left_out[WAITS] -= self.answers
        self.places: dict[TaskKind, NDArray[Any]] = {kind: _joined(opened, kind) for kind in TASK_KINDS}

    def count(self, kind: TaskKind) -> int:
        """How many talks there are of a kind."""
        return len(self.places[kind])

    def get(self, kind: TaskKind, index: int) -> Told:
        """A talk."""
        number, task, offset = (int(value) for value in self.places[kind][index])
        path = self.paths[number]
        with path.open("rb") as file:
            file.seek(offset)
            row = json.loads(file.readline())
        asked = row if task == AS_IT_IS else one_task(row, NAMES[task], self.seed)
        return Told(str(asked["id"]), read_talk(asked, path.parent, self.seed), row.get("early_stop") is False)

    def speeches(self) -> Iterator[Speech]:
        """Every recording of every line that gives a talk, in order of the lines."""
        for path in self.paths:
            for _, row in rows(path):
                if next(talks_of(row, left_out(row)), None) is not None:
                    talk = read_talk(row, path.parent, self.seed)
                    yield from (speech for turn in talk.turns for speech in turn.speeches)

    def _check_writers(self, writers: Sequence[Mapping[str, Any]], path: Path) -> None:
        """Refuses targets of two LLMs: each writes in its own way."""
        for told in writers:
            self.writer = self.writer or told
            if llm_of(told) != llm_of(self.writer):
                raise DualSLMError(
                    f"{path} has targets of another LLM",
                    got=f"{_llm(told)} beside {_llm(self.writer)}",
                    do="learn from the targets of one LLM alone",
                )


def _joined(opened: Sequence[Places], kind: TaskKind) -> NDArray[Any]:
    """The places of one kind in all manifests."""
    parts = [np.empty(0, PLACE)]
    for number, found in enumerate(opened):
        own = found.kinds[kind]
        part = np.empty(len(own), PLACE)
        part["file"], part["task"], part["offset"] = number, own["task"], own["offset"]
        parts.append(part)
    return np.concatenate(parts)


def recordings(talks: Talks) -> list[str]:
    """The paths of all recordings, each once, in order."""
    found = zip(talks.paths, talks.heard, strict=True)
    return list(dict.fromkeys(name for path, heard in found for name in _paths(path.parent, heard)))


def _paths(folder: Path, heard: bytes) -> Iterator[str]:
    before = "" if folder == Path() else str(folder)
    return (os.path.join(before, name) for name in json.loads(heard))


def transcripts(talks: Talks) -> Iterator[str]:
    """The words of all recordings that have any."""
    return (speech.transcript for speech in talks.speeches() if speech.transcript)


def read_talk(row: Mapping[str, Any], folder: Path, seed: int | None = 0) -> Conversation:
    """A line as a talk, and captions made from labels where it has none; None makes none, which is quicker.

    Raises:
        ValueError, KeyError, TypeError: it is no talk.
    """
    talk = Conversation(row.get("system"))
    for turn in row["turns"]:
        if turn["role"] not in ("user", "assistant"):
            raise ValueError(f"role {turn['role']!r}")
        add = talk.user if turn["role"] == "user" else talk.assistant
        add(*(_part(part, folder, seed) for part in turn["parts"]))
    return talk


def caption_of(clip: Mapping[str, Any], seed: int) -> str | None:
    """The caption of a recording: its own, or one made from its labels, the same wherever the recording stands."""
    own = clip.get("caption")
    return own if own is not None else caption(clip.get("labels") or {}, draw(seed, str(clip.get("audio")), "caption"))


def _part(part: str | Mapping[str, Any], folder: Path, seed: int | None) -> Part:
    if isinstance(part, str):
        return part
    audio = part.get("audio")
    return Speech(
        None if audio is None else str(folder / audio),
        transcript=part.get("transcript"),
        caption=part.get("caption") if seed is None else caption_of(part, seed),
        labels=part.get("labels") or {},
    )


def _llm(told: Mapping[str, Any]) -> str:
    return " at ".join(str(value) for value in llm_of(told) if value)


def moved(row: Mapping[str, Any], before: Path, after: Path) -> dict[str, Any]:
    """A line for a manifest in another folder: the paths of its recordings count from there."""
    if before.resolve() == after.resolve():
        return dict(row)

    def part(one: Any) -> Any:
        if not isinstance(one, Mapping) or not one.get("audio") or Path(one["audio"]).is_absolute():
            return one
        return {**one, "audio": os.path.relpath((before / one["audio"]).absolute(), after.absolute())}

    return {**row, "turns": [{**turn, "parts": [part(one) for one in turn["parts"]]} for turn in row["turns"]]}
