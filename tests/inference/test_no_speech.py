"""Every verb follows the one rule: `ask`, `chat`, `serve` and `prepare --verify` say that nobody speaks."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from rich.console import Console
from support.badaudio import wav
from support.servekit import SlowBackend

from dualslm import tiny
from dualslm.chat.terminal import Chat
from dualslm.cli import ask
from dualslm.cli import main as cli
from dualslm.conversation import Conversation
from dualslm.data.corpora.base import NO_SPEECH
from dualslm.data.corpora.clips import probe
from dualslm.inference.session import Session
from dualslm.inference.voice_activity import NoSpeechError, no_speech
from dualslm.model.dualslm import DualSLM
from dualslm.model.generation import GenerationSettings
from dualslm.serve.app import app
from dualslm.serve.limits import Limits
from dualslm.serve.service import Service
from dualslm.tiny import CLIPS
from dualslm.tiny.questions import ASKED

CLIP = next(iter(sorted(CLIPS.glob("*.wav"))))


@pytest.fixture(scope="module")
def model() -> DualSLM:
    return tiny.load()


@pytest.fixture
def silent(tmp_path: Path) -> Path:
    return wav(tmp_path / "silent.wav", np.zeros(16_000, np.float32))


def test_ask_says_so_in_one_line_before_anything_is_loaded(
    silent: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ask, "model_of", lambda _: pytest.fail("loaded a model for nothing"))
    assert cli.main(["ask", str(silent)]) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert f"no speech in {silent}: got silence" in err
    assert cli.main(["ask", str(silent), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["no_speech"] == "silence"


def test_ask_answers_the_others_and_any_sound_where_it_is_told(
    silent: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["ask", str(silent), str(CLIP), "--json", "--max-new-tokens", "2"]) == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (first["reply"], first["no_speech"]) == (None, "silence")
    assert second["reply"]
    assert "no_speech" not in second
    assert cli.main(["ask", str(silent), "--any-sound", "--max-new-tokens", "2"]) == 0
    assert capsys.readouterr().out.strip()


def test_a_view_that_hears_nothing_needs_no_speech(silent: Path) -> None:
    text = ["--view", "none,text", "--transcript", "I lost my keys.", "--max-new-tokens", "2"]
    assert cli.main(["ask", str(silent), *text]) == 0


def test_chat_says_so_and_goes_on(model: DualSLM, silent: Path) -> None:
    screen = io.StringIO()
    session = Session(model, Conversation(), generation=GenerationSettings(max_new_tokens=2), questions=ASKED)
    lines = iter([str(silent), "Hello."])

    def read(_: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    chat = Chat(session, Console(file=screen, width=200), read=read)
    assert chat.run() == 0
    assert "no speech in the recording: got silence" in screen.getvalue()
    assert [turn.parts for turn in session.conversation.turns if turn.role == "user"] == [("Hello.",)]
    with pytest.raises(NoSpeechError):
        chat.take(str(silent))
    chat.any_sound = True
    chat.take(str(silent))


def test_the_server_says_so_with_a_status(model: DualSLM, silent: Path) -> None:
    data = base64.b64encode(silent.read_bytes()).decode()
    part = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    body = {"model": "dualslm", "messages": [{"role": "user", "content": [part]}], "max_tokens": 2}
    upload: dict[str, Any] = {"data": {"model": "dualslm"}, "files": {"file": ("a.wav", silent.read_bytes())}}
    with TestClient(app(Service(model, SlowBackend(0.001), questions=ASKED))) as web:
        answers = [
            web.post("/v1/chat/completions", json=body),
            web.post("/v1/chat/completions", json=body | {"stream": True}),
            web.post("/v1/heard", json={"model": "dualslm", "input_audio": part["input_audio"]}),
            web.post("/v1/audio/transcriptions", **upload),
            web.post("/v1/audio/attributes", **upload),
        ]
        for answer in answers:
            assert answer.status_code == 400
            assert answer.json()["error"]["code"] == "no_speech"
            assert "no speech in the recording: got silence" in answer.json()["error"]["message"]
        assert web.post("/v1/chat/completions", json=body | {"view": "none,none"}).status_code == 200
        assert "does not understand real voices" in web.get("/v1/about").json()["limits"]
    passing = app(Service(model, SlowBackend(0.001), questions=ASKED), limits=Limits(any_sound=True))
    with TestClient(passing) as web:
        assert web.post("/v1/chat/completions", json=body).status_code == 200


def test_prepare_leaves_it_out_where_it_decodes(silent: Path) -> None:
    found = probe(silent, 30.0, verify=True, no_speech=no_speech)
    assert (found.reason, found.detail) == (NO_SPEECH, "silence")
    assert probe(CLIP, 30.0, verify=True, no_speech=no_speech).reason is None
    assert probe(silent, 30.0, no_speech=no_speech).reason is None, "a header tells nothing of speech"
