"""Whatever is sent to the server, it says what is wrong: no fault of its own, no hang, no growth.

Some twenty of each kind in the suite; `DUALSLM_FUZZ=1000 pytest tests/serve/test_serve_fuzz.py` sends a thousand of
each.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from typing import Any

import httpx2
import numpy as np
import psutil
import pytest
import schemathesis
import soundfile
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support.servekit import audio_part, process, user

EXAMPLES = int(os.environ.get("DUALSLM_FUZZ", "12"))
MAX_GROWTH_MIB = 64  # of the server from start to end: at most 16 of keys and values, and embeddings
SLOW_CHECKS = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture)
SETTINGS = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=SLOW_CHECKS,
)
LIMITS = ("--any-sound", "--timeout", "20", "--max-audio", "10", "--no-page", "--keep", "16")

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server; after all that was sent to it, it still answers, has nothing open and has not grown."""
    with process(*LIMITS) as (address, run):
        one = psutil.Process(run.pid)
        send(address, json.dumps(body()).encode())
        before = one.memory_info().rss
        yield address
        assert send(address, json.dumps(body()).encode()).status_code == 200
        metrics = httpx2.get(address.removesuffix("/v1") + "/metrics").text
        assert "dualslm_requests_running 0.0" in metrics
        grown = (one.memory_info().rss - before) / 2**20
        print(f"{metrics.count('status=')} routes and statuses; the server took {grown:.0f} MiB more at the end")
        assert grown < MAX_GROWTH_MIB


def sound(kind: str) -> bytes:
    file = io.BytesIO()
    wave = np.random.default_rng(0).uniform(-0.1, 0.1, 8_000).astype(np.float32)
    soundfile.write(file, wave, 16_000, format=kind)
    return file.getvalue()


SOUNDS = {kind: sound(kind) for kind in ("WAV", "FLAC", "OGG", "MP3")}


def body() -> dict[str, Any]:
    return {"model": "dualslm", "messages": [user("Hi.", audio_part(SOUNDS["WAV"]))], "max_tokens": 4}


def send(url: str, data: bytes, kind: str = "application/json") -> httpx2.Response:
    return httpx2.post(url + "/chat/completions", content=data, headers={"Content-Type": kind}, timeout=60)


def check(answer: httpx2.Response) -> None:
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        assert answer.json()["error"]["message"], answer.text


@st.composite
def spoiled(draw: st.DrawFn) -> bytes:
    """A right body with something in it replaced, dropped, added or cut off."""
    made = body()
    for _ in range(draw(st.integers(1, 3))):
        node: Any = made
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            key = draw(st.sampled_from(keys)) if keys else None
            if key is None or not isinstance(node[key], (dict, list)) or draw(st.booleans()):
                break
            node = node[key]
        what = draw(st.sampled_from(["replace", "drop", "add"]))
        if what == "add" and isinstance(node, dict):
            names = st.sampled_from(["n", "stop", "seed", "view", "tools", "stream", "top_p"]) | st.text(max_size=8)
            node[draw(names)] = draw(JSON)
        elif key is not None and what == "drop":
            del node[key]
        elif key is not None:
            node[key] = draw(JSON)
    data = json.dumps(made).encode()
    return data[: draw(st.integers(0, len(data)))] if draw(st.integers(0, 9)) == 0 else data


@st.composite
def broken(draw: st.DrawFn) -> bytes:
    """A recording with bytes changed, put in or cut off, or no recording at all."""
    data = bytearray(SOUNDS[draw(st.sampled_from(sorted(SOUNDS)))])
    for _ in range(draw(st.integers(0, 6))):
        near = st.integers(0, min(60, len(data) - 1)) | st.integers(0, len(data) - 1)
        data[draw(near)] = draw(st.integers(0, 255))
    if draw(st.booleans()):
        data = data[: draw(st.integers(0, len(data)))]
    return draw(st.binary(max_size=64)) if draw(st.integers(0, 9)) == 0 else bytes(data)


def test_the_description_and_any_request_that_it_allows(url: str) -> None:
    schema = schemathesis.openapi.from_url(url.removesuffix("/v1") + "/openapi.json")
    results: list[Any] = list(schema.get_all_operations())
    operations = [result.ok() for result in results]
    asked = 0
    for operation in operations:

        @settings(SETTINGS, max_examples=EXAMPLES // len(operations) + 1)
        @given(case=operation.as_strategy())
        def ask(case: Any) -> None:
            nonlocal asked
            asked += 1
            answer = case.call(base_url=url.removesuffix("/v1"), timeout=60)
            assert answer.status_code < 500, answer.text

        ask()
    assert asked >= EXAMPLES // 2


@SETTINGS
@given(data=spoiled(), kind=st.sampled_from(["application/json"] * 8 + ["text/plain", "multipart/form-data"]))
def test_malformed_bodies(url: str, data: bytes, kind: str) -> None:
    check(send(url, data, kind))


@SETTINGS
@given(data=st.binary(max_size=200) | JSON.map(lambda some: json.dumps(some).encode()))
def test_anything_for_a_body(url: str, data: bytes) -> None:
    check(send(url, data))


@SETTINGS
@given(audio=broken(), upload=st.booleans())
def test_broken_recordings(url: str, audio: bytes, upload: bool) -> None:
    if upload:
        form: Any = {"data": {"model": "dualslm"}, "files": {"file": ("a.wav", audio)}, "timeout": 60}
        check(httpx2.post(url + "/audio/attributes", **form))
    else:
        check(send(url, json.dumps({**body(), "messages": [user(audio_part(audio))]}).encode()))
