"""Starts the server, and stops it so that open replies are finished first (ours)."""

from __future__ import annotations

import asyncio
import gc
import logging
import re
import signal
import socket
import ssl
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from dualslm.errors import DualSLMError, one_line
from dualslm.inference.backend import Backend
from dualslm.inference.describe import Questions
from dualslm.inference.local import LocalBackend
from dualslm.inference.prefix_cache import PREFIX_CACHE_BYTES
from dualslm.model.dualslm import DualSLM
from dualslm.serve.app import app
from dualslm.serve.connections import OncePerMinute, most_connections, protocol, quiet_accept
from dualslm.serve.limits import Limits
from dualslm.serve.memory import return_freed
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
        certificate: file of the certificate for https; http when None.
        private_key: file of its private key; in the certificate's file when None.
        origins: origins whose pages may ask too (CORS); none but the server's own unless named.
        cache_bytes: bytes of the prefix cache, where the LLM runs in this process.
        llama_cpp: whether llama.cpp runs the LLM, which then is a GGUF file.
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
    certificate: str | None = None
    private_key: str | None = None
    origins: tuple[str, ...] = ()
    cache_bytes: int = PREFIX_CACHE_BYTES
    llama_cpp: bool = False
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


def check_certificate(certificate: str | None, private_key: str | None) -> None:
    """Refuses a certificate that https could not be served with, before the model is loaded.

    Raises:
        DualSLMError: a key without a certificate, a file that cannot be read, or two that do not belong together.
    """
    if certificate is None:
        if private_key is not None:
            raise DualSLMError("a key without a certificate", got="--ssl-keyfile", do="give --ssl-certfile too")
        return
    do = "give PEM files that belong together, for example from mkcert or certbot"
    try:
        # a password would be asked for at the terminal, and a server has none
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, private_key, password="")
    except (OSError, ValueError) as error:  # an SSLError is an OSError
        got = getattr(error, "reason", None) or error.strerror if isinstance(error, OSError) else str(error)
        raise DualSLMError(f"cannot serve https with {certificate}", got=got or str(error), do=do) from error


def check_origin(origin: str) -> str:
    """An origin for CORS: "*", or scheme and host as browsers state it.

    Raises:
        DualSLMError: it is none, and so would never match.
    """
    if origin != "*" and not re.fullmatch(r"https?://[^/\s]+", origin):
        do = "give scheme and host alone, for example https://example.org, or * for all"
        raise DualSLMError("this is no origin", got=repr(origin), do=do)
    return origin


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
        print(one_line(f"dualslm: warning: anybody who reaches {host} can use this server"), file=sys.stderr)
    # uvicorn handles SIGTERM itself and raises it again once it has stopped; ignored there, the exit status is 0
    signal.signal(signal.SIGTERM, lambda *_: None)
    return_freed()
    backend = _backend(model, settings, context)
    service = Service(model, backend, questions=questions, context=context, system=system)
    asyncio.run(_serve(service, settings, listening))


def _backend(model: DualSLM, settings: Settings, context: int | None) -> Backend:
    if settings.llama_cpp:
        from dualslm.inference.llama_cpp import LlamaCppBatch

        return LocalBackend(model.llm, batch=LlamaCppBatch.of(model.llm, context=context))
    if settings.vllm is None:
        return LocalBackend(model.llm, settings.limits.running, settings.cache_bytes)
    from dualslm.inference.vllm import VLLMBackend

    return VLLMBackend(
        settings.vllm,
        model.llm.stops,
        tokenizer=model.llm.tokenizer,
        model=settings.vllm_model,
        key=settings.vllm_key,
    )


async def _serve(service: Service, settings: Settings, listening: socket.socket) -> None:
    api = app(
        service,
        name=settings.name,
        limits=settings.limits,
        key=settings.key,
        page=settings.page,
        clips=settings.clips,
        hosts=settings.hosts,
        origins=settings.origins,
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
        ssl_certfile=settings.certificate,
        ssl_keyfile=settings.private_key,
    )
    server = uvicorn.Server(config)
    keep_for_good()
    announcement = asyncio.create_task(_announce(server, settings))
    await server.serve([listening])
    announcement.cancel()


def keep_for_good() -> None:
    """Takes what is there by now out of the garbage collector's sight: it stays as long as the server."""
    # 430,000 objects of libraries: a full collection walked them all, and for half a second no stream went on
    gc.collect()
    gc.freeze()


async def _announce(server: uvicorn.Server, settings: Settings) -> None:
    """Prints one line, once the server listens."""
    # uvicorn has no event for it; whoever starts the process waits for the line, also to learn the port
    while not server.started:
        await asyncio.sleep(0.02)
    host, port = server.servers[0].sockets[0].getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    scheme = "http" if settings.certificate is None else "https"
    line = f"dualslm: {settings.name} answers on {scheme}://{shown}:{port}/v1"
    try:
        print(one_line(line), file=sys.stdout or sys.stderr, flush=True)
    except OSError as error:  # a full disk, say: the server answers all the same, and its address must be known
        print(one_line(f"{line} (standard output: {error.strerror})"), file=sys.stderr, flush=True)
