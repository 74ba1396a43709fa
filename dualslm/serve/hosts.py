"""Which names the server answers to, and from which sites a browser may post (ours).

A page of another site runs in the browser of somebody who may reach this server. It can send requests here, and, where
its own name is made to point to this machine (DNS rebinding), read the answers as if they were its own. The name that
it used stands in `Host`, and where it came from in `Origin` and `Sec-Fetch-Site`, which no page can change.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence

from dualslm.serve.errors import RefusedError

ANY = "*"
OWN_SITES = (b"same-origin", b"none")  # none: an address that was typed, or a bookmark
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


class Hosts:
    """The names that requests may call the server by.

    A number (an IP address) and a name without a dot, such as localhost or a machine beside this one, need not be
    listed: nobody from outside can make them point elsewhere.

    Args:
        names: further names; "*" stands for any.
        origins: sites whose pages may post too; "*" stands for any.
    """

    def __init__(self, names: Sequence[str] = (), origins: Sequence[str] = ()) -> None:
        self._names = frozenset(name.lower().rstrip(".") for name in names)
        self._origins = frozenset(origin.lower() for origin in origins)

    def check(self, method: str, headers: Mapping[bytes, bytes]) -> None:
        """Refuses another host's name, and what a page of another site sends.

        Args:
            method: HTTP method; a WebSocket's handshake counts as POST.
            headers: by lower-case name.

        Raises:
            RefusedError: with status 421 or 403.
        """
        host = headers.get(b"host", b"").decode("latin-1")
        name = _name(host)
        if host and not (ANY in self._names or name in self._names or _is_local(name)):
            wrong = f"This server does not answer to the name {host[:100]!r}; start it with --allow-host."
            raise RefusedError(421, wrong, "unknown_host")
        if method not in SAFE_METHODS and not self._from_own_site(host, headers):
            raise RefusedError(403, "A page of another site may not send requests here.", "cross_site")

    def _from_own_site(self, host: str, headers: Mapping[bytes, bytes]) -> bool:
        origin = headers.get(b"origin", b"").decode("latin-1")
        from_host = origin.partition("//")[2]  # empty for a page from a file, whose origin is "null"
        listed = _name(from_host) in self._names or not self._origins.isdisjoint((ANY, origin.lower()))
        site = headers.get(b"sec-fetch-site")
        if site is not None:  # all browsers of today, where the page came over TLS or from this machine
            return site in OWN_SITES or listed
        return not origin or listed or from_host.lower() == host.lower()


def _name(host: str) -> str:
    """A host without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    name, _, _ = host.partition(":")
    return name.lower().removesuffix(".")


def _is_local(name: str) -> bool:
    """Whether a name is a number, or one that no public name server can give an address."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        labels = name.split(".")
        plain = all(label and label.replace("-", "a").replace("_", "a").isalnum() for label in labels)
        return plain and (len(labels) == 1 or labels[-1] == "localhost")
    return True
