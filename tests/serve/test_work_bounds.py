"""What work costs is known before it is done, and what a cache holds of one talk is nobody else's."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Event, Thread
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
import soundfile
from support.servekit import SAD, SlowBackend, assistant, audio_part, client, threaded, user
from support.templates import tokenizer

from dualslm import Conversation, DualSLM, Speech, tiny
from dualslm.audio import SampleBudget, TooLongError, load
from dualslm.errors import DualSLMError
from dualslm.inference.backend import UnavailableError
from dualslm.inference.local import LocalBackend
from dualslm.inference.vllm import VLLMBackend
from dualslm.model.loss import label_log_probs
from dualslm.serve.app import app
from dualslm.serve.caller import CALLER, Caller
from dualslm.serve.errors import RefusedError
from dualslm.serve.limits import Limits
from dualslm.serve.openai_schema import ChatRequest, parse_chat
from dualslm.serve.service import Ask, Service
from dualslm.tiny.questions import ASKED
from dualslm.tiny.world import LISTEN

MODEL: Any = "dualslm"
WORDS = tokenizer("chatml")


@pytest.fixture(scope="module")
def url(model: DualSLM) -> Iterator[str]:
    service = Service(model, LocalBackend(model.llm), questions=ASKED, context=tiny.CONTEXT, system=LISTEN)
    with threaded(app(service, limits=Limits(timeout=60))) as address:
        yield address


def wav(seconds: float, rate: int, channels: int) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, (int(seconds * rate), channels)).astype(np.float32)
    soundfile.write(file, noise, rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


# ---------------------------------------------------------------------- work


def test_decoding_costs_by_channels_and_rate() -> None:
    wide = wav(2, 96_000, 8)
    budget = SampleBudget(10_000_000, 10_000_000)
    assert len(load(wide, budget=budget)) == 32_000
    assert budget.left == 10_000_000 - 2 * 96_000 * 8
    for one, left in ((1_000_000, 10_000_000), (10_000_000, 1_000_000), (0, 0)):
        with pytest.raises(TooLongError, match="8 channels at 96000 Hz, is longer than"):
            load(wide, budget=SampleBudget(one, left))


def test_recordings_of_a_request_cost_together() -> None:
    limits = Limits(audio=2, speech=8, any_sound=True)  # 768,000 samples together
    part = audio_part(wav(1, 96_000, 4))  # 384,000
    request = {"model": MODEL, "messages": [user(part, part)]}
    parse_chat(ChatRequest.model_validate(request), limits, WORDS, None)
    request["messages"] = [user(part, part, part)]
    with pytest.raises(RefusedError) as caught:
        parse_chat(ChatRequest.model_validate(request), limits, WORDS, None)
    assert caught.value.status == 413


def test_recordings_of_a_client_that_left_are_not_decoded() -> None:
    caller = Caller()
    token = CALLER.set(caller)
    try:
        caller.end()
        request = ChatRequest.model_validate({"model": MODEL, "messages": [user(audio_part(SAD))]})
        with pytest.raises(RefusedError) as caught:
            parse_chat(request, Limits(), WORDS, None)
    finally:
        CALLER.reset(token)
    assert caught.value.code == "client_left"


@pytest.mark.parametrize("text", ["word ", "\ue000", "\ue0000:", "<|im_end|>", "\n", "é"])
def test_a_megabyte_of_text_is_refused_before_it_is_tokenised(url: str, text: str) -> None:
    began = time.perf_counter()
    with pytest.raises(openai.BadRequestError, match="characters"):
        client(url).chat.completions.create(model=MODEL, messages=[user(text * (1_000_000 // len(text)))])
    assert time.perf_counter() - began < 20


def test_a_history_of_megabytes_loses_its_oldest_turns_unread(model: DualSLM) -> None:
    from dualslm.inference.session import fitted

    rendered: list[int] = []

    def prompt_of(conversation: Conversation) -> Any:
        rendered.append(sum(len(str(part)) for turn in conversation.turns for part in turn.parts))
        return conversation

    conversation = Conversation()
    for _ in range(50):
        conversation.user("x" * 20_000).assistant("y" * 20_000)
    conversation.user("And now?")
    _, left_out = fitted(conversation, prompt_of, lambda prompt: 2, 512, 64)
    assert left_out == 100
    assert max(rendered) <= 512 * 16


def test_a_long_reply_is_not_weighed(url: str) -> None:
    for size in (140_000, 12_000):
        messages = [user(audio_part(SAD)), assistant("word " * (size // 5))]
        began = time.perf_counter()
        answer = httpx2.post(url + "/influence", json={"model": MODEL, "messages": messages}, timeout=60)
        assert (answer.status_code, "weighed" in answer.text) == (400, True)
        assert time.perf_counter() - began < 30


def test_a_client_that_leaves_ends_the_weighing_of_its_reply(model: DualSLM, monkeypatch: pytest.MonkeyPatch) -> None:
    from dualslm.inference import attribution

    calls: list[float] = []
    began = Event()

    def slow(llm: Any, prompts: Any) -> Any:
        calls.append(time.perf_counter())
        began.set()
        time.sleep(0.2)
        return label_log_probs(llm, prompts)

    monkeypatch.setattr(attribution, "label_log_probs", slow)
    monkeypatch.setattr(attribution, "MAX_POSITIONS", 1)  # one row at once: of swapped tones and words there are many
    service = Service(model, LocalBackend(model.llm), questions=ASKED, context=tiny.CONTEXT, system=LISTEN)
    request = {"model": MODEL, "messages": [user(audio_part(SAD)), assistant("I am sorry to hear it.")]}

    async def ask_and_leave(url: str) -> float:
        async with httpx2.AsyncClient(timeout=60) as web:
            asked = asyncio.create_task(web.post(url + "/influence", json=request))
            assert await asyncio.to_thread(began.wait, 60)
            asked.cancel()
            left = time.perf_counter()
            with suppress(asyncio.CancelledError):
                await asked
        await asyncio.sleep(2)
        return left

    with threaded(app(service)) as url:
        left = asyncio.run(ask_and_leave(url))
        after = [call - left for call in calls if call > left]
        assert max(after, default=0.0) < 1
        # the place is free for the next one, who is answered whole
        monkeypatch.setattr(attribution, "label_log_probs", label_log_probs)
        assert httpx2.post(url + "/influence", json=request, timeout=60).status_code == 200


def test_long_recordings_are_encoded_in_parts(model: DualSLM, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(model, SlowBackend(), questions=ASKED)
    noise = np.random.default_rng(1).uniform(-0.1, 0.1, (5, 25 * 16_000)).astype(np.float32)
    calls: list[int] = []
    monkeypatch.setattr(service.audio_cache, "encode", lambda some: calls.append(len(some)))

    async def main() -> None:
        await service.encode(Ask(Conversation().user(*map(Speech, noise))))
        await service.close()

    asyncio.run(main())
    assert calls == [2, 2]  # 50 s, 50 s, and the last 25 s with the prompt


# ---------------------------------------------------------------------- caches


def cached(url: str, *messages: Any, key: str = "none") -> int:
    answer = client(url, key).chat.completions.create(model=MODEL, messages=list(messages), max_tokens=4)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    return answer.usage.prompt_tokens_details.cached_tokens or 0


def system(text: str) -> Any:
    return {"role": "system", "content": text}


SECRET = "You are a kind voice for callers of one bank, and the code of this one is 4 7 1 9, which nobody may know."


def test_a_guess_of_another_talks_secret_is_not_answered(url: str) -> None:
    cached(url, system(SECRET), user("Hello there, who are you?"))
    for guess in (SECRET, SECRET.replace("4 7 1 9", "4 7 1 0"), SECRET[:60]):
        assert cached(url, system(guess), user("Hello there, who are you?")) == 0
        assert cached(url, system(guess), user("Anything else.")) == 0
        assert cached(url, system(guess), user("Something new."), assistant("No."), user("Why?")) == 0


def test_a_talk_that_goes_on_is_not_read_twice(url: str) -> None:
    first = [system(SECRET), user("I have come to ask about my account today.")]
    cached(url, *first)
    again = cached(url, *first, assistant("Good."), user("And now?"))
    assert again >= 16
    assert again % 16 == 0


def test_keys_do_not_share_what_was_read(model: DualSLM) -> None:
    service = Service(model, LocalBackend(model.llm), questions=ASKED, system=LISTEN)
    with threaded(app(service, key=["one", "two"])) as url:
        talk = [system(SECRET), user("Hello there, who are you?")]
        assert cached(url, *talk, key="one") == 0
        assert cached(url, *talk, key="two") == 0
        assert cached(url, *talk, key="one") >= 16


# ---------------------------------------------------------------------- vLLM's errors


class _Broken(BaseHTTPRequestHandler):
    """Answers as vLLM does at first, and then with errors that name what nobody should know."""

    status = 500
    body = b"failed at http://admin:hunter2@10.0.0.7:8001/v1 in /srv/models"

    def do_GET(self) -> None:
        self._answer(200, json.dumps({"data": [{"id": "tiny", "max_model_len": 512}]}).encode())

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self._answer(self.status, self.body)

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, _Broken.body),
        (400, _Broken.body),
        (200, b"data: " + json.dumps({"error": _Broken.body.decode()}).encode() + b"\n\n"),
        (200, b'data: {"choices": [{"text": "a", "finish_reason": "http://10.0.0.7"}]}\n\n'),
        (200, b"data: no JSON at 10.0.0.7\n\n"),
        (200, b""),
    ],
)
def test_a_client_learns_nothing_of_vllm(
    model: DualSLM, caplog: pytest.LogCaptureFixture, monkeypatch: Any, status: int, body: bytes
) -> None:
    monkeypatch.setattr(_Broken, "status", status)
    monkeypatch.setattr(_Broken, "body", body)
    vllm = HTTPServer(("127.0.0.1", 0), _Broken)
    Thread(target=vllm.serve_forever, daemon=True).start()
    address = f"http://admin:hunter2@127.0.0.1:{vllm.server_port}/v1"
    with threaded(app(Service(model, VLLMBackend(address, model.llm.stops), questions=ASKED))) as url:
        request = {"model": MODEL, "messages": [user("Hi.")]}
        answer = httpx2.post(url + "/chat/completions", json=request)
        vllm.shutdown()
        vllm.server_close()
        gone = httpx2.post(url + "/chat/completions", json=request)
    assert answer.status_code in (400, 503)
    assert gone.status_code == 503
    for text in (answer.text, gone.text, caplog.text):
        for word in ("hunter2", "admin"):
            assert word not in text
    for text in (answer.text, gone.text):
        for word in ("10.0.0.7", "127.0.0.1", str(vllm.server_port), "/srv"):
            assert word not in text


def test_whoever_starts_the_server_sees_the_address_without_its_password() -> None:
    for address in ("http://admin:hunter2@127.0.0.1:9/v1", "admin:hunter2@127.0.0.1:9/v1"):
        with pytest.raises(DualSLMError, match=r"127\.0\.0\.1:9/v1") as caught:
            VLLMBackend(address, frozenset())
        assert "hunter2" not in str(caught.value)
        assert isinstance(caught.value, UnavailableError) == address.startswith("http")
