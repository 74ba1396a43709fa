"""Manifests → talks (docs/manifest.md): counted when they are opened, read from disk when they are wanted.

A line with `kind` is one talk with its answer; a line with `tasks` is one talk for each task that its recording
has a label for (`dualslm.tasks`). Only the place of every talk is kept, 11 bytes each, so that a manifest of
millions of lines fits in memory. No torch.
"""

from __future__ import annotations

import json
import os
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dualslm.conversation import Conversation, Part, Speech
from dualslm.corpora import schema
from dualslm.errors import DualSLMError
from dualslm.recipe import TASK_KINDS, TaskKind
from dualslm.tasks import NO_ANSWER, TASKS, asks, caption, draw, left_out, one_task

PLACE = np.dtype([("file", "u2"), ("task", "u1"), ("offset", "i8")])
NAMES = tuple(TASKS)
AS_IT_IS = len(NAMES)  # stands for the task of a line that has a kind
TARGETS = ".targets.jsonl"  # how the names of files end that dualslm targets writes
WAITS = f"respond: {NO_ANSWER}"
LLM = ("llm", "revision")  # what of a target's provenance tells one LLM from another


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


@dataclass
class _Places:
    """The places of the talks of one kind while they are found."""

    file: array[int] = field(default_factory=lambda: array("H"))
    task: array[int] = field(default_factory=lambda: array("B"))
    offset: array[int] = field(default_factory=lambda: array("q"))

    def add(self, file: int, task: int, offset: int) -> None:
        self.file.append(file)
        self.task.append(task)
        self.offset.append(offset)

    def packed(self) -> NDArray[Any]:
        """As one array."""
        out = np.empty(len(self.file), PLACE)
        for name in ("file", "task", "offset"):
            out[name] = np.frombuffer(getattr(self, name), PLACE[name].newbyteorder("=")) if len(out) else 0
        return out


@dataclass(frozen=True)
class _Weighted:
    """The places of one manifest's talks of a kind, as often as its weight says."""

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


class Talks:
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
        self.places: dict[TaskKind, list[_Weighted]] = {kind: [] for kind in TASK_KINDS}
        for number in range(len(self.paths)):
            weight = weights[number] if number < len(weights) else 1.0
            for kind, places in self._places(number).items():
                self.places[kind].append(_Weighted(places, weight, f"{self.seed}/{number}/{kind}"))
        if self.left_out[WAITS] <= self.answers:
            del self.left_out[WAITS]
        else:
            self.left_out[WAITS] -= self.answers

    def _places(self, number: int) -> dict[TaskKind, NDArray[Any]]:
        """The places of the talks of one manifest."""
        places = {kind: _Places() for kind in TASK_KINDS}
        for offset, row in rows(self.paths[number]):
            self._check_writer(row, self.paths[number])
            out = left_out(row)
            self.left_out.update(f"{name}: {why}" for name, why in out.items())
            for kind, task in _talks_of(row, out):
                places[kind].add(number, task, offset)
        return {kind: some.packed() for kind, some in places.items()}

    def count(self, kind: TaskKind) -> int:
        """How many talks of a kind an epoch has."""
        return sum(len(some) for some in self.places[kind])

    def get(self, kind: TaskKind, index: int, epoch: int = 0) -> Told:
        """A talk of an epoch."""
        number, task, offset = (int(value) for value in self._place(kind, index, epoch))
        path = self.paths[number]
        with path.open("rb") as file:
            file.seek(offset)
            row = json.loads(file.readline())
        asked = row if task == AS_IT_IS else one_task(row, NAMES[task], self.seed)
        return Told(str(asked["id"]), read_talk(asked, path.parent, self.seed), row.get("early_stop") is False)

    def _place(self, kind: TaskKind, index: int, epoch: int) -> Any:
        for some in self.places[kind]:
            if index < len(some):
                return some.place(index, epoch)
            index -= len(some)
        raise IndexError(index)

    def speeches(self) -> Iterator[Speech]:
        """Every recording of every line that gives a talk, in order of the lines."""
        for path in self.paths:
            for _, row in rows(path):
                if next(_talks_of(row, left_out(row)), None) is not None:
                    talk = read_talk(row, path.parent, self.seed)
                    yield from (speech for turn in talk.turns for speech in turn.speeches)

    def _check_writer(self, row: Mapping[str, Any], path: Path) -> None:
        """Refuses targets of two LLMs: each writes in its own way."""
        if "provenance" not in row:
            return
        self.answers += 1
        told = row["provenance"]
        self.writer = self.writer or told
        if any(told.get(key) != self.writer.get(key) for key in LLM):
            raise DualSLMError(
                f"{path} has targets of another LLM",
                got=f"{_llm(told)} beside {_llm(self.writer)}",
                do="learn from the targets of one LLM alone",
            )


def rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The lines of a manifest that are not blank, checked, each with its place in bytes.

    Raises:
        DualSLMError: a manifest that cannot be read, or a line that is no talk.
    """
    offset = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield offset, _row(line, path, number)
                offset += len(line)
    except OSError as error:
        do = "run dualslm targets first" if path.name.endswith(TARGETS) else "check the path"
        raise DualSLMError(f"cannot read the manifest {path}", got=error.strerror, do=do) from error


def recordings(talks: Talks) -> list[str]:
    """The paths of all recordings, each once, in order."""
    return list(dict.fromkeys(str(speech.audio) for speech in talks.speeches() if speech.audio))


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


def _talks_of(row: Mapping[str, Any], out: Mapping[str, str]) -> Iterator[tuple[TaskKind, int]]:
    """The talks that a line gives: kind, and number of the task."""
    if "kind" in row:
        yield row["kind"], AS_IT_IS
        return
    yield from ((TASKS[name].kind, NAMES.index(name)) for name in row["tasks"] if name not in out)


def _row(line: bytes, path: Path, number: int) -> dict[str, Any]:
    """A line of a manifest, checked."""
    try:
        row = dict(schema.check(schema.parse(line), complete=False))
        asks(row)
        return row
    except schema.Fault as fault:
        raise schema.at(path, number, fault) from fault
    except ValueError as error:
        raise DualSLMError(f"{path} line {number} is no talk", got=str(error), do="see docs/manifest.md") from error


def _llm(told: Mapping[str, Any]) -> str:
    return " at ".join(str(told[key]) for key in LLM if told.get(key))


def moved(row: Mapping[str, Any], before: Path, after: Path) -> dict[str, Any]:
    """A line for a manifest in another folder: the paths of its recordings count from there."""
    if before.resolve() == after.resolve():
        return dict(row)

    def part(one: Any) -> Any:
        if not isinstance(one, Mapping) or not one.get("audio") or Path(one["audio"]).is_absolute():
            return one
        return {**one, "audio": os.path.relpath((before / one["audio"]).absolute(), after.absolute())}

    return {**row, "turns": [{**turn, "parts": [part(one) for one in turn["parts"]]} for turn in row["turns"]]}
