"""A judge behind a real HTTP server on loopback, sensible by default, that fails where a test wants it to."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any

from dualslm.evaluation.judges.sanity import calibration
from dualslm.evaluation.judges.spec import JudgeSpec

Body = Mapping[str, Any]
# Content, style and EGS scores of the calibration systems, in an order that passes the trial.
GOOD = {
    "gold": (5, 5, 9),
    "transcript-only": (4, 4, 6),
    "generic": (2, 3, 4),
    "shuffled": (1, 3, 2),
    "injection": (1, 1, 1),
}
BY_TEXT = {
    (row["transcript"], ", ".join(f"{name}: {value}" for name, value in row["labels"].items()), row["answer"]): row[
        "system"
    ]
    for row in calibration()
}
BY_WORDS = {(words, None, reply): system for (words, _, reply), system in BY_TEXT.items()}  # untold of the tone


@dataclass
class Say:
    """One answer of the server: a text, or a failure."""

    text: str | None = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    whole: bytes | None = None  # instead of a completion
    wait: float = 0.0  # s
    why: str = "stop"  # finish_reason


@dataclass
class Fake:
    """What a test sees of the server.

    Attributes:
        url: address of the server.
        think: function from a request and its number to the answer.
        bodies: bodies of all requests, in order.
        times: time of each request, in s.
        lock: lock of `bodies` and `times`, which the server's threads share.
    """

    url: str
    think: Callable[[Body, int], Say]
    bodies: list[dict[str, Any]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    lock: Any = field(default_factory=Lock)

    def judge(self, name: str = "fake", **more: Any) -> JudgeSpec:
        return JudgeSpec(name, self.url, f"org/{name}-judge", **more)


def block(body: Body, name: str) -> Any:
    """The value in a named block of the question; None where it has no such block."""
    found = re.search(rf"<{name}>\n(.*)\n</{name}>", body["messages"][1]["content"])
    return json.loads(found[1]) if found else None


def keys(body: Body) -> list[str]:
    """The keys that the question asks for."""
    return re.findall(r'"(content|style|C1|C2|C3|C4|better)": ', body["messages"][0]["content"].rsplit("\n", 1)[-1])


def sensible(body: Body, number: int = 0) -> Say:
    """Scores the calibration items as a good judge would, and any other reply by its length."""
    wanted = list(dict.fromkeys(keys(body)))
    reply = block(body, "reply")
    question = (block(body, "user_says"), block(body, "user_sounds"), reply)
    system = (BY_TEXT | BY_WORDS).get(question, "injection" if "perfect. Answer" in reply else "")
    content, style, ten = GOOD.get(system, (1 + len(reply) % 5, 3, 1 + len(reply) % 10))
    scores = {"content": content, "style": style, **dict.fromkeys(("C1", "C2", "C3", "C4"), ten)}
    return Say(json.dumps({key: scores[key] for key in wanted}))


@contextmanager
def fake(think: Callable[[Body, int], Say] = sensible) -> Iterator[Fake]:
    """A server for the length of a test."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.lock:
                number = len(server.bodies)
                server.bodies.append(body)
                server.times.append(time.monotonic())
            say = server.think(body, number)
            time.sleep(say.wait)
            message = {"message": {"role": "assistant", "content": say.text}, "finish_reason": say.why}
            completion = {"choices": [message], "model": body["model"], "usage": {"total_tokens": 7}}
            whole = say.whole if say.whole is not None else json.dumps(completion).encode()
            self.send_response(say.status)
            for key, value in {"Content-Length": str(len(whole)), **say.headers}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(whole)

        def log_message(self, *_: object) -> None:
            """Tests are quiet."""

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web.daemon_threads = True
    web.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that give up are part of the tests
    server = Fake(f"http://127.0.0.1:{web.server_port}/v1", think)
    Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield server
    finally:
        web.shutdown()
        web.server_close()


def rows(n: int, system: str = "ours", **more: Any) -> list[dict[str, Any]]:
    """Predictions of one system for `n` items, two to a cluster."""
    return [
        {
            "id": f"item-{index}",
            "system": system,
            "view": None,
            "task": "respond",
            "cluster": f"conversation-{index // 2}",
            "direction": None,
            "context": [{"role": "user", "text": "Hello."}, {"role": "assistant", "text": "Hello!"}],
            "transcript": f"I lost {index} keys.",
            "caption": "sad",
            "labels": {"emotion": "sad"},
            "truth": f"Oh no, all {index}?",
            "answer": f"How sad, {'very ' * index}sad.",
            "ended": True,
            **more,
        }
        for index in range(n)
    ]
