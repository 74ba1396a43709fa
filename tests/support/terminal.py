"""A program behind a real pseudo-terminal, as somebody at a keyboard has it."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x01\x02\r]")
ROOT = Path(__file__).parents[2]
TIMEOUT_S = 120  # a machine may be busy with other tests


def _restore_sigint() -> None:
    """A suite that was started in the background ignores Ctrl-C, and what it starts would inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """Starts a command, types into it and reads what it shows."""

    def __init__(self, command: Sequence[str], folder: Path, columns: int = 160) -> None:
        ours, theirs = pty.openpty()
        env = {**os.environ, "TERM": "xterm", "COLUMNS": str(columns), "LINES": "40", "OMP_NUM_THREADS": "1"}
        env["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        self.process = subprocess.Popen(
            [sys.executable, "-m", *command],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=env,
            cwd=folder,
            start_new_session=True,
            preexec_fn=_restore_sigint,
        )
        os.close(theirs)
        self.file = ours
        self.seen = ""

    def wait_for(self, pattern: str, timeout: float = TIMEOUT_S) -> str:
        """Reads until the pattern has been shown; gives what came up to its end, without colours."""
        deadline = time.monotonic() + timeout
        while not (found := re.search(pattern, ESCAPES.sub("", self.seen), re.DOTALL)):
            if time.monotonic() > deadline or not self._more():
                raise AssertionError(f"{pattern!r} never came; seen: {self.seen!r}")
        text = ESCAPES.sub("", self.seen)
        self.seen = text[found.end() :]
        return text[: found.end()]

    def enter(self, line: str) -> None:
        """Types a line and Enter."""
        os.write(self.file, (line + "\n").encode())

    def interrupt(self) -> None:
        """Ctrl-C; the terminal is not the tests' own, so the signal is sent by hand."""
        os.kill(self.process.pid, signal.SIGINT)

    def interrupt_the_prompt(self, pattern: str) -> str:
        """Ctrl-C at the prompt; again if it came just before `input` waits, where CPython holds it back until a key."""
        for _ in range(5):
            self.interrupt()
            with suppress(AssertionError):
                return self.wait_for(pattern, 5.0)
        return self.wait_for(pattern)

    def _more(self) -> bool:
        if not select.select([self.file], [], [], 1.0)[0]:
            return True
        try:
            data = os.read(self.file, 65536)
        except OSError:  # how Linux reports that the program has ended
            return False
        self.seen += data.decode(errors="replace")
        return bool(data)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(TIMEOUT_S)
        os.close(self.file)
