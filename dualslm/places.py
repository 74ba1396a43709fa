"""Where the talks of a manifest stand in it: found once, kept beside a large manifest, read in a second after that.

Every line is checked when a manifest is first opened, 20 µs each. A manifest of some size gets an index,
`.NAME.index.npz`, which holds for the very bytes of the manifest (their SHA-256) and for this version of the package;
otherwise it is made anew. Where none can be written, the lines are gone through each time. No torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dualslm import __version__
from dualslm.corpora import schema
from dualslm.errors import DualSLMError
from dualslm.files import replacing
from dualslm.recipe import TASK_KINDS, TaskKind
from dualslm.tasks import TASKS, asks, left_out

PLACE = np.dtype([("task", "u1"), ("offset", "i8")])
NAMES = tuple(TASKS)
AS_IT_IS = len(NAMES)  # stands for the task of a line that has a kind
TARGETS = ".targets.jsonl"  # how the names of files end that dualslm targets writes
INDEXED = 1 << 24  # bytes: a smaller manifest is gone through as quickly
MAIN_PROCESS = int(os.environ.get("RANK", "0")) == 0  # of torchrun or accelerate: an index has one writer


@dataclass
class _Kind:
    """The places of the talks of one kind while they are found."""

    task: array[int] = field(default_factory=lambda: array("B"))
    offset: array[int] = field(default_factory=lambda: array("q"))

    def packed(self) -> NDArray[Any]:
        out = np.empty(len(self.task), PLACE)
        for name in ("task", "offset"):
            out[name] = np.frombuffer(getattr(self, name), PLACE[name].newbyteorder("=")) if len(out) else 0
        return out


@dataclass(frozen=True)
class Places:
    """What opening one manifest tells.

    Attributes:
        kinds: task and offset in bytes of each talk, by kind.
        left_out: talks that are not given though a line asks for them, by task and reason.
        answers: lines with provenance.
        writers: the first provenance of every LLM that wrote answers.
        heard: the recordings of the lines that give a talk, each once, as JSON: paths from the manifest's folder.
    """

    kinds: Mapping[TaskKind, NDArray[Any]]
    left_out: Counter[str]
    answers: int
    writers: list[Mapping[str, Any]]
    heard: bytes


def places(path: Path) -> Places:
    """The places of a manifest's talks, from its index where that holds.

    Raises:
        DualSLMError: a manifest that cannot be read, or a line that is no talk.
    """
    return indexed(path) or _found(path)


def indexed(path: Path) -> Places | None:
    """The same of a manifest that is large enough for an index, which is made where it is missing; None of others.

    Raises:
        DualSLMError: a line that is no talk.
    """
    if not path.is_file() or path.stat().st_size < INDEXED:
        return None
    index, key = path.with_name(f".{path.name}.index.npz"), _key(path)
    if (kept := _kept(index, key)) is not None:
        return kept
    found = _found(path)
    if MAIN_PROCESS:
        _keep(found, index, key)
    return found


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


def talks_of(row: Mapping[str, Any], out: Mapping[str, str]) -> Iterator[tuple[TaskKind, int]]:
    """The talks that a line gives: kind, and number of the task.

    Args:
        row: the line.
        out: its tasks that are left out.
    """
    if "kind" in row:
        yield row["kind"], AS_IT_IS
        return
    yield from ((TASKS[name].kind, NAMES.index(name)) for name in row["tasks"] if name not in out)


def llm_of(provenance: Mapping[str, Any]) -> tuple[Any, Any]:
    """What of a target's provenance tells one LLM from another."""
    return provenance.get("llm"), provenance.get("revision")


# ---------------------------------------------------------------------- line by line


def _found(path: Path) -> Places:
    kinds = {kind: _Kind() for kind in TASK_KINDS}
    counts, writers, answers = Counter[str](), dict[Any, Mapping[str, Any]](), 0
    heard: dict[str, None] = {}
    for offset, row in rows(path):
        if "provenance" in row:
            answers += 1
            writers.setdefault(llm_of(row["provenance"]), row["provenance"])
        out = left_out(row)
        counts.update(f"{name}: {why}" for name, why in out.items())
        given = list(talks_of(row, out))
        for kind, task in given:
            kinds[kind].task.append(task)
            kinds[kind].offset.append(offset)
        if given:
            heard.update((name, None) for name in _audio(row))
    packed = {kind: one.packed() for kind, one in kinds.items()}
    return Places(packed, counts, answers, list(writers.values()), json.dumps(list(heard)).encode())


def _audio(row: Mapping[str, Any]) -> Iterator[str]:
    for turn in row["turns"]:
        for part in turn["parts"]:
            if not isinstance(part, str) and part.get("audio"):
                yield str(PurePath(part["audio"]))


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


# ---------------------------------------------------------------------- the index


def _key(path: Path) -> str:
    """What an index must have been made from."""
    with path.open("rb") as file:
        return f"{hashlib.file_digest(file, 'sha256').hexdigest()} {__version__} {' '.join(NAMES)}"


def _keep(found: Places, index: Path, key: str) -> None:
    told = {"key": key, "left_out": found.left_out, "answers": found.answers, "writers": found.writers}
    texts = {"told": json.dumps(told).encode(), "heard": found.heard}
    arrays: dict[str, Any] = {name: np.frombuffer(text, np.uint8) for name, text in texts.items()}
    arrays.update((str(kind), places) for kind, places in found.kinds.items())
    try:
        with replacing(index) as partial, partial.open("wb") as file:
            np.savez(file, **arrays)
    except OSError:  # a folder that is only to be read
        return


def _kept(index: Path, key: str) -> Places | None:
    try:
        with np.load(index) as file:  # no pickle is read
            told = json.loads(file["told"].tobytes())
            if told["key"] != key:
                return None
            kinds: dict[TaskKind, NDArray[Any]] = {kind: file[kind] for kind in TASK_KINDS}
            heard = file["heard"].tobytes()
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return Places(kinds, Counter(told["left_out"]), told["answers"], told["writers"], heard)
