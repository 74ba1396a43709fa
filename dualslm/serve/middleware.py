"""Limits a request's bytes and its seconds while it arrives, and counts every response by route and status (ours).

Plain ASGI, because the body has to be counted message by message, before anything behind has read it.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Message, Receive, Scope, Send

if TYPE_CHECKING:
    from dualslm.serve.metrics import Metrics


class BodyLimitMiddleware:
    """Refuses a body that is too long, by its stated length or while it arrives, and one that arrives too slowly.

    Args:
        app: the application behind.
        max_bytes: longest body, in bytes.
        timeout: seconds until the whole body must have arrived.
        metrics: where responses are counted.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, timeout: float, metrics: Metrics) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.timeout = timeout
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes one request on, or answers 408 or 413."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        too_long = _BodyError(413, f"The request is longer than {self.max_bytes} bytes.", "body_too_long")
        stated_length = dict(scope["headers"]).get(b"content-length", b"0")
        if not stated_length.isdigit() or int(stated_length) > self.max_bytes:
            await self._refuse(scope, send, too_long)
            return
        response_started = False
        received_bytes = 0
        deadline: float | None = asyncio.get_running_loop().time() + self.timeout

        async def limited_receive() -> Message:
            nonlocal received_bytes, deadline
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                wrong = f"The request did not come within {self.timeout:g} s."
                raise _BodyError(408, wrong, "body_too_slow") from None
            # a chunked body states no length, and a stated one may be wrong: the bytes themselves count
            received_bytes += len(message.get("body", b""))
            if received_bytes > self.max_bytes:
                raise too_long
            if not message.get("more_body", False):
                deadline = None  # from here on `receive` waits for the client to leave, for as long as it takes
            return message

        async def counted_send(message: Message) -> None:
            nonlocal response_started
            if message["type"] == "http.response.start":
                response_started = True
                self._count(scope, message["status"])
            await send(message)

        try:
            await self.app(scope, limited_receive, counted_send)
        except _BodyError as error:
            if response_started:  # a second status line cannot be sent
                raise
            await self._refuse(scope, send, error)

    async def _refuse(self, scope: Scope, send: Send, wrong: _BodyError) -> None:
        self._count(scope, wrong.status)
        error = {"message": wrong.message, "type": "invalid_request_error", "code": wrong.code, "param": None}
        body = json.dumps({"error": error}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        # the rest of the body is never read, so the connection cannot be used again
        headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": wrong.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _count(self, scope: Scope, status: int) -> None:
        # the route's pattern, not the path: else any client could add labels without end
        route = scope.get("route")
        self.metrics.requests.labels(getattr(route, "path", "none"), str(status)).inc()


class _BodyError(BaseException):
    """What is wrong with the body. A BaseException, so that no handler between here and the route swallows it."""

    def __init__(self, status: int, message: str, code: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
