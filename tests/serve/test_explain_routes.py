"""The routes that look inside say what the Python API says, and only where the LLM's weights are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import httpx2
import pytest
from support.servekit import ANGRY, SAD, Slow, assistant, heard, threaded, user

from dualslm import Conversation, Speech, View, tiny
from dualslm.inference.attribution import degrees, influence
from dualslm.inference.local import LocalBackend
from dualslm.inference.session import Session
from dualslm.serve.app import app
from dualslm.serve.service import Service
from dualslm.tiny.questions import ASKED
from dualslm.tiny.world import LISTEN

REPLY = "You have every right to be angry."


@pytest.fixture(scope="module")
def session() -> Session:
    return Session(tiny.load(), Conversation(LISTEN), questions=ASKED, context=tiny.CONTEXT)


@pytest.fixture(scope="module")
def url(session: Session) -> Iterator[str]:
    backend = LocalBackend(session.model.llm)
    with threaded(app(Service(session.model, backend, questions=ASKED, system=LISTEN))) as address:
        yield address


def post(url: str, path: str, **body: Any) -> httpx2.Response:
    return httpx2.post(f"{url}/{path}", json={"model": "dualslm", **body}, timeout=120)


def test_what_was_heard_with_its_degrees(url: str, session: Session) -> None:
    told = post(url, "heard", input_audio=heard(SAD)["input_audio"]).json()
    own = session.heard(Speech(SAD))
    sure = degrees(session.audio_cache, Speech(SAD), ASKED, own)
    assert told["words"] == own.words
    assert told["caption"] == own.caption
    for name, value in own.attributes.items():
        assert told["attributes"][name]["value"] == value
        assert told["attributes"][name]["degrees"] == pytest.approx(sure[name], abs=1e-4)
    assert told["captions"]["happy"] == own.caption.replace("sad", "happy") if own.caption else None


def test_what_a_reply_rests_on(url: str, session: Session) -> None:
    conversation = Conversation(LISTEN).user("Hello.").assistant("I see.").user(Speech(ANGRY))
    messages = [user("Hello."), assistant("I see."), user(heard(ANGRY)), assistant(REPLY)]
    told = post(url, "influence", messages=messages).json()
    own = asdict(influence(session.audio_cache, conversation, REPLY, View()))
    assert told["tokens"] == own["tokens"]
    assert told["para"] == pytest.approx(own["para"], abs=1e-3)
    assert told["ling"] == pytest.approx(own["ling"], abs=1e-3)


@pytest.mark.parametrize("last", [[], [assistant("")], [assistant(" ")]])
def test_a_talk_without_a_reply_cannot_be_weighed(url: str, last: list[Any]) -> None:
    answer = post(url, "influence", messages=[user(heard(ANGRY)), *last])
    assert answer.status_code == 400
    assert "weigh" in answer.json()["error"]["message"]


def test_what_is_no_audio_is_refused(url: str) -> None:
    for data in ("***", "aGVsbG8="):
        answer = post(url, "heard", input_audio={"data": data})
        assert answer.status_code == 400
        assert answer.json()["error"]["message"]


def test_a_tone_in_words(url: str, session: Session) -> None:
    afraid = "a male speaker, sounding afraid"
    body = [user(heard(ANGRY, tone={"caption": afraid}))]
    told = post(url, "chat/completions", messages=body).json()["choices"][0]["message"]["content"]
    said = Speech(ANGRY).in_the_tone_of(Speech(caption=afraid))
    assert told == "".join(session.answer(Conversation(LISTEN).user(said)))
    assert told != "".join(session.answer(Conversation(LISTEN).user(Speech(ANGRY))))


def test_a_stream_tells_its_seconds(url: str) -> None:
    body = {"messages": [user(heard(ANGRY))], "stream": True, "stream_options": {"include_usage": True}}
    lines = post(url, "chat/completions", **body).text.split("\n\n")
    seconds = json.loads(lines[-3].removeprefix("data: "))["seconds"]
    assert 0 < seconds["encode"] < seconds["first_token"] < seconds["whole"]


def test_an_llm_elsewhere_tells_no_likelihoods() -> None:
    service = Service(tiny.load(load_llm=False), Slow(0.001), questions=ASKED, system=LISTEN)
    with threaded(app(service)) as url:
        assert httpx2.get(f"{url}/about").json() == {"model": "dualslm", "system": LISTEN, "likelihoods": False}
        told = post(url, "heard", input_audio=heard(ANGRY)["input_audio"]).json()
        assert told["words"].startswith("la la")
        assert {one["degrees"] for one in told["attributes"].values()} == {None}
        answer = post(url, "influence", messages=[user(heard(ANGRY)), assistant(REPLY)])
        assert answer.status_code == 400
        assert "--vllm" in answer.json()["error"]["message"]
