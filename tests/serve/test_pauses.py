"""What would hold up every stream at once is done before the first request."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import Iterator

import pytest
import uvicorn
from support.servekit import SlowBackend

from dualslm.model.dualslm import DualSLM
from dualslm.serve import run
from dualslm.serve.limits import Limits
from dualslm.serve.service import Service
from dualslm.tiny.questions import ASKED


@pytest.fixture(autouse=True)
def _unfrozen() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_a_full_collection_walks_no_libraries_while_requests_are_answered(
    model: DualSLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    walked = []

    async def serve(server: uvicorn.Server, sockets: list[socket.socket]) -> None:
        walked.append(len(gc.get_objects()))
        server.started = False

    monkeypatch.setattr(uvicorn.Server, "serve", serve)
    service = Service(model, SlowBackend(), questions=ASKED)
    before = len(gc.get_objects())
    with socket.create_server(("127.0.0.1", 0)) as listening:
        asyncio.run(run._serve(service, run.Settings("dualslm", Limits()), listening))
    assert walked[0] < before / 10
