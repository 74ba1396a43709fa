"""A task for a cluster that takes a while; apart from its test, which a worker need not import."""

from __future__ import annotations

import os
import time
from pathlib import Path

from dualslm.errors import DualSLMError

SECONDS = 3.0  # as long as it takes to kill a machine
IMPOSSIBLE = 99
DEADLY = 98


class Slow:
    """Squares a number, and leaves a file in a folder when it begins."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, piece: int) -> int:
        (self.folder / f"begun-{piece}-{os.getpid()}").touch()
        time.sleep(SECONDS)
        if piece == DEADLY:
            os._exit(1)
        if piece == IMPOSSIBLE:
            raise DualSLMError("a piece that nobody can do", got=piece, do="leave it out")
        return piece * piece
