"""The routes: chat completions, transcriptions, attributes, models, health, metrics, and the page.

OpenAI's own clients talk to them unchanged; errors come in OpenAI's shape and status, so that a client raises the
right class. Audio comes as bytes in the request and in no other way.

From a request to its reply: the route `chat` encodes the prompt, `Completion` turns pieces into OpenAI's JSON, and
`Service.stream` takes the pieces from the backend.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from fastapi import Depends, FastAPI, Request, UploadFile
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from dualslm import __version__
from dualslm.conversation import Speech
from dualslm.serve.audio_routes import add_audio_routes
from dualslm.serve.caller import CALLER, HeldBytes, Keys
from dualslm.serve.completion import Completion
from dualslm.serve.docs_page import add_docs
from dualslm.serve.errors import RefusedError, add_error_handlers
from dualslm.serve.explain_routes import add_explain_routes
from dualslm.serve.fairness import FairThreads, Queue
from dualslm.serve.hosts import Hosts
from dualslm.serve.json_body import BoundedRoute
from dualslm.serve.limits import Limits
from dualslm.serve.metrics import Metrics
from dualslm.serve.middleware import BodyLimitMiddleware, GateMiddleware
from dualslm.serve.openai_schema import ChatRequest, parse_chat
from dualslm.serve.page import mount
from dualslm.serve.realtime import add_realtime_route
from dualslm.serve.recordings import check_speech, load_speech
from dualslm.serve.responses import add_responses_route
from dualslm.serve.service import Ask, EncodedPrompt, Service

T = TypeVar("T")
DEFAULT_LIMITS = Limits()
DECODE_THREADS = 4  # one of them is left to other clients, however much one sends


def app(
    service: Service,
    *,
    name: str = "dualslm",
    limits: Limits = DEFAULT_LIMITS,
    key: str | Sequence[str] | None = None,
    page: bool = True,
    clips: Path | None = None,
    hosts: Sequence[str] = (),
    origins: Sequence[str] = (),
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
        origins: origins whose pages may ask too (CORS); browsers let no other page read an answer.
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
        GateMiddleware,
        hosts=Hosts(hosts, origins),
        keys=Keys(keys),
        memory=HeldBytes(limits.memory),
        metrics=server.metrics,
    )
    if origins:
        # outermost, so that a page of theirs can read a refusal too; keys travel in a header, never in cookies
        api.add_middleware(CORSMiddleware, allow_origins=list(origins), allow_methods=["*"], allow_headers=["*"])

    async def authorized() -> None:
        # the gate has checked the key before the body was read; a route that it took for an open one is refused here
        if keys and not CALLER.get().key:
            raise RefusedError(401, "The API key is missing or wrong.", "invalid_api_key")

    needs_key = [Depends(authorized)]
    add_docs(api)
    _add_state_routes(api, server, needs_key)
    _add_chat_route(api, server, needs_key)
    add_responses_route(api, server, needs_key)
    add_audio_routes(api, server, needs_key)
    add_realtime_route(api, server, needs_key)
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

    async def prepared(self, request: Request, body: ChatRequest) -> tuple[Ask, EncodedPrompt]:
        """What a request asks, its recordings decoded and its prompt encoded."""
        if body.response_format is not None and self.service.llm_is_local:
            message = "response_format: none can be enforced here; let vLLM run the LLM (--vllm), or ask in words."
            raise RefusedError(400, message, "invalid_value")
        # in a thread, because decoding the recordings would hold up everybody's tokens
        model = self.service.model
        parsed = self.threads.run(
            parse_chat, body, self.limits, model.llm.tokenizer, self.service.system, model.generation
        )
        ask = await self.wait_for(request, parsed)
        # encoded before the response starts: what is wrong with a prompt still gets a status of its own
        return ask, await self.wait_for(request, self.service.encode(ask))

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
            ask, prompt = await server.prepared(request, body)
            completion = Completion(server, ask, prompt, began, body.n or 1)
            if not body.stream:
                return JSONResponse(await server.wait_for(request, completion.whole()))
            include_usage = body.stream_options is not None and body.stream_options.include_usage
            # the response is sent after this block has ended, so its slot in the queue goes with it
            events = completion.events(slot.pop_all(), include_usage=include_usage)
            return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


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
