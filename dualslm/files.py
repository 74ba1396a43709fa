"""Files that are written completely or not at all, files that are read, their hashes and locks; no torch."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from dualslm.errors import DualSLMError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # Windows programs write it in front of UTF-8 text
HALF = re.compile(r"\\u[dD][89a-fA-F]")  # of a character, as JSON may spell it
FULL = {errno.ENOSPC, errno.EDQUOT}  # the disk, or this user's share of it


def refuse_special(path: Path, what: str) -> None:
    """Refuses a folder, a pipe or a device, before it is opened: reading from a pipe would wait for ever.

    Args:
        path: path of the file, taken as it is.
        what: what the file should be, for errors: "the recording".

    Raises:
        DualSLMError: it is one of them.
    """
    # os.path.exists, because Path.exists raises for a name that is too long.
    if os.path.exists(path) and not path.is_file():
        got = "Is a directory" if path.is_dir() else "a pipe or a device"
        raise DualSLMError(f"cannot read {what} {path}", got=got, do="give a regular file, not a folder or a pipe")


@contextmanager
def open_regular(path: Path, what: str, do: str = "check the path and the permissions") -> Iterator[BinaryIO]:
    """Opens a file for reading; only a regular one.

    Args:
        path: path of the file, taken as it is.
        what: what the file should be, for errors: "the recording".
        do: what an error says to do where there is no such file.

    Raises:
        DualSLMError: a folder, a pipe, a device, or a file that is not there or cannot be read.
    """
    refuse_special(path, what)
    try:
        file = path.open("rb")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise DualSLMError(f"cannot read {what} {path}", got=reason, do=do) from error
    with file:
        yield file


def read_text(path: Path, what: str, do: str) -> str:
    """The text of a UTF-8 file, without a byte order mark.

    Args:
        path: path of the file, taken as it is.
        what: what the file should be, for errors: "the recipe".
        do: what an error says to do.

    Raises:
        DualSLMError: the file cannot be read, is not a regular one, or is not UTF-8.
    """
    with open_regular(path, what, do) as file:
        data = file.read()
    try:
        return data.removeprefix(BYTE_ORDER_MARK).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DualSLMError(f"cannot read {what} {path}", got="bytes that are not UTF-8 text", do=do) from error


def read_json(path: Path, what: str, do: str) -> Any:
    """The value of a JSON file; whatever the file holds, it is a value or one error.

    Args:
        path: path of the file, taken as it is.
        what: what the file should be, for errors: "the report".
        do: what an error says to do.

    Raises:
        DualSLMError: the file cannot be read, is no JSON, gives a field twice, or holds half a character.
    """
    return parsed_json(read_text(path, what, do), f"{what} {path}", do)


def parsed_json(text: str | bytes, where: str, do: str, *, fields: Sequence[str] | None = None) -> Any:
    """The value of a JSON text; whatever the text holds, it is a value or one error.

    Args:
        text: the text, as bytes in UTF-8.
        where: what holds it, for errors: "line 3 of the report a.json".
        do: what an error says to do.
        fields: what an object of its kind has, () for any object; no matter what it is when None.

    Raises:
        DualSLMError: no JSON, a field that is given twice, half a character, or a field that is missing.
    """
    try:
        text = text if isinstance(text, str) else text.decode()
        value = json.loads(text, object_pairs_hook=_fields)
        if HALF.search(text) and holds_half(value):
            raise ValueError("half a character")
        if fields is not None and not (isinstance(value, dict) and set(fields) <= set(value)):
            raise ValueError(" ".join(["no object", *(["with", ", ".join(fields)] if fields else [])]))
    # ValueError: a number of more digits than Python reads, too. RecursionError: nested too deeply.
    except (ValueError, RecursionError) as error:
        raise DualSLMError(f"{where} is damaged", got=str(error), do=do) from error
    return value


def holds_half(value: object) -> bool:
    """Whether a text, or one within a value of JSON, holds half a character.

    JSON can escape half of a surrogate pair, which no file, tokenizer or terminal can encode afterwards. A value that
    is nested too deeply to be looked through counts as one, since it cannot be written again either.
    """
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except RecursionError:
        return True
    return not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text)


def _fields(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    # The json module alone would keep the last of two fields of one name and say nothing.
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is given twice")
    return fields


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes in hexadecimal; the file is never in memory as a whole.

    Raises:
        DualSLMError: not a regular file; of a pipe there would be no end.
        OSError: it cannot be read.
    """
    refuse_special(path, "the file")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def system_error(error: OSError) -> DualSLMError:
    """An error of the system about a file, a folder, a disk or a connection, as one of ours."""
    named = error.filename if error.filename is not None else error.filename2
    wrong = "a file or a connection failed" if named is None else f"cannot use {os.fsdecode(named)}"
    do = "check that the path is right, may be read and written, and that its disk works"
    if error.errno in FULL:
        do = "free some space, or name a folder with room"
    return DualSLMError(wrong, got=error.strerror or str(error) or type(error).__name__, do=do)


@contextmanager
def system_errors() -> Iterator[None]:
    """Gives every error of the system in its block as one of ours: one line that names the file.

    Raises:
        DualSLMError: in place of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise system_error(error) from error


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Names a file in the errors of its block that name none: those of writing and syncing do not."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def locked(path: Path, busy: Callable[[], None]) -> Iterator[None]:
    """Holds a lock file. The system frees it when this process ends, however it ends; the file stays.

    On Windows, and on file systems without locks, nothing is locked.

    Args:
        path: of the lock file, made where it is missing; its folder must exist.
        busy: called where another process holds the lock; unless it raises, the lock is waited for.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            busy()
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
        yield


class replacing:
    """A context manager that gives a temporary path and, on success, renames it to `path`.

    No reader ever sees half a file. A temporary file that a killed process left is overwritten by the next; a file
    may have one writer at a time.

    Args:
        path: final path of the file; its folder must exist.
        writer: name of this writer, for a file that several may write at once, each of them the same bytes.
    """

    def __init__(self, path: Path, writer: str = "") -> None:
        self.path = path
        # In the same folder, because a rename is atomic only within one file system.
        self.partial = path.with_name(f".{path.name}{writer and '.'}{writer}.partial")

    def __enter__(self) -> Path:
        self.partial.unlink(missing_ok=True)
        self.partial.touch()
        return self.partial

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        if kind is not None:
            self.partial.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.filename is None:
                error.filename = str(self.path)  # a full disk names no file
            return
        # Without the sync, a power failure after the rename could leave the final name on an empty file.
        with naming(self.path), self.partial.open("rb") as file:
            os.fsync(file.fileno())
        self.partial.chmod(0o644)
        self.partial.replace(self.path)
