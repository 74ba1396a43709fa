"""A rival in a process and an environment of its own, asked line by line (bench/recognizer.py)."""

from __future__ import annotations

import json
import subprocess
from types import TracebackType
from typing import Any, Self


class Worker:
    """A program that says "ready" and then answers each line with a line of JSON; a `with` block starts and ends it.

    Args:
        command: what starts it.
    """

    def __init__(self, command: list[str]) -> None:
        self.command = command

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if (said := self._line()) != "ready":
            raise RuntimeError(f"{' '.join(self.command)} is not ready: {said}")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()  # the end of its input ends it
        self.process.wait(timeout=30)

    def ask(self, line: str) -> dict[str, Any]:
        """The answer to a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        found: dict[str, Any] = json.loads(self._line())
        return found

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{' '.join(self.command)} ended")
        return line.strip()
