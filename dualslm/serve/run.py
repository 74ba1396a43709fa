"""Starts the server, and stops it so that open replies are finished first (ours)."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from dualslm.errors import DualSLMError
from dualslm.inference.backend import Backend
from dualslm.inference.describe import Questions
from dualslm.inference.local import LocalBackend
from dualslm.inference.prefix_cache import PREFIX_CACHE_BYTES
from dualslm.model.dualslm import DualSLM
from dualslm.serve.app import app
from dualslm.serve.connections import OncePerMinute, most_connections, protocol, quiet_accept
from dualslm.serve.limits import Limits
from dualslm.serve.service import Service

KEEP_ALIVE_S = 75  # longer than clients keep idle connections, so that none is closed just as a request sets out
BACKLOG = 128  # connections that the system takes before we do
LOOPBACK = ("127.0.0.1", "::1")


@dataclass(frozen=True)
class Settings:
    """How the server is reached, and where the LLM runs.

    Attributes:
        name: name of the model in requests.
        limits: limits of requests.
        key: API key that requests must bring, or several; none is asked for when None.
        page: whether the web page is served too.
        clips: folder of example recordings for the page.
        cache_bytes: bytes of the prefix cache, where the LLM runs in this process.
        vllm: address of a vLLM server up to and with /v1; the LLM runs in this process when None.
        vllm_model: name of the LLM in vLLM; vLLM's first when None.
        vllm_key: API key for vLLM.
        hosts: names with a dot in them that the server answers to.
    """

    name: str
    limits: Limits
    key: str | Sequence[str] | None = None
    page: bool = True
    clips: Path | None = None
    cache_bytes: int = PREFIX_CACHE_BYTES
    vllm: str | None = None
    vllm_model: str | None = None
    vllm_key: str | None = None
    hosts: Sequence[str] = ()


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one.

    Raises:
        DualSLMError: an address that is not this machine's, a port in use, or a number that is no port.
    """
    # before the model is loaded, which may take minutes: a port in use is reported at once
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        got = getattr(error, "strerror", None) or str(error)
        raise DualSLMError(f"cannot listen on {host}:{port}", got=got, do="give another --port or --host") from error


def run(
    model: DualSLM,
    settings: Settings,
    listening: socket.socket,
    *,
    questions: Questions,
    context: int | None,
    system: str | None,
) -> None:
    """Serves until SIGINT or SIGTERM.

    Args:
        model: encoder and adapters; its LLM replies too where no vLLM server is named.
        settings: settings of the server.
        listening: socket that takes the connections.
        questions: questions by which the LLM is asked for words and attributes.
        context: positions that prompt and reply may take together; the LLM's limit when None.
        system: system text of conversations that have none.
    """
    host = listening.getsockname()[0]
    if host not in LOOPBACK and not settings.key:
        print(f"dualslm: warning: anybody who reaches {host} can use this server", file=sys.stderr)
    # uvicorn handles SIGTERM itself and raises it again once it has stopped; ignored there, the exit status is 0
    signal.signal(signal.SIGTERM, lambda *_: None)
    backend = _backend(model, settings)
    service = Service(model, backend, questions=questions, context=context, system=system)
    asyncio.run(_serve(service, settings, listening))


def _backend(model: DualSLM, settings: Settings) -> Backend:
    if settings.vllm is None:
        return LocalBackend(model.llm, settings.limits.running, settings.cache_bytes)
    from dualslm.inference.vllm import VLLMBackend

    return VLLMBackend(settings.vllm, model.llm.stops, model=settings.vllm_model, key=settings.vllm_key)


async def _serve(service: Service, settings: Settings, listening: socket.socket) -> None:
    api = app(
        service,
        name=settings.name,
        limits=settings.limits,
        key=settings.key,
        page=settings.page,
        clips=settings.clips,
        hosts=settings.hosts,
    )
    logging.getLogger("uvicorn.error").addFilter(OncePerMinute(time.monotonic))
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of each malformed form; the answer says so
    quiet_accept(asyncio.get_running_loop())
    config = uvicorn.Config(
        api,
        http=protocol(most_connections(settings.limits)),
        log_level="warning",
        backlog=BACKLOG,
        # as long as a stream may take, so that open replies end on their own
        timeout_graceful_shutdown=int(settings.limits.timeout),
        timeout_keep_alive=KEEP_ALIVE_S,
        server_header=False,
    )
    server = uvicorn.Server(config)
    announcement = asyncio.create_task(_announce(server, settings.name))
    await server.serve([listening])
    announcement.cancel()


async def _announce(server: uvicorn.Server, name: str) -> None:
    """Prints one line, once the server listens."""
    # uvicorn has no event for it; whoever starts the process waits for the line, also to learn the port
    while not server.started:
        await asyncio.sleep(0.02)
    host, port = server.servers[0].sockets[0].getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print(f"dualslm: {name} answers on http://{shown}:{port}/v1", flush=True)
