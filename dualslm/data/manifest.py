"""Manifests → examples (docs/manifest.md): indexed when they are opened, read from disk when they are needed.

A line with `kind` is one example, which ends with its answer; a line with `tasks` is one example for each task that
its recording has a label for (`dualslm.data.tasks`). Only the positions of the examples are kept in memory, 9 bytes
each (`manifest_index.py`), so that a manifest may have millions of lines. No torch.
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
from dualslm.data.manifest_index import AS_IT_IS, NAMES, examples_of, llm_of, names, open_index, rows
from dualslm.data.tasks import NO_ANSWER, Seed, caption, draw, left_out, one_task
from dualslm.errors import DualSLMError
from dualslm.recipe import TASK_KINDS, TaskKind

WAITS = f"respond: {NO_ANSWER}"


class Example(NamedTuple):
    """One example of a manifest.

    Attributes:
        id: id of its line, with the task where the line has tasks.
        conversation: the conversation with its answer.
        cut_off: whether the answer was cut off (`"early_stop": false`), so that its end must not be learnt.
    """

    id: str
    conversation: Conversation
    cut_off: bool = False


@dataclass(frozen=True)
class _Weighted:
    """The positions of one manifest's examples of one kind, repeated by the weight of the manifest.

    Attributes:
        number: index of the manifest.
        positions: task and byte offset of each example (`manifest_index.POSITION`).
        weight: times that an epoch holds each example; a fraction of them for the rest.
        seed: seed of the order in which fractions are drawn.
    """

    number: int
    positions: NDArray[Any]
    weight: float
    seed: str

    def __len__(self) -> int:
        return round(self.weight * len(self.positions))

    def position(self, index: int, epoch: int) -> Any:
        """The position of an example of an epoch."""
        count = len(self.positions)
        whole = int(self.weight) * count
        if index < whole:
            return self.positions[index % count]
        # The fraction goes on through a drawn order from where the epoch before ended, so that with weight 0.5 every
        # two epochs hold each example once.
        turn, rest = divmod(epoch * (len(self) - whole) + index - whole, count)
        return self.positions[permuted(count, 1, f"{self.seed}/{turn}")[rest]]


# Four entries: the end of an epoch needs two orders of a kind, and each takes 4 bytes an example.
@lru_cache(4)
def permuted(count: int, together: int, seed: str) -> NDArray[np.uint32]:
    """A random order of the indices below a count (count,).

    Args:
        count: number of indices.
        together: number of neighbouring indices that stay neighbours.
        seed: seed of the order.
    """
    groups = np.random.default_rng(list(seed.encode())).permutation(-(-count // together))
    order = (groups[:, None] * together + np.arange(together)).ravel()
    return order[order < count].astype(np.uint32)


class Examples:
    """The examples of some manifests, by kind.

    Args:
        paths: paths of the manifests.
        seed: seed of the parts of an epoch that fractional weights draw.
        weights: times that an epoch holds the examples of each manifest; 1 for manifests beyond the end of the list.
            Of a fraction an epoch holds a part, and the next epoch the part that follows.

    Attributes:
        left_out: number of examples that a line asks for and that are not given, by task and reason. Those of
            `respond` that wait for an answer are counted only beyond the number of targets of `dualslm targets`.
        answers: number of these targets.
        writer: provenance of the first target, whose LLM and revision all share. None without targets.
        recordings: recordings of each manifest, as in `ManifestIndex.recordings`.
        positions: positions of the examples by kind, for each manifest.

    Raises:
        DualSLMError: a manifest that cannot be read, a line that is not valid (file and line are named), or targets
            of two LLMs.
    """

    def __init__(self, paths: Sequence[str | Path], seed: int = 0, weights: Sequence[float] = ()) -> None:
        self.paths = [Path(path) for path in paths]
        self.seed = seed
        self.left_out: Counter[str] = Counter()
        self.answers = 0
        self.writer: Mapping[str, Any] | None = None
        self.recordings: list[bytes] = []
        self.positions: dict[TaskKind, list[_Weighted]] = {kind: [] for kind in TASK_KINDS}
        for number, path in enumerate(self.paths):
            index = open_index(path)
            self._check_writers(index.writers, path)
            self.left_out += index.left_out
            self.answers += index.answers
            self.recordings.append(index.recordings)
            weight = weights[number] if number < len(weights) else 1.0
            for kind, positions in index.kinds.items():
                self.positions[kind].append(_Weighted(number, positions, weight, f"{self.seed}/{number}/{kind}"))
        # A line that waits for its answer is not missing once `dualslm targets` has written its target, which is a
        # line of another manifest.
        if self.left_out[WAITS] <= self.answers:
            del self.left_out[WAITS]
        else:
            self.left_out[WAITS] -= self.answers

    def count(self, kind: TaskKind) -> int:
        """The number of examples of a kind in an epoch."""
        return sum(len(manifest) for manifest in self.positions[kind])

    def get(self, kind: TaskKind, index: int, epoch: int = 0, *, seed: Seed = 0) -> Example:
        """Reads an example.

        Args:
            kind: kind of its task.
            index: index of the example among those of its kind in an epoch, below `count(kind)`.
            epoch: number of the epoch, which matters where a weight is a fraction.
            seed: seed of the prompt and choices of a line with tasks, and of captions made from labels.
        """
        number, position = self._position(kind, index, epoch)
        path = self.paths[number]
        task = int(position["task"])
        with path.open("rb") as file:
            file.seek(int(position["offset"]))
            row = json.loads(file.readline())
        example = row if task == AS_IT_IS else one_task(row, NAMES[task], seed)
        conversation = read_conversation(example, path.parent, seed)
        return Example(str(example["id"]), conversation, row.get("early_stop") is False)

    def _position(self, kind: TaskKind, index: int, epoch: int) -> tuple[int, Any]:
        """The manifest and the position of an example."""
        for manifest in self.positions[kind]:
            if index < len(manifest):
                return manifest.number, manifest.position(index, epoch)
            index -= len(manifest)
        raise IndexError(index)

    def speeches(self) -> Iterator[Speech]:
        """Every recording of every line that gives an example, in the order of the lines."""
        for path in self.paths:
            for _, row in rows(path):
                if next(examples_of(row, left_out(row)), None) is not None:
                    conversation = read_conversation(row, path.parent, seed=None)
                    yield from (speech for turn in conversation.turns for speech in turn.speeches)

    def _check_writers(self, writers: Sequence[Mapping[str, Any]], path: Path) -> None:
        """Refuses targets of two LLMs: the adapters should learn what one frozen LLM would say."""
        for writer in writers:
            self.writer = self.writer or writer
            if llm_of(writer) != llm_of(self.writer):
                raise DualSLMError(
                    f"{path} has targets of another LLM",
                    got=f"{_llm(writer)} beside {_llm(self.writer)}",
                    do="learn from the targets of one LLM alone",
                )


def recordings(conversations: Examples) -> list[str]:
    """The paths of all recordings, each once, in order."""
    found: dict[str, None] = {}
    for path, listed in zip(conversations.paths, conversations.recordings, strict=True):
        # Joined as text: `Path` is an order of magnitude slower, and there may be millions of recordings.
        folder = "" if path.parent == Path() else str(path.parent)
        found.update(dict.fromkeys(os.path.join(folder, name) for name in names(listed)))
    return list(found)


def transcripts(conversations: Examples) -> Iterator[str]:
    """The transcripts of all recordings that have one."""
    return (speech.transcript for speech in conversations.speeches() if speech.transcript)


def read_conversation(row: Mapping[str, Any], folder: Path, seed: Seed | None = 0) -> Conversation:
    """A line of a manifest as a conversation.

    Args:
        row: the line.
        folder: folder of the manifest, which audio paths are relative to.
        seed: seed of captions made from labels, for recordings without a caption; None makes none, which is faster.

    Raises:
        ValueError, KeyError, TypeError: the line is not a conversation.
    """
    conversation = Conversation(row.get("system"))
    for turn in row["turns"]:
        if turn["role"] not in ("user", "assistant"):
            raise ValueError(f"role {turn['role']!r}")
        add = conversation.user if turn["role"] == "user" else conversation.assistant
        add(*(_part(part, folder, seed) for part in turn["parts"]))
    return conversation


def caption_of(clip: Mapping[str, Any], seed: Seed) -> str | None:
    """The caption of a recording: its own, or one made from its labels.

    Args:
        clip: the recording as a manifest has it.
        seed: seed of the layout and wording.
    """
    own = clip.get("caption")
    if own is not None:
        return str(own)
    # Drawn by the path and not by the line: under one seed a recording has one caption wherever it occurs.
    return caption(clip.get("labels") or {}, draw(seed, str(clip.get("audio")), "caption"), clip.get("choices"))


def _part(part: str | Mapping[str, Any], folder: Path, seed: Seed | None) -> Part:
    if isinstance(part, str):
        return part
    audio = part.get("audio")
    return Speech(
        None if audio is None else str(folder / audio),
        transcript=part.get("transcript"),
        caption=part.get("caption") if seed is None else caption_of(part, seed),
        labels=part.get("labels") or {},
    )


def _llm(provenance: Mapping[str, Any]) -> str:
    return " at ".join(str(value) for value in llm_of(provenance) if value)


def moved(row: Mapping[str, Any], before: Path, after: Path) -> dict[str, Any]:
    """A line for a manifest in another folder, with its audio paths relative to that folder.

    Args:
        row: the line.
        before: folder that its audio paths are relative to.
        after: folder of the new manifest.
    """
    if before.resolve() == after.resolve():
        return dict(row)

    def part(one: Any) -> Any:
        if not isinstance(one, Mapping) or not one.get("audio") or Path(one["audio"]).is_absolute():
            return one
        return {**one, "audio": os.path.relpath((before / one["audio"]).absolute(), after.absolute())}

    return {**row, "turns": [{**turn, "parts": [part(one) for one in turn["parts"]]} for turn in row["turns"]]}
