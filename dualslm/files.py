"""Files that are written completely or not at all, and hashes of files; nothing here imports torch."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes in hexadecimal; the file is never in memory as a whole."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class replacing:
    """A context manager that gives a temporary path and, on success, renames it to `path`.

    No reader ever sees half a file. A temporary file that a killed process left is overwritten by the next; a file
    may have one writer at a time.

    Args:
        path: final path of the file; its folder must exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # In the same folder, because a rename is atomic only within one file system.
        self.partial = path.with_name(f".{path.name}.partial")

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
