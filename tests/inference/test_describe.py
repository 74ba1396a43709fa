"""Aligned adapters are read, by Python, over HTTP and on the command line; their LLM is not asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from support.aligned import TONE, VALUES, WORD, aligned_model
from support.servekit import SAD, audio_part, threaded

from dualslm.cli import main as cli
from dualslm.conversation import Speech
from dualslm.inference.describe import ASKED
from dualslm.inference.local import LocalBackend
from dualslm.inference.session import Session
from dualslm.model.dualslm import DualSLM
from dualslm.serve.app import app
from dualslm.serve.service import Service


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DualSLM:
    return aligned_model(tmp_path_factory.mktemp("aligned"))


@pytest.fixture(scope="module")
def url(model: DualSLM) -> Iterator[str]:
    with threaded(app(Service(model, LocalBackend(model.llm), questions=ASKED))) as address:
        yield address


def test_a_session_reads(model: DualSLM) -> None:
    found = Session(model, questions=ASKED).describe(Speech(SAD))
    assert (found.words, found.attributes, found.answers) == (WORD, TONE, {})
    assert found.caption == "male, fast tempo"


def test_the_server_reads(url: str) -> None:
    body: dict[str, Any] = {"model": "dualslm", "input_audio": audio_part(SAD)["input_audio"]}
    found = httpx2.post(f"{url}/heard", json=body, timeout=60).json()
    assert found["words"] == WORD
    for name, value in TONE.items():
        shares = found["attributes"][name]["degrees"]
        assert found["attributes"][name]["value"] == value == max(shares, key=shares.__getitem__)
        assert sorted(shares) == VALUES[name]
    assert httpx2.post(f"{url}/trace", json=body, timeout=60).json() == {"windows": []}, "it was taught no emotion"
    for route, answer in (("transcriptions", {"text": WORD}), ("attributes", {"attributes": TONE})):
        with SAD.open("rb") as file:
            sent = httpx2.post(f"{url}/audio/{route}", data={"model": "dualslm"}, files={"file": file}, timeout=60)
        assert sent.json() == answer


def test_ask_says_what_was_heard(model: DualSLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = str(model.save_pretrained(tmp_path))
    asked = ["ask", str(SAD), "--model", saved, "--heard", "--max-new-tokens", "2"]
    assert cli.main(asked) == 0
    assert capsys.readouterr().out.startswith(f"[{WORD}] [gender: male, tempo: fast]\n")
    assert cli.main([*asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["words"], found["tone"]) == (WORD, TONE)
