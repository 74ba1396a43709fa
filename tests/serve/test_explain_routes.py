"""The routes that explain say what the Python API says, and only where the LLM's weights are."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import httpx2
import numpy as np
import pytest
import soundfile
from support.servekit import ANGRY, SAD, SlowBackend, assistant, audio_part, threaded, user

from dualslm import Conversation, Speech, View, tiny
from dualslm.audio import SAMPLE_RATE, load
from dualslm.conversation import P_ONLY
from dualslm.inference.attribution import degrees, influence
from dualslm.inference.local import LocalBackend
from dualslm.inference.session import Session
from dualslm.serve.app import app
from dualslm.serve.service import Service, windows
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


def test_words_and_voice_with_their_degrees(url: str, session: Session) -> None:
    found = post(url, "heard", input_audio=audio_part(SAD)["input_audio"]).json()
    own = session.describe(Speech(SAD))
    shares = degrees(session.audio_cache, Speech(SAD), ASKED, own)
    assert found["words"] == own.words
    assert found["caption"] == own.caption
    for name, value in own.attributes.items():
        assert found["attributes"][name]["value"] == value
        assert found["attributes"][name]["degrees"] == pytest.approx(shares[name], abs=1e-4)
    assert found["captions"]["happy"] == own.caption.replace("sad", "happy") if own.caption else None


def test_what_a_reply_rests_on(url: str, session: Session) -> None:
    conversation = Conversation(LISTEN).user("Hello.").assistant("I see.").user(Speech(ANGRY))
    messages = [user("Hello."), assistant("I see."), user(audio_part(ANGRY)), assistant(REPLY)]
    found = post(url, "influence", messages=messages).json()
    own = asdict(influence(session.audio_cache, conversation, REPLY, View(), ASKED))
    assert found["tokens"] == own["tokens"]
    assert found["para"] == pytest.approx(own["para"], abs=1e-3)
    assert found["ling"] == pytest.approx(own["ling"], abs=1e-3)


def test_the_emotion_from_moment_to_moment(url: str, session: Session) -> None:
    """Two recordings, one after the other: the trace changes where the voice does."""
    angry, sad = load(ANGRY), load(SAD)
    both = np.concatenate([angry, sad])
    sound = io.BytesIO()
    soundfile.write(sound, both, SAMPLE_RATE, format="WAV")
    data = {"data": base64.b64encode(sound.getvalue()).decode()}
    found = post(url, "trace", input_audio=data).json()["windows"]
    assert [one["from"] for one in found] == pytest.approx([0.75 * number for number in range(len(found))])
    assert found[-1]["to"] == pytest.approx(len(both) / SAMPLE_RATE)
    assert found[0]["emotion"] == "angry"
    assert found[-1]["emotion"] == "sad"
    question = ASKED.attributes["emotion"]
    for one in found:
        part = Speech(both[round(one["from"] * SAMPLE_RATE) : round(one["to"] * SAMPLE_RATE)])
        session.view = P_ONLY
        assert one["emotion"] == question.value("".join(session.answer(question.about(part))))
    session.view = View()


@pytest.mark.parametrize("samples", [1, 8000, 24000, 24001, 160000, 1920000])
def test_windows_leave_nothing_out_and_are_few(samples: int) -> None:
    found = windows(samples)
    assert found[0].start == 0
    assert found[-1].stop == samples
    assert len(found) <= 24
    assert all(one.start < other.start <= one.stop for one, other in pairwise(found))


@pytest.mark.parametrize("last", [[], [assistant("")], [assistant(" ")]])
def test_a_conversation_without_a_reply_cannot_be_weighed(url: str, last: list[Any]) -> None:
    answer = post(url, "influence", messages=[user(audio_part(ANGRY)), *last])
    assert answer.status_code == 400
    assert "weigh" in answer.json()["error"]["message"]


def test_what_is_no_audio_is_refused(url: str) -> None:
    for data in ("***", "aGVsbG8="):
        answer = post(url, "heard", input_audio={"data": data})
        assert answer.status_code == 400
        assert answer.json()["error"]["message"]


def test_a_tone_in_words(url: str, session: Session) -> None:
    afraid = "a male speaker, sounding afraid"
    body = [user(audio_part(ANGRY, tone={"caption": afraid}))]
    found = post(url, "chat/completions", messages=body).json()["choices"][0]["message"]["content"]
    said = Speech(ANGRY).in_the_tone_of(Speech(caption=afraid))
    assert found == "".join(session.answer(Conversation(LISTEN).user(said)))
    assert found != "".join(session.answer(Conversation(LISTEN).user(Speech(ANGRY))))


def test_a_stream_ends_with_its_seconds(url: str) -> None:
    body = {"messages": [user(audio_part(ANGRY))], "stream": True, "stream_options": {"include_usage": True}}
    lines = post(url, "chat/completions", **body).text.split("\n\n")
    seconds = json.loads(lines[-3].removeprefix("data: "))["seconds"]
    assert 0 < seconds["encode"] < seconds["first_token"] < seconds["whole"]


def test_an_llm_elsewhere_gives_no_likelihoods() -> None:
    service = Service(tiny.load(load_llm=False), SlowBackend(0.001), questions=ASKED, system=LISTEN)
    with threaded(app(service)) as url:
        about = httpx2.get(f"{url}/about").json()
        assert about.pop("limits") == f"This model {tiny.LIMITS}."
        assert about == {"model": "dualslm", "system": LISTEN, "likelihoods": False}
        found = post(url, "heard", input_audio=audio_part(ANGRY)["input_audio"]).json()
        assert found["words"].startswith("la la")
        assert {one["degrees"] for one in found["attributes"].values()} == {None}
        answer = post(url, "influence", messages=[user(audio_part(ANGRY)), assistant(REPLY)])
        assert answer.status_code == 400
        assert "--vllm" in answer.json()["error"]["message"]
