"""What stands around all routes: names, sites and keys first, then a body of limited size, time and memory (ours).

Plain ASGI, because a request without the key must not be read, and a body has to be counted message by message,
before anything behind has read it.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dualslm.serve.caller import CALLER, Caller, HeldBytes, Keys, client_name
from dualslm.serve.errors import RefusedError, openai_error
from dualslm.serve.hosts import Hosts

if TYPE_CHECKING:
    from dualslm.serve.metrics import Metrics

OPEN_PATHS = ("/", "/health")  # without the key: the page, which asks for it, and whoever watches over the process
OPEN_FOLDER = "/page/"
HEADERS = [(b"x-content-type-options", b"nosniff"), (b"cross-origin-resource-policy", b"same-origin")]
STALL_S = 30.0  # that a client may neither send nor take anything
MIN_BYTES_PER_S = 16 * 1024  # of a body, beyond the first `STALL_S`


class BodyError(BaseException):
    """What is wrong with a body. A BaseException, so that no handler between here and the route swallows it."""

    def __init__(self, refusal: RefusedError) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


class _StalledError(OSError):
    """A client that takes nothing any more."""


class GateMiddleware:
    """Refuses other hosts' names, other sites' pages and wrong keys before the body is read; counts all responses.

    Args:
        app: the application behind.
        hosts: names that the server answers to.
        keys: API keys, one of which a request must bring.
        memory: what all requests hold.
        metrics: where responses are counted.
    """

    def __init__(self, app: ASGIApp, hosts: Hosts, keys: Keys, memory: HeldBytes, metrics: Metrics) -> None:
        self.app = app
        self.hosts = hosts
        self.keys = keys
        self.memory = memory
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes one request on, or answers 401, 403 or 421."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return

        response_started = False

        async def guarded_send(message: Message) -> None:
            nonlocal response_started
            response_started = response_started or message["type"] in ("http.response.start", "websocket.accept")
            if message["type"] == "http.response.start":
                # the route's pattern, not the path: else any client could add labels without end
                route = getattr(scope.get("route"), "path", "none")
                self.metrics.requests.labels(route, str(message["status"])).inc()
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            # a client that takes nothing must not hold its place in the queue
            try:
                async with asyncio.timeout(STALL_S):
                    await send(message)
            except TimeoutError:
                raise _StalledError from None

        try:
            self.hosts.check(scope.get("method", "POST"), dict(scope["headers"]))
            is_open = scope["path"] in OPEN_PATHS or scope["path"].startswith(OPEN_FOLDER)
            key = "" if is_open else self.keys.digest(scope["headers"])
        except RefusedError as error:
            await refuse(scope, guarded_send, error)
            return
        address = (scope.get("client") or ("", 0))[0]
        caller = Caller(client_name(address, key), key, self.memory)
        token = CALLER.set(caller)
        try:
            await self.app(scope, receive, guarded_send)
        except _StalledError:
            pass  # the server closes the connection of a response without an end
        except Exception as error:
            if response_started:
                raise
            await refuse(scope, guarded_send, openai_error(error)[0])
        finally:
            CALLER.reset(token)
            caller.end()


class BodyLimitMiddleware:
    """Refuses a body that is too long, by its stated length or while it arrives, and one that arrives too slowly.

    Args:
        app: the application behind.
        max_bytes: longest body, in bytes.
        timeout: seconds until the whole body must have arrived.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, timeout: float) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.timeout = timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes one request on, or answers 408, 413 or 503."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        too_long = RefusedError(413, f"The request is longer than {self.max_bytes} bytes.", "body_too_long")
        stated_length = dict(scope["headers"]).get(b"content-length", b"0")
        if not stated_length.isdigit() or int(stated_length) > self.max_bytes:
            await refuse(scope, send, too_long)
            return
        response_started = False
        received_bytes = 0
        complete = False
        began = asyncio.get_running_loop().time()

        async def limited_receive() -> Message:
            nonlocal received_bytes, complete
            if complete:  # from here on `receive` waits for the client to leave, for as long as it takes
                return await receive()
            # who sends little by little gets little by little more time
            seconds = min(self.timeout, STALL_S + received_bytes / MIN_BYTES_PER_S)
            try:
                async with asyncio.timeout_at(began + seconds):
                    message = await receive()
            except TimeoutError:
                wrong = f"The request did not come within {seconds:g} s."
                raise BodyError(RefusedError(408, wrong, "body_too_slow")) from None
            # a chunked body states no length, and a stated one may be wrong: the bytes themselves count
            size = len(message.get("body", b""))
            received_bytes += size
            if received_bytes > self.max_bytes:
                raise BodyError(too_long)
            try:
                CALLER.get().take(size)
            except RefusedError as error:
                raise BodyError(error) from None
            complete = not message.get("more_body", False)
            return message

        async def noting_send(message: Message) -> None:
            nonlocal response_started
            response_started = response_started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, limited_receive, noting_send)
        except BodyError as error:
            if response_started:  # a second status line cannot be sent
                raise
            await refuse(scope, send, error.refusal)


async def refuse(scope: Scope, send: Send, wrong: RefusedError) -> None:
    """Answers a request whose body was not read to its end, in OpenAI's shape."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": wrong.code})  # before it is accepted: 403
        return
    error = {"message": wrong.message, "type": wrong.kind, "code": wrong.code, "param": None}
    body = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    # the rest of the body is never read, so the connection cannot be used again
    headers.append((b"connection", b"close"))
    if wrong.retry_after is not None:
        headers.append((b"retry-after", str(wrong.retry_after).encode()))
    await send({"type": "http.response.start", "status": wrong.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
