"""Uploaded recordings: their words (`/v1/audio/transcriptions`) and how they are said (`/v1/audio/attributes`).

Form fields are checked as JSON fields are: what changes nothing passes, what asks for something that L cannot give
(times of words, other languages, names to expect) is refused by name.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from fastapi import FastAPI, Form, Request, UploadFile
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from pydantic import Field, field_validator, model_validator

from dualslm.audio import SAMPLE_RATE
from dualslm.inference.backend import Piece
from dualslm.serve.completion import sse
from dualslm.serve.errors import RefusedError, openai_error
from dualslm.serve.strict import Items, Name, Strict

if TYPE_CHECKING:
    from dualslm.serve.app import Server

Format: TypeAlias = Literal["json", "text", "verbose_json", "srt", "vtt"]
LANGUAGES = ("en", "eng", "english")  # of the corpora that the recipes train with
STREAMED = ("json", "text")


class UploadForm(Strict):
    """A recording and the model that shall hear it."""

    ignored = frozenset({"user", "metadata"})

    file: UploadFile
    model: Name

    @model_validator(mode="before")
    @classmethod
    def plain_names(cls, form: Any) -> Any:
        """Lists as some clients name them: `include[]` is `include`."""
        if not isinstance(form, dict):
            return form
        return {name.removesuffix("[]"): value for name, value in form.items()}


class TranscriptionForm(UploadForm):
    """A recording whose words are asked for."""

    response_format: Format = "json"
    stream: bool = False
    temperature: float = Field(0.0, ge=0, le=1, description="0, the default, takes the likeliest words")
    language: Name | None = Field(None, description="English alone", examples=["en"])
    timestamp_granularities: Items[Name] = Field([], alias="timestamp_granularities[]", description="segment")

    @field_validator("language")
    @classmethod
    def is_english(cls, language: Name | None) -> str | None:
        """English, however it is spelt, or none."""
        if language and language.lower().replace("_", "-").split("-")[0] not in LANGUAGES:
            raise ValueError(f"{language!r} cannot be asked for: nobody says which language L holds; leave it out.")
        return language

    @field_validator("timestamp_granularities")
    @classmethod
    def has_times(cls, granularities: list[str]) -> list[str]:
        """What L has times of."""
        if (other := [name for name in granularities if name not in ("segment", "")]) != []:
            raise ValueError(f"{other[0]!r} cannot be given: L has no times of words; ask for 'segment'.")
        return granularities


def add_audio_routes(api: FastAPI, server: Server, needs_key: list[Any]) -> None:
    """Adds `/v1/audio/transcriptions` and `/v1/audio/attributes`.

    Args:
        api: the application.
        server: what its routes share.
        needs_key: dependencies that check the API key.
    """

    @api.post("/v1/audio/transcriptions", tags=["audio"], dependencies=needs_key, response_model=None)
    async def transcribe(request: Request, form: Annotated[TranscriptionForm, Form()]) -> Response:
        """The words of a recording, from L alone; whole or streamed."""
        server.check_model(form.model)
        if form.stream and form.response_format not in STREAMED:
            message = f"response_format: {form.response_format!r} cannot be streamed; send 'json' or 'text'."
            raise RefusedError(400, message, "invalid_value")
        async with server.admitted(request) as slot:
            speech = await server.read_upload(form.file)
            pieces = server.service.stream_transcript(speech, form.temperature)
            if form.stream:
                return StreamingResponse(_events(server, pieces, slot.pop_all()), media_type="text/event-stream")
            words = (await server.wait_for(request, _joined(pieces))).strip()
        seconds = len(speech.audio) / SAMPLE_RATE  # type: ignore[arg-type]
        return _response(form, words, seconds)

    @api.post("/v1/audio/attributes", tags=["audio"], dependencies=needs_key)
    async def attributes(request: Request, form: Annotated[UploadForm, Form()]) -> dict[str, Any]:
        """How a recording is said, from P alone; null where the LLM's answer names no value, or several."""
        server.check_model(form.model)
        async with server.admitted(request):
            speech = await server.read_upload(form.file)
            return {"attributes": await server.wait_for(request, server.service.attributes(speech))}


def _response(form: TranscriptionForm, words: str, seconds: float) -> Response:
    """The words in the form that was asked for. L has no times of words, so the whole recording is one segment."""
    match form.response_format:
        case "json":
            return JSONResponse({"text": words})
        case "text":
            return PlainTextResponse(words + "\n")
        case "srt":
            return PlainTextResponse(f"1\n{_clock(0, ',')} --> {_clock(seconds, ',')}\n{words}\n\n")
        case "vtt":
            return PlainTextResponse(f"WEBVTT\n\n{_clock(0, '.')} --> {_clock(seconds, '.')}\n{words}\n\n")
        case "verbose_json":
            segment = {"id": 0, "start": 0.0, "end": seconds, "text": words}
            about = {"task": "transcribe", "language": form.language or "", "duration": seconds}
            return JSONResponse({**about, "text": words, "segments": [segment]})


def _clock(seconds: float, comma: str) -> str:
    """`00:01:02,345`."""
    whole, thousandths = divmod(round(seconds * 1000), 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}{comma}{thousandths:03}"


async def _joined(pieces: AsyncGenerator[Piece]) -> str:
    async with aclosing(pieces):
        return "".join([piece.text async for piece in pieces])


async def _events(server: Server, pieces: AsyncGenerator[Piece], slot: AsyncExitStack) -> AsyncGenerator[str]:
    """The words as OpenAI's `transcript.text` events; the slot in the queue is given up after the last."""
    words = ""
    async with slot, aclosing(pieces):
        try:
            async with asyncio.timeout(server.limits.timeout):
                async for piece in pieces:
                    # the whole is stripped, so the pieces are as far as that can be known
                    text = piece.text if words else piece.text.lstrip()
                    words += text
                    if text:
                        yield sse({"type": "transcript.text.delta", "delta": text})
            yield sse({"type": "transcript.text.done", "text": words.strip()})
        except Exception as error:  # status 200 was sent already, so the error travels as an event
            yield sse({"type": "error", "error": openai_error(error)[1]})
