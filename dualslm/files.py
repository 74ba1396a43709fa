"""Files that are written completely or not at all, files that are read, and their hashes; nothing imports torch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from dualslm.errors import DualSLMError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # Windows programs write it in front of UTF-8 text


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


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes in hexadecimal; the file is never in memory as a whole.

    Raises:
        DualSLMError: not a regular file; of a pipe there would be no end.
        OSError: it cannot be read.
    """
    refuse_special(path, "the file")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.partial.unlink(missing_ok=True)
            return
        # Without the sync, a power failure after the rename could leave the final name on an empty file.
        with self.partial.open("rb") as file:
            os.fsync(file.fileno())
        self.partial.chmod(0o644)
        self.partial.replace(self.path)
