"""What the client called: scheme and host, as a trusted proxy tells them or as they came in."""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tidegate.protocol.dialects.http import Header

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_HOST = re.compile(r"[A-Za-z0-9._~%-]+(:[0-9]{1,5})?|\[[0-9A-Fa-f:.%]+\](:[0-9]{1,5})?")
_PAIR = re.compile(r'\s*([A-Za-z]+)=("[^"]*"|[^;,\s]*)\s*')


class Origin(msgspec.Struct, frozen=True):
    """Where a request came from, and what it was sent to."""

    scheme: str
    host: str | None
    """With the port, when there is one; None when it is unknown or not a host's name."""
    client: str | None
    """The address of the client, for logs and limits."""


class Proxies:
    """The proxies whose word is taken for what the client called."""

    def __init__(self, trusted: Iterable[str]) -> None:
        """`trusted` are addresses, networks (`10.0.0.0/8`), or `*`. Raises ValueError."""
        names = list(trusted)
        self._anyone = "*" in names
        self._networks: list[Network] = [
            ipaddress.ip_network(name, strict=False) for name in names if name != "*"
        ]

    def trusts(self, peer: str | None) -> bool:
        """Whether a peer's word is taken. One without an address came over a unix socket."""
        if self._anyone:
            return True
        if not self._networks:
            return False
        if peer is None:
            return True
        try:
            address = ipaddress.ip_address(peer)
        except ValueError:
            return False
        # A socket of both families shows an IPv4 peer as ::ffff:192.0.2.1.
        mapped = getattr(address, "ipv4_mapped", None)
        return any((mapped or address) in network for network in self._networks)

    def origin(self, scheme: str, peer: str | None, headers: Sequence[Header]) -> Origin:
        """The origin of a request with `headers`, sent by `peer` over `scheme`."""
        host, client = _last(headers, b"host"), peer
        if self.trusts(peer):
            told = self._forwarded(headers) or _x_forwarded(headers)
            scheme = told.get("proto", scheme).lower()
            host = told.get("host", host)
            client = _address(told.get("for")) or client
        if scheme not in ("http", "https"):
            scheme = "http"
        return Origin(scheme, host if host and _HOST.fullmatch(host) else None, client)

    def _forwarded(self, headers: Sequence[Header]) -> dict[str, str]:
        """What the Forwarded field (RFC 7239) says of the hop that reached our own proxies.

        The last element was added by our peer. It is followed to the left for as long as it names
        another trusted proxy.
        """
        elements = ",".join(
            value.decode("latin-1") for name, value in headers if name == b"forwarded"
        )
        found: dict[str, str] = {}
        for element in reversed(elements.split(",")):
            pairs = {
                match[1].lower(): match[2].strip('"')
                for match in map(_PAIR.fullmatch, element.split(";"))
                if match
            }
            if not pairs:
                break
            found |= pairs
            if not self.trusts(_address(pairs.get("for")) or "unknown") or self._anyone:
                break
        return found


def _x_forwarded(headers: Sequence[Header]) -> dict[str, str]:
    """The same from the X-Forwarded-* fields: what our peer added, last."""
    found = {}
    for key in ("proto", "host", "for"):
        value = _last(headers, f"x-forwarded-{key}".encode())
        if value:
            found[key] = value.rpartition(",")[2].strip()
    return found


def _last(headers: Sequence[Header], name: bytes) -> str | None:
    values = [value for n, value in headers if n == name]
    return values[-1].decode("latin-1").strip() if values else None


def _address(node: str | None) -> str | None:
    """The address in a node of Forwarded: `1.2.3.4:5`, `[::1]:5` or as it is."""
    if not node:
        return None
    if node.startswith("["):
        return node[1:].partition("]")[0]
    return node.partition(":")[0] if node.count(":") == 1 else node
