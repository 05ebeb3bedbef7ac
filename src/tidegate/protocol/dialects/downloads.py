"""GET of a complete upload: ranges (RFC 9110, 14), validators (13), and what a browser may do
with bytes of unknown origin.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from tidegate.protocol import fields, ranges
from tidegate.protocol.dialects.http import Header, Request, header

if TYPE_CHECKING:
    from tidegate.protocol.model import Upload

INLINE_TYPES = frozenset(
    {
        "audio/aac",
        "audio/flac",
        "audio/mp4",
        "audio/mpeg",
        "audio/ogg",
        "audio/wav",
        "audio/webm",
        "image/avif",
        "image/bmp",
        "image/gif",
        "image/jpeg",
        "image/png",
        "image/webp",
        "text/plain",
        "video/mp4",
        "video/mpeg",
        "video/ogg",
        "video/quicktime",
        "video/webm",
    }
)
"""Types that a browser shows without running anything in them (no HTML, SVG, XML, PDF, scripts)."""

CACHE_CONTROL = "private, no-cache"
"""A copy may be kept, by the one who asked, as long as it is asked for again: a termination must be
seen."""

_TYPE_KEYS = ("filetype", "contentType", "content-type", "mimetype", "type")
_NAME_KEYS = ("filename", "name")
_BOUNDARY_BYTES = 12


class Piece(msgspec.Struct, frozen=True):
    """Bytes [start, stop) of the upload, after some bytes of our own."""

    before: bytes
    start: int
    stop: int


class Reading(msgspec.Struct, frozen=True):
    """The head of the response and what its body is made of: pieces, then `after`."""

    status: int
    headers: list[Header]
    pieces: tuple[Piece, ...] = ()
    after: bytes = b""


def etag(upload: Upload) -> str:
    """A strong validator: a complete upload never changes."""
    seed = f"{upload.id}\n{upload.length}\n{upload.created_at}".encode()
    return f'"{hashlib.sha256(seed).hexdigest()[:32]}"'


class Presentation(NamedTuple):
    """Values of header fields."""

    content_type: str
    content_disposition: str
    cache_control: str


def redirect(url: str) -> Reading:
    """How to send the same request somewhere else, this time (RFC 9110, 15.4.8)."""
    headers = [("location", url), ("cache-control", "no-store"), ("content-length", "0")]
    return Reading(307, [header(name.encode(), value) for name, value in headers])


def presentation(upload: Upload) -> Presentation:
    """What a browser may do with an upload's bytes, wherever it gets them from."""
    content_type, disposition = _presentation(upload)
    return Presentation(content_type, disposition, CACHE_CONTROL)


def reading(upload: Upload, request: Request) -> Reading:
    """How to answer a GET of a complete upload; raises Refusal (range_not_satisfiable)."""
    size = upload.offset
    tag = etag(upload)
    modified = fields.http_date(upload.ended_at or upload.created_at)
    content_type, disposition = _presentation(upload)
    common = [
        header(b"etag", tag),
        header(b"last-modified", modified),
        header(b"accept-ranges", "bytes"),
        header(b"cache-control", CACHE_CONTROL),
    ]
    if _not_modified(request, tag, modified):
        return Reading(304, common)
    headers = [
        *common,
        header(b"content-disposition", disposition),
        # A browser neither guesses another type nor runs what the client sent.
        header(b"x-content-type-options", "nosniff"),
        header(b"content-security-policy", "sandbox; default-src 'none'"),
    ]
    wanted = _wanted(request, tag, modified, size)
    if wanted is None:
        headers += [header(b"content-type", content_type), header(b"content-length", str(size))]
        return Reading(200, headers, (Piece(b"", 0, size),))
    if len(wanted) == 1:
        start, stop = wanted[0]
        headers += [
            header(b"content-type", content_type),
            header(b"content-length", str(stop - start)),
            header(b"content-range", f"bytes {start}-{stop - 1}/{size}"),
        ]
        return Reading(206, headers, (Piece(b"", start, stop),))
    return _multipart(wanted, size, content_type, tag, headers)


def _multipart(
    wanted: list[tuple[int, int]], size: int, content_type: str, tag: str, headers: list[Header]
) -> Reading:
    """Several ranges, as multipart/byteranges (RFC 9110, 14.6)."""
    seed = f"{tag} {wanted}".encode()
    boundary = hashlib.sha256(seed).hexdigest()[: 2 * _BOUNDARY_BYTES]
    pieces: list[Piece] = []
    for start, stop in wanted:
        head = (
            f"\r\n--{boundary}\r\nContent-Type: {content_type}\r\n"
            f"Content-Range: bytes {start}-{stop - 1}/{size}\r\n\r\n"
        )
        pieces.append(Piece(head.encode("latin-1"), start, stop))
    after = f"\r\n--{boundary}--\r\n".encode()
    length = sum(len(p.before) + p.stop - p.start for p in pieces) + len(after)
    headers += [
        header(b"content-type", f"multipart/byteranges; boundary={boundary}"),
        header(b"content-length", str(length)),
    ]
    return Reading(206, headers, tuple(pieces), after)


def _wanted(request: Request, tag: str, modified: str, size: int) -> list[tuple[int, int]] | None:
    values = request.values(b"range")
    if len(values) != 1:
        return None
    # "A server MUST ignore an If-Range header field ... if the validator does not match" means: it
    # sends the whole. Strong comparison (RFC 9110, 13.1.5).
    conditions = request.values(b"if-range")
    if conditions and conditions not in ([tag], [modified]):
        return None
    return ranges.parse(values[0], size)


def _not_modified(request: Request, tag: str, modified: str) -> bool:
    tags = ",".join(request.values(b"if-none-match"))
    if tags:
        listed = [t.strip().removeprefix("W/") for t in tags.split(",")]
        return tag in listed or "*" in listed
    return request.values(b"if-modified-since") == [modified]


def _presentation(upload: Upload) -> tuple[str, str]:
    """Content-Type and Content-Disposition: a client's words, as far as they are harmless."""
    pairs = fields.metadata_pairs(upload.metadata)
    named = next((pairs[key] for key in _NAME_KEYS if pairs.get(key)), b"")
    name = named.decode("utf-8", "replace")
    typed = next((pairs[key] for key in _TYPE_KEYS if pairs.get(key)), b"")
    media_type = typed.decode("latin-1").partition(";")[0].strip().lower()
    if media_type not in INLINE_TYPES:
        return "application/octet-stream", fields.content_disposition("attachment", name)
    if media_type == "text/plain":
        media_type += "; charset=utf-8"
    return media_type, fields.content_disposition("inline", name)
