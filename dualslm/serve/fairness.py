"""Fair shares: a queue of requests and threads for their work, in which no client holds up another (ours).

Whatever gets free goes to the client that has least of it, not to whoever came first: a client with a hundred requests
waits for itself. For one event loop; who asks is found in `caller.CALLER`.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from contextvars import copy_context
from functools import partial
from time import perf_counter
from typing import ParamSpec, TypeVar

from dualslm.serve.caller import CALLER
from dualslm.serve.errors import RefusedError
from dualslm.serve.limits import Limits

T = TypeVar("T")
P_ = ParamSpec("P_")
ONE_CLIENT = 7 / 8  # of the places, rounded up: what is left is for others
HALF_LIFE_S = 10.0  # after which what a client has used counts half as much against it


class Queue:
    """Lets some requests run and some wait, and refuses the rest.

    Args:
        limits: how many may run and how many may wait.

    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._most_of_one = math.ceil(limits.running * ONE_CLIENT)
        self._running: Counter[str] = Counter()
        self._waiting: list[tuple[str, asyncio.Future[None]]] = []  # in the order in which they came

    @property
    def running(self) -> int:
        """Requests that are being answered."""
        return self._running.total()

    @property
    def waiting(self) -> int:
        """Requests that wait to be answered."""
        return len(self._waiting)

    @asynccontextmanager
    async def admit(self) -> AsyncIterator[None]:
        """Waits until the request may run; it runs as long as the block lasts.

        Raises:
            RefusedError: too many wait already, and no client more than this one.
        """
        client = CALLER.get().name
        entry: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        one = (client, entry)
        self._waiting.append(one)
        self._let_in()
        if not entry.done() and len(self._waiting) > self.limits.waiting:
            self._refuse_one()
        try:
            await entry
        except BaseException:
            if one in self._waiting:
                self._waiting.remove(one)
            elif not entry.cancelled() and entry.exception() is None:  # let in at the moment at which it left
                self._leave(client)
            raise
        try:
            yield
        finally:
            self._leave(client)

    def _leave(self, client: str) -> None:
        self._running[client] -= 1
        if not self._running[client]:
            del self._running[client]
        self._let_in()

    def _let_in(self) -> None:
        """Gives free places to the clients that have fewest."""
        while self._waiting and self.running < self.limits.running:
            one = min(self._waiting, key=lambda waiting: self._running[waiting[0]])
            client, entry = one
            if self._running[client] >= self._most_of_one:
                return
            self._waiting.remove(one)
            if not entry.done():
                self._running[client] += 1
                entry.set_result(None)

    def _refuse_one(self) -> None:
        """Refuses the last request of the client of which most wait."""
        numbers = Counter(client for client, _ in self._waiting)
        # of two that wait alike, the one that came last
        last = max(range(len(self._waiting)), key=lambda index: (numbers[self._waiting[index][0]], index))
        _, entry = self._waiting.pop(last)
        if not entry.done():
            message = "The server is full: ask again in a moment."
            entry.set_exception(RefusedError(429, message, "server_full", retry_after=1))


class FairThreads:
    """Threads whose time is shared fairly between clients.

    Args:
        threads: number of threads; a client has all but one of them at most, so that one is left for others.
        name: of the threads.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._waiting: list[tuple[str, asyncio.Future[None]]] = []
        self._running: Counter[str] = Counter()
        self._spent: dict[str, tuple[float, float]] = {}  # s of threads, and when they were used last

    async def run(self, work: Callable[P_, T], *args: P_.args, **kwargs: P_.kwargs) -> T:
        """The result of work that is done in one of the threads, when it is its client's turn.

        Work that is not begun when its request is cancelled is never done; what is begun may ask
        `Caller.check_wanted` whether to go on.
        """
        client = CALLER.get().name
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((client, turn))
        self._begin()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._end(client, 0.0)
            raise
        began = perf_counter()
        context = copy_context()
        job = self._pool.submit(partial(context.run, partial(work, *args, **kwargs)))
        loop = asyncio.get_running_loop()

        def ended(_: Future[T]) -> None:
            # the thread is free when its work has ended, whoever has left meanwhile
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._end, client, perf_counter() - began)

        job.add_done_callback(ended)
        return await asyncio.wrap_future(job)

    def close(self) -> None:
        """Waits for the work that is begun and drops the rest."""
        self._pool.shutdown(cancel_futures=True)

    def _begin(self) -> None:
        while self._running.total() < self._threads:
            self._waiting = [one for one in self._waiting if not one[1].done()]
            most = max(1, self._threads - 1)
            able = [one for one in self._waiting if self._running[one[0]] < most]
            if not able:
                return
            one = min(able, key=lambda waiting: (self._running[waiting[0]], self._used(waiting[0])))
            self._waiting.remove(one)
            self._running[one[0]] += 1
            one[1].set_result(None)

    def _end(self, client: str, seconds: float) -> None:
        self._running[client] -= 1
        if not self._running[client]:
            del self._running[client]
        self._spent[client] = (self._used(client) + seconds, perf_counter())
        old = perf_counter() - 20 * HALF_LIFE_S
        self._spent = {name: spent for name, spent in self._spent.items() if spent[1] > old}
        self._begin()

    def _used(self, client: str) -> float:
        seconds, last = self._spent.get(client, (0.0, 0.0))
        return float(seconds * 0.5 ** ((perf_counter() - last) / HALF_LIFE_S))
