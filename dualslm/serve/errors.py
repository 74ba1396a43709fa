"""Errors as OpenAI's clients expect them: `{"error": {message, type, code, param}}` and a status (ours)."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from dualslm.errors import BrokenModelError, DualSLMError
from dualslm.inference.backend import UnavailableError
from dualslm.inference.voice_activity import NoSpeechError
from dualslm.serve.strict import wrong_fields

MAX_MESSAGE_CHARACTERS = 500  # a message quotes what was sent
ERROR_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}

log = logging.getLogger("dualslm.serve")


class RefusedError(Exception):
    """A request that is not answered, in OpenAI's words.

    Args:
        status: HTTP status.
        message: what was wrong and what to do.
        code: short code for programs.
        retry_after: seconds after which the client may ask again.
        param: the field that was wrong, where it is one.
    """

    def __init__(
        self, status: int, message: str, code: str, *, retry_after: int | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = shown(message)
        self.code = code
        self.retry_after = retry_after
        self.param = param

    @property
    def kind(self) -> str:
        """OpenAI's type of error."""
        # OpenAI's clients pick the exception class by status, but programs also read this type
        return ERROR_TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")


def shown(text: str) -> str:
    """A text that quotes what was sent, cut off and as one that can be sent back."""
    if len(text) > MAX_MESSAGE_CHARACTERS:
        text = text[: MAX_MESSAGE_CHARACTERS - 1] + "…"
    # half a surrogate pair, which JSON can spell out, is no text
    return text.encode(errors="replace").decode()


def openai_error(error: Exception) -> tuple[RefusedError, dict[str, Any]]:
    """An error as a refusal with its status, and as OpenAI's JSON object."""
    refused = _refusal(error)
    param = shown(next(wrong_fields(error))[0]) if isinstance(error, RequestValidationError) else refused.param
    return refused, {"message": refused.message, "type": refused.kind, "code": refused.code, "param": param}


def add_error_handlers(api: FastAPI) -> None:
    """Answers every error of an application in OpenAI's shape."""

    async def answer(_: Request, error: Exception) -> JSONResponse:
        refused, body = openai_error(error)
        headers = {} if refused.retry_after is None else {"Retry-After": str(refused.retry_after)}
        if isinstance(error, HTTPException):
            headers |= dict(error.headers or {})
        return JSONResponse({"error": body}, refused.status, headers)

    # Starlette looks a handler up by class; `Exception` alone would leave FastAPI's own two handlers in force
    for kind in (RefusedError, DualSLMError, RequestValidationError, HTTPException, Exception):
        api.add_exception_handler(kind, answer)


def _refusal(error: Exception) -> RefusedError:
    """The status, message and code of an error; what is unknown is logged and answered as a fault of the server."""
    if isinstance(error, RefusedError):
        return error
    # before DualSLMError, whose subclass it is: the request was right, so the client may send it again
    if isinstance(error, UnavailableError):
        return RefusedError(503, str(error), "unavailable", retry_after=1)
    if isinstance(error, BrokenModelError):
        return RefusedError(500, str(error), "broken_model")
    if isinstance(error, NoSpeechError):
        return RefusedError(400, str(error), "no_speech")
    if isinstance(error, DualSLMError):
        return RefusedError(400, str(error), "invalid_value")
    if isinstance(error, RequestValidationError):
        # 400 as OpenAI gives it, not FastAPI's 422: its client raises BadRequestError for 400 alone
        return RefusedError(400, " ".join(sentence for _, sentence in wrong_fields(error)), "invalid_value")
    if isinstance(error, TimeoutError):
        return RefusedError(504, "The reply took too long.", "timeout")
    if isinstance(error, HTTPException):
        if error.status_code == 404 and error.detail == "Not Found":  # Starlette's own words, where no route fits
            return RefusedError(404, "There is no such route here; GET /docs names those that there are.", "not_found")
        return RefusedError(error.status_code, str(error.detail), "not_found" if error.status_code == 404 else "http")
    # the client learns nothing of our internals: the traceback goes to the log alone
    log.exception("a fault of the server", exc_info=error)
    return RefusedError(500, "A fault of the server; its log says more.", "internal_error")
