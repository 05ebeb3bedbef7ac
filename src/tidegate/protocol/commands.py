"""What a request means, whatever dialect it was written in."""

from __future__ import annotations

import msgspec

from tidegate.protocol.errors import Refusal
from tidegate.protocol.model import Kind, UploadId


class Checksum(msgspec.Struct, frozen=True):
    """The digest that a body must have."""

    algorithm: str
    digest: bytes


class Payload(msgspec.Struct, frozen=True, kw_only=True):
    """The body of a request, as its head announced it."""

    length: int | None
    """In bytes; None when the body is chunked, and its end alone tells."""
    checksum: Checksum | None = None
    trailing_checksum: bool = False
    """The checksum was announced for the trailer."""


class Create(msgspec.Struct, frozen=True, kw_only=True):
    """Make a new upload."""

    kind: Kind = Kind.REGULAR
    length: int | None = None
    deferred: bool = False
    metadata: str = ""
    concat: str = ""
    parts: tuple[UploadId, ...] = ()
    payload: Payload | None = None
    """None: the request has no body."""
    malformed: Refusal | None = None
    """What was wrong with the head past the point where its upload and its author are known."""


class Append(msgspec.Struct, frozen=True, kw_only=True):
    """Add bytes at an offset, and perhaps say how long the upload is."""

    id: UploadId
    offset: int = 0
    length: int | None = None
    """The upload's length, when this request sets or repeats it."""
    payload: Payload
    malformed: Refusal | None = None


class Inspect(msgspec.Struct, frozen=True, kw_only=True):
    """Ask how far an upload is."""

    id: UploadId
    malformed: Refusal | None = None


class Terminate(msgspec.Struct, frozen=True, kw_only=True):
    """End an upload and free what it holds."""

    id: UploadId
    malformed: Refusal | None = None


class Download(msgspec.Struct, frozen=True, kw_only=True):
    """Read the bytes of a complete upload."""

    id: UploadId
    malformed: Refusal | None = None


class Discover(msgspec.Struct, frozen=True, kw_only=True):
    """Ask what the server can do."""


Command = Create | Append | Inspect | Terminate | Download | Discover
