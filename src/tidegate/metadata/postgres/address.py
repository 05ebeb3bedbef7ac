"""What a `postgresql://` URL says: where the database is, and how the store uses it.

Imports no driver, so that a URL can be checked where none is installed.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit

import msgspec

SCHEMA: Final = "tidegate"
_NAME: Final = re.compile(r"[a-z_][a-z0-9_]{0,39}")
"""What needs no quotes anywhere, and is short enough to be part of a channel's name."""


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """Where the records are. Times are seconds."""

    dsn: str
    """The URL without what is ours: the driver's, with all that libpq knows."""
    schema: str = SCHEMA
    """Of the tables. Installations that share a database have one each."""
    pool: int = 10
    """How many connections there may be, besides the one that listens."""
    listen: bool | None = None
    """Whether to keep one connection that listens; None: where it is a session of its own."""
    ttl: float = 8.0
    """How long after its last heartbeat a process counts as alive: a pause of the network or of the
    database that is shorter costs nobody an upload."""
    heartbeat: float = 2.0
    """Seconds between two heartbeats: three may be lost."""
    patience: float = 5.0
    """How long a call goes on trying to reach the database before it fails."""

    def __repr__(self) -> str:
        return f"Address({hide_password(self.dsn)!r}, schema={self.schema!r})"


class AddressError(ValueError):
    """Not the URL of a database; the message goes after the URL, and tells no password."""


def parse(url: str) -> Address:
    """The address that a URL stands for. Raises AddressError."""
    parts = _split(url)
    if not url.partition(":")[2].startswith("//"):
        raise AddressError("lacks its two slashes: expected postgresql://[USER@]HOST[:PORT]/DB")
    if parts.fragment:
        raise AddressError("has a fragment: in a password write %23 for #")
    options, rest = dict[str, str](), list[tuple[str, str]]()
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name in _READERS:
            options[name] = value
        else:
            rest.append((name, value))
    fields = {name: _READERS[name](name, value) for name, value in options.items()}
    place = url.partition(":")[2].partition("?")[0]
    dsn = f"postgresql:{place}{'?' if rest else ''}{urlencode(rest)}"
    address = msgspec.convert({"dsn": dsn, **fields}, Address)
    if address.ttl < 2 * address.heartbeat:
        raise AddressError("has a ttl under two heartbeats: one that is late would cost uploads")
    return address


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:
        raise AddressError("cannot be read: expected postgresql://[USER@]HOST[:PORT]/DB") from None


def _schema(name: str, value: str) -> str:
    if not _NAME.fullmatch(value) or value.startswith("pg_"):
        raise AddressError(f"has {name}={value}: expected up to 40 of a-z, 0-9 and _, not pg_…")
    return value


def _listen(name: str, value: str) -> bool | None:
    choices: dict[str, bool | None] = {"yes": True, "no": False, "auto": None}
    if value not in choices:
        raise AddressError(f"has {name}={value}: expected yes, no or auto")
    return choices[value]


def _pool(name: str, value: str) -> int:
    if not value.isascii() or not value.isdecimal() or not 1 <= int(value) <= 1000:
        raise AddressError(f"has {name}={value}: expected a number of connections, 1 to 1000")
    return int(value)


def _seconds(name: str, value: str) -> float:
    if re.fullmatch(r"\d+(\.\d+)?", value) is None or not 0.05 <= float(value) <= 3600:
        raise AddressError(f"has {name}={value}: expected seconds, 0.05 to 3600")
    return float(value)


_READERS: Final = {
    "schema": _schema,
    "listen": _listen,
    "pool": _pool,
    "ttl": _seconds,
    "heartbeat": _seconds,
    "patience": _seconds,
}


def secrets_of(dsn: str) -> list[str]:
    """Every spelling of the passwords in a URL, the longest first."""
    found = set[str]()
    user_info, at, _ = dsn.partition("://")[2].split("/", 1)[0].rpartition("@")
    if at and ":" in user_info:
        found.add(user_info.partition(":")[2])
    for pair in dsn.partition("?")[2].split("&"):
        name, _, value = pair.partition("=")
        if name in {"password", "sslpassword"}:
            found.add(value)
    found |= {unquote(text) for text in found}
    return sorted(filter(None, found), key=len, reverse=True)


def hide_password(url: str) -> str:
    """The URL as it may be shown."""
    for secret in secrets_of(url):
        url = url.replace(f":{secret}@", ":***@").replace(f"password={secret}", "password=***")
    return url
