"""The index of a manifest: the byte position of every example, found once and stored beside a large manifest.

Every line is checked when a manifest is first opened, 13 µs each; a large manifest is read in parts, by one process for
each core. It then gets an index file, `.NAME.index.npz`, from which it opens in a second. An index file is valid for
the very bytes of the manifest (their SHA-256) and for this version of the package; otherwise it is made again. Where
none can be written, the lines are read each time. No torch.
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
from dualslm.errors import DualSLMError, one_line
from dualslm.files import open_regular, replacing, sha256
from dualslm.recipe import TASK_KINDS, TaskKind

POSITION = np.dtype([("task", "u1"), ("offset", "i8")])  # index in NAMES, and bytes from the start of the file
NAMES = tuple(TASKS)
AS_IT_IS = len(NAMES)  # in place of a task index, for a line with a kind
TARGETS = ".targets.jsonl"  # end of the names of the files that dualslm targets writes
INDEXED = 1 << 24  # bytes; a smaller manifest is read fast enough without an index file
PART = 1 << 25  # bytes; a smaller part is read before a process has started
FORMAT = 4  # version of index files; raise it when their arrays, or the examples of a line, change
UNTIDY = re.compile(r"(^|/)\.?(/|$)")  # a path that pathlib would write otherwise: a//b, ./a, a/./b, a/
MAIN_PROCESS = int(os.environ.get("RANK", "0")) == 0  # under torchrun or accelerate: one process writes the index


@dataclass
class _Positions:
    """The positions of the examples of one kind while they are collected."""

    # Arrays of machine integers: a list of tuples would take ten times the memory for millions of lines.
    task: array[int] = field(default_factory=lambda: array("B"))
    offset: array[int] = field(default_factory=lambda: array("q"))

    def packed(self) -> NDArray[Any]:
        out = np.empty(len(self.task), POSITION)
        for name in ("task", "offset"):
            # frombuffer refuses a buffer of no bytes.
            out[name] = np.frombuffer(getattr(self, name), POSITION[name].newbyteorder("=")) if len(out) else 0
        return out


@dataclass(frozen=True)
class ManifestIndex:
    """The examples of one manifest.

    Attributes:
        kinds: position of each example by kind, an array of `POSITION`.
        left_out: number of examples that a line asks for and that are not given, by task and reason.
        answers: number of lines with provenance.
        writers: the first provenance of every LLM that wrote answers.
        recordings: paths of the recordings of all examples, each once, relative to the manifest's folder (`names`).
    """

    kinds: Mapping[TaskKind, NDArray[Any]]
    left_out: Counter[str]
    answers: int
    writers: list[Mapping[str, Any]]
    recordings: bytes


def open_index(path: Path) -> ManifestIndex:
    """The index of a manifest, from its index file where that is valid.

    Raises:
        DualSLMError: a manifest that cannot be read, or a line that is not valid.
    """
    return indexed(path) or _read(path)


def indexed(path: Path) -> ManifestIndex | None:
    """The index of a manifest that is large enough for an index file, which is written if missing; None of others.

    Raises:
        DualSLMError: a line that is not valid.
    """
    if not os.path.isfile(path) or path.stat().st_size < INDEXED:
        return None
    file = path.with_name(f".{path.name}.index.npz")
    key = _key(path)
    try:
        return _unpacked(io.BytesIO(file.read_bytes()), key)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass  # missing, damaged, or of other bytes or another version
    if MAIN_PROCESS:
        print(f"{one_line(path)}: every line is checked, once", file=sys.stderr, flush=True)
    index = _found(path)
    if MAIN_PROCESS:
        _keep(index, file, key)
    return index


def rows(path: Path, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """The lines of a manifest that are not blank, checked, each with its byte offset.

    Args:
        path: path of the manifest.
        start: byte offset; lines that begin before it are skipped.
        stop: byte offset; lines that begin at it or after it are skipped. None reads to the end.

    Raises:
        DualSLMError: a manifest that cannot be read, or a line that is not valid; its number in the error counts from
            the first line that is read.
    """
    with open_regular(path, "the manifest", _made_by(path)) as file:
        offset = start
        if start:
            file.seek(start - 1)
            # The byte before `start` too: where it ends a line, the next line begins at `start` and is ours.
            offset = start - 1 + len(file.readline())
        for number, line in enumerate(file, 1):
            if stop is not None and offset >= stop:
                return
            if not schema.is_blank(line):
                yield offset, _row(line, path, number)
            offset += len(line)


def _made_by(path: Path) -> str:
    if path.name.endswith(TARGETS):
        return "run dualslm targets first"
    if path.parts[:2] == ("runs", "tiny"):
        return "run python -m dualslm.tiny build --steps talks first"
    return "check the path, or make it by dualslm prepare"


def examples_of(row: Mapping[str, Any], out: Mapping[str, str]) -> Iterator[tuple[TaskKind, int]]:
    """The examples of a line, each as its kind and the index of its task in `NAMES`.

    Args:
        row: the line.
        out: its tasks, or its kind, that are left out, with the reasons.
    """
    if "kind" in row:
        if not out:
            yield row["kind"], AS_IT_IS
        return
    yield from ((TASKS[name].kind, NAMES.index(name)) for name in row["tasks"] if name not in out)


def llm_of(provenance: Mapping[str, Any]) -> tuple[Any, Any]:
    """The fields of a provenance that identify the LLM: its name and revision."""
    return provenance.get("llm"), provenance.get("revision")


# ---------------------------------------------------------------------- in parts


def _found(path: Path) -> ManifestIndex:
    """The index of a large manifest, made by several processes where that is faster."""
    size = path.stat().st_size
    count = min(_cores(), size // PART)
    if count < 2:
        return _read(path)
    cuts = [size * number // count for number in range(count + 1)]
    parts = _at_once([[str(path), str(start), str(stop)] for start, stop in pairwise(cuts)])
    if parts is None:  # a line is not valid: reading in order raises the error with the number of the line
        return _read(path)
    return _joined([_unpacked(io.BytesIO(part)) for part in parts])


def _cores() -> int:
    """The number of cores for this process; the processes of a training on one machine share its cores."""
    # The affinity counts what a container or a scheduler allows, the cpu count all of the machine.
    have = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return have // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _at_once(calls: Sequence[Sequence[str]]) -> list[bytes] | None:
    """Runs `main` with each of some arguments, in parallel processes.

    Args:
        calls: arguments of each process.

    Returns:
        The standard output of each process; None where one of them failed.
    """
    # Not by `multiprocessing`: spawning imports the user's script again, which runs it twice where it has no
    # `__main__` guard, and forking copies a process whose threads may hold locks.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    # -P keeps the working directory off the import path: a json.py of the user's must not replace Python's.
    command = [sys.executable, "-P", "-m", "dualslm.data.manifest_index"]
    started = [Popen([*command, *call], stdout=PIPE, stderr=DEVNULL, env=environment) for call in calls]
    try:
        written = [one.communicate()[0] for one in started]
        return written if not any(one.returncode for one in started) else None
    finally:
        for one in started:
            one.kill()


def main() -> int:
    """Indexes a part of a manifest, given as path, first byte and byte after the last, and writes it to stdout."""
    path, start, stop = sys.argv[1:]
    sys.stdout.buffer.write(_packed(_read(Path(path), int(start), int(stop))))
    return 0


def _joined(parts: Sequence[ManifestIndex]) -> ManifestIndex:
    recordings = dict.fromkeys(chain.from_iterable(names(part.recordings) for part in parts))
    writers: dict[Any, Mapping[str, Any]] = {}
    for writer in chain.from_iterable(part.writers for part in parts):
        writers.setdefault(llm_of(writer), writer)  # the first of each LLM, in the order of their lines
    return ManifestIndex(
        {kind: np.concatenate([part.kinds[kind] for part in parts]) for kind in TASK_KINDS},
        sum((part.left_out for part in parts), Counter()),
        sum(part.answers for part in parts),
        list(writers.values()),
        _listed(recordings),
    )


# ---------------------------------------------------------------------- line by line


def _read(path: Path, start: int = 0, stop: int | None = None) -> ManifestIndex:
    """The index of a manifest, or of the lines that begin in a range of bytes."""
    kinds = {kind: _Positions() for kind in TASK_KINDS}
    counts: Counter[str] = Counter()
    writers: dict[Any, Mapping[str, Any]] = {}
    answers = 0
    recordings: dict[str, None] = {}
    for offset, row in rows(path, start, stop):
        if "provenance" in row:
            answers += 1
            writers.setdefault(llm_of(row["provenance"]), row["provenance"])
        if out := left_out(row):
            counts.update(f"{name}: {why}" for name, why in out.items())
        examples = list(examples_of(row, out))
        for kind, task in examples:
            kinds[kind].task.append(task)
            kinds[kind].offset.append(offset)
        # Recordings of lines without an example need no features.
        if examples:
            recordings.update(dict.fromkeys(_audio(row)))
    packed = {kind: positions.packed() for kind, positions in kinds.items()}
    return ManifestIndex(packed, counts, answers, list(writers.values()), _listed(recordings))


def names(listed: bytes) -> list[str]:
    """The paths of `ManifestIndex.recordings`."""
    return listed.decode().split("\0") if listed else []


def _listed(recordings: Iterable[str]) -> bytes:
    # One text, because an array of strings would pad every path to the longest. No path holds this character.
    return "\0".join(recordings).encode()


def _audio(row: Mapping[str, Any]) -> Iterator[str]:
    for turn in row["turns"]:
        for part in turn["parts"]:
            if not isinstance(part, str) and part.get("audio"):
                # In pathlib's form, in which caches know a recording. Most paths have it, and pathlib is slow.
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
        wrong = f"{path} line {number}: not a conversation"
        raise DualSLMError(wrong, got=str(error), do="see docs/manifest.md") from error


# ---------------------------------------------------------------------- the index file


def _key(path: Path) -> str:
    """What an index file depends on: the manifest, the package, the format and the tasks with their order."""
    return f"{sha256(path)} {__version__} {FORMAT} {' '.join(NAMES)}"


def _keep(index: ManifestIndex, file: Path, key: str) -> None:
    try:
        with replacing(file) as partial:
            partial.write_bytes(_packed(index, key))
    except OSError:  # a read-only folder: the manifest is read each time
        return


def _packed(index: ManifestIndex, key: str = "") -> bytes:
    """An index as the bytes of an npz file.

    Args:
        index: the index.
        key: what the index depends on; "" between the processes of one run.
    """
    header = {"key": key, "left_out": index.left_out, "answers": index.answers, "writers": index.writers}
    texts = {"header": json.dumps(header).encode(), "recordings": index.recordings}
    arrays: dict[str, Any] = {name: np.frombuffer(text, np.uint8) for name, text in texts.items()}
    arrays.update((str(kind), positions) for kind, positions in index.kinds.items())
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def _unpacked(packed: BinaryIO, key: str = "") -> ManifestIndex:
    """The inverse of `_packed`.

    Raises:
        ValueError: the file was made with another key.
    """
    with np.load(packed) as file:  # refuses pickled objects, so that an index from elsewhere cannot run code
        header = json.loads(file["header"].tobytes())
        if header["key"] != key:
            raise ValueError("of other bytes or another version")
        kinds: dict[TaskKind, NDArray[Any]] = {kind: file[kind] for kind in TASK_KINDS}
        recordings = file["recordings"].tobytes()
        return ManifestIndex(kinds, Counter(header["left_out"]), header["answers"], header["writers"], recordings)


if __name__ == "__main__":
    sys.exit(main())
