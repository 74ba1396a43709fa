"""One question to one judge: the strictest form of answer that its server knows, and one more chance.

The ladder: an answer bound to a JSON schema, then bound to JSON, then free, then without any settings of ours. One
rung is left only because the server refuses the request (a 4xx); what a server is known to refuse is not tried again.
An answer that cannot be read is shown to the judge with the reason, once. After that there is no verdict, and the
reason stands in its place.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from dualslm.evaluation.judges.answers import UnusableError, read
from dualslm.evaluation.judges.cache import Cache, digest
from dualslm.evaluation.judges.protocols import Protocol
from dualslm.evaluation.judges.spec import JudgeSpec
from dualslm.openai_client import RefusedError, TooSlowError

RUNGS = ("json_schema", "json_object", "text", "bare")
LOST = (401, 403, 404)  # HTTP status that no other question would mend
AGAIN = (
    "That answer cannot be used: {why}. Answer the same question again, with one JSON object of the form described "
    "and nothing else."
)
KEPT = 2000  # characters of an unusable answer that its judge is shown again
Messages = Sequence[Mapping[str, str]]


@dataclass
class Verdict:
    """What became of one question.

    Attributes:
        scores: by key; empty where there is no verdict.
        reason: why there is none, or the rule that made it.
        raw: what the judge said last.
        rung: how its last answer was bound.
        asked: answers that it took, from the cache or not.
        seconds: that the server took for them.
        usage: tokens of the last answer, as the server counts.
        served: model and fingerprint that the server reports.
    """

    scores: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None
    raw: str | None = None
    rung: str | None = None
    asked: int = 0
    seconds: float = 0.0
    usage: dict[str, Any] | None = None
    served: dict[str, Any] | None = None


class Bench:
    """A judge with its server, its cache, and what is known of its server; threads may share it.

    Args:
        judge: who is asked.
        cache: of raw answers.
    """

    def __init__(self, judge: JudgeSpec, cache: Cache) -> None:
        self.judge, self.cache, self.client = judge, cache, judge.client()
        self.works: int | None = None  # the strictest rung on which the server has answered
        self.sent, self.lock = 0, Lock()

    def ask(self, protocol: Protocol, messages: Messages, repeat: int) -> Verdict:
        """The verdict on one item.

        Raises:
            DualSLMError: the server cannot be reached, or knows neither the model nor the key: the next question
                would fare no better.
        """
        verdict, asked = Verdict(), list(messages)
        for chance in (1, 2):
            try:
                answer = self._answer(protocol, asked, repeat, verdict)
                _note(verdict, answer)
                verdict.scores = read(verdict.raw, protocol.allowed)
                verdict.reason = None
                return verdict
            except RefusedError as error:
                if error.status in LOST:
                    raise
                verdict.reason = f"{_kind(error.status)}: {error.told}"
                return verdict
            except TooSlowError as error:
                verdict.reason = f"too slow: {error.got}"
                return verdict
            except UnusableError as error:
                verdict.reason = f"{'cut off, ' if _cut(answer) else ''}{error}"
                if chance == 1:
                    said = {"role": "assistant", "content": (verdict.raw or "(nothing)")[:KEPT]}
                    asked += [said, {"role": "user", "content": AGAIN.format(why=error)}]
        return verdict

    def _answer(self, protocol: Protocol, messages: Messages, repeat: int, verdict: Verdict) -> dict[str, Any]:
        """The server's answer on the highest rung that it takes; from the cache where it was given before."""
        bodies = [self._body(rung, protocol, messages, repeat) for rung in RUNGS]
        keys = [self._key(body, protocol, repeat) for body in bodies]
        for place in range(len(RUNGS)):
            if (known := self.cache.get(keys[place])) is not None:
                verdict.rung = RUNGS[place]
                return known
        for place in range(self.works or 0, len(RUNGS)):
            verdict.rung = RUNGS[place]
            try:
                answer = self._sent(bodies[place], keys[place])
            except RefusedError as error:
                if place + 1 == len(RUNGS) or error.status >= 429 or error.status in (200, *LOST):
                    raise
                continue
            self.works = place if self.works is None else min(self.works, place)
            return answer
        raise AssertionError("the last rung returns or raises")

    def _sent(self, body: Mapping[str, Any], key: str) -> dict[str, Any]:
        started = time.monotonic()
        with self.lock:
            self.sent += 1
        answer = self.client.chat(body)
        if not _is_completion(answer):
            raise self.client.strange(answer)
        answer["seconds"] = round(time.monotonic() - started, 4)
        self.cache.put(key, answer)
        return answer

    def _body(self, rung: str, protocol: Protocol, messages: Messages, repeat: int) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.judge.model, "messages": [*map(dict, messages)]}
        if rung == "bare":
            return body
        body |= {"temperature": 0, "top_p": 1, "seed": repeat, "max_tokens": self.judge.max_tokens}
        if rung == "json_schema":
            named = {"name": protocol.name.replace("-", "_"), "schema": protocol.schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        elif rung == "json_object":
            body["response_format"] = {"type": "json_object"}
        return body

    def _key(self, body: Mapping[str, Any], protocol: Protocol, repeat: int) -> str:
        """Of model, judge's name, messages, decoding, form of the answer, protocol and repeat."""
        return digest({**body, "judge": self.judge.name, "protocol": [protocol.id, protocol.print], "repeat": repeat})


def _kind(status: int) -> str:
    return "no completion" if status == 200 else f"status {status}"


def _is_completion(answer: Mapping[str, Any]) -> bool:
    try:
        return isinstance(answer["choices"][0]["message"].get("content"), str | None)
    except (KeyError, IndexError, TypeError, AttributeError):
        return False


def _note(verdict: Verdict, answer: Mapping[str, Any]) -> None:
    verdict.raw = answer["choices"][0]["message"].get("content")
    verdict.asked += 1
    verdict.seconds += float(answer["seconds"])
    verdict.usage = answer.get("usage")
    verdict.served = {"model": answer.get("model"), "system_fingerprint": answer.get("system_fingerprint")}


def _cut(answer: Mapping[str, Any]) -> bool:
    return bool(answer["choices"][0].get("finish_reason") == "length")
