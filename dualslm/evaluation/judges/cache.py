"""Cache of raw answers: nothing is asked twice, and an improved parser can read old answers again.

One SQLite file. Its key hashes all that an answer can depend on; its value is the server's whole answer, unchanged.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any

from dualslm.errors import DualSLMError


def digest(value: Any) -> str:
    """SHA-256 of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    # A model's output may hold lone surrogates, which plain UTF-8 refuses.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class Cache:
    """Answers on disk; several threads and processes may share it.

    Args:
        path: file of the cache; made where it does not exist.

    Raises:
        DualSLMError: the file cannot be opened, or is no cache.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.lock = Lock()
        try:
            # The time-out (s) covers another process that writes; the lock covers the threads of this one.
            self.file = sqlite3.connect(path, timeout=60, check_same_thread=False)
            self.file.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL)")
            self.file.commit()
        except sqlite3.Error as error:
            raise DualSLMError(f"cannot open the cache {path}", got=error, do="name another file") from error

    def get(self, key: str) -> dict[str, Any] | None:
        """The answer stored under a key; None where there is none."""
        with self.lock:
            row = self.file.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
        return dict(json.loads(row[0])) if row else None

    def put(self, key: str, answer: Mapping[str, Any]) -> None:
        """Stores an answer; it is on disk when this returns."""
        with self.lock, self.file:
            self.file.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, json.dumps(answer)))

    def close(self) -> None:
        """Closes the file."""
        self.file.close()
