"""Limits: how large a request may be, and how many are answered at once (ours).

Limits hold for the request as it arrives: the body while it is read, the recordings before they are decoded whole,
the queue before anything is encoded. A request over a limit gets status 413 or 429.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from dualslm.serve.errors import RefusedError


@dataclass(frozen=True)
class Limits:
    """What one request, and all of them together, may take.

    Attributes:
        body: bytes of a request.
        audio: seconds of one recording.
        speech: seconds of all recordings in a request.
        turns: messages of a conversation.
        running: requests that are answered at once.
        waiting: requests that wait for it; one more is refused with 429.
        timeout: seconds that a request may take, waiting included.
        any_sound: whether recordings without speech are answered too.
    """

    body: int = 32 * 2**20
    audio: float = 120.0
    speech: float = 1800.0
    turns: int = 128
    running: int = 32
    waiting: int = 128
    timeout: float = 300.0
    any_sound: bool = False


class Queue:
    """Lets some requests run and some wait, and refuses the rest.

    Args:
        limits: how many may run and how many may wait.

    Attributes:
        running: number of requests that are being answered.
        waiting: number of requests that wait to be answered.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.running = 0
        self.waiting = 0
        self._free = asyncio.Semaphore(limits.running)

    @asynccontextmanager
    async def admit(self) -> AsyncIterator[None]:
        """Waits until the request may run; it runs as long as the block lasts.

        Raises:
            RefusedError: too many wait already.
        """
        # `waiting` also counts requests that are let in at once, for a moment: hence the look at the semaphore
        if self.waiting >= self.limits.waiting and self._free.locked():
            raise RefusedError(429, "The server is full: ask again in a moment.", "server_full", retry_after=1)
        self.waiting += 1
        try:
            await self._free.acquire()
        finally:
            self.waiting -= 1  # also where the client leaves while it waits
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
            self._free.release()
