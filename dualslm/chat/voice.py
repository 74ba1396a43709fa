"""Replies read aloud by the system's own synthesizer, sentence by sentence while they grow (ours).

`espeak-ng` (Linux, Windows), `say` (macOS) or `spd-say` (speech-dispatcher): whatever is installed. The text goes to
its standard input, so that nothing in a reply can be taken for an option or a command.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import deque
from threading import Condition, Thread

from dualslm.errors import DualSLMError

# the first that is installed; each reads a text from standard input and ends when it was said
COMMANDS = (
    ("espeak-ng", "--stdin"),
    ("say", "-f", "-"),
    ("espeak", "--stdin"),
    ("spd-say", "--wait", "--pipe-mode"),
)
SENTENCE = re.compile(r".*?(?:[.!?…][\"”’)]*\s+|[。！？]|\n+)", re.DOTALL)  # noqa: RUF001


class Voice:
    """Reads text aloud in a thread of its own.

    Raises:
        DualSLMError: no synthesizer is installed.
    """

    def __init__(self) -> None:
        found = [command for command in COMMANDS if shutil.which(command[0])]
        if not found:
            names = ", ".join(command[0] for command in COMMANDS)
            do = "install espeak-ng, or leave --speak out"
            raise DualSLMError("no voice to speak with", got=f"none of {names}", do=do)
        self.command = found[0]
        self._unfinished = ""
        self._sentences: deque[str] = deque()
        self._speaking: subprocess.Popen[bytes] | None = None
        self._changed = Condition()
        Thread(target=self._run, daemon=True).start()

    def add(self, piece: str) -> None:
        """Says every sentence that is whole."""
        self._unfinished += piece
        while found := SENTENCE.match(self._unfinished):
            self._unfinished = self._unfinished[found.end() :]
            self._say(found[0])

    def end(self) -> None:
        """Says what is held back: the reply is whole."""
        self._say(self._unfinished)
        self._unfinished = ""

    def stop(self) -> None:
        """Falls silent at once."""
        with self._changed:
            self._unfinished = ""
            self._sentences.clear()
            if self._speaking is not None:
                self._speaking.terminate()

    def wait(self, seconds: float) -> bool:
        """Whether all was said within some seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._sentences and self._speaking is None, seconds)

    def _say(self, text: str) -> None:
        if text.strip():
            with self._changed:
                self._sentences.append(text.strip())
                self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._sentences)
                text = self._sentences.popleft()
                # started while the lock is held, so that `stop` always finds what is being said
                self._speaking = subprocess.Popen(
                    self.command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                )
            try:
                self._speaking.communicate(text.encode())
            except OSError:  # it was stopped before it had read the text
                self._speaking.wait()
            with self._changed:
                self._speaking = None
                self._changed.notify_all()
