"""Manifests → talks (docs/manifest.md): counted when they are opened, read from disk when they are wanted.

A line with `kind` is one talk with its answer; a line with `tasks` is one talk for each task that its recording
has a label for (`dualslm.data.tasks`). Only the place of every talk is kept, 9 bytes each (`manifest_index.py`), so
that a manifest of millions of lines fits in memory. No torch.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dualslm.conversation import Conversation, Part, Speech
from dualslm.data.manifest_index import AS_IT_IS, NAMES, examples_of, llm_of, names, places, rows
from dualslm.data.tasks import NO_ANSWER, caption, draw, left_out, one_task
from dualslm.errors import DualSLMError
from dualslm.recipe import TASK_KINDS, TaskKind

WAITS = f"respond: {NO_ANSWER}"


class Example(NamedTuple):
    """A talk of a manifest.

    Attributes:
        id: of its line, and the task where the line has tasks.
        conversation: with its answer.
        cut_off: the answer does not end where it stops (`"early_stop": false`).
    """

    id: str
    conversation: Conversation
    cut_off: bool = False


@dataclass(frozen=True)
class _Weighted:
    """The places of one manifest's talks of a kind, as often as its weight says."""

    number: int
    places: NDArray[Any]
    weight: float
    seed: str

    def __len__(self) -> int:
        return round(self.weight * len(self.places))

    def place(self, index: int, epoch: int) -> Any:
        """Whole times stand in the order of the manifest; what is left goes on through an order that is drawn."""
        count = len(self.places)
        whole = int(self.weight) * count
        if index < whole:
            return self.places[index % count]
        turn, place = divmod(epoch * (len(self) - whole) + index - whole, count)
        return self.places[permuted(count, 1, f"{self.seed}/{turn}")[place]]


@lru_cache(4)  # an epoch's end needs two of a kind; millions of talks make each a large one
def permuted(count: int, together: int, seed: str) -> NDArray[np.uint32]:
    """The indices up to a count in an order drawn by the seed, neighbours by so many."""
    groups = np.random.default_rng(list(seed.encode())).permutation(-(-count // together))
    order = (groups[:, None] * together + np.arange(together)).ravel()
    return order[order < count].astype(np.uint32)


class Examples:
    """The talks of some manifests, by kind.

    Args:
        paths: of the manifests.
        seed: of the prompts, choices and captions that are drawn for lines with tasks.
        weights: how often an epoch has the talks of each manifest; once beyond the weights that are given. Of a
            fraction it has a part, and the next epoch the part that follows.

    Attributes:
        left_out: how many talks are not given though a line asks for them, by task and reason; among them those
            of `respond` that are more than there are targets of `dualslm targets`.
        answers: how many of these targets there are.
        writer: the provenance of the first target; all have its LLM and revision. None where no line tells.

    Raises:
        DualSLMError: a manifest that cannot be read, a line that is no talk (file and line are named), or targets
            of two LLMs.
    """

    def __init__(self, paths: Sequence[str | Path], seed: int = 0, weights: Sequence[float] = ()) -> None:
        self.paths, self.seed = [Path(path) for path in paths], seed
        self.left_out: Counter[str] = Counter()
        self.answers = 0
        self.writer: Mapping[str, Any] | None = None
        self.heard: list[bytes] = []
        self.places: dict[TaskKind, list[_Weighted]] = {kind: [] for kind in TASK_KINDS}
        for number, path in enumerate(self.paths):
            found = places(path)
            self._check_writers(found.writers, path)
            self.left_out += found.left_out
            self.answers += found.answers
            self.heard.append(found.heard)
            weight = weights[number] if number < len(weights) else 1.0
            for kind, some in found.kinds.items():
                self.places[kind].append(_Weighted(number, some, weight, f"{self.seed}/{number}/{kind}"))
        if self.left_out[WAITS] <= self.answers:
            del self.left_out[WAITS]
        else:
            self.left_out[WAITS] -= self.answers

    def count(self, kind: TaskKind) -> int:
        """How many talks of a kind an epoch has."""
        return sum(len(some) for some in self.places[kind])

    def get(self, kind: TaskKind, index: int, epoch: int = 0) -> Example:
        """A talk of an epoch."""
        number, place = self._place(kind, index, epoch)
        path, task, offset = self.paths[number], int(place["task"]), int(place["offset"])
        with path.open("rb") as file:
            file.seek(offset)
            row = json.loads(file.readline())
        asked = row if task == AS_IT_IS else one_task(row, NAMES[task], self.seed)
        return Example(
            str(asked["id"]), read_conversation(asked, path.parent, self.seed), row.get("early_stop") is False
        )

    def _place(self, kind: TaskKind, index: int, epoch: int) -> tuple[int, Any]:
        for some in self.places[kind]:
            if index < len(some):
                return some.number, some.place(index, epoch)
            index -= len(some)
        raise IndexError(index)

    def speeches(self) -> Iterator[Speech]:
        """Every recording of every line that gives a talk, in order of the lines."""
        for path in self.paths:
            for _, row in rows(path):
                if next(examples_of(row, left_out(row)), None) is not None:
                    conversation = read_conversation(row, path.parent, self.seed)
                    yield from (speech for turn in conversation.turns for speech in turn.speeches)

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


def recordings(conversations: Examples) -> list[str]:
    """The paths of all recordings, each once, in order."""
    found = zip(conversations.paths, conversations.heard, strict=True)
    return list(dict.fromkeys(name for path, heard in found for name in _paths(path.parent, heard)))


def _paths(folder: Path, heard: bytes) -> Iterator[str]:
    before = "" if folder == Path() else str(folder)
    return (os.path.join(before, name) for name in names(heard))


def transcripts(conversations: Examples) -> Iterator[str]:
    """The words of all recordings that have any."""
    return (speech.transcript for speech in conversations.speeches() if speech.transcript)


def read_conversation(row: Mapping[str, Any], folder: Path, seed: int | None = 0) -> Conversation:
    """A line as a talk, and captions made from labels where it has none; None makes none, which is quicker.

    Raises:
        ValueError, KeyError, TypeError: it is no talk.
    """
    conversation = Conversation(row.get("system"))
    for turn in row["turns"]:
        if turn["role"] not in ("user", "assistant"):
            raise ValueError(f"role {turn['role']!r}")
        add = conversation.user if turn["role"] == "user" else conversation.assistant
        add(*(_part(part, folder, seed) for part in turn["parts"]))
    return conversation


def caption_of(clip: Mapping[str, Any], seed: int) -> str | None:
    """The caption of a recording: its own, or one made from its labels, the same wherever the recording stands."""
    own = clip.get("caption")
    if own is not None:
        return str(own)
    return caption(clip.get("labels") or {}, draw(seed, str(clip.get("audio")), "caption"), clip.get("choices"))


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
