"""Limits and figures: who may come in, how much of it, and what became of it (ours).

Limits hold for the request as it comes: the body while it is read, the recordings before they are decoded whole, the
queue before anything is heard. What is over a limit is told with status 413 or 429.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily

from dualslm.serve.service import Service

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


@dataclass(frozen=True)
class Limits:
    """What one request, and all of them together, may take.

    Attributes:
        body: bytes of a request.
        audio: s of one recording.
        speech: s of all recordings of a request.
        turns: of a talk.
        running: requests that are answered at once.
        waiting: requests that wait for it; one more is refused with 429.
        timeout: s that a request may take, waiting included.
    """

    body: int = 32 * 2**20
    audio: float = 120.0
    speech: float = 1800.0
    turns: int = 128
    running: int = 32
    waiting: int = 128
    timeout: float = 300.0


class RefusedError(Exception):
    """A request that is not answered, in OpenAI's words.

    Args:
        status: of HTTP.
        message: what was wrong and what to do.
        code: for programs.
        retry: s after which to ask again.
    """

    def __init__(self, status: int, message: str, code: str, *, retry: int | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.retry = status, message, code, retry

    @property
    def kind(self) -> str:
        """OpenAI's type of error."""
        kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        return kinds.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")


class Queue:
    """Lets some requests in, some wait and refuses the rest.

    Args:
        limits: how many.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits, self.inside, self.outside = limits, 0, 0
        self._free = asyncio.Semaphore(limits.running)

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """A place, once there is one.

        Raises:
            RefusedError: too many wait already.
        """
        if self.outside >= self.limits.waiting and self._free.locked():
            raise RefusedError(429, "The server is full: ask again in a moment.", "server_full", retry=1)
        self.outside += 1
        try:
            await self._free.acquire()
        finally:
            self.outside -= 1
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1
            self._free.release()


class Metrics:
    """Prometheus figures of one server, in a registry of their own."""

    def __init__(self, service: Service, queue: Queue) -> None:
        self.registry, self.service, self.queue = CollectorRegistry(), service, queue
        make = {"registry": self.registry, "namespace": "dualslm"}
        self.requests = Counter("requests", "Requests by route and status", ["route", "status"], **make)  # type: ignore[arg-type]
        self.tokens = Counter("tokens", "Positions read, positions reused, tokens drawn", ["kind"], **make)  # type: ignore[arg-type]
        self.first = Histogram("first_piece_seconds", "From request to first text", buckets=SECONDS, **make)  # type: ignore[arg-type]
        self.whole = Histogram("reply_seconds", "From request to the end of a reply", buckets=SECONDS, **make)  # type: ignore[arg-type]
        self.cut = Counter("left", "Replies whose client left", **make)  # type: ignore[arg-type]
        self.registry.register(self)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Figures that are read when they are asked for."""
        now: Mapping[str, float] = {
            "requests_running": self.queue.inside,
            "requests_waiting": self.queue.outside,
            "recordings_encoded": self.service.audio_cache.encoded,
            "encoder_batches": self.service.batches,
            **self.service.backend.state(),
        }
        for name, value in now.items():
            yield GaugeMetricFamily(f"dualslm_{name}", name.replace("_", " "), value)


def allowed(key: str | None, given: str | None) -> bool:
    """Whether an Authorization header holds the key; compared in constant time."""
    if key is None:
        return True
    return hmac.compare_digest(f"Bearer {key}".encode(), (given or "").encode())
