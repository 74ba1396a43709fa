"""Who asks: the client of a request, and what the request holds of the server's memory (ours).

A *client* is an API key and a network address. Clients get fair shares of the queue, of the threads and of the memory,
so that the work of one does not hold another's. The client of the request at hand is a context variable: whoever
works for a request, in the event loop or in a thread, finds it without being told.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections import Counter
from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from hashlib import blake2b
from threading import Event, Lock

from dualslm.serve.errors import RefusedError

CLIENT_SHARE = 2  # one client may hold half of the memory
IPV6_PREFIX = 64  # bits: whoever has one address of IPv6 has all that begin alike

Headers = Iterable[tuple[bytes, bytes]]


class HeldBytes:
    """The bytes that all requests hold together: bodies that arrived, and recordings that were decoded.

    Args:
        most: bytes of all requests; one client may hold half of them.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.held: Counter[str] = Counter()
        self._lock = Lock()  # recordings are decoded in threads

    def take(self, client: str, size: int) -> None:
        """Counts bytes that are about to be held.

        Raises:
            RefusedError: there is no room for them now.
        """
        with self._lock:
            if self.held.total() + size > self.most or self.held[client] + size > self.most // CLIENT_SHARE:
                wrong = "The requests that are being read fill the server's memory: ask again in a moment."
                raise RefusedError(503, wrong, "server_full", retry_after=1)
            self.held[client] += size

    def give_back(self, client: str, size: int) -> None:
        """Counts bytes that are no longer held."""
        with self._lock:
            self.held[client] -= size
            if self.held[client] <= 0:
                del self.held[client]


class Caller:
    """One request's client.

    Args:
        name: key and address, as one name.
        key: digest of the API key; empty where the server asks for none.
        memory: what all requests hold.

    Attributes:
        gone: set when the client left, or the request's time is up: work for it is not worth going on.
    """

    def __init__(self, name: str = "", key: str = "", memory: HeldBytes | None = None) -> None:
        self.name = name
        self.key = key
        self.gone = Event()
        self._memory = memory
        self._held = 0
        self._lock = Lock()  # a thread may still decode for a request that has ended

    def take(self, size: int) -> None:
        """Holds some more bytes until the request ends; see `HeldBytes.take`.

        Raises:
            RefusedError: there is no room for them, or the request has ended.
        """
        with self._lock:
            self.check_wanted()
            if self._memory is not None:
                self._memory.take(self.name, size)
                self._held += size

    def give_back(self, size: int) -> None:
        """Holds some bytes less, of those that were taken."""
        with self._lock:
            size = min(size, self._held)
            self._held -= size
            if self._memory is not None:
                self._memory.give_back(self.name, size)

    def end(self) -> None:
        """Gives everything back and ends the work that is still done."""
        with self._lock:
            self.gone.set()
            if self._memory is not None:
                self._memory.give_back(self.name, self._held)
            self._held = 0

    def check_wanted(self) -> None:
        """Ends long work in a thread whose result nobody waits for.

        Raises:
            RefusedError: the client has left, or its time is up.
        """
        if self.gone.is_set():
            raise RefusedError(499, "The client has left.", "client_left")


CALLER: ContextVar[Caller] = ContextVar("caller", default=Caller())  # noqa: B039 (nobody holds anything in the default)


class Keys:
    """The API keys that requests may bring.

    Args:
        keys: none are asked for where there are none.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._tokens = [f"Bearer {key}".encode() for key in keys]
        self._protocols = [f"openai-insecure-api-key.{key}".encode() for key in keys]

    def digest(self, headers: Headers) -> str:
        """What a key is known by; empty where none is asked for.

        Raises:
            RefusedError: the key is missing or wrong.
        """
        if not self._tokens:
            return ""
        found = -1
        for name, value in headers:
            # Browsers cannot give a WebSocket a header of their own: OpenAI's clients name the key as a protocol.
            given = [value] if name == b"authorization" else []
            wanted = self._tokens
            if name == b"sec-websocket-protocol":
                given = [one.strip() for one in value.split(b",")]
                wanted = self._protocols
            for one in given:
                for number, token in enumerate(wanted):
                    # in constant time and all of them, so that the time of a refusal tells nothing about a key
                    if hmac.compare_digest(token, one):
                        found = number
        if found < 0:
            raise RefusedError(401, "The API key is missing or wrong.", "invalid_api_key")
        return blake2b(self._tokens[found], digest_size=16).hexdigest()


def client_name(address: str, key: str) -> str:
    """The name of a client: its key and its network, which is one address, or a block of IPv6."""
    try:
        if ipaddress.ip_address(address).version == 6:
            address = str(ipaddress.ip_network(f"{address}/{IPV6_PREFIX}", strict=False))
    except ValueError:  # no number: a test's client, or a local socket
        pass
    return f"{key} {address}"
