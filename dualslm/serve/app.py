"""The routes: chat completions, transcriptions, attributes, models, health, metrics, and the page.

OpenAI's own clients talk to them unchanged; errors come in OpenAI's shape and status, so that a client raises the
right class. Audio comes as bytes in the request and in no other way.

From a request to its reply: the route `chat` encodes the prompt, `_Completion` turns pieces into OpenAI's JSON, and
`Service.stream` takes the pieces from the backend.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from fastapi import Depends, FastAPI, File, Form, Request, UploadFile
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from dualslm import __version__
from dualslm.audio import SAMPLE_RATE
from dualslm.conversation import Speech
from dualslm.inference.backend import Piece
from dualslm.serve.caller import CALLER, HeldBytes, Keys
from dualslm.serve.docs_page import add_docs
from dualslm.serve.errors import RefusedError, add_error_handlers, openai_error
from dualslm.serve.explain_routes import add_explain_routes
from dualslm.serve.fairness import FairThreads, Queue
from dualslm.serve.hosts import Hosts
from dualslm.serve.json_body import BoundedRoute
from dualslm.serve.limits import Limits
from dualslm.serve.metrics import Metrics
from dualslm.serve.middleware import BodyLimitMiddleware, GateMiddleware
from dualslm.serve.openai_schema import ChatRequest, Envelope, Usage, check_speech, load_speech, parse_chat, usage
from dualslm.serve.page import mount
from dualslm.serve.service import Ask, EncodedPrompt, Service

T = TypeVar("T")
DEFAULT_LIMITS = Limits()
DECODE_THREADS = 4  # one of them is left to other clients, however much one sends
Format = Literal["json", "text", "verbose_json"]


def app(
    service: Service,
    *,
    name: str = "dualslm",
    limits: Limits = DEFAULT_LIMITS,
    key: str | Sequence[str] | None = None,
    page: bool = True,
    clips: Path | None = None,
    hosts: Sequence[str] = (),
) -> FastAPI:
    """The server's application.

    Args:
        service: encodes and replies; closed with the application.
        name: name of the model, which requests have to give.
        limits: limits of requests.
        key: bearer token that requests must bring, or several, whose owners learn nothing of each other; none is
            asked for when None.
        page: whether the web page is served at /.
        clips: folder of example recordings for the page.
        hosts: names with a dot in them that the server answers to; see `hosts.Hosts`.
    """
    server = Server(service, name, limits)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        server.threads.close()
        await service.close()

    # FastAPI's own pages of documentation load scripts from elsewhere, and need no key
    api = FastAPI(
        title="dualslm",
        version=__version__,
        lifespan=lifespan,
        description="An LLM that hears.",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    api.state.service = service
    api.router.route_class = BoundedRoute
    add_error_handlers(api)
    keys = [key] if isinstance(key, str) else list(key or ())
    # the last one added is asked first
    api.add_middleware(BodyLimitMiddleware, max_bytes=limits.body, timeout=limits.timeout)
    api.add_middleware(
        GateMiddleware, hosts=Hosts(hosts), keys=Keys(keys), memory=HeldBytes(limits.memory), metrics=server.metrics
    )

    async def authorized() -> None:
        # the gate has checked the key before the body was read; a route that it took for an open one is refused here
        if keys and not CALLER.get().key:
            raise RefusedError(401, "The API key is missing or wrong.", "invalid_api_key")

    needs_key = [Depends(authorized)]
    add_docs(api)
    _add_state_routes(api, server, needs_key)
    _add_chat_route(api, server, needs_key)
    _add_audio_routes(api, server, needs_key)
    add_explain_routes(api, server, needs_key)
    if page:
        mount(api, clips)
    return api


class Server:
    """What the routes share.

    Args:
        service: encodes and replies.
        name: name of the model.
        limits: limits of requests.
    """

    def __init__(self, service: Service, name: str, limits: Limits) -> None:
        self.service = service
        self.name = name
        self.limits = limits
        self.queue = Queue(limits)
        self.threads = FairThreads(DECODE_THREADS, "decoder")
        self.metrics = Metrics(service, self.queue)
        self.created = int(time.time())

    def check_model(self, model: str) -> None:
        """Refuses another model's name."""
        if model != self.name:
            raise RefusedError(404, f"No model {model!r} here; this is {self.name!r}.", "model_not_found")

    async def wait_for(self, request: Request, work: Awaitable[T]) -> T:
        """The result of work, which is cancelled when the request's time is up or its client leaves.

        Raises:
            RefusedError: it took too long, or the client left.
        """

        async def disconnected() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass

        job = asyncio.ensure_future(work)
        client_left = asyncio.ensure_future(disconnected())
        try:
            timeout = self.limits.timeout
            await asyncio.wait({job, client_left}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if job.done():
                return job.result()
            if client_left.done():
                self.metrics.disconnects.inc()
                raise RefusedError(499, "The client has left.", "client_left")
            raise RefusedError(504, f"No answer within {timeout:g} s.", "timeout")
        finally:
            if not job.done():
                CALLER.get().gone.set()  # what a thread does for it ends as soon as it looks
            for task in (job, client_left):
                task.cancel()
            # until both have ended: the backend must be rid of the request before its slot is given to the next
            await asyncio.wait({job, client_left})

    @asynccontextmanager
    async def admitted(self, request: Request) -> AsyncIterator[AsyncExitStack]:
        """Waits in the queue; the request runs until the stack is closed, which may outlive this block."""
        async with AsyncExitStack() as slot:
            await self.wait_for(request, slot.enter_async_context(self.queue.admit()))
            yield slot

    async def read_upload(self, file: UploadFile) -> Speech:
        """An uploaded recording."""
        speech = await self.threads.run(load_speech, await file.read(), self.limits)
        await self.threads.run(check_speech, speech, self.limits)
        return speech


# ---------------------------------------------------------------------- chat completions


def _add_chat_route(api: FastAPI, server: Server, needs_key: list[Any]) -> None:
    @api.post("/v1/chat/completions", tags=["chat"], dependencies=needs_key, response_model=None)
    async def chat(body: ChatRequest, request: Request) -> Response:
        """The reply to a conversation of text and speech, whole or streamed."""
        server.check_model(body.model)
        began = time.perf_counter()
        async with server.admitted(request) as slot:
            # in a thread, because decoding the recordings would hold up everybody's tokens
            parsed = server.threads.run(parse_chat, body, server.limits, server.service.system)
            ask = await server.wait_for(request, parsed)
            # encoded before the response starts: what is wrong with a prompt still gets a status of its own
            prompt = await server.wait_for(request, server.service.encode(ask))
            completion = _Completion(server, ask, prompt, began)
            if not body.stream:
                return JSONResponse(await server.wait_for(request, completion.whole()))
            include_usage = body.stream_options is not None and body.stream_options.include_usage
            # the response is sent after this block has ended, so its slot in the queue goes with it
            events = completion.events(slot.pop_all(), include_usage=include_usage)
            return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


@dataclass
class _Completion:
    """One reply on its way to a client, and what it took so far.

    Attributes:
        server: what the routes share.
        ask: conversation and settings.
        prompt: the encoded conversation.
        began: time of the request, in s of `time.perf_counter`.
        last: the piece that came last; None before the first.
        seconds: s from the request to the end of each step.
    """

    server: Server
    ask: Ask
    prompt: EncodedPrompt
    began: float
    last: Piece | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.seconds["encode"] = time.perf_counter() - self.began

    async def whole(self) -> dict[str, Any]:
        """The reply as one JSON object."""
        text = ""
        async with aclosing(self.server.service.stream(self.ask, self.prompt)) as pieces:
            async for piece in pieces:
                self._note(piece)
                text += piece.text
        assert self.last is not None, "a backend's stream ends with a piece"
        assert self.last.reason is not None, "a backend's last piece has a reason"
        self._count()
        envelope = Envelope(self.server.name)
        return envelope.whole(text, self.last.reason, self._usage(self.last), self.prompt.left_out_turns)

    async def events(self, slot: AsyncExitStack, *, include_usage: bool) -> AsyncGenerator[str]:
        """The reply as server-sent events.

        Args:
            slot: the request's slot in the queue; given up after the last event, or when the client leaves.
            include_usage: whether an event with tokens and seconds follows the reply.
        """
        envelope = Envelope(self.server.name)
        ended = False
        async with slot, aclosing(self.server.service.stream(self.ask, self.prompt)) as pieces:
            try:
                yield _event(envelope.chunk({"role": "assistant", "content": ""}))
                async with asyncio.timeout(self.server.limits.timeout):
                    async for piece in pieces:
                        self._note(piece)
                        if piece.text:
                            yield _event(envelope.chunk({"content": piece.text}))
                assert self.last is not None, "a backend's stream ends with a piece"
                yield _event(envelope.chunk({}, self.last.reason))
                if include_usage:
                    self.seconds["whole"] = time.perf_counter() - self.began
                    used = envelope.usage_chunk(self._usage(self.last), self.prompt.left_out_turns)
                    yield _event(used | {"seconds": self.seconds})
                ended = True
            except Exception as error:  # status 200 was sent already, so the error travels as an event
                yield _event({"error": openai_error(error)[1]})
                ended = True
            finally:
                # a client that leaves raises GeneratorExit or CancelledError above: neither is an Exception
                self._count()
                if not ended:
                    self.server.metrics.disconnects.inc()
        yield "data: [DONE]\n\n"

    def _note(self, piece: Piece) -> None:
        if self.last is None:
            self.seconds["first_token"] = time.perf_counter() - self.began
            self.server.metrics.first_text.observe(self.seconds["first_token"])
        self.last = piece

    def _usage(self, last: Piece) -> Usage:
        positions = len(self.prompt.embeds.keys)
        return usage(positions, self.prompt.audio_positions, last.reused, last.tokens)

    def _count(self) -> None:
        """Adds what the reply took to the metrics."""
        reused = self.last.reused if self.last else 0
        drawn = self.last.tokens if self.last else 0
        for kind, number in (("read", len(self.prompt.embeds.keys)), ("reused", reused), ("drawn", drawn)):
            self.server.metrics.tokens.labels(kind).inc(number)
        self.server.metrics.whole_reply.observe(time.perf_counter() - self.began)


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


# ---------------------------------------------------------------------- the other routes


def _add_state_routes(api: FastAPI, server: Server, needs_key: list[Any]) -> None:
    model_card = {"id": server.name, "object": "model", "created": server.created, "owned_by": "dualslm"}

    # without the key: whoever watches over the process needs no access to the model
    @api.get("/health", tags=["state"])
    async def health() -> dict[str, str]:
        """Whether the server answers."""
        return {"status": "ok", "model": server.name}

    @api.get("/metrics", tags=["state"], dependencies=needs_key, response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Prometheus metrics."""
        return Response(generate_latest(server.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @api.get("/v1/models", tags=["state"], dependencies=needs_key)
    async def models() -> dict[str, Any]:
        """The one model that answers here."""
        return {"object": "list", "data": [model_card]}

    @api.get("/v1/models/{model:path}", tags=["state"], dependencies=needs_key)
    async def model_of(model: str) -> dict[str, Any]:
        """The model of this name."""
        server.check_model(model)
        return model_card


def _add_audio_routes(api: FastAPI, server: Server, needs_key: list[Any]) -> None:
    @api.post("/v1/audio/transcriptions", tags=["audio"], dependencies=needs_key, response_model=None)
    async def transcribe(
        request: Request,
        file: Annotated[UploadFile, File()],
        model: Annotated[str, Form()],
        response_format: Annotated[Format, Form()] = "json",
        language: Annotated[str | None, Form(description="changes nothing")] = None,
        temperature: Annotated[float, Form(ge=0, le=0, description="0: the likeliest words")] = 0,
    ) -> Response:
        """The words of a recording, from L alone."""
        server.check_model(model)
        async with server.admitted(request):
            speech = await server.read_upload(file)
            words = await server.wait_for(request, server.service.transcribe(speech))
        if response_format == "text":
            return PlainTextResponse(words + "\n")
        if response_format == "json":
            return JSONResponse({"text": words})
        seconds = len(speech.audio) / SAMPLE_RATE  # type: ignore[arg-type]
        # OpenAI's clients expect segments; L has no times of words, so the whole recording is one
        segment = {"id": 0, "start": 0.0, "end": seconds, "text": words}
        about = {"task": "transcribe", "language": language or "", "duration": seconds}
        return JSONResponse({**about, "text": words, "segments": [segment]})

    @api.post("/v1/audio/attributes", tags=["audio"], dependencies=needs_key)
    async def attributes(
        request: Request, file: Annotated[UploadFile, File()], model: Annotated[str, Form()]
    ) -> dict[str, Any]:
        """How a recording is said, from P alone; null where the LLM's answer names no value, or several."""
        server.check_model(model)
        async with server.admitted(request):
            speech = await server.read_upload(file)
            return {"attributes": await server.wait_for(request, server.service.attributes(speech))}
