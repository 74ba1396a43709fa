"""The line that says where the server listens is never lost."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dualslm.serve import run
from dualslm.serve.limits import Limits
from dualslm.serve.run import Settings

LISTENING: Any = SimpleNamespace(
    started=True,
    servers=[SimpleNamespace(sockets=[SimpleNamespace(getsockname=lambda: ("127.0.0.1", 8123))])],
)


def announce() -> None:
    asyncio.run(run._announce(LISTENING, Settings(name="tiny", limits=Limits())))


def test_it_stands_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    announce()
    assert capsys.readouterr() == ("dualslm: tiny answers on http://127.0.0.1:8123/v1\n", "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_it_goes_to_standard_error_where_standard_output_is_full(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with suppress(OSError), Path("/dev/full").open("w") as full:  # closing it tries once more
        monkeypatch.setattr(sys, "stdout", full)
        announce()
    said = capsys.readouterr().err
    assert said == "dualslm: tiny answers on http://127.0.0.1:8123/v1 (standard output: No space left on device)\n"


def test_and_where_it_is_closed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    announce()
    assert capsys.readouterr().err == "dualslm: tiny answers on http://127.0.0.1:8123/v1\n"
