"""Where the talks of a manifest stand in it: found once, kept beside a large manifest, read in a second after that.

Every line is checked when a manifest is first opened, 13 µs each; a large one is gone through in parts, by a process
for each core. A manifest of some size gets an index, `.NAME.index.npz`, which holds for the very bytes of the manifest
(their SHA-256) and for this version of the package; otherwise it is made anew. Where none can be written, the lines are
gone through each time. No torch.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
import zipfile
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from pathlib import Path, PurePath
from subprocess import DEVNULL, PIPE, Popen
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from dualslm import __version__
from dualslm.data.corpora import schema
from dualslm.data.tasks import TASKS, last_clip, left_out
from dualslm.errors import DualSLMError
from dualslm.files import replacing, sha256
from dualslm.recipe import TASK_KINDS, TaskKind

PLACE = np.dtype([("task", "u1"), ("offset", "i8")])
NAMES = tuple(TASKS)
AS_IT_IS = len(NAMES)  # stands for the task of a line that has a kind
TARGETS = ".targets.jsonl"  # how the names of files end that dualslm targets writes
INDEXED = 1 << 24  # bytes: a smaller manifest is gone through as quickly
PART = 1 << 25  # bytes: a smaller part is gone through before a process has started
FORMAT = 2  # of an index: another one when what is packed, or what a line gives, becomes another
UNTIDY = re.compile(r"(^|/)\.?(/|$)")  # a path that pathlib writes otherwise: a//b, ./a, a/./b, a/
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
        heard: the recordings of the lines that give a talk, each once (`names`): paths from the manifest's folder.
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
    return indexed(path) or _read(path)


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
    if MAIN_PROCESS:
        print(f"{path}: every line is checked, once", file=sys.stderr, flush=True)
    found = _found(path)
    if MAIN_PROCESS:
        _keep(found, index, key)
    return found


def rows(path: Path, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """The lines of a manifest that are not blank, checked, each with its place in bytes.

    Args:
        path: of the manifest.
        start: lines that begin before this byte are passed over.
        stop: so are those that begin at this byte or after it.

    Raises:
        DualSLMError: a manifest that cannot be read, or a line that is no talk; its number counts from the first
            line that is given.
    """
    try:
        with path.open("rb") as file:
            offset = start
            if start:
                file.seek(start - 1)
                offset = start - 1 + len(file.readline())  # what is left of a line that began before
            for number, line in enumerate(file, 1):
                if stop is not None and offset >= stop:
                    return
                if line.strip():
                    yield offset, _row(line, path, number)
                offset += len(line)
    except OSError as error:
        raise DualSLMError(f"cannot read the manifest {path}", got=error.strerror, do=_made_by(path)) from error


def _made_by(path: Path) -> str:
    if path.name.endswith(TARGETS):
        return "run dualslm targets first"
    if path.parts[:2] == ("runs", "tiny"):
        return "run python -m dualslm.tiny build --steps talks first"
    return "check the path, or make it by dualslm prepare"


def examples_of(row: Mapping[str, Any], out: Mapping[str, str]) -> Iterator[tuple[TaskKind, int]]:
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


# ---------------------------------------------------------------------- in parts


def _found(path: Path) -> Places:
    """The places of a large manifest's talks, found by several processes where it is worth starting them."""
    size = path.stat().st_size
    count = min(_cores(), size // PART)
    if count < 2:
        return _read(path)
    cuts = [size * number // count for number in range(count + 1)]
    parts = _at_once([[str(path), str(start), str(stop)] for start, stop in pairwise(cuts)])
    if parts is None:  # a fault, which is named with its line by going through the lines in order
        return _read(path)
    return _joined([_unpacked(io.BytesIO(part)) for part in parts])


def _cores() -> int:
    """The cores for this process: those of the machine are shared with the other processes of a training."""
    have = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return have // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _at_once(calls: Sequence[Sequence[str]]) -> list[bytes] | None:
    """What `main` writes for each of some arguments; None where one of the processes failed.

    Not `multiprocessing`: it starts the user's script again where that has no guard, or copies a process with threads.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [
        sys.executable,
        "-P",
        "-m",
        "dualslm.data.manifest_index",
    ]  # -P: no module of the user's folder in place of ours
    started = [Popen([*command, *call], stdout=PIPE, stderr=DEVNULL, env=environment) for call in calls]
    try:
        written = [one.communicate()[0] for one in started]
        return written if not any(one.returncode for one in started) else None
    finally:
        for one in started:
            one.kill()


def main() -> int:
    """Goes through a part of a manifest: path, first byte, byte after the last; writes what it found, packed."""
    path, start, stop = sys.argv[1:]
    sys.stdout.buffer.write(_packed(_read(Path(path), int(start), int(stop))))
    return 0


def _joined(parts: Sequence[Places]) -> Places:
    heard = dict.fromkeys(chain.from_iterable(names(part.heard) for part in parts))
    writers = {llm_of(writer): writer for part in reversed(parts) for writer in reversed(part.writers)}
    first = {llm_of(writer): None for part in parts for writer in part.writers}  # in the order of their first lines
    return Places(
        {kind: np.concatenate([part.kinds[kind] for part in parts]) for kind in TASK_KINDS},
        sum((part.left_out for part in parts), Counter()),
        sum(part.answers for part in parts),
        [writers[llm] for llm in first],
        _listed(heard),
    )


# ---------------------------------------------------------------------- line by line


def _read(path: Path, start: int = 0, stop: int | None = None) -> Places:
    kinds = {kind: _Kind() for kind in TASK_KINDS}
    counts, writers, answers = Counter[str](), dict[Any, Mapping[str, Any]](), 0
    heard: dict[str, None] = {}
    for offset, row in rows(path, start, stop):
        if "provenance" in row:
            answers += 1
            writers.setdefault(llm_of(row["provenance"]), row["provenance"])
        if out := left_out(row):
            counts.update(f"{name}: {why}" for name, why in out.items())
        given = list(examples_of(row, out))
        for kind, task in given:
            kinds[kind].task.append(task)
            kinds[kind].offset.append(offset)
        if given:
            heard.update(dict.fromkeys(_audio(row)))
    packed = {kind: one.packed() for kind, one in kinds.items()}
    return Places(packed, counts, answers, list(writers.values()), _listed(heard))


def names(heard: bytes) -> list[str]:
    """The paths of `Places.heard`."""
    return heard.decode().split("\0") if heard else []


def _listed(heard: Iterable[str]) -> bytes:
    return "\0".join(heard).encode()  # no path holds this character


def _audio(row: Mapping[str, Any]) -> Iterator[str]:
    for turn in row["turns"]:
        for part in turn["parts"]:
            if not isinstance(part, str) and part.get("audio"):
                name = part["audio"]
                yield str(PurePath(name)) if UNTIDY.search(name) else name


def _row(line: bytes, path: Path, number: int) -> dict[str, Any]:
    """A line of a manifest, checked."""
    try:
        row: dict[str, Any] = schema.check(schema.parse(line), complete=False)
        if "tasks" in row:
            last_clip(row)
        return row
    except schema.Fault as fault:
        raise schema.at(path, number, fault) from fault
    except ValueError as error:
        raise DualSLMError(f"{path} line {number} is no talk", got=str(error), do="see docs/manifest.md") from error


# ---------------------------------------------------------------------- the index


def _key(path: Path) -> str:
    """What an index must have been made from."""
    return f"{sha256(path)} {__version__} {FORMAT} {' '.join(NAMES)}"


def _keep(found: Places, index: Path, key: str) -> None:
    try:
        with replacing(index) as partial:
            partial.write_bytes(_packed(found, key))
    except OSError:  # a folder that is only to be read
        return


def _kept(index: Path, key: str) -> Places | None:
    try:
        return _unpacked(io.BytesIO(index.read_bytes()), key)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _packed(found: Places, key: str = "") -> bytes:
    told = {"key": key, "left_out": found.left_out, "answers": found.answers, "writers": found.writers}
    texts = {"told": json.dumps(told).encode(), "heard": found.heard}
    arrays: dict[str, Any] = {name: np.frombuffer(text, np.uint8) for name, text in texts.items()}
    arrays.update((str(kind), places) for kind, places in found.kinds.items())
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def _unpacked(packed: BinaryIO, key: str = "") -> Places:
    """The other way round.

    Raises:
        ValueError: of another key.
    """
    with np.load(packed) as file:  # no pickle is read
        told = json.loads(file["told"].tobytes())
        if told["key"] != key:
            raise ValueError("of other bytes or another version")
        kinds: dict[TaskKind, NDArray[Any]] = {kind: file[kind] for kind in TASK_KINDS}
        return Places(kinds, Counter(told["left_out"]), told["answers"], told["writers"], file["heard"].tobytes())


if __name__ == "__main__":
    sys.exit(main())
