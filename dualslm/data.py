"""Manifests of talks → batches of lessons (paper §III-B, §III-C): seeded, stateless, counted.

A manifest is a JSON Lines file; a line is one talk with its answer, in the shape that chat users know:

    {"id": "a1", "kind": "linguistic", "system": "Write down what is said.", "turns": [
      {"role": "user", "parts": [{"audio": "a1.flac", "transcript": "Hello.", "caption": "sounding happy"}]},
      {"role": "assistant", "parts": ["Hello."]}]}

`kind` is linguistic, paralinguistic or dual; a part is text or a recording, whose path counts from the
manifest's folder. What stands at place p of a stage follows from the seed, the stage and p alone: the kind,
the talk, the sources. So a run may stop anywhere, and have any number of worker processes, and sees the same.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from dualslm.conversation import Conversation, Part, Speech, View
from dualslm.encoder import Frames
from dualslm.errors import DualSLMError
from dualslm.features import FrameCache
from dualslm.prompt import Prompt, Text, render
from dualslm.recipe import TASK_KINDS, Stage, TaskKind

BLOCK = 1000  # lessons after which the kinds stand exactly in their shares
TRIES = 100  # talks tried at one place before the data are called unusable
P_TOKENS = 16  # about what a P slot takes, for sorting by length
FRAMES_A_TOKEN = 5


@dataclass(frozen=True)
class Lesson:
    """One training example.

    Attributes:
        kind: of its task.
        view: the sources that were drawn for it.
        prompt: rendered, with its targets.
        talk: the id of its talk.
        skipped: talks that stood here but have a recording that cannot be read: id and reason.
    """

    kind: TaskKind
    view: View
    prompt: Prompt
    talk: str
    skipped: tuple[tuple[str, str], ...] = ()

    @property
    def targets(self) -> int:
        """How many tokens are learnt."""
        return sum(len(segment.ids) for segment in self.prompt.segments if isinstance(segment, Text) and segment.loss)


@dataclass(frozen=True)
class Batch:
    """One process's part of one optimiser step.

    Attributes:
        lessons: in order of length.
        lengths: about how many positions the prompt of each takes.
        frames: of their recordings, each (N, T, D), by path.
    """

    lessons: list[Lesson]
    lengths: list[int]
    frames: Mapping[str, Tensor]

    def hear(self, clips: Sequence[Speech]) -> Frames:
        """The frames of some of its recordings, in place of `DualSLM.hear`."""
        return Frames.stack([self.frames[str(clip.audio)] for clip in clips])


class Talks:
    """The talks of some manifests, by kind; lines are read from disk when they are wanted.

    Args:
        paths: of the manifests.

    Raises:
        DualSLMError: a manifest that cannot be read, or a line that is no talk; file and line are named.
    """

    def __init__(self, paths: Sequence[str | Path]) -> None:
        self.paths = [Path(path) for path in paths]
        places: dict[TaskKind, list[tuple[int, int]]] = {kind: [] for kind in TASK_KINDS}
        for number, path in enumerate(self.paths):
            for offset, line in _lines(path):
                places[_kind(line, path, offset)].append((number, offset))
        self.places: dict[TaskKind, NDArray[np.int64]] = {
            kind: np.array(found, np.int64).reshape(-1, 2) for kind, found in places.items()
        }

    def count(self, kind: TaskKind) -> int:
        """How many talks there are of a kind."""
        return len(self.places[kind])

    def get(self, kind: TaskKind, index: int) -> tuple[str, Conversation]:
        """A talk and its id."""
        number, offset = (int(value) for value in self.places[kind][index])
        path = self.paths[number]
        with path.open("rb") as file:
            file.seek(offset)
            row = json.loads(file.readline())
        return str(row["id"]), _talk(row, path.parent)


class Lessons(Dataset[Batch]):
    """The batches of a stage; item s is this process's part of step s.

    Args:
        stage: of the recipe.
        talks: to learn from.
        cache: frames of their recordings.
        tokenizer: of the frozen LLM.
        seed: of every draw.
        rank: of this process.
        world: number of processes.
    """

    def __init__(
        self,
        stage: Stage,
        talks: Talks,
        cache: FrameCache,
        tokenizer: Any,
        seed: int,
        *,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.stage, self.talks, self.cache, self.tokenizer, self.seed = stage, talks, cache, tokenizer, seed
        self.rank, self.world = rank, world
        self.pattern = _pattern(stage)
        for kind in stage.kinds:
            if not talks.count(kind):
                where = ", ".join(map(str, talks.paths))
                raise DualSLMError(f"stage {stage.name} has no {kind} talks", got=f"none in {where}", do="add some")

    @property
    def steps(self) -> int:
        """Optimiser steps of the stage; an epoch ends when every kind has been gone through once."""
        if self.stage.steps is not None:
            return self.stage.steps
        assert self.stage.epochs is not None
        needed = max(self.talks.count(kind) / self.pattern.count(kind) for kind in self.stage.kinds) * BLOCK
        return max(1, round(self.stage.epochs * needed / self.stage.batch))

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Batch:
        lessons = [self.lesson(step * self.stage.batch + place) for place in range(self.stage.batch)]
        own = sorted(lessons, key=self.length)[self.rank :: self.world]
        paths = {str(clip.audio) for lesson in own for clip in lesson.prompt.clips}
        return Batch(
            own, [self.length(lesson) for lesson in own], {path: self.cache.get(path) for path in sorted(paths)}
        )

    def lesson(self, place: int) -> Lesson:
        """The lesson at a place of the stage."""
        rng = random.Random(f"{self.seed}/{self.stage.name}/{place}")
        block, within = divmod(place, BLOCK)
        order = _shuffled(self.pattern, f"{self.seed}/{self.stage.name}/{block}")
        name = order[within]
        turn = block * self.pattern.count(name) + order[:within].count(name)
        kind = self.stage.kinds[name]
        view = kind.view.draw(rng)
        talk_id, talk, skipped = self._usable(name, turn)
        supervise: Any = "all" if name == "paralinguistic" else "last"
        prompt = render(talk, self.tokenizer, view, learns=frozenset(kind.learns), supervise=supervise)
        return Lesson(name, view, prompt, talk_id, skipped)

    def length(self, lesson: Lesson) -> int:
        """About how many positions its prompt takes."""
        total = 0
        for segment in lesson.prompt.segments:
            if isinstance(segment, Text):
                total += len(segment.ids)
            elif segment.channel == "para":
                total += P_TOKENS
            else:
                total += self.cache.frames(str(lesson.prompt.clips[segment.clip].audio)) // FRAMES_A_TOKEN
        return total

    def _usable(self, kind: TaskKind, turn: int) -> tuple[str, Conversation, tuple[tuple[str, str], ...]]:
        """The talk whose turn it is, or the next one whose recordings can be read."""
        skipped: list[tuple[str, str]] = []
        count = self.talks.count(kind)
        for ahead in range(min(count, TRIES)):
            epoch, place = divmod(turn + ahead, count)
            index = int(_permuted(count, f"{self.seed}/{self.stage.name}/{kind}/{epoch}")[place])
            talk_id, talk = self.talks.get(kind, index)
            fault = self._fault(talk)
            if fault is None:
                return talk_id, talk, tuple(skipped)
            skipped.append((talk_id, fault))
        raise DualSLMError(f"{len(skipped)} {kind} talks in a row cannot be used", got=skipped[0], do="check the audio")

    def _fault(self, talk: Conversation) -> str | None:
        paths = [str(speech.audio) for turn in talk.turns for speech in turn.speeches if speech.audio is not None]
        return next((self.cache.faults[path] for path in paths if path in self.cache.faults), None)


def recordings(talks: Talks) -> list[str]:
    """The paths of all recordings, each once, in order."""
    return list(dict.fromkeys(str(speech.audio) for speech in _speeches(talks) if speech.audio))


def transcripts(talks: Talks) -> Iterator[str]:
    """The words of all recordings that have any."""
    return (speech.transcript for speech in _speeches(talks) if speech.transcript)


def _speeches(talks: Talks) -> Iterator[Speech]:
    for kind in TASK_KINDS:
        for index in range(talks.count(kind)):
            _, talk = talks.get(kind, index)
            yield from (speech for turn in talk.turns for speech in turn.speeches)


# ---------------------------------------------------------------------- draws


def _pattern(stage: Stage) -> tuple[TaskKind, ...]:
    """The kinds of a block of lessons, exactly in their shares."""
    shares = {name: kind.share for name, kind in stage.kinds.items()}
    edges = np.round(np.cumsum(list(shares.values())) / sum(shares.values()) * BLOCK).astype(int)
    counts = np.diff(edges, prepend=0)
    return tuple(name for name, count in zip(shares, counts, strict=True) for _ in range(max(1, int(count))))[:BLOCK]


@lru_cache(64)
def _shuffled(pattern: tuple[TaskKind, ...], seed: str) -> tuple[TaskKind, ...]:
    order = list(pattern)
    random.Random(seed).shuffle(order)
    return tuple(order)


@lru_cache(16)
def _permuted(count: int, seed: str) -> NDArray[np.int64]:
    return np.random.default_rng(list(seed.encode())).permutation(count)


# ---------------------------------------------------------------------- lines


def _lines(path: Path) -> list[tuple[int, bytes]]:
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise DualSLMError(f"cannot read the manifest {path}", got=error.strerror, do="check the path") from error
    offsets = np.cumsum([0, *map(len, lines)])
    return [(int(offset), line) for offset, line in zip(offsets, lines, strict=False) if line.strip()]


def _kind(line: bytes, path: Path, offset: int) -> TaskKind:
    try:
        row = json.loads(line)
        kind: TaskKind = row["kind"]
        if kind not in TASK_KINDS:
            raise ValueError(f"kind {kind!r}")
        _talk(row, path.parent)
        str(row["id"])
        return kind
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        number = path.read_bytes()[:offset].count(b"\n") + 1
        raise DualSLMError(f"{path} line {number} is no talk", got=_what(error), do="see docs/manifest.md") from error


def _what(error: Exception) -> str:
    return f"no key {error}" if isinstance(error, KeyError) else str(error)


def _talk(row: Mapping[str, Any], folder: Path) -> Conversation:
    talk = Conversation(row.get("system"))
    for turn in row["turns"]:
        if turn["role"] not in ("user", "assistant"):
            raise ValueError(f"role {turn['role']!r}")
        add = talk.user if turn["role"] == "user" else talk.assistant
        add(*(_part(part, folder) for part in turn["parts"]))
    return talk


def _part(part: str | Mapping[str, Any], folder: Path) -> Part:
    if isinstance(part, str):
        return part
    audio = part.get("audio")
    return Speech(
        None if audio is None else str(folder / audio),
        transcript=part.get("transcript"),
        caption=part.get("caption"),
        labels=part.get("labels", {}),
    )
