"""Counts a request's bytes and its seconds while it comes, and every answer by its route and status (ours)."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Message, Receive, Scope, Send

if TYPE_CHECKING:
    from dualslm.serve.limits import Metrics


class Guard:
    """Refuses a body that is too long, before it is read or as soon as it is, and one that takes too long.

    Args:
        app: what comes behind.
        most: bytes.
        timeout: s until the whole body is there.
        meters: where answers are counted.
    """

    def __init__(self, app: ASGIApp, most: int, timeout: float, metrics: Metrics) -> None:
        self.app, self.most, self.timeout, self.metrics = app, most, timeout, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets one request through, or answers 413."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        stated = dict(scope["headers"]).get(b"content-length", b"0")
        if not stated.isdigit() or int(stated) > self.most:
            await self._refuse(scope, send, *self._long)
            return
        began, got = False, 0
        ends: float | None = asyncio.get_running_loop().time() + self.timeout

        async def counted() -> Message:
            nonlocal got, ends
            try:
                async with asyncio.timeout_at(ends):
                    message = await receive()
            except TimeoutError:
                raise _BodyError(408, f"The request did not come within {self.timeout:g} s.", "body_too_slow") from None
            got += len(message.get("body", b""))
            if got > self.most:
                raise _BodyError(*self._long)
            if not message.get("more_body", False):
                ends = None  # what comes now is that the client leaves
            return message

        async def noted(message: Message) -> None:
            nonlocal began
            if message["type"] == "http.response.start":
                began = True
                self._count(scope, message["status"])
            await send(message)

        try:
            await self.app(scope, counted, noted)
        except _BodyError as error:
            if began:
                raise
            await self._refuse(scope, send, *error.args)

    @property
    def _long(self) -> tuple[int, str, str]:
        return 413, f"The request is longer than {self.most} bytes.", "body_too_long"

    async def _refuse(self, scope: Scope, send: Send, status: int, told: str, code: str) -> None:
        self._count(scope, status)
        error = {"message": told, "type": "invalid_request_error", "code": code, "param": None}
        body = json.dumps({"error": error}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": [*headers, (b"connection", b"close")]})
        await send({"type": "http.response.body", "body": body})

    def _count(self, scope: Scope, status: int) -> None:
        route = scope.get("route")
        self.metrics.requests.labels(getattr(route, "path", "none"), str(status)).inc()


class _BodyError(BaseException):
    """What is wrong with the body: status, message, code. No handler on the way may swallow it."""
