"""What all corpora share: the shape of a corpus, the reasons to leave a row out, splits by a hash, readers.

A corpus is a generator: it walks its raw folder and yields an `Entry` for every row that it finds there, usable
or not, so that nothing is lost without being counted. How recordings are looked at, what is written and what is
refused is the same for all and stands in `prepare.py`.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from dualslm.data.corpora.schema import TASKS
from dualslm.errors import DualSLMError

# Reasons to leave a row out, as they stand in reports.
MISSING = "missing audio"
POINTER = "LFS pointer"
UNREADABLE = "unreadable"
TOO_LONG = "too long"
KNOWN_BAD = "known bad"
NO_TRANSCRIPT = "no transcript"
LABEL_UNKNOWN = "label unknown"
NO_TASK = "nothing to ask"
DUPLICATE = "duplicate"

Talk: TypeAlias = dict[str, Any]
LabelMap: TypeAlias = Mapping[str, Mapping[str, str]]
HELD_OUT: Mapping[str, float] = {"validation": 0.05, "test": 0.05}  # shares; the rest is train


@dataclass(frozen=True)
class Heard:
    """What a look at a recording gave.

    Attributes:
        seconds: its length in s, where it is usable.
        reason: why it is not usable, one of the reasons above, or None.
        detail: the reason in more words.
    """

    seconds: float | None = None
    reason: str | None = None
    detail: str = ""


@dataclass(frozen=True)
class Entry:
    """One row of a raw corpus and what became of it.

    Attributes:
        split: that it belongs to.
        name: of the row, for the list of what was left out.
        reason: why it cannot be used, or None.
        detail: the reason in more words.
        seconds: the length of its recording in s.
        conversations: lines of the manifest that it gives.
    """

    split: str
    name: str
    reason: str | None = None
    detail: str = ""
    seconds: float = 0.0
    conversations: tuple[Talk, ...] = ()


@dataclass(frozen=True)
class Option:
    """A choice that a corpus leaves to the user; it becomes `--name` on the command line.

    Attributes:
        name: in words joined by "-".
        help: one line.
        default: False for a switch, () for an option that may be given again and again, else a value.
        choices: the values allowed, where they are few.
        metavar: what help shows for its value.
    """

    name: str
    help: str
    default: bool | int | str | tuple[str, ...] | None = None
    choices: tuple[str, ...] = ()
    metavar: str | None = None


@dataclass
class Raw:
    """A raw folder on its way to manifests.

    Attributes:
        root: of the downloaded corpus.
        out: where the manifests go; audio paths count from here.
        corpus: its name.
        tasks: that are wanted.
        options: of the corpus, by name.
        seed: of our own splits.
        hear: looks at a recording.
        emotions: the corpus's own classes, which become the choices of its recordings.
        total: rows to expect, for the progress bar; None where it is not known.
        notes: what the corpus has to say of itself in the report.
    """

    root: Path
    out: Path
    corpus: str
    tasks: Sequence[str]
    options: Mapping[str, Any]
    seed: int
    hear: Callable[[Path], Heard]
    emotions: tuple[str, ...] = ()
    total: int | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    def speech(self, path: Path, **fields: Any) -> dict[str, Any]:
        """A recording as a part of a turn; what is empty is left out."""
        known = {name: value for name, value in fields.items() if value}
        if "emotion" in known.get("labels", {}) and len(self.emotions) > 1:
            known["choices"] = {"emotion": list(self.emotions)}
        return {"audio": relative(path, self.out), **known}

    def spoken(
        self,
        split: str,
        name: str,
        path: Path | None,
        *,
        part: Mapping[str, Any],
        row: Mapping[str, Any],
        before: Sequence[Talk] = (),
    ) -> Entry:
        """The entry of one recording as the last turn of a talk.

        Args:
            split: that it belongs to.
            name: of the row, which becomes the talk's id.
            path: of the recording; None where it was not found.
            part: transcript, caption and labels of the recording.
            row: further fields of the talk; those that are empty are left out.
            before: the turns before it.
        """
        if path is None:
            return Entry(split, name, MISSING)
        heard = self.hear(path)
        if heard.reason is not None:
            return Entry(split, name, heard.reason, heard.detail)
        assert heard.seconds is not None
        tasks = possible(self.tasks, part)
        if not tasks:
            return Entry(split, name, NO_TASK, f"nothing known that {', '.join(self.tasks)} would need")
        turns = [*before, {"role": "user", "parts": [self.speech(path, **part)]}]
        head = {"id": name, "corpus": self.corpus, "tasks": tasks, "turns": turns, "seconds": heard.seconds}
        conversation = head | {key: value for key, value in row.items() if value}
        return Entry(split, name, seconds=heard.seconds, conversations=(conversation,))


@dataclass(frozen=True)
class Corpus:
    """A corpus that `dualslm prepare` knows.

    Attributes:
        name: on the command line.
        about: one line.
        rows: walks the raw folder.
        tasks: what its recordings are for, unless the user names others.
        labels: raw label to our name for it, by attribute, with its source in a comment.
        apart: what may not stand in two splits: "clip", "dialogue", "speaker"; may depend on the options.
        options: that it has.
    """

    name: str
    about: str
    rows: Callable[[Raw], Iterator[Entry]]
    tasks: tuple[str, ...]
    labels: LabelMap
    apart: Callable[[Mapping[str, Any]], tuple[ApartKind, ...]]
    options: tuple[Option, ...] = ()


ApartKind: TypeAlias = Literal["clip", "dialogue", "speaker"]


def possible(tasks: Sequence[str], part: Mapping[str, Any]) -> list[str]:
    """Those of some tasks that a recording has what is needed for, in the order of `TASKS`."""
    labels = part.get("labels", {})
    known = {task for task in tasks if (part.get("transcript") if task in ("asr", "respond") else task in labels)}
    return [task for task in TASKS if task in known]


def translate(raw: Mapping[str, str | None], labels: LabelMap) -> tuple[dict[str, str], str | None]:
    """Raw labels under our names.

    Args:
        raw: the corpus's values by attribute; None and "" are unknown and left out.
        labels: our names for them.

    Returns:
        The labels, and the first value that the map does not know, or None.
    """
    out = {}
    for name, value in raw.items():
        if not value:
            continue
        if value not in labels[name]:
            return {}, f"{name} {value!r}"
        out[name] = labels[name][value]
    return out, None


def split_of(key: str, seed: int, held_out: Mapping[str, float] = HELD_OUT) -> str:
    """The split that a key falls in: by the SHA-256 of seed and key, so that no list needs to be kept.

    Adding rows to a corpus never moves another row to another split.

    Args:
        key: whatever must not be torn apart: a speaker, a dialogue, a clip.
        seed: another one gives other splits.
        held_out: splits other than train and their shares.
    """
    place = int.from_bytes(hashlib.sha256(f"{seed}/{key}".encode()).digest()[:8], "big") / 2**64
    for split, share in held_out.items():
        if place < share:
            return split
        place -= share
    return "train"


def relative(path: Path, folder: Path) -> str:
    """A path as it counts from a folder, with "/"; absolute where there is no way between drives."""
    try:
        return os.path.relpath(path, folder).replace(os.sep, "/")
    except ValueError:
        return str(path)


def walk(root: Path, suffixes: Sequence[str]) -> Iterator[Path]:
    """All files with one of some endings below a folder, sorted, without the dot files that macOS leaves."""
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and name.lower().endswith(tuple(suffixes)):
                yield Path(folder, name)


def text_of(path: Path, do: str = "give the folder that it was unpacked to") -> str:
    """The text of a metadata file: UTF-8, or the Windows code page of older copies.

    Raises:
        DualSLMError: it cannot be read.
    """
    encoding, _ = look_into(path, do)
    return path.read_text(encoding=encoding, errors="replace")


def look_into(path: Path, do: str = "give the folder that it was unpacked to") -> tuple[str, int]:
    """The encoding of a text file and how many lines it has; reads it once without keeping it.

    Raises:
        DualSLMError: it cannot be read, or is a Git LFS pointer.
    """
    encoding, count = "utf-8-sig", 0
    try:
        with path.open("rb") as file:
            for line in file:
                count += 1
                if line.startswith(b"version https://git-lfs"):
                    raise DualSLMError(f"{path} is not here", got="a Git LFS pointer for it", do="run `git lfs pull`")
                try:
                    line.decode("utf-8")
                except UnicodeDecodeError:
                    encoding = "cp1252"
    except OSError as error:
        raise DualSLMError(f"cannot read {path}", got=error.strerror, do=do) from error
    return encoding, count


def table(path: Path, columns: Sequence[str]) -> Iterator[dict[str, str]]:
    """The rows of a CSV file with a header, one after the other.

    Raises:
        DualSLMError: it cannot be read, lacks a column, or has a row with too few fields.
    """
    encoding, _ = look_into(path)
    with path.open(encoding=encoding, errors="replace", newline="") as file:
        reader = csv.DictReader(file)
        header = _header(reader, path)
        if missing := [name for name in columns if name not in header]:
            got = f"no column {missing[0]} among {', '.join(header)[:80] or 'none'}"
            raise DualSLMError(f"{path} is not the file expected", got=got, do="download it again")
        for row in _whole(reader, path):
            if any(row[name] is None for name in columns):
                got = f"{sum(value is not None for value in row.values())} fields"
                raise DualSLMError(f"{path} line {reader.line_num} is cut off", got=got, do="download it again")
            yield {name: row[name] or "" for name in header}


def _header(reader: csv.DictReader[str], path: Path) -> Sequence[str]:
    try:
        return reader.fieldnames or []
    except csv.Error as error:
        raise DualSLMError(f"{path} is no CSV file", got=error, do="download it again") from error


def _whole(reader: csv.DictReader[str], path: Path) -> Iterator[dict[str, str | None]]:
    try:
        yield from reader
    except csv.Error as error:
        raise DualSLMError(f"{path} line {reader.line_num} is damaged", got=error, do="download it again") from error


def first_folder(root: Path, candidates: Sequence[str], holding: str, what: str) -> Path:
    """The first of some folders below the root that holds a file or folder.

    Args:
        root: what the user gave.
        candidates: folders below it, "" for itself.
        holding: a glob that must find something there.
        what: is looked for, in words.

    Raises:
        DualSLMError: none does.
    """
    if not root.is_dir():
        got = "a file" if root.exists() else "no such folder"
        raise DualSLMError(f"{root} is not a folder", got=got, do=f"give the folder of {what}")
    try:
        for name in candidates:
            if any((root / name).glob(holding)):
                return root / name
        found = ", ".join(sorted(path.name for path in root.iterdir())[:4]) or "nothing"
    except OSError as error:
        raise DualSLMError(f"cannot look into {root}", got=error.strerror, do="check the permissions") from error
    raise DualSLMError(f"{root} does not look like {what}: no {holding} there", got=found, do="see docs/corpora.md")
