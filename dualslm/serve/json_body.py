"""JSON of a bounded number of values, parsed off the event loop (ours).

A few megabytes of `[1,1,1,…` become gigabytes of objects, and hold up every stream while they are made. So the values
of a body are counted in its bytes before any is made, in steps that let the event loop go on.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
from fastapi import Request, Response
from fastapi.routing import APIRoute

from dualslm.serve.errors import RefusedError
from dualslm.serve.middleware import BodyError

MAX_VALUES = 20_000  # of one body: half an hour of recordings of one second has two thirds of them
MAX_KEYS = 64  # of one object: no schema here has half as many
STEP_BYTES = 2**20  # counted at once
QUOTE, COMMA, BRACKET, BRACE = b'",[{'


class BoundedRoute(APIRoute):
    """A route whose JSON body is parsed by `parse_json`, in a thread."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See FastAPI's."""
        handle = super().get_route_handler()

        async def bounded(request: Request) -> Response:
            return await handle(_BoundedRequest(request.scope, request.receive))

        return bounded


class _BoundedRequest(Request):
    async def json(self) -> Any:
        # handlers between here and the middleware would answer in words of their own
        try:
            return await asyncio.to_thread(parse_json, await self.body())
        except RefusedError as error:
            raise BodyError(error) from None


def parse_json(body: bytes) -> Any:
    """The value of a JSON text.

    Raises:
        RefusedError: too many values, values nested too deeply, or text that is none.
        json.JSONDecodeError: no JSON.
    """
    if _values(body) > MAX_VALUES:
        raise RefusedError(413, f"The request has more than {MAX_VALUES} values.", "too_many_values")
    try:
        value = json.loads(body)
    except RecursionError:
        raise RefusedError(400, "The request is nested too deeply.", "invalid_value") from None
    except json.JSONDecodeError:
        raise
    except ValueError as error:  # bytes that are no text, or a number of thousands of digits
        raise RefusedError(400, f"The request is no JSON: {str(error)[:100]}.", "invalid_value") from None
    _check(value)
    return value


def _values(body: bytes) -> int:
    """An upper bound of the number of values: commas and opening brackets outside strings, and one."""
    if 1 + sum(body.count(mark) for mark in (b",", b"[", b"{")) <= MAX_VALUES:
        return 1 + sum(body.count(mark) for mark in (b",", b"[", b"{"))
    # Texts have commas too. What is escaped goes first, so that each quote left begins or ends a string.
    plain = np.frombuffer(body.replace(rb"\\", b"").replace(rb"\"", b""), np.uint8)
    total = 1
    inside = False
    for start in range(0, len(plain), STEP_BYTES):
        some = plain[start : start + STEP_BYTES]
        within = np.logical_xor.accumulate(some == QUOTE) ^ inside
        inside = bool(within[-1])
        counted = (some == COMMA) | (some == BRACKET) | (some == BRACE)
        total += int(np.count_nonzero(counted & ~within))
        if total > MAX_VALUES:
            break
    return total


def _check(value: Any) -> None:
    """Refuses an object of very many keys, since a wrong object has an error for each of them, and half characters."""
    waiting = [value]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            if len(node) > MAX_KEYS:
                raise RefusedError(413, f"An object has more than {MAX_KEYS} keys.", "too_many_values")
            waiting.extend(node)
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)
        elif isinstance(node, str) and not node.isascii():
            try:
                node.encode()
            except UnicodeEncodeError as error:
                half = f"\\u{ord(node[error.start]):04x}"
                message = f"The request holds {half}, one half of a surrogate pair: no tokenizer reads it."
                raise RefusedError(400, message, "invalid_value") from None
