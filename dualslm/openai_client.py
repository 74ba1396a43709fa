"""A client of OpenAI-compatible servers with retries: exponential back-off with jitter, `Retry-After`; no torch here.

Transient failures (429, 5xx, a time-out, a refused connection) are retried, `TRIES` requests in all. A request that
the server rejects (any other 4xx) is never sent again: the caller decides what to send instead.
"""

from __future__ import annotations

import email.utils
import json
import os
import random
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cached_property, partial
from typing import Any

import httpx2

from dualslm.errors import DualSLMError

TRIES = 6  # requests before giving up
WAIT = 0.5  # s before the first retry; the wait doubles at each retry, and the jitter is half of it up or down
MAX_WAIT = 120.0  # s; the retry comes after this even where `Retry-After` asks for more
RETRIED = (408, 409, 425, 429, 500, 502, 503, 504)  # HTTP status codes of failures that may pass
TIMEOUT = 600.0  # s without a byte from the server
ERROR_CHARS = 300  # characters of a server's error text that a message quotes


class RefusedError(DualSLMError):
    """The server responded, but not with a completion.

    Attributes:
        status: HTTP status code; 200 where the response is not a completion.
        message: text of the response, on one line.
    """

    def __init__(self, url: str, status: int, text: str) -> None:
        self.status = status
        self.message = " ".join(text.split())
        super().__init__(
            f"{url} does not answer as an OpenAI-compatible server",
            got=f"status {status}: {self.message}" if status != 200 else self.message,
            do="check the address, the model's name and the key",
        )
        self.url = url

    def __reduce__(self) -> tuple[Callable[[], DualSLMError], tuple[()]]:
        """Pickles the error, so that a worker process can raise it in its parent."""
        return partial(type(self), self.url, self.status, self.message), ()


class TooSlowError(DualSLMError):
    """Every request took longer than the timeout."""


class Client:
    """One server.

    Args:
        url: base URL up to and including /v1, for example http://localhost:8000/v1.
        key: API key, sent as a bearer token; None or "" sends none.
        timeout: s without a byte from the server; `TIMEOUT` when None.
        connections: greatest number of simultaneous requests; None sets no bound.

    Raises:
        DualSLMError: the URL is not an http or https address.
    """

    def __init__(
        self, url: str, key: str | None = None, timeout: float | None = None, connections: int | None = None
    ) -> None:
        if not _is_address(url):
            raise DualSLMError("not a server", got=repr(url), do="write for example http://localhost:8000/v1")
        self.url = url.rstrip("/")
        self.key = key
        self.timeout = timeout or TIMEOUT
        self.connections = connections

    @cached_property
    def _http(self) -> httpx2.Client:
        # Built at the first request: it loads the certificate store, which a client made only to check its address
        # need not wait for. `pool=None` lets a request wait for a free connection without a limit.
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        limits = httpx2.Limits(max_connections=self.connections)
        return httpx2.Client(headers=headers, timeout=httpx2.Timeout(self.timeout, pool=None), limits=limits)

    def chat(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The server's response to a chat completion request.

        Args:
            body: the request, as the API defines it.

        Returns:
            The response, decoded from JSON.

        Raises:
            RefusedError: a status code that a retry cannot change, or did not, or a response that is not a JSON object.
            TooSlowError: no response in time, in any of the requests.
            DualSLMError: no connection.
        """
        for attempt in range(TRIES):
            last = attempt + 1 == TRIES
            retry_after = None
            try:
                response = self._http.post(f"{self.url}/chat/completions", json=dict(body))
            except httpx2.TimeoutException as error:
                if last:
                    raise TooSlowError(
                        f"{self.url} is too slow",
                        got=f"{TRIES} requests without an answer in {self.timeout:g} s",
                        do="send fewer requests at once, or allow more time",
                    ) from error
            except httpx2.TransportError as error:
                if last:
                    got = str(error) or type(error).__name__
                    do = "start the server, or correct the address"
                    raise DualSLMError(f"cannot reach {self.url}", got=got, do=do) from error
            else:
                if response.status_code == 200:
                    return self._decode(response)
                if response.status_code not in RETRIED or last:
                    raise RefusedError(self.url, response.status_code, response.text[:ERROR_CHARS])
                retry_after = response.headers.get("Retry-After")
            time.sleep(_pause(attempt, retry_after))
        raise AssertionError("the last attempt returns or raises")

    def _decode(self, response: httpx2.Response) -> dict[str, Any]:
        try:
            found = response.json()
        except ValueError as error:
            raise RefusedError(self.url, 200, response.text[:ERROR_CHARS]) from error
        # Proxies and captive portals answer 200 with something else than a completion.
        if not isinstance(found, dict):
            raise RefusedError(self.url, 200, response.text[:ERROR_CHARS])
        return found

    def said(self, answer: Mapping[str, Any]) -> tuple[str, bool, str | None]:
        """The content of a completion.

        Args:
            answer: a response of `chat`.

        Returns:
            The text, whether it ended by itself, and the model's name as the server gives it.

        Raises:
            RefusedError: the response lacks one of its fields.
        """
        try:
            choice = answer["choices"][0]
            # Some servers give null for the content of an empty reply.
            text = choice["message"]["content"] or ""
            reason = choice["finish_reason"]
            served = answer.get("model")
        except (KeyError, IndexError, TypeError) as error:
            raise self.strange(answer) from error
        return str(text).strip(), reason == "stop", served

    def strange(self, answer: Mapping[str, Any]) -> RefusedError:
        """The error for a response that lacks a field."""
        return RefusedError(self.url, 200, json.dumps(answer, ensure_ascii=False)[:ERROR_CHARS])


def key_of(variable: str = "OPENAI_API_KEY") -> str | None:
    """The API key in an environment variable, the only source of keys: a command line shows in process lists."""
    return os.environ.get(variable) or None


def _is_address(url: str) -> bool:
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL:
        return False
    return parsed.scheme in ("http", "https") and bool(parsed.host)


def _pause(attempt: int, retry_after: str | None) -> float:
    """The wait in s before the next attempt; at least what the server asks for, up to `MAX_WAIT`."""
    # The jitter keeps many clients that failed together from coming back together.
    backoff = WAIT * 2.0**attempt * random.uniform(0.5, 1.5)
    return min(MAX_WAIT, max(backoff, _seconds(retry_after)))


def _seconds(retry_after: str | None) -> float:
    """The header `Retry-After` in s; HTTP allows a number of seconds or a date."""
    if not retry_after:
        return 0.0
    try:
        return float(retry_after)
    except ValueError:
        pass
    try:
        then: datetime = email.utils.parsedate_to_datetime(retry_after)
        return (then - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):
        return 0.0
