"""Records, offers and requests to decide on: each as plain as can be, but for what a test says."""

from __future__ import annotations

import base64
from typing import Any

from tidegate.protocol.capabilities import NEEDS, Offer
from tidegate.protocol.checksums import algorithms
from tidegate.protocol.dialects.http import Request
from tidegate.protocol.model import Kind, Upload, UploadId

Headers = dict[str, str | list[str]]
"""A header with a list as its value is sent once for each."""

NOW = 1_000_000.0
ID = UploadId("tide")

OFFER = Offer(extensions=tuple(NEEDS), algorithms=algorithms(), max_size=1000)
"""All that there is, for uploads of up to 1000 bytes."""
BARE = Offer(extensions=(), algorithms={}, downloads=False)
"""The core protocol alone, without a limit."""


def without(*extensions: str) -> Offer:
    """All that there is, but for some extensions."""
    return Offer(
        extensions=tuple(name for name in NEEDS if name not in extensions),
        algorithms=OFFER.algorithms,
        max_size=OFFER.max_size,
    )


def upload(**fields: Any) -> Upload:
    """A regular upload of 100 bytes, of which 70 are there."""
    plain: dict[str, Any] = {
        "id": ID,
        "length": 100,
        "offset": 70,
        "created_at": NOW - 60,
        "active_at": NOW - 60,
    }
    return Upload(**plain | fields)


def partial(name: str, length: int | None = 10, **fields: Any) -> Upload:
    """A partial upload, unfinished unless said otherwise."""
    plain: dict[str, Any] = {
        "id": UploadId(name),
        "kind": Kind.PARTIAL,
        "concat": "partial",
        "length": length,
        "offset": 0,
    }
    return upload(**plain | fields)


def b64(value: bytes | str) -> str:
    """Base64, as Upload-Metadata and Upload-Checksum have it."""
    return base64.b64encode(value.encode() if isinstance(value, str) else value).decode()


def request(
    method: str = "POST",
    path: str = "",
    headers: Headers | None = None,
    **fields: Any,
) -> Request:
    """The head of a request."""
    pairs = [
        (name.lower().encode(), value.encode("latin-1"))
        for name, values in (headers or {}).items()
        for value in ([values] if isinstance(values, str) else values)
    ]
    return Request(method=method, path=path, headers=pairs, **fields)
