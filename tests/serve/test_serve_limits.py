"""What the server refuses, and how it gets rid of clients that leave: in OpenAI's shape, and counted."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from threading import Thread
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
import soundfile
from support.servekit import SlowBackend, audio_part, client, threaded, user

from dualslm import DualSLM, tiny
from dualslm.inference.backend import StopStrings
from dualslm.serve.app import app
from dualslm.serve.limits import Limits
from dualslm.serve.service import Service
from dualslm.tiny.questions import ASKED

TIGHT_LIMITS = Limits(body=300_000, audio=2.0, speech=5.0, turns=4, running=1, waiting=1, timeout=2.0)
MODEL: Any = "dualslm"


@pytest.fixture(scope="module")
def model() -> DualSLM:
    return tiny.load(load_llm=False)


@pytest.fixture
def slow() -> SlowBackend:
    return SlowBackend()


@pytest.fixture
def url(model: DualSLM, slow: SlowBackend) -> Iterator[str]:
    made = app(Service(model, slow, questions=ASKED), limits=TIGHT_LIMITS, page=False)
    with threaded(made) as address:
        yield address


def wait_until(condition: Any) -> None:
    """Waits for a condition to hold."""
    for _ in range(500):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it never came true")


def running(url: str) -> float:
    metrics = httpx2.get(url.removesuffix("/v1") + "/metrics").text
    return float(next(line.split()[1] for line in metrics.splitlines() if line.startswith("dualslm_requests_running ")))


def quiet(seconds: float, rate: int = 16_000, kind: str = "FLAC") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(int(seconds * rate), np.float32), rate, format=kind)
    return file.getvalue()


def test_what_is_too_long_is_413(url: str) -> None:
    api = client(url).chat.completions
    for messages, word in (
        ([user("x" * 400_000)], "longer than 300000 bytes"),
        ([user(audio_part(quiet(2.1)))], "longer than 2 s"),
        ([user(audio_part(quiet(60, kind="MP3")))], "longer than 2 s"),
        ([user(*[audio_part(quiet(1.9))] * 3)], "longer than 5 s together"),
        ([user(audio_part(quiet(1.9), tone=audio_part(quiet(1.9))["input_audio"]))] * 2, "longer than 5 s together"),
        ([user("Hi.")] * 5, "at most 4"),
    ):
        with pytest.raises(openai.APIStatusError, match=word) as caught:
            api.create(model=MODEL, messages=messages)
        assert caught.value.status_code == 413
    with pytest.raises(openai.APIStatusError, match="longer than 2 s"):
        client(url).audio.transcriptions.create(model=MODEL, file=("a.flac", quiet(2.1)))


def test_a_body_without_a_stated_length_is_counted_as_it_comes(url: str) -> None:
    def chunks() -> Iterator[bytes]:
        yield b'{"model": "'
        for _ in range(40):
            yield b"x" * 10_000

    answer = httpx2.post(url + "/chat/completions", content=chunks(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "body_too_long"


def test_a_body_that_does_not_come(url: str) -> None:
    def chunks() -> Iterator[bytes]:
        yield b'{"model": "'
        time.sleep(3)
        yield b"x"

    answer = httpx2.post(url + "/chat/completions", content=chunks(), headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (408, "body_too_slow")


def test_a_full_queue_is_429(url: str, slow: SlowBackend) -> None:
    def hold() -> None:
        for _ in client(url).chat.completions.create(model=MODEL, messages=[user("Hi.")], stream=True, max_tokens=60):
            pass

    holders = [Thread(target=hold) for _ in range(2)]
    for one in holders:
        one.start()
        time.sleep(0.3)
    with pytest.raises(openai.RateLimitError, match="full") as caught:
        client(url).chat.completions.create(model=MODEL, messages=[user("Hi.")])
    assert int(caught.value.response.headers["Retry-After"]) >= 1
    for one in holders:
        one.join()
    wait_until(lambda: running(url) == 0)
    assert client(url).chat.completions.create(model=MODEL, messages=[user("Hi.")], max_tokens=2)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slot(url: str, slow: SlowBackend, stream: bool) -> None:
    body = {"model": MODEL, "messages": [user("Hi.")], "max_tokens": 10_000, "stream": stream}
    web = httpx2.Client(timeout=0.5)
    if stream:
        with web.stream("POST", url + "/chat/completions", json=body) as answer:
            lines = answer.iter_lines()  # in a variable: without one it would be collected, and close the stream
            next(lines)
            wait_until(lambda: slow.running == 1)
    else:
        with pytest.raises(httpx2.ReadTimeout):
            web.post(url + "/chat/completions", json=body)
    web.close()
    wait_until(lambda: slow.running == 0)
    wait_until(lambda: running(url) == 0)
    assert slow.abandoned == 1
    assert "dualslm_left_total 1.0" in httpx2.get(url.removesuffix("/v1") + "/metrics").text


@pytest.mark.parametrize("stream", [True, False])
def test_what_takes_too_long_is_broken_off(url: str, slow: SlowBackend, stream: bool) -> None:
    with pytest.raises(openai.APIError, match=r"No answer within 2 s|took too long"):
        list(client(url).chat.completions.create(model=MODEL, messages=[user("Hi.")], max_tokens=10_000, stream=stream))
    wait_until(lambda: slow.running == 0)


def test_a_key(model: DualSLM) -> None:
    made = app(Service(model, SlowBackend(0.001), questions=ASKED), key="right")
    with threaded(made) as url:
        for wrong in ("wrong", "righ", "rightt"):
            answer = httpx2.get(url + "/models", headers={"Authorization": f"Bearer {wrong}"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        with pytest.raises(openai.AuthenticationError):
            client(url, "wrong").chat.completions.create(model=MODEL, messages=[user("Hi.")])
        assert httpx2.get(url.removesuffix("/v1") + "/metrics").status_code == 401
        assert httpx2.get(url.removesuffix("/v1") + "/health").status_code == 200
        assert client(url, "right").chat.completions.create(model=MODEL, messages=[user("Hi.")], max_tokens=3)


def test_a_fault_is_one_line_and_500(model: DualSLM, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(model, SlowBackend(), questions=ASKED)
    monkeypatch.setattr(service, "encode", None)
    with threaded(app(service)) as url, pytest.raises(openai.InternalServerError, match="its log says more"):
        client(url).chat.completions.create(model=MODEL, messages=[user("Hi.")])


def test_nothing_but_the_embeddings_of_the_llm_is_here(model: DualSLM) -> None:
    here = [name for name, value in model.llm.model.named_parameters() if value.device.type != "meta"]
    assert here == ["model.embed_tokens.weight"]


def test_stop_texts_across_pieces() -> None:
    for stop, pieces, want, met in (
        (["END"], ["a E", "N", "D b"], "a ", True),
        (["END"], ["a E", "N", "x"], "a ENx", False),
        (["aab"], ["aa", "aab", "c"], "aa", True),
        (["z", "bc"], ["ab", "cz"], "a", True),
        ([], ["a", "b"], "ab", False),
    ):
        stop_strings = StopStrings(stop)
        shown = ""
        for piece in pieces:
            shown += stop_strings.add(piece) if not stop_strings.met else ""
        assert (shown + stop_strings.rest(), stop_strings.met) == (want, met)
