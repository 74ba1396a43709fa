"""Errors as OpenAI's clients expect them: `{"error": {message, type, code, param}}` and a status (ours)."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from dualslm.errors import DualSLMError
from dualslm.inference.backend import UnavailableError
from dualslm.serve.limits import RefusedError

log = logging.getLogger("dualslm.serve")


def told(error: Exception) -> tuple[RefusedError, dict[str, Any]]:
    """An error as a status and OpenAI's object."""
    refused = _refused(error)
    place = _places(error)[0] if isinstance(error, RequestValidationError) else None
    return refused, {"message": refused.message, "type": refused.kind, "code": refused.code, "param": place}


def answer_errors(app: FastAPI) -> None:
    """Answers every error of an application in OpenAI's shape."""

    async def answer(_: Request, error: Exception) -> JSONResponse:
        refused, body = told(error)
        headers = {} if refused.retry is None else {"Retry-After": str(refused.retry)}
        if isinstance(error, HTTPException):
            headers |= dict(error.headers or {})
        return JSONResponse({"error": body}, refused.status, headers)

    for kind in (RefusedError, DualSLMError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, answer)


def _refused(error: Exception) -> RefusedError:
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, UnavailableError):
        return RefusedError(503, str(error), "unavailable", retry=1)
    if isinstance(error, DualSLMError):
        return RefusedError(400, str(error), "invalid_value")
    if isinstance(error, RequestValidationError):
        return RefusedError(400, "; ".join(_wrong(error)), "invalid_value")
    if isinstance(error, TimeoutError):
        return RefusedError(504, "The reply took too long.", "timeout")
    if isinstance(error, HTTPException):
        return RefusedError(error.status_code, str(error.detail), "not_found" if error.status_code == 404 else "http")
    log.exception("a fault of the server", exc_info=error)
    return RefusedError(500, "A fault of the server; its log says more.", "internal_error")


def _wrong(error: RequestValidationError) -> list[str]:
    places = _places(error)
    return [f"{place}: {one['msg']}" for place, one in zip(places, error.errors()[:3], strict=False)]


def _places(error: RequestValidationError) -> list[str]:
    return [".".join(str(step) for step in one["loc"] if step != "body") or "body" for one in error.errors()]
