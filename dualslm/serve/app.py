"""The routes: chat completions, transcriptions, attributes, models, health, metrics, and the page.

OpenAI's own clients talk to them unchanged; errors come in OpenAI's shape and status, so that a client raises the
right class. Audio comes as bytes in the request and in no other way.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from fastapi import Depends, FastAPI, File, Form, Request, UploadFile
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from dualslm import __version__
from dualslm.audio import SAMPLE_RATE
from dualslm.conversation import Speech
from dualslm.serve.errors import answer_errors, told
from dualslm.serve.explain_routes import add_inside
from dualslm.serve.limits import Limits, Metrics, Queue, RefusedError, allowed
from dualslm.serve.middleware import Guard
from dualslm.serve.openai_schema import ChatRequest, Envelope, ask_of, speech_of, usage
from dualslm.serve.page import mount
from dualslm.serve.service import Ask, Read, Service

T = TypeVar("T")
LIMITS = Limits()
Format = Literal["json", "text", "verbose_json"]


def app(
    service: Service,
    *,
    name: str = "dualslm",
    limits: Limits = LIMITS,
    key: str | None = None,
    page: bool = True,
    clips: Path | None = None,
) -> FastAPI:
    """The server's application.

    Args:
        service: hears and answers; closed with the application.
        name: of the model, which requests have to name.
        limits: of requests.
        key: that requests must bring as a bearer token; none is asked for when None.
        page: add the web page at /.
        clips: a folder of example recordings for the page.
    """
    server = Server(service, name, limits)

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        yield
        await service.close()

    made = FastAPI(title="dualslm", version=__version__, lifespan=life, description="An LLM that hears.")
    made.state.service = service
    answer_errors(made)
    made.add_middleware(Guard, most=limits.body, timeout=limits.timeout, metrics=server.metrics)

    async def keyed(request: Request) -> None:
        if not allowed(key, request.headers.get("authorization")):
            raise RefusedError(401, "The API key is missing or wrong.", "invalid_api_key")

    _add_routes(made, server, [Depends(keyed)])
    add_inside(made, server, [Depends(keyed)])
    if page:
        mount(made, clips)
    return made


class Server:
    """What the routes share."""

    def __init__(self, service: Service, name: str, limits: Limits) -> None:
        self.service, self.name, self.limits, self.queue = service, name, limits, Queue(limits)
        self.metrics = Metrics(service, self.queue)
        self.began = int(time.time())

    def known(self, model: str) -> None:
        """Refuses another model's name."""
        if model != self.name:
            raise RefusedError(404, f"No model {model!r} here; this is {self.name!r}.", "model_not_found")

    async def within(self, request: Request, work: Awaitable[T]) -> T:
        """Waits for work, but not longer than may be, nor for a client that has left."""
        job = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(_gone(request))
        try:
            await asyncio.wait({job, gone}, timeout=self.limits.timeout, return_when=asyncio.FIRST_COMPLETED)
            if job.done():
                return job.result()
            if gone.done():
                self.metrics.cut.inc()
                raise RefusedError(499, "The client has left.", "client_left")
            raise RefusedError(504, f"No answer within {self.limits.timeout:g} s.", "timeout")
        finally:
            for task in (job, gone):
                task.cancel()
            await asyncio.wait({job, gone})

    @asynccontextmanager
    async def placed(self, request: Request) -> AsyncIterator[AsyncExitStack]:
        """A place among those that are answered; it is given up with the stack, which may be taken along."""
        async with AsyncExitStack() as held:
            await self.within(request, held.enter_async_context(self.queue.place()))
            yield held

    async def speech(self, file: UploadFile) -> Speech:
        """An uploaded recording."""
        return await asyncio.to_thread(speech_of, await file.read(), self.limits)

    def count(self, read: Read, reused: int, drawn: int, began: float) -> None:
        """Notes what a reply took."""
        for kind, number in (("read", len(read.prompt.keys)), ("reused", reused), ("drawn", drawn)):
            self.metrics.tokens.labels(kind).inc(number)
        self.metrics.whole.observe(time.perf_counter() - began)


def _add_routes(made: FastAPI, server: Server, keyed: list[Any]) -> None:
    @made.get("/health", tags=["state"])
    async def health() -> dict[str, str]:
        """Whether the server answers."""
        return {"status": "ok", "model": server.name}

    @made.get("/metrics", tags=["state"], dependencies=keyed, response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Prometheus figures."""
        return Response(generate_latest(server.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @made.get("/v1/models", tags=["state"], dependencies=keyed)
    async def models() -> dict[str, Any]:
        """The one model that answers here."""
        return {"object": "list", "data": [_model(server)]}

    @made.get("/v1/models/{model:path}", tags=["state"], dependencies=keyed)
    async def model_of(model: str) -> dict[str, Any]:
        """The model of this name."""
        server.known(model)
        return _model(server)

    @made.post("/v1/chat/completions", tags=["talk"], dependencies=keyed, response_model=None)
    async def chat(body: ChatRequest, request: Request) -> Response:
        """The reply to a talk of text and speech, whole or streamed."""
        server.known(body.model)
        began = time.perf_counter()
        async with server.placed(request) as held:
            asked = asyncio.to_thread(ask_of, body, server.limits, server.service.system)
            ask = await server.within(request, asked)
            read = await server.within(request, server.service.read(ask))
            if body.stream:
                spent = {"encode": time.perf_counter() - began}
                lines = _streamed(server, body, ask, read, began, spent, held.pop_all())
                return StreamingResponse(lines, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
            return JSONResponse(await server.within(request, _whole(server, ask, read, began)))

    @made.post("/v1/audio/transcriptions", tags=["hear"], dependencies=keyed, response_model=None)
    async def transcribe(
        request: Request,
        file: Annotated[UploadFile, File()],
        model: Annotated[str, Form()],
        response_format: Annotated[Format, Form()] = "json",
        language: Annotated[str | None, Form(description="changes nothing")] = None,
        temperature: Annotated[float, Form(ge=0, le=0, description="0: the likeliest words")] = 0,
    ) -> Response:
        """The words of a recording, from L alone."""
        server.known(model)
        async with server.placed(request):
            speech = await server.speech(file)
            words = await server.within(request, server.service.words(speech))
        if response_format == "text":
            return PlainTextResponse(words + "\n")
        if response_format == "json":
            return JSONResponse({"text": words})
        seconds = len(speech.audio) / SAMPLE_RATE  # type: ignore[arg-type]
        segment = {"id": 0, "start": 0.0, "end": seconds, "text": words}
        about = {"task": "transcribe", "language": language or "", "duration": seconds}
        return JSONResponse({**about, "text": words, "segments": [segment]})

    @made.post("/v1/audio/attributes", tags=["hear"], dependencies=keyed)
    async def attributes(
        request: Request, file: Annotated[UploadFile, File()], model: Annotated[str, Form()]
    ) -> dict[str, Any]:
        """How a recording is said, from P alone; null where the LLM's answer names no value, or several."""
        server.known(model)
        async with server.placed(request):
            speech = await server.speech(file)
            return {"attributes": await server.within(request, server.service.attributes(speech))}


def _model(server: Server) -> dict[str, Any]:
    return {"id": server.name, "object": "model", "created": server.began, "owned_by": "dualslm"}


async def _whole(server: Server, ask: Ask, read: Read, began: float) -> dict[str, Any]:
    text, last = "", None
    async with aclosing(server.service.answer(read, ask)) as pieces:
        async for piece in pieces:
            if last is None:
                server.metrics.first.observe(time.perf_counter() - began)
            text, last = text + piece.text, piece
    assert last is not None, "a backend ends a reply with its reason"
    assert last.reason is not None, "the last piece has it"
    server.count(read, last.reused, last.tokens, began)
    used = usage(len(read.prompt.keys), read.heard, last.reused, last.tokens)
    return Envelope(server.name).whole(text, last.reason, used, read.left_out)


async def _streamed(
    server: Server,
    body: ChatRequest,
    ask: Ask,
    read: Read,
    began: float,
    spent: dict[str, float],
    held: AsyncExitStack,
) -> AsyncGenerator[str]:
    """Server-sent events; the place in the queue is held until the last of them, or until the client leaves."""
    envelope, last, ended = Envelope(server.name), None, False
    async with held, aclosing(server.service.answer(read, ask)) as pieces:
        try:
            yield _event(envelope.chunk({"role": "assistant", "content": ""}))
            async with asyncio.timeout(server.limits.timeout):
                async for piece in pieces:
                    if last is None:
                        spent["first_token"] = time.perf_counter() - began
                        server.metrics.first.observe(spent["first_token"])
                    last = piece
                    if piece.text:
                        yield _event(envelope.chunk({"content": piece.text}))
            assert last is not None, "a backend ends a reply with its reason"
            yield _event(envelope.chunk({}, last.reason))
            if body.stream_options is not None and body.stream_options.include_usage:
                used = usage(len(read.prompt.keys), read.heard, last.reused, last.tokens)
                spent["whole"] = time.perf_counter() - began
                yield _event(envelope.last(used, read.left_out) | {"seconds": spent})
            ended = True
        except Exception as error:  # the status was sent already
            yield _event({"error": told(error)[1]})
            ended = True
        finally:
            server.count(read, last.reused if last else 0, last.tokens if last else 0, began)
            if not ended:
                server.metrics.cut.inc()
    yield "data: [DONE]\n\n"


def _event(what: dict[str, Any]) -> str:
    return f"data: {json.dumps(what, ensure_ascii=False)}\n\n"


async def _gone(request: Request) -> None:
    """Returns when the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
