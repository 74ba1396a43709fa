"""Files that are there whole or not at all, and their hashes; nothing here imports torch."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def sha256(path: Path) -> str:
    """The hash of a file's bytes, which are read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class replacing:
    """Gives a temporary path; on success it is synced and renamed, so no reader ever sees half a file.

    What a killed writer left is written over by the next; a file has one writer at a time.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.partial = path, path.with_name(f".{path.name}.partial")

    def __enter__(self) -> Path:
        self.partial.unlink(missing_ok=True)
        self.partial.touch()
        return self.partial

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.partial.unlink(missing_ok=True)
            return
        with self.partial.open("rb") as file:
            os.fsync(file.fileno())
        self.partial.chmod(0o644)
        self.partial.replace(self.path)
