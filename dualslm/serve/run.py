"""Starts the server, and stops it so that open replies are finished first (ours)."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from dualslm.errors import DualSLMError
from dualslm.inference.backend import Backend
from dualslm.inference.describe import Questions
from dualslm.inference.local import LocalBackend
from dualslm.inference.prefix_cache import CACHE_BYTES
from dualslm.model.dualslm import DualSLM
from dualslm.serve.app import app
from dualslm.serve.limits import Limits
from dualslm.serve.service import Service

KEEP_ALIVE = 75  # s; longer than clients keep idle connections, lest one is closed just as a request sets out
HERE = ("127.0.0.1", "::1")


@dataclass(frozen=True)
class Settings:
    """How the server is reached, and where the LLM runs.

    Attributes:
        name: what requests call the model.
        limits: of requests.
        key: that requests must bring.
        page: serve the web page too.
        clips: a folder of example recordings for the page.
        keep: bytes of keys and values to keep of talks that were answered in this process.
        vllm: address of a vLLM server up to and with /v1; the LLM runs in this process when None.
        vllm_model: as vLLM calls it; its first when None.
        vllm_key: that vLLM asks for.
    """

    name: str
    limits: Limits
    key: str | None = None
    page: bool = True
    clips: Path | None = None
    keep: int = CACHE_BYTES
    vllm: str | None = None
    vllm_model: str | None = None
    vllm_key: str | None = None


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one.

    Raises:
        DualSLMError: no such address here, a port in use or one that is no number of a port.
    """
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
        model: hears, and answers too where no vLLM server is named.
        settings: of the server.
        listening: takes the connections.
        questions: by which the LLM is asked for what it heard.
        context: positions of a talk.
        system: the system text of talks that have none.
    """
    host = listening.getsockname()[0]
    if host not in HERE and settings.key is None:
        print(f"dualslm: warning: anybody who reaches {host} can use this server", file=sys.stderr)
    signal.signal(
        signal.SIGTERM, lambda *_: None
    )  # uvicorn passes it on once it has stopped; the exit status is then 0
    service = Service(model, _backend(model, settings), questions=questions, context=context, system=system)
    asyncio.run(_serve(service, settings, listening))


async def _serve(service: Service, settings: Settings, listening: socket.socket) -> None:
    made = app(
        service, name=settings.name, limits=settings.limits, key=settings.key, page=settings.page, clips=settings.clips
    )
    grace = int(settings.limits.timeout)
    config = uvicorn.Config(
        made,
        log_level="warning",
        timeout_graceful_shutdown=grace,
        timeout_keep_alive=KEEP_ALIVE,
        server_header=False,
    )
    server = uvicorn.Server(config)
    told = asyncio.create_task(_tell(server, settings.name))
    await server.serve([listening])
    told.cancel()


def _backend(model: DualSLM, settings: Settings) -> Backend:
    if settings.vllm is None:
        return LocalBackend(model.llm, settings.limits.running, settings.keep)
    from dualslm.inference.vllm import VLLMBackend

    return VLLMBackend(settings.vllm, model.llm.stops, model=settings.vllm_model, key=settings.vllm_key)


async def _tell(server: uvicorn.Server, name: str) -> None:
    """One line, once the server listens."""
    while not server.started:
        await asyncio.sleep(0.02)
    host, port = server.servers[0].sockets[0].getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print(f"dualslm: {name} answers on http://{shown}:{port}/v1", flush=True)
