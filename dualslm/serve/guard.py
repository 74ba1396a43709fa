"""Counts a request's bytes while they come and every answer by its route and status (ours)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Message, Receive, Scope, Send

if TYPE_CHECKING:
    from dualslm.serve.gate import Meters


class Guard:
    """Refuses a body that is too long, before it is read or as soon as it is.

    Args:
        app: what comes behind.
        most: bytes.
        meters: where answers are counted.
    """

    def __init__(self, app: ASGIApp, most: int, meters: Meters) -> None:
        self.app, self.most, self.meters = app, most, meters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets one request through, or answers 413."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        stated = dict(scope["headers"]).get(b"content-length", b"0")
        if not stated.isdigit() or int(stated) > self.most:
            await self._refuse(scope, send)
            return
        began, got = False, 0

        async def counted() -> Message:
            nonlocal got
            message = await receive()
            got += len(message.get("body", b""))
            if got > self.most:
                raise _TooMuchError
            return message

        async def noted(message: Message) -> None:
            nonlocal began
            if message["type"] == "http.response.start":
                began = True
                self._count(scope, message["status"])
            await send(message)

        try:
            await self.app(scope, counted, noted)
        except _TooMuchError:
            if began:
                raise
            await self._refuse(scope, send)

    async def _refuse(self, scope: Scope, send: Send) -> None:
        self._count(scope, 413)
        told = f"The request is longer than {self.most} bytes."
        error = {"message": told, "type": "invalid_request_error", "code": "body_too_long", "param": None}
        body = json.dumps({"error": error}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 413, "headers": [*headers, (b"connection", b"close")]})
        await send({"type": "http.response.body", "body": body})

    def _count(self, scope: Scope, status: int) -> None:
        route = scope.get("route")
        self.meters.requests.labels(getattr(route, "path", "none"), str(status)).inc()


class _TooMuchError(BaseException):
    """The body is too long; no handler on the way may swallow it."""
