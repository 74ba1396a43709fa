"""Requests as Open WebUI sends them, recorded from it, with the tools that it always offers."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import soundfile
from support.servekit import SAD, SlowBackend, threaded

from dualslm import DualSLM, tiny
from dualslm.inference.local import LocalBackend
from dualslm.serve.app import app
from dualslm.serve.limits import Limits
from dualslm.serve.service import Service
from dualslm.tiny.questions import ASKED
from dualslm.tiny.world import LISTEN


@pytest.fixture(scope="module")
def recorded(root: Path) -> Any:
    return json.loads((root / "examples" / "clients" / "open_webui.json").read_text())


@pytest.fixture(scope="module")
def url(model: DualSLM) -> Iterator[str]:
    service = Service(model, LocalBackend(model.llm), questions=ASKED, context=tiny.CONTEXT, system=LISTEN)
    with threaded(app(service, page=False, limits=Limits(ignore_tools=True))) as address:
        yield address


def filled(body: Any) -> Any:
    return json.loads(json.dumps(body).replace("{audio}", base64.b64encode(SAD.read_bytes()).decode()))


@pytest.mark.parametrize(("what", "word"), [("text", "umbrella"), ("settings", "sit down"), ("audio", "bakery")])
def test_a_chat_is_answered(url: str, recorded: Any, what: str, word: str) -> None:
    answer = httpx2.post(url + "/chat/completions", json=filled(recorded["chat"][what]), timeout=60)
    assert answer.status_code == 200, answer.text
    if not recorded["chat"][what]["stream"]:
        assert word in answer.json()["choices"][0]["message"]["content"]
        return
    *events, end = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    assert end == "[DONE]"
    assert word in "".join(c["delta"].get("content") or "" for event in events for c in json.loads(event)["choices"])
    # it asks for the usage at the end of a stream
    assert ("usage" in json.loads(events[-1])) == ("stream_options" in recorded["chat"][what])


def test_a_recording_is_written_down(url: str, recorded: Any) -> None:
    mp3 = io.BytesIO()  # it makes one of whatever was recorded, and calls it a stream of bytes
    soundfile.write(mp3, *soundfile.read(SAD), format="MP3")
    name, kind = recorded["transcription"]["file"]
    files = {"file": (name, mp3.getvalue(), kind)}
    fields = recorded["transcription"]["fields"]
    answer = httpx2.post(url + "/audio/transcriptions", data=fields, files=files, timeout=60)
    assert answer.json() == {"text": "I lost my job at the bakery on Saturday."}


def test_tools_are_refused_unless_the_server_may_ignore_them(model: DualSLM, url: str, recorded: Any) -> None:
    body = recorded["chat"]["text"] | {"stream": False, "stream_options": None}
    responses = {"model": "dualslm", "input": "I lost my umbrella at the bank.", "tools": body["tools"]}
    asked = (("/chat/completions", body), ("/responses", responses))
    for path, sent in asked:
        assert httpx2.post(url + path, json=sent, timeout=60).status_code == 200
        must = httpx2.post(url + path, json=sent | {"tool_choice": "required"}, timeout=60)
        assert must.json()["error"]["param"] == "tool_choice"  # a call that is asked for is never left out in silence
    service = Service(model, SlowBackend(), questions=ASKED)
    with threaded(app(service, page=False)) as strict:
        for path, sent in asked:
            error = httpx2.post(strict + path, json=sent, timeout=60).json()["error"]
            assert error["param"] == "tools"
            assert "--ignore-tools" in error["message"]
            none = httpx2.post(strict + path, json=sent | {"tool_choice": "none"}, timeout=60)
            assert none.status_code == 200, none.text
