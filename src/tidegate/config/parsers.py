"""How settings are written: sizes, lengths of time, addresses. What is wrong is told in words."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Final, TypeVar
from urllib.parse import urlsplit

from tidegate.ports import Durability
from tidegate.protocol.capabilities import NEEDS
from tidegate.stores import naming

T = TypeVar("T")

_UNITS: Final = {"": 1, "b": 1} | {
    f"{letter}{suffix}": base**power
    for power, letter in enumerate("kmgtp", start=1)
    for suffix, base in (("b", 1000), ("ib", 1024))
}
_SECONDS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
LONGEST: Final = 36_500 * 86_400
"""A hundred years, in seconds: dates in headers end with the year 9999."""
MOST_AT_ONCE: Final = 1_000_000
"""What Linux lets one process open, unless told otherwise (fs.nr_open)."""
MOST_WORKERS: Final = 256
"""More than a machine has processors, and fewer than it has memory for."""
_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)", re.ASCII)
_PATH = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@%/-]*", re.ASCII)
_HEADER = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
_AUTH: Final = {
    "token": "token:FILE or token:env:NAME (a name and a token per line)",
    "jwt": "jwt:FILE (a public key, a secret or a JWKS) or jwt:URL (of a JWKS)",
    "forward": "forward:URL (of a service that is asked)",
}
_HOST = re.compile(r"[a-z0-9._-]+|\[[0-9a-f:.]+\]", re.ASCII)


def parse_size(text: str) -> int | None:
    """Bytes: `1024`, `500MB` (10^6), `10GiB` (2^30), or `unlimited` (None)."""
    if text.strip().lower() == "unlimited":
        return None
    found = _QUANTITY.fullmatch(text.strip())
    unit = _UNITS.get(found[2].lower()) if found else None
    if found is None or unit is None:
        hint = f", say {text.strip()}B or {text.strip()}iB" if _is_bare_unit(found) else ""
        raise ValueError(
            f"{text!r} is not a size{hint}: expected bytes, or a number with"
            " KB, MB, GB, TB (powers of 1000) or KiB, MiB, GiB, TiB (of 1024), or unlimited"
        )
    size = int(Decimal(found[1]) * unit)
    if size < 1:
        raise ValueError(f"{text!r} is less than one byte; for no limit say unlimited")
    return size


def _is_bare_unit(found: re.Match[str] | None) -> bool:
    return found is not None and found[2].lower() in set("kmgtp")


def parse_duration(text: str) -> float | None:
    """Seconds: `90`, `90s`, `15m`, `24h`, `7d`, `2w`, or `never` (None)."""
    if text.strip().lower() == "never":
        return None
    found = _QUANTITY.fullmatch(text.strip())
    unit = _SECONDS.get(found[2].lower()) if found else None
    if found is None or unit is None:
        raise ValueError(
            f"{text!r} is not a length of time: expected seconds, or a number with"
            " s, m, h, d or w (90s, 15m, 24h, 7d), or never"
        )
    seconds = float(Decimal(found[1]) * unit)
    if not 0 < seconds <= LONGEST:
        raise ValueError(
            f"{text!r} is out of range: expected more than 0 and at most 36500d, or never"
        )
    return seconds


def parse_port(text: str) -> int:
    """A TCP port; 0 is any that is free."""
    if text.startswith("tcp://"):
        raise ValueError(
            f"{text!r} is what Kubernetes sets for a service of this name: expected a port from 0"
            " to 65535 (set enableServiceLinks: false, or give --port)"
        )
    if not text.isascii() or not text.isdecimal() or int(text) > 65_535:
        raise ValueError(f"{text!r} is not a port: expected a number from 0 to 65535")
    return int(text)


MAIN: Final = "main"
"""Where uploads go."""


def parse_metrics_listen(text: str) -> str:
    """`ADDRESS:PORT`, `[ADDRESS]:PORT`, `PORT` of this machine alone, or `main`."""
    if text == MAIN:
        return text
    host, _, port = text.rpartition(":")
    try:
        number = parse_port(port)
    except ValueError:
        number = -1
    if number < 0 or (host and not _HOST.fullmatch(host.lower())):
        raise ValueError(
            f"{text!r} is not a place to listen on: expected ADDRESS:PORT, like 127.0.0.1:9090,"
            f" or {MAIN}"
        )
    return f"{host or '127.0.0.1'}:{number}"


def parse_rate(text: str) -> int | None:
    """Bytes per second, written as a size; `unlimited` is none at all."""
    return parse_size(text.strip().removesuffix("/s"))


def parse_count(text: str) -> int | None:
    """How many at once, or `unlimited` (None)."""
    if text.strip().lower() == "unlimited":
        return None
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text) <= MOST_AT_ONCE:
        raise ValueError(
            f"{text!r} is not a number of requests: expected 1 to {MOST_AT_ONCE}, or unlimited"
        )
    return int(text)


def parse_workers(text: str) -> int:
    """How many processes."""
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text) <= MOST_WORKERS:
        raise ValueError(f"{text!r} is not a number of processes: expected 1 to {MOST_WORKERS}")
    return int(text)


def parse_base_path(text: str) -> str:
    """The path of a URL, with a slash at both ends."""
    path = f"/{text.strip('/')}/" if text.strip("/") else "/"
    if not _PATH.fullmatch(path) or "//" in path or {".", ".."}.intersection(path.split("/")):
        raise ValueError(
            f"{text!r} is not the path of a URL: expected something like /files/,"
            " without ?, #, spaces, empty or dotted parts"
        )
    return path


def parse_public_url(text: str) -> str:
    """An absolute http or https URL, without the slash at its end."""
    try:
        url = urlsplit(text)
        right = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        right = False
    if not right or url.query or url.fragment or "@" in url.netloc or not text.isprintable():
        raise ValueError(
            f"{text!r} is not a public URL: expected http:// or https://, a host, and perhaps a"
            " port and a path, like https://example.org"
        )
    return text.rstrip("/")


def parse_proxy(text: str) -> str:
    """An address, a network, or `*`."""
    if text == "*":
        return text
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(
            f"{text!r} is not an address of a proxy: expected an IP address (10.0.0.5, ::1), a"
            " network (10.0.0.0/8), or * for whoever connects"
        ) from None
    return text


def parse_origin(text: str) -> str:
    """An origin as browsers send it: `*`, or scheme://host[:port]."""
    if text == "*":
        return text
    expected = "expected *, none, or scheme://host[:port], like https://example.org"
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        raise ValueError(f"{text!r} is not an origin: {expected}") from None
    host = url.netloc.lower().rpartition(":")[0] if port is not None else url.netloc.lower()
    if not url.scheme or not _HOST.fullmatch(host):
        raise ValueError(f"{text!r} is not an origin: {expected}")
    origin = f"{url.scheme}://{url.netloc.lower()}"
    if text.lower() != origin:
        raise ValueError(f"{text!r} is more than an origin: expected {origin}, without a path")
    return origin


def parse_extension(text: str) -> str:
    """The name of an extension of tus 1.0.0."""
    if text not in NEEDS:
        raise ValueError(f"{text!r} is not an extension of tus 1.0.0: expected {', '.join(NEEDS)}")
    return text


def parse_durability(text: str) -> Durability:
    """The name of a mode."""
    try:
        return Durability(text)
    except ValueError:
        raise ValueError(
            f"{text!r} is not a durability: expected {', '.join(Durability)}"
        ) from None


def parse_template(text: str) -> str:
    """How finished files are named: see `naming.Template`."""
    naming.Template(text)
    return text


def parse_auth(text: str) -> str:
    """How it is told who asks: a kind, and where its tokens, keys or answers come from."""
    kind, colon, rest = text.partition(":")
    if kind not in _AUTH or not colon or not rest:
        raise ValueError(f"{text!r} says nobody's word: expected {', '.join(_AUTH.values())}")
    if kind == "forward" or rest.startswith(("http:", "https:")):
        parse_public_url(rest.partition("?")[0])
    return text


def parse_header(text: str) -> str:
    """The name of a header."""
    if not _HEADER.fullmatch(text):
        raise ValueError(f"{text!r} is not the name of a header: expected one like X-User")
    return text


def parse_items(parse: Callable[[str], T]) -> Callable[[Sequence[str]], tuple[T, ...]]:
    """A parser for lists, of which each text holds one or several, by commas or spaces.

    The one item `none` is the empty list.
    """

    def parse_all(texts: Sequence[str]) -> tuple[T, ...]:
        items = [item for text in texts for item in re.split(r"[\s,]+", text) if item]
        if items == ["none"]:
            return ()
        return tuple(parse(item) for item in items)

    return parse_all
