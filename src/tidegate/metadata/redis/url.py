"""The URL of a Redis store: what the driver is told of it, and what is ours."""

from __future__ import annotations

import math
import re
from typing import NamedTuple
from urllib.parse import parse_qsl, urlencode, urlsplit

SCHEMES = {
    "redis": "redis",
    "rediss": "rediss",
    "valkey": "redis",
    "valkeys": "rediss",
    "unix": "unix",
}
"""What we call them, and what the driver does. With an s: over TLS."""

_OURS = ("prefix", "durability", "lease_ttl", "heartbeat")
FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_DRIVERS = ("db", *FILES, "ssl_cert_reqs")
_PREFIX = re.compile(r"[A-Za-z0-9_.:-]{1,100}")
_PATH = re.compile(r"/?|/\d+")


class Address(NamedTuple):
    """Where a Redis store is."""

    driver_url: str
    """With the password, if there is one: to be shown to nobody."""
    shown: str
    """For people and logs."""
    prefix: str
    """Of all keys of one installation."""
    checked: bool
    """Whether to refuse a server that may forget what it acknowledged."""
    lease_ttl: float
    """Seconds after which a process that is not heard of loses its leases."""
    heartbeat: float
    """Seconds between two signs of life."""


def parse(url: str) -> Address:
    """What a URL says. Raises ValueError, whose message goes after the URL."""
    parts = urlsplit(url)
    scheme = SCHEMES.get(parts.scheme)
    if scheme is None:
        raise ValueError(f"is no URL of a Redis: expected one of {', '.join(SCHEMES)}")
    if parts.fragment or "@" in parts.path + parts.query:
        raise ValueError(
            "ends its host too soon: in a password write %2F for /, %3F ?, %23 #, %40 @"
        )
    if scheme == "unix":
        if parts.hostname or not parts.path.startswith("/"):
            raise ValueError("has no absolute path: expected unix:///path/to/socket")
        shown = f"unix://{parts.path}"
    else:
        if not _PATH.fullmatch(parts.path):
            raise ValueError("has a path that is not the number of a database")
        shown = f"{parts.scheme}://{_place(url)}{parts.path}"
    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    unknown = sorted(given.keys() - {*_OURS, *_DRIVERS})
    if unknown:
        raise ValueError(f"has {unknown[0]}=: expected {', '.join((*_OURS, *_DRIVERS))}")
    prefix = given.get("prefix", "tidegate")
    if not _PREFIX.fullmatch(prefix):
        raise ValueError("has a prefix that is no name: expected letters, digits, and any of _.:-")
    durability = given.get("durability", "checked")
    if durability not in {"checked", "unchecked"}:
        raise ValueError(f"has durability={durability}: expected checked or unchecked")
    # Long enough for a restart of Redis, short enough that nobody waits long for what a machine
    # held that died; and three signs of life may be lost on the way.
    lease_ttl = _seconds("lease_ttl", given.get("lease_ttl", "8"))
    heartbeat = _seconds("heartbeat", given.get("heartbeat", str(lease_ttl / 4)))
    if heartbeat > lease_ttl / 2:
        raise ValueError(f"has heartbeat={heartbeat:g}: expected at most half of lease_ttl")
    options = urlencode({name: given[name] for name in _DRIVERS if name in given})
    driver = f"{scheme}://{parts.netloc}{parts.path}{options and '?'}{options}"
    return Address(driver, shown, prefix, durability == "checked", lease_ttl, heartbeat)


def _place(url: str) -> str:
    """Host and port. Raises ValueError."""
    parts = urlsplit(url)
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError("has a port that is none: expected 1 to 65535") from None
    if not host:
        raise ValueError("has no host")
    host = f"[{host}]" if ":" in host else host
    return host if port is None else f"{host}:{port}"


def _seconds(name: str, text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0.05 <= seconds <= 3600:
        raise ValueError(f"has {name}={text}: expected seconds, 0.05 to 3600")
    return seconds
