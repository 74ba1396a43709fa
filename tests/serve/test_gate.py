"""What is refused before a body is read: other hosts' names, other sites' pages, wrong keys; and what is too much."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from support.servekit import SlowBackend, client, threaded, user

from dualslm import DualSLM, tiny
from dualslm.serve.app import app
from dualslm.serve.caller import CALLER, HeldBytes, Keys
from dualslm.serve.errors import RefusedError
from dualslm.serve.hosts import Hosts
from dualslm.serve.json_body import MAX_VALUES, parse_json
from dualslm.serve.limits import Limits
from dualslm.serve.middleware import GateMiddleware
from dualslm.serve.service import Service
from dualslm.tiny.questions import ASKED

JSON = "application/json"

MODEL: Any = "dualslm"


@pytest.fixture(scope="module")
def model() -> DualSLM:
    return tiny.load(load_llm=False)


@pytest.fixture(scope="module")
def url(model: DualSLM) -> Iterator[str]:
    made = app(Service(model, SlowBackend(0.001), questions=ASKED), hosts=["talk.example"])
    with threaded(made) as address:
        yield address


@pytest.fixture(scope="module")
def locked(model: DualSLM) -> Iterator[str]:
    made = app(Service(model, SlowBackend(0.001), questions=ASKED), key=["one", "two"])
    with threaded(made) as address:
        yield address


def ask(url: str, **headers: str) -> httpx2.Response:
    body = {"model": MODEL, "messages": [user("Hi.")], "max_tokens": 2}
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx2.post(url + "/chat/completions", json=body, headers=given)


def test_names_of_others_are_refused(url: str) -> None:
    port = urlsplit(url).port
    for host in (
        "localhost",
        f"LOCALHOST:{port}",
        f"127.0.0.1:{port}",
        "[::1]:80",
        "box",
        "a.localhost",
        "talk.example.",
    ):
        assert ask(url, host=host).status_code == 200, host
    evil = "evil.example"
    for host in (
        evil,
        f"{evil}:{port}",
        f"127.0.0.1.{evil}",
        f"localhost.{evil}",
        "talk.example.evil",
        "a@b.c",
        "1.2.3",
    ):
        answer = ask(url, host=host)
        assert (answer.status_code, answer.json()["error"]["code"]) == (421, "unknown_host"), host
        assert httpx2.get(url + "/models", headers={"host": host}).status_code == 421


def test_any_host_where_that_is_wished() -> None:
    Hosts(["*"]).check("POST", {b"host": b"evil.example"})


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1:1"}, 403),
        ({"origin": "http://["}, 403),
        ({"sec_fetch_site": "cross-site"}, 403),
        ({"sec_fetch_site": "same-site", "origin": "http://127.0.0.1:1"}, 403),
        ({"sec_fetch_site": "same-origin"}, 200),
        ({"sec_fetch_site": "none"}, 200),
        ({"origin": "https://talk.example"}, 200),
        ({}, 200),
    ],
)
def test_posts_of_other_sites_are_refused(url: str, headers: dict[str, str], status: int) -> None:
    assert ask(url, **headers).status_code == status


def test_posts_of_the_page_are_answered(url: str) -> None:
    assert ask(url, origin=url.removesuffix("/v1")).status_code == 200


def test_every_answer_says_what_it_is(url: str, locked: str) -> None:
    for answer in (
        httpx2.get(url.removesuffix("/v1") + "/"),
        httpx2.get(url.removesuffix("/v1") + "/page/api.js"),
        httpx2.get(url + "/models"),
        httpx2.get(locked + "/models"),
        ask(url),
        ask(url, host="evil.example"),
        httpx2.post(url + "/chat/completions", content=b"{"),
    ):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"


def test_the_documentation_has_no_scripts_and_needs_the_key(url: str, locked: str) -> None:
    root = locked.removesuffix("/v1")
    for path in ("/docs", "/openapi.json", "/redoc", "/metrics", "/v1/about", "/nothing"):
        assert httpx2.get(root + path).status_code == 401, path
    page = httpx2.get(root + "/docs", headers={"Authorization": "Bearer two"}).text
    assert "<script" not in page
    assert "://" not in page
    for word in ("/v1/chat/completions", "temperature", "input_audio"):
        assert word in page
    schema = httpx2.get(url.removesuffix("/v1") + "/openapi.json").json()
    assert "/v1/chat/completions" in schema["paths"]


def test_a_wrong_key_is_refused_before_the_body_is_read(locked: str) -> None:
    address = urlsplit(locked)
    with socket.create_connection((address.hostname, address.port), timeout=10) as sock:
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        sock.sendall(f"{head}Content-Length: 1000000\r\nAuthorization: Bearer no\r\n\r\n".encode())
        assert sock.recv(100).startswith(b"HTTP/1.1 401")


def test_several_keys(locked: str) -> None:
    for key, status in (("one", 200), ("two", 200), ("on", 401), ("one two", 401)):
        assert httpx2.get(locked + "/models", headers={"Authorization": f"Bearer {key}"}).status_code == status


def test_a_web_socket_is_checked_too() -> None:
    """Its page cannot set headers: the key comes as a protocol, as OpenAI's clients send it."""

    async def main(*headers: tuple[bytes, bytes]) -> list[str]:
        seen: list[str] = []

        async def behind(scope: Any, receive: Any, send: Any) -> None:
            seen.append(CALLER.get().key)

        async def send(message: Any) -> None:
            seen.append(message["type"])

        metrics: Any = None  # counts no handshakes
        gate = GateMiddleware(behind, Hosts(), Keys(["right"]), HeldBytes(1), metrics)
        scope = {"type": "websocket", "path": "/v1/realtime", "client": ("127.0.0.1", 1), "headers": list(headers)}
        await gate(scope, Any, send)  # type: ignore[arg-type]
        return seen

    key = (b"sec-websocket-protocol", b"realtime, openai-insecure-api-key.right")
    assert asyncio.run(main((b"host", b"localhost"), key)) == [Keys(["right"]).digest([key])]
    for wrong in (
        [(b"sec-websocket-protocol", b"realtime, openai-insecure-api-key.wrong")],
        [key, (b"host", b"evil.example")],
        [key, (b"host", b"localhost"), (b"origin", b"https://evil.example")],
    ):
        assert asyncio.run(main(*wrong)) == ["websocket.close"]


# ---------------------------------------------------------------------- bodies


def test_values_are_counted_and_not_the_commas_of_texts() -> None:
    texts = ["a,b[c{d" * 10_000, 'quoted \\" , [ { ' * 10_000, "\\", "\\\\"]
    assert parse_json(json.dumps(texts).encode()) == texts
    with pytest.raises(RefusedError, match=f"more than {MAX_VALUES} values"):
        parse_json(json.dumps([*texts, *[1] * MAX_VALUES]).encode())
    assert len(parse_json(json.dumps([1] * (MAX_VALUES - 2)).encode())) == MAX_VALUES - 2


@pytest.mark.parametrize("half", [r"\ud800", r"\udfff", r"a\ud83d b"])
def test_half_a_character_is_refused_wherever_it_stands(url: str, half: str) -> None:
    ways = {
        "chat/completions": '{"model":"dualslm","messages":[{"role":"user","content":"HALF"}]}',
        "responses": '{"model":"dualslm","input":"Hello.","instructions":"HALF"}',
        "influence": '{"model":"dualslm","messages":[{"role":"user","content":"HALF"}]}',
    }
    for route, body in ways.items():
        answer = httpx2.post(f"{url}/{route}", content=body.replace("HALF", half), headers={"content-type": JSON})
        assert answer.status_code == 400, (route, answer.text)
        assert "one half of a surrogate pair" in answer.json()["error"]["message"]
    with pytest.raises(RefusedError, match="surrogate"):
        parse_json(f'["{half}"]'.encode())
    assert parse_json(rb'["\ud83d\ude00", "\u00e4"]') == ["\U0001f600", "\u00e4"]


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 15_000,
        b'{"a":' * 9_000,
        b"[" + b"9" * 5_000 + b"]",
        b"[NaN]",
        b'"\xff"',
        b'"' + b"\\" * 99_999,
        json.dumps({str(number): 1 for number in range(100)}).encode(),
    ],
)
def test_what_no_request_holds_is_one_line(url: str, body: bytes) -> None:
    answer = httpx2.post(url + "/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 413), answer.text
    assert len(answer.text) < 500


@pytest.mark.parametrize("item", ["1", "{}", '{"role":"user","content":"a"}', '"a"', "[]", "null"])
def test_a_list_of_millions_is_refused_at_once(url: str, item: str) -> None:
    size = 12_000_000 // (len(item) + 1)
    body = '{"model":"dualslm","messages":[' + ",".join([item] * size) + "]}"
    began = time.perf_counter()
    answer = httpx2.post(
        url + "/chat/completions", content=body, headers={"Content-Type": "application/json"}, timeout=60
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_many_values")
    assert time.perf_counter() - began < 20


def test_a_wrong_list_has_one_error(url: str) -> None:
    for messages in ([1] * 5000, [user("Hi.")] * 3 + [2] * 5000, [{"role": "user", "content": [1] * 5000}]):
        answer = httpx2.post(url + "/chat/completions", json={"model": MODEL, "messages": messages})
        assert answer.status_code == 400
        assert answer.json()["error"]["message"].count(";") <= 2


def test_what_is_quoted_is_cut_off(url: str) -> None:
    long = "x" * 100_000
    bodies: list[Any] = [{long: 1}, {"model": long}, {"stop": long}, {"view": long}, {"stop": [long]}, {"\ud800": 1}]
    for more in bodies:
        body = json.dumps({"model": MODEL, "messages": [user("Hi.")], **more})
        answer = httpx2.post(url + "/chat/completions", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code in (400, 404), more.keys()
        assert len(answer.text) < 2000


def test_all_bodies_together_are_bounded(model: DualSLM) -> None:
    limits = Limits(body=400_000, memory=500_000)
    with threaded(app(Service(model, SlowBackend(0.001), questions=ASKED), limits=limits)) as url:
        answer = httpx2.post(url + "/chat/completions", content=b"x" * 300_000)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        for _ in range(5):  # and given back
            answer = httpx2.post(url + "/chat/completions", content=b"x" * 200_000)
            assert answer.status_code == 400
        assert client(url).chat.completions.create(model=MODEL, messages=[user("Hi.")], max_tokens=2)
