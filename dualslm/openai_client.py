"""An OpenAI-compatible server, asked with patience: back-off with jitter, `Retry-After` kept to; no torch here.

Trouble that may pass (429, 5xx, a time-out, a refused connection) is tried `TRIES` times. A request that the server
refuses for what it says (any other 4xx) is never sent again: the caller decides what to ask instead.
"""

from __future__ import annotations

import email.utils
import json
import os
import random
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import httpx2

from dualslm.errors import DualSLMError

TRIES = 6  # of one request
WAIT = 0.5  # s before the second one, twice as long before each that follows, give or take half
LONGEST = 120.0  # s; a server that asks for more is asked again after this
AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)  # HTTP status of trouble that may pass
TIMEOUT = 600.0  # s without a word from the server
TOLD = 300  # characters of a server's complaint that are kept


class RefusedError(DualSLMError):
    """The server answered, but not with a completion.

    Attributes:
        status: HTTP status; 200 where the answer is no completion.
        told: what the server said.
    """

    def __init__(self, url: str, status: int, told: str) -> None:
        self.status, self.told = status, " ".join(told.split())
        super().__init__(
            f"{url} does not answer as an OpenAI-compatible server",
            got=f"status {status}: {self.told}" if status != 200 else self.told,
            do="check the address, the model's name and the key",
        )


class TooSlowError(DualSLMError):
    """The server took longer than the time-out at every try."""


class Client:
    """One server.

    Args:
        url: up to and with /v1, for example http://localhost:8000/v1.
        key: sent as a bearer token; none when None or empty.
        timeout: s without a word from the server.
        connections: requests that may be under way at once; None: any number.

    Raises:
        DualSLMError: an address that is none.
    """

    def __init__(
        self, url: str, key: str | None = None, timeout: float | None = None, connections: int | None = None
    ) -> None:
        if not _is_address(url):
            raise DualSLMError("not a server", got=repr(url), do="write for example http://localhost:8000/v1")
        self.url, self.key = url.rstrip("/"), key
        self.timeout, self.connections = timeout or TIMEOUT, connections

    @cached_property
    def _http(self) -> httpx2.Client:
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        limits = httpx2.Limits(max_connections=self.connections)
        return httpx2.Client(headers=headers, timeout=httpx2.Timeout(self.timeout, pool=None), limits=limits)

    def chat(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The server's answer to a chat completion request.

        Raises:
            RefusedError: a status that another try would not mend, or did not, or an answer that is no JSON object.
            TooSlowError: no answer in time, at every try.
            DualSLMError: nobody there.
        """
        for turn in range(TRIES):
            last = turn + 1 == TRIES
            try:
                answer = self._http.post(f"{self.url}/chat/completions", json=dict(body))
            except httpx2.TimeoutException as error:
                if last:
                    raise self._too_slow() from error
                time.sleep(_pause(turn, None))
            except httpx2.TransportError as error:
                if last:
                    raise self._nobody(error) from error
                time.sleep(_pause(turn, None))
            else:
                if answer.status_code == 200:
                    return self._read(answer)
                if answer.status_code not in AGAIN or last:
                    raise RefusedError(self.url, answer.status_code, answer.text[:TOLD])
                time.sleep(_pause(turn, answer.headers.get("Retry-After")))
        raise AssertionError("the last try returns or raises")

    def _read(self, answer: httpx2.Response) -> dict[str, Any]:
        try:
            found = answer.json()
        except ValueError as error:
            raise RefusedError(self.url, 200, answer.text[:TOLD]) from error
        if not isinstance(found, dict):
            raise RefusedError(self.url, 200, answer.text[:TOLD])
        return found

    def said(self, answer: Mapping[str, Any]) -> tuple[str, bool, str | None]:
        """What a completion says, whether it came to its own end, and the model that the server names.

        Raises:
            RefusedError: something is missing in it.
        """
        try:
            choice, served = answer["choices"][0], answer.get("model")
            text, why = choice["message"]["content"] or "", choice["finish_reason"]
        except (KeyError, IndexError, TypeError) as error:
            raise self.strange(answer) from error
        return str(text).strip(), why == "stop", served

    def strange(self, answer: Mapping[str, Any]) -> RefusedError:
        """The error for an answer in which something is missing."""
        return RefusedError(self.url, 200, json.dumps(answer, ensure_ascii=False)[:TOLD])

    def _too_slow(self) -> TooSlowError:
        return TooSlowError(
            f"{self.url} is too slow",
            got=f"{TRIES} requests without an answer in {self.timeout:g} s",
            do="ask it less at once, or allow more time",
        )

    def _nobody(self, error: Exception) -> DualSLMError:
        got = str(error) or type(error).__name__
        return DualSLMError(f"cannot reach {self.url}", got=got, do="start the server, or mend the address")


def key_of(variable: str = "OPENAI_API_KEY") -> str | None:
    """A key from the environment, the only place that keys are read from."""
    return os.environ.get(variable) or None


def _is_address(url: str) -> bool:
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL:
        return False
    return parsed.scheme in ("http", "https") and bool(parsed.host)


def _pause(turn: int, wish: str | None) -> float:
    """How long to wait, in s: the server's wish where it has one, at least."""
    own = WAIT * 2.0**turn * random.uniform(0.5, 1.5)
    return min(LONGEST, max(own, _seconds(wish)))


def _seconds(wish: str | None) -> float:
    """`Retry-After` in s, given as a number or as a date."""
    if not wish:
        return 0.0
    try:
        return float(wish)
    except ValueError:
        pass
    try:
        then: datetime = email.utils.parsedate_to_datetime(wish)
        return (then - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):
        return 0.0
