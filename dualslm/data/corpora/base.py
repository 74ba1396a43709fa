"""What all corpora share: the interface of a corpus, the reasons to exclude a row, splits by a hash, readers.

A corpus is a generator: it walks its raw folder and yields an `Entry` for every row that it finds there, usable
or not, so that nothing is lost without being counted. Probing recordings, writing manifests and refusing bad ones is
the same for all corpora (`clips.py`, `prepare.py`).
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
from dualslm.files import open_regular

# Reasons to exclude a row, as reports name them.
MISSING = "missing audio"
POINTER = "LFS pointer"
UNREADABLE = "unreadable"
CUT_OFF = "cut off or damaged"  # found only where recordings are decoded (--verify): it reads as far as it goes
TOO_LONG = "too long"
KNOWN_BAD = "known bad"
NO_TRANSCRIPT = "no transcript"
LABEL_UNKNOWN = "label unknown"
NO_TASK = "nothing to ask"
DUPLICATE = "duplicate"
NO_SPEECH = "no speech"

Row: TypeAlias = dict[str, Any]
"""One line of a manifest (docs/manifest.md)."""
Turn: TypeAlias = dict[str, Any]
"""One turn of a row: its role and its parts."""
LabelMap: TypeAlias = Mapping[str, Mapping[str, str]]
"""Our labels by attribute and raw label."""
HELD_OUT: Mapping[str, float] = {"validation": 0.05, "test": 0.05}  # shares; the rest is train


@dataclass(frozen=True)
class AudioInfo:
    """The result of probing a recording.

    Attributes:
        seconds: length in s of a usable recording.
        reason: why the recording is not usable, one of the reasons above, or None.
        detail: the reason in more words.
    """

    seconds: float | None = None
    reason: str | None = None
    detail: str = ""


@dataclass(frozen=True)
class Entry:
    """One row of a raw corpus and the result of its preparation.

    Attributes:
        split: name of its split.
        name: name of the row, for the list of excluded rows.
        reason: why the row is excluded, or None.
        detail: the reason in more words.
        seconds: length of its recording in s.
        conversations: rows of the manifest that are made of it.
    """

    split: str
    name: str
    reason: str | None = None
    detail: str = ""
    seconds: float = 0.0
    conversations: tuple[Row, ...] = ()


@dataclass(frozen=True)
class Option:
    """An option of a corpus, which becomes `--name` on the command line.

    Attributes:
        name: name, whose words are joined by "-".
        help: one line for the help.
        default: False for a switch, () for an option that may be repeated, else a value.
        choices: allowed values; any value when empty.
        metavar: placeholder of the value in the help.
    """

    name: str
    help: str
    default: bool | int | str | tuple[str, ...] | None = None
    choices: tuple[str, ...] = ()
    metavar: str | None = None


@dataclass
class Raw:
    """A raw folder, with the settings of its preparation.

    Attributes:
        root: folder of the downloaded corpus.
        out: folder of the manifests; audio paths are relative to it.
        corpus: name of the corpus.
        tasks: names of the wanted tasks.
        options: values of the corpus's options by name.
        seed: seed of our own splits.
        probe: gives the length of a recording, or why it cannot be used.
        emotions: emotion classes of the corpus, which become the choices of its recordings.
        total: expected number of rows, for the progress bar; None where it is not known.
        notes: remarks of the corpus for the report.
    """

    root: Path
    out: Path
    corpus: str
    tasks: Sequence[str]
    options: Mapping[str, Any]
    seed: int
    probe: Callable[[Path], AudioInfo]
    emotions: tuple[str, ...] = ()
    total: int | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    def speech(self, path: Path, **fields: Any) -> dict[str, Any]:
        """A recording as a part of a turn.

        Args:
            path: path of the recording.
            fields: further fields of the part; empty ones are left out.
        """
        known = {name: value for name, value in fields.items() if value}
        # Answers are asked from a list of choices; without the corpus's own classes it would be that of our own.
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
        before: Sequence[Turn] = (),
    ) -> Entry:
        """The entry of one recording as the last turn of a conversation.

        Args:
            split: name of the split.
            name: name of the raw row, which becomes the id of the conversation.
            path: path of the recording; None where it was not found.
            part: transcript, caption and labels of the recording.
            row: further fields of the conversation; empty ones are left out.
            before: earlier turns of the conversation.
        """
        if path is None:
            return Entry(split, name, MISSING)
        info = self.probe(path)
        if info.reason is not None:
            return Entry(split, name, info.reason, info.detail)
        assert info.seconds is not None
        tasks = possible(self.tasks, part)
        if not tasks:
            return Entry(split, name, NO_TASK, f"nothing known that {', '.join(self.tasks)} would need")
        turns = [*before, {"role": "user", "parts": [self.speech(path, **part)]}]
        head = {"id": name, "corpus": self.corpus, "tasks": tasks, "turns": turns, "seconds": info.seconds}
        conversation = head | {key: value for key, value in row.items() if value}
        return Entry(split, name, seconds=info.seconds, conversations=(conversation,))


@dataclass(frozen=True)
class Corpus:
    """A corpus that `dualslm prepare` knows.

    Attributes:
        name: name on the command line.
        about: one line for the help.
        rows: generator of the entries of a raw folder.
        tasks: tasks of its recordings, unless the user names others.
        labels: our labels by attribute and raw label, with their source in a comment.
        apart: kinds of names that must not occur in two splits, as a function of the options.
        options: options of the corpus.
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
    """The tasks whose transcript or label a recording has, in the order of `TASKS`."""
    labels = part.get("labels", {})
    known = {task for task in tasks if (part.get("transcript") if task in ("asr", "respond") else task in labels)}
    return [task for task in TASKS if task in known]


def translate(raw: Mapping[str, str | None], labels: LabelMap) -> tuple[dict[str, str], str | None]:
    """Translates raw labels to ours.

    Args:
        raw: raw labels by attribute; None and "" mean unknown and are left out.
        labels: our labels by attribute and raw label.

    Returns:
        Our labels by attribute, and the first raw label that is not in the map, or None.
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
    """The split of a key, drawn by the SHA-256 of seed and key.

    Adding rows to a corpus never moves another row to another split, and no list of splits needs to be stored.

    Args:
        key: what must stay in one split as a whole: a speaker, a dialogue or a clip.
        seed: seed of the splits.
        held_out: shares of the splits other than train.
    """
    uniform = int.from_bytes(hashlib.sha256(f"{seed}/{key}".encode()).digest()[:8], "big") / 2**64  # in [0, 1)
    for split, share in held_out.items():
        if uniform < share:
            return split
        uniform -= share
    return "train"


def relative(path: Path, folder: Path) -> str:
    """A path relative to a folder, with "/" as separator."""
    try:
        return os.path.relpath(path, folder).replace(os.sep, "/")
    except ValueError:  # two drives of Windows, between which no path is relative
        return str(path)


def walk(root: Path, suffixes: Sequence[str]) -> Iterator[Path]:
    """All files below a folder whose names end with one of some suffixes, sorted by folder."""
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:  # a link to a folder above would be walked for ever
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            # macOS leaves a file "._NAME" beside each file that it copies to a foreign disk.
            if not name.startswith(".") and name.lower().endswith(tuple(suffixes)):
                yield Path(folder, name)


def text_of(path: Path, do: str = "give the folder that it was unpacked to") -> str:
    """The text of a metadata file: UTF-8, or the Windows code page of older copies.

    Args:
        path: path of the file.
        do: what an error says to do.

    Raises:
        DualSLMError: the file cannot be read.
    """
    encoding, _ = look_into(path, do)
    return path.read_text(encoding=encoding, errors="replace")


def look_into(path: Path, do: str = "give the folder that it was unpacked to") -> tuple[str, int]:
    """The encoding of a text file and its number of lines; the file is read once, line by line.

    Args:
        path: path of the file.
        do: what an error says to do.

    Raises:
        DualSLMError: the file cannot be read, or is a Git LFS pointer.
    """
    encoding = "utf-8-sig"  # with or without the byte order mark that spreadsheets write
    count = 0
    with open_regular(path, "the file", do) as file:
        for line in file:
            count += 1
            if line.startswith(b"version https://git-lfs"):
                raise DualSLMError(f"{path} is not here", got="a Git LFS pointer for it", do="run `git lfs pull`")
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:  # one such line is enough: cp1252 decodes any bytes
                encoding = "cp1252"
    return encoding, count


def table(path: Path, columns: Sequence[str]) -> Iterator[dict[str, str]]:
    """The rows of a CSV file with a header, one after the other.

    Args:
        path: path of the file.
        columns: names of the columns that it must have.

    Raises:
        DualSLMError: the file cannot be read, lacks a column, or has a row with too few fields.
    """
    encoding, _ = look_into(path)
    with path.open(encoding=encoding, errors="replace", newline="") as file:
        reader = csv.DictReader(file)
        try:
            header = reader.fieldnames or []
            if missing := [name for name in columns if name not in header]:
                got = f"no column {missing[0]} among {', '.join(header)[:80] or 'none'}"
                raise DualSLMError(f"{path} is not the file expected", got=got, do="download it again")
            for row in reader:
                # The reader fills a row that is too short with None; a file cut off by a broken download ends so.
                if any(row[name] is None for name in columns):
                    got = f"{sum(value is not None for value in row.values())} fields"
                    raise DualSLMError(f"{path} line {reader.line_num} is cut off", got=got, do="download it again")
                yield {name: row[name] or "" for name in header}
        except csv.Error as error:
            wrong = f"{path} line {reader.line_num} is damaged"
            raise DualSLMError(wrong, got=error, do="download it again") from error


def first_folder(root: Path, candidates: Sequence[str], holding: str, what: str) -> Path:
    """The first of some folders that holds a certain file; archives are unpacked with and without a top folder.

    Args:
        root: folder that the user gave.
        candidates: folders below the root, "" for the root itself.
        holding: glob pattern of the file.
        what: name of the corpus for the error.

    Raises:
        DualSLMError: no candidate holds the file.
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
