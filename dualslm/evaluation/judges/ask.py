"""Asks one question of one judge, in the strictest form of answer that its server supports, with one second chance.

The forms, strictest first: an answer constrained to a JSON schema, one constrained to JSON, free text, and a request
without any settings of ours. A looser form is used only because the server refuses a stricter one (a 4xx), and what a
server is known to refuse is not tried again. A judge whose answer cannot be read is shown it with the reason, once.
After that there is no verdict, and its place is taken by the reason.
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

RUNGS = ("json_schema", "json_object", "text", "bare")  # forms of an answer, strictest first
FATAL_STATUS = (401, 403, 404)  # a wrong key, model or address: no other question would fare better
RETRY = (
    "That answer cannot be used: {why}. Answer the same question again, with one JSON object of the form described "
    "and nothing else."
)
MAX_QUOTED_CHARS = 2000  # of an unusable answer that its judge is shown: a runaway must not fill the context
Messages = Sequence[Mapping[str, str]]


@dataclass
class Verdict:
    """What became of one question.

    Attributes:
        scores: value of each key of the protocol; empty where there is no verdict.
        reason: why there is no verdict, or the rule that made it.
        raw: text of the judge's last answer.
        rung: form to which the last answer was constrained, one of `RUNGS`; None where no judge was asked.
        asked: number of answers used, those from the cache included.
        seconds: time that the server took for these answers, in s.
        usage: token counts of the last answer, as the server reports them.
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


class JudgeClient:
    """A judge, its server, the cache of its answers and what its server supports; threads may share it.

    Args:
        judge: judge that is asked.
        cache: cache of raw answers.
    """

    def __init__(self, judge: JudgeSpec, cache: Cache) -> None:
        self.judge = judge
        self.cache = cache
        self.client = judge.client()
        self.strictest: int | None = None  # index in RUNGS of the strictest form that the server has answered
        self.sent = 0  # requests
        self.lock = Lock()

    def ask(self, protocol: Protocol, messages: Messages, repeat: int) -> Verdict:
        """The verdict on one item.

        Args:
            protocol: protocol that says how an answer is read.
            messages: chat messages of the question.
            repeat: number of the repeat, from 0; also the seed of the request.

        Raises:
            DualSLMError: the server cannot be reached, or knows neither the model nor the key: the next question
                would fare no better.
        """
        verdict = Verdict()
        asked = list(messages)
        for attempt in (1, 2):
            try:
                answer = self._answer(protocol, asked, repeat, verdict)
            except RefusedError as error:
                if error.status in FATAL_STATUS:
                    raise
                kind = "no completion" if error.status == 200 else f"status {error.status}"
                verdict.reason = f"{kind}: {error.message}"
                return verdict
            except TooSlowError as error:
                verdict.reason = f"too slow: {error.got}"
                return verdict
            choice = answer["choices"][0]
            verdict.raw = choice["message"].get("content")
            verdict.asked += 1
            verdict.seconds += float(answer["seconds"])
            verdict.usage = answer.get("usage")
            verdict.served = {"model": answer.get("model"), "system_fingerprint": answer.get("system_fingerprint")}
            try:
                verdict.scores = read(verdict.raw, protocol.allowed)
                verdict.reason = None
                return verdict
            except UnusableError as error:
                # Half an object looks like a missing key; that it was cut off says to raise max_tokens instead.
                cut_off = "cut off, " if choice.get("finish_reason") == "length" else ""
                verdict.reason = f"{cut_off}{error}"
                if attempt == 1:
                    quoted = {"role": "assistant", "content": (verdict.raw or "(nothing)")[:MAX_QUOTED_CHARS]}
                    asked += [quoted, {"role": "user", "content": RETRY.format(why=error)}]
        return verdict

    def _answer(self, protocol: Protocol, messages: Messages, repeat: int, verdict: Verdict) -> dict[str, Any]:
        """The server's answer in the strictest form that it supports; from the cache where it was given before."""
        bodies = [self._body(rung, protocol, messages, repeat) for rung in RUNGS]
        keys = [self._key(body, protocol, repeat) for body in bodies]
        # The cache is searched through all forms first: a new process does not know yet what its server refuses.
        for rung, key in zip(RUNGS, keys, strict=True):
            if (known := self.cache.get(key)) is not None:
                verdict.rung = rung
                return known
        for index in range(self.strictest or 0, len(RUNGS)):
            verdict.rung = RUNGS[index]
            try:
                answer = self._send(bodies[index], keys[index])
            except RefusedError as error:
                # 429 and 5xx have been tried again already, and 200 is an answer: none of them speaks of the form.
                if index + 1 == len(RUNGS) or error.status >= 429 or error.status in (200, *FATAL_STATUS):
                    raise
                continue
            # The minimum: once a form has worked, a single prompt that needed a looser one does not loosen the others.
            self.strictest = index if self.strictest is None else min(self.strictest, index)
            return answer
        raise AssertionError("the last rung returns or raises")

    def _send(self, body: Mapping[str, Any], key: str) -> dict[str, Any]:
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
        # A seed of its own for each repeat: where a server samples all the same, repeats would agree by construction.
        body |= {"temperature": 0, "top_p": 1, "seed": repeat, "max_tokens": self.judge.max_tokens}
        if rung == "json_schema":
            named = {"name": protocol.name.replace("-", "_"), "schema": protocol.schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        elif rung == "json_object":
            body["response_format"] = {"type": "json_object"}
        return body

    def _key(self, body: Mapping[str, Any], protocol: Protocol, repeat: int) -> str:
        """Hash of model, judge's name, messages, generation settings, form of the answer, protocol and repeat."""
        protocol_key = [protocol.id, protocol.fingerprint]
        return digest({**body, "judge": self.judge.name, "protocol": protocol_key, "repeat": repeat})


def _is_completion(answer: Mapping[str, Any]) -> bool:
    try:
        return isinstance(answer["choices"][0]["message"].get("content"), str | None)
    except (KeyError, IndexError, TypeError, AttributeError):
        return False
