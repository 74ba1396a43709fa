"""Connections that ask for nothing, too many of them, bodies that never end, and a log that stays short."""

from __future__ import annotations

import asyncio
import errno
import logging
import re
import resource
import socket
import time
from collections.abc import Iterator
from threading import Thread
from typing import Any

import pytest
import uvicorn

from dualslm.serve import connections
from dualslm.serve.connections import OncePerMinute, most_connections, protocol, quiet_accept
from dualslm.serve.limits import Limits

HEAD = b"POST / HTTP/1.1\r\nHost: localhost\r\n"


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Reads a body and says that it is here."""
    if scope["type"] != "http":
        return
    while (message := await receive()).get("more_body"):
        pass
    if message["type"] == "http.request":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


class Serving:
    """A server in a thread."""

    def __init__(self, most: int) -> None:
        config = uvicorn.Config(echo, "127.0.0.1", 0, http=protocol(most), log_level="error", lifespan="off")
        self.server = uvicorn.Server(config)
        self.thread = Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]

    def connect(self, *, source: str = "127.0.0.1") -> socket.socket:
        """A connection from an address of this machine."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=30, source_address=(source, 0))

    def ask(self, sock: socket.socket) -> bytes:
        """The first bytes of an answer; empty where the connection was closed."""
        try:
            sock.sendall(HEAD + b"Content-Length: 1\r\n\r\nx")
            return sock.recv(12)
        except OSError:
            return b""

    def stop(self) -> float:
        """Stops the server and says how long that took, in s."""
        began = time.perf_counter()
        self.server.should_exit = True
        self.thread.join(60)
        return time.perf_counter() - began


def closed(sock: socket.socket) -> bool:
    """Whether a connection is closed within 30 s, and nothing was said on it before."""
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def drain(sock: socket.socket) -> None:
    """Reads an answer to the end of its body, which may come in several pieces."""
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += sock.recv(1000)
    head, _, body = answer.partition(b"\r\n\r\n")
    (length,) = re.findall(rb"(?i)content-length: (\d+)", head)
    while len(body) < int(length):
        body += sock.recv(1000)


@pytest.fixture
def serving() -> Iterator[Serving]:
    made = Serving(6)
    yield made
    made.stop()


@pytest.mark.parametrize("sent", [b"", b"GET / HT", HEAD + b"X-Slow: "])
def test_a_header_that_does_not_come(serving: Serving, monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(connections, "HEADER_S", 0.5)
    with serving.connect() as sock:
        sock.sendall(sent)
        assert closed(sock)


def test_a_header_that_comes_slowly_after_a_request(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving.connect() as sock:
        assert serving.ask(sock) == b"HTTP/1.1 200"
        monkeypatch.setattr(connections, "HEADER_S", 0.5)
        drain(sock)
        sock.sendall(b"POST / HT")
        assert closed(sock)


def test_requests_outlive_the_time_for_a_header(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEADER_S", 0.3)
    with serving.connect() as sock:
        sock.sendall(HEAD + b"Content-Length: 1\r\n\r\n")
        time.sleep(1)
        sock.sendall(b"x")
        assert sock.recv(12) == b"HTTP/1.1 200"


def test_idle_connections_make_room(serving: Serving) -> None:
    held = [serving.connect(source=f"127.0.0.{2 + number % 3}") for number in range(40)]
    with serving.connect() as sock:
        assert serving.ask(sock) == b"HTTP/1.1 200"
    assert len(serving.server.server_state.connections) <= 7
    for sock in held:
        sock.close()


def test_one_address_cannot_have_all(serving: Serving) -> None:
    open_bodies = [serving.connect(source="127.0.0.2") for _ in range(12)]
    for sock in open_bodies:
        try:
            sock.sendall(HEAD + b"Content-Length: 9\r\n\r\nx")
        except OSError:  # closed, to make room for a later one
            continue
    taken = serving.server.server_state.connections
    while sum(getattr(one, "cycle", None) is not None for one in list(taken)) < 3:
        time.sleep(0.01)
    with serving.connect(source="127.0.0.2") as sock:
        assert serving.ask(sock) in (b"HTTP/1.1 503", b"")
    with serving.connect() as sock:
        assert serving.ask(sock) == b"HTTP/1.1 200"
    for sock in open_bodies:
        sock.close()


def test_a_server_that_stops_waits_for_no_stalled_body() -> None:
    made = Serving(6)
    with made.connect() as stalled, made.connect() as late:
        for sock in (stalled, late):
            sock.sendall(HEAD + b"Content-Length: 2\r\n\r\nx")
        time.sleep(0.3)
        made.server.should_exit = True
        time.sleep(0.3)
        late.sendall(b"x")
        assert late.recv(12) == b"HTTP/1.1 200"
        assert made.stop() < 20
    assert not made.thread.is_alive()


def test_there_are_fewer_connections_than_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 256))
    assert most_connections(Limits()) < 256
    monkeypatch.setattr(resource, "getrlimit", lambda _: (10**6, 10**6))
    assert most_connections(Limits(running=2, waiting=3)) == 20


def test_no_descriptors_are_one_line(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        quiet_accept(loop)
        full = OSError(errno.EMFILE, "Too many open files")
        for _ in range(1000):
            loop.call_exception_handler({"message": "socket.accept() out of system resource", "exception": full})
        loop.call_exception_handler({"message": "something else"})

    asyncio.run(main())
    said = [record.getMessage() for record in caplog.records]
    assert [one for one in said if "no connection can be taken" in one] == [said[0]]
    assert said[1:] == ["something else"]


def test_nonsense_is_logged_once_a_minute() -> None:
    now = 0.0
    once = OncePerMinute(lambda: now)

    def says(message: str) -> bool:
        return once.filter(logging.makeLogRecord({"msg": message}))

    assert [says("Invalid HTTP request received."), says("Invalid HTTP request received."), says("b")] == [1, 0, 1]
    now = 61.0
    assert says("Invalid HTTP request received.")
