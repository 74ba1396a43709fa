"""Connections: how many there may be, and how long one may wait without asking (ours).

A connection costs a file descriptor, whoever opened it. One that sends no request in time is closed; when there are
as many as allowed, the one that has been idle longest makes room. uvicorn has time-outs between requests alone.
"""

from __future__ import annotations

import asyncio
import logging
import resource
from collections.abc import Callable
from typing import Any

from h11 import Request
from uvicorn.protocols.http.h11_impl import H11Protocol

from dualslm.serve.limits import Limits

HEADER_S = 20.0  # from a connection's beginning, or a request's first byte, to the end of its header
STALLED_BODY_S = 2.0  # that a body which is not here yet is waited for once the server stops
FILES_KEPT = 64  # descriptors for files, libraries and the LLM's connections
PER_PLACE = 4  # connections for each request that may run or wait: clients keep some open between requests
LOG_EVERY_S = 60.0
FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\nconnection: close\r\n\r\n"
    b'{"error":{"message":"Too many connections: ask again in a moment.","type":"server_error","code":"server_full",'
    b'"param":null}}'
)

log = logging.getLogger("dualslm.serve")


def most_connections(limits: Limits) -> int:
    """The number of connections that limits and this process's file descriptors allow."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = PER_PLACE * (limits.running + limits.waiting)
    return wanted if descriptors == resource.RLIM_INFINITY else max(1, min(wanted, descriptors - FILES_KEPT))


def protocol(most: int) -> type[H11Protocol]:
    """Uvicorn's HTTP protocol with a limit of connections.

    Args:
        most: connections at once; one address may have half of them.
    """

    class Limited(_Protocol):
        most_connections = most

    return Limited


class _Protocol(H11Protocol):
    """One connection."""

    most_connections = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Takes the connection, or refuses it where there is no room."""
        super().connection_made(transport)
        self._header_timer: asyncio.TimerHandle | None = None
        self._idle_since = self.loop.time()
        if self._make_room():
            self._await_header()
        else:
            transport.write(FULL)
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets the timer."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Passes bytes on; a header that has begun has to end in time."""
        super().data_received(data)
        if not self._is_idle():
            self._stop_timer()
        elif self._header_timer is None:
            self._await_header()

    def on_response_complete(self) -> None:
        """From here on the connection is idle; uvicorn closes it after a while."""
        self._idle_since = self.loop.time()
        super().on_response_complete()

    def handle_websocket_upgrade(self, event: Request) -> None:
        """The connection is another protocol's from here on."""
        self._stop_timer()
        super().handle_websocket_upgrade(event)

    def shutdown(self) -> None:
        """Ends the connection with its reply; one whose request does not come to its end is closed."""
        super().shutdown()
        self.loop.call_later(STALLED_BODY_S, self._close_unfinished)

    def _close_unfinished(self) -> None:
        """Closes a connection whose request is not here as a whole."""
        if self._is_idle() or self.cycle.more_body:
            self.transport.abort()

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _await_header(self) -> None:
        self._header_timer = self.loop.call_later(HEADER_S, self._close_unfinished)

    def _stop_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _make_room(self) -> bool:
        """Whether this connection may stay; the longest idle one is closed for it, of the same address if need be."""
        connections = [one for one in self.connections if isinstance(one, _Protocol)]
        own = [one for one in connections if _address(one) == _address(self)]
        crowded = own if len(own) > max(1, self.most_connections // 2) else connections
        if crowded is connections and len(connections) <= self.most_connections:
            return True
        idle = [one for one in crowded if one is not self and one._is_idle()]
        if not idle:
            return False
        oldest = min(idle, key=lambda one: one._idle_since)
        self.connections.discard(oldest)
        oldest.transport.abort()
        return True


def _address(connection: H11Protocol) -> str:
    return connection.client[0] if connection.client else ""


def quiet_accept(loop: asyncio.AbstractEventLoop) -> None:
    """Has a loop say in one line a minute that no connection can be taken, instead of a traceback for each try."""
    before = loop.get_exception_handler()
    said = -LOG_EVERY_S

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal said
        if isinstance(context.get("exception"), OSError) and "accept" in context.get("message", ""):
            if loop.time() - said >= LOG_EVERY_S:
                said = loop.time()
                log.error("no connection can be taken: %s", context["exception"])
        elif before is not None:
            before(loop, context)
        else:
            loop.default_exception_handler(context)

    loop.set_exception_handler(handle)


class OncePerMinute(logging.Filter):
    """Lets the same message of a log through once a minute: whoever sends nonsense must not fill the disk."""

    def __init__(self, now: Callable[[], float]) -> None:
        super().__init__()
        self._now = now
        self._said: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a message was not said in the last minute."""
        now = self._now()
        if record.exc_info or now - self._said.get(str(record.msg), -LOG_EVERY_S) >= LOG_EVERY_S:
            self._said[str(record.msg)] = now
            return True
        return False
