"""Parsing and rendering of header values.

Every parser takes the value as text (its bytes as Latin-1) and raises a Refusal that names the
header, what was wrong, and what was expected.
"""

from __future__ import annotations

import base64
import binascii
import functools
import math
import re
from collections.abc import Mapping
from email.utils import formatdate
from urllib.parse import quote

from tidegate.protocol.commands import Checksum
from tidegate.protocol.errors import Code, Refusal
from tidegate.protocol.model import MAX_LENGTH

MAX_METADATA = 16 * 1024
"""Bytes of Upload-Metadata. Node's and many proxies' default for a whole head is 16 KiB."""

_DIGITS = re.compile(r"[0-9]+")
# Of the standard alphabet (RFC 4648, 4), padded. What binascii's strict mode lets through differs
# between versions of Python.
_BASE64 = re.compile(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_LONGEST_SHOWN = 40


def shown(value: str) -> str:
    """A client's value as it may stand in a message: printable ASCII, bounded."""
    clipped = value if len(value) <= _LONGEST_SHOWN else value[:_LONGEST_SHOWN] + "…"
    return "".join(c if (c.isprintable() and c.isascii()) or c == "…" else "?" for c in clipped)


def integer(name: str, value: str) -> int:
    """A non-negative integer of ASCII digits, at most 2^63-1."""
    # "The value MUST be a non-negative integer."
    if not _DIGITS.fullmatch(value):
        raise Refusal(
            Code.BAD_HEADER,
            f"{name}: '{shown(value)}' is not a non-negative integer; expected ASCII digits only",
        )
    significant = value.lstrip("0") or "0"
    # Longer ones are not even converted: Python refuses those of thousands of digits.
    if len(significant) > len(str(MAX_LENGTH)) or int(significant) > MAX_LENGTH:
        raise Refusal(
            Code.BAD_HEADER, f"{name}: {shown(value)} is over the largest possible, 2^63-1"
        )
    return int(significant)


def metadata_pairs(raw: str) -> dict[str, bytes]:
    """The decoded pairs of an Upload-Metadata value; raises Refusal (bad_metadata).

    "The Upload-Metadata request and response header MUST consist of one or more comma-separated
    key-value pairs. The key and value MUST be separated by a space. The key MUST NOT contain spaces
    and commas and MUST NOT be empty. The key SHOULD be ASCII encoded and the value MUST be Base64
    encoded. All keys MUST be unique. The value MAY be empty. In these cases, the space, which would
    normally separate the key and the value, MAY be left out."

    An empty header is no metadata: real clients send it.
    """
    pairs: dict[str, bytes] = {}
    if not raw:
        return pairs
    for number, pair in enumerate(raw.split(","), 1):
        key, _, value = pair.partition(" ")
        if not key:
            what = "begins with a space" if pair else "is empty"
            raise Refusal(
                Code.BAD_METADATA,
                f"Upload-Metadata: pair {number} {what}; expected 'key base64' pairs separated by"
                " single commas without spaces around them",
            )
        # "The key SHOULD be ASCII encoded": other bytes are let through, as HTTP does.
        if _CONTROL.search(key):
            raise Refusal(
                Code.BAD_METADATA, f"Upload-Metadata: key {number} has a control character"
            )
        if key in pairs:
            raise Refusal(Code.BAD_METADATA, f"Upload-Metadata: key '{shown(key)}' stands twice")
        if not _BASE64.fullmatch(value):
            what = f"Upload-Metadata: the value of '{shown(key)}'"
            raise _not_base64(what, value, Code.BAD_METADATA)
        pairs[key] = binascii.a2b_base64(value)
    return pairs


def metadata(value: str) -> str:
    """An Upload-Metadata value, checked, to the letter."""
    if len(value) > MAX_METADATA:
        raise Refusal(
            Code.BAD_METADATA,
            f"Upload-Metadata: {len(value)} bytes; expected at most {MAX_METADATA}",
        )
    metadata_pairs(value)
    return value


def render_metadata(pairs: Mapping[str, bytes]) -> str:
    """The Upload-Metadata value of some pairs; raises Refusal where one is not to be written so."""
    for key in pairs:
        # What `metadata_pairs` would take apart elsewhere, or a header can't hold.
        if " " in key or "," in key or not key.isascii():
            raise Refusal(Code.BAD_METADATA, f"Upload-Metadata: '{shown(key)}' can't be a key")
    return metadata(
        ",".join(
            f"{key} {base64.b64encode(value).decode()}" if value else key
            for key, value in pairs.items()
        )
    )


def checksum(value: str) -> Checksum:
    """An Upload-Checksum value; whether the algorithm is known is for `decide` to say.

    "The header MUST consist of the name of the used checksum algorithm and the Base64 encoded
    checksum separated by a space."
    """
    name, space, encoded = value.partition(" ")
    if not space or not name:
        raise Refusal(
            Code.BAD_CHECKSUM,
            f"Upload-Checksum: '{shown(value)}'; expected an algorithm, a space and base64",
        )
    if not _BASE64.fullmatch(encoded):
        raise _not_base64("Upload-Checksum: the digest", encoded, Code.BAD_CHECKSUM)
    return Checksum(name, base64.b64decode(encoded))


def concat(value: str) -> list[str] | None:
    """An Upload-Concat value: None for `partial`, else the URLs of a final's parts, in order.

    "The value MUST be final followed by a semicolon and a space-separated list of the partial
    upload URLs that need to be concatenated."
    """
    if value == "partial":
        return None
    head, semicolon, rest = value.partition(";")
    urls = rest.split(" ")
    # (A tab within a URL would be dropped by whoever parses it, and then name another upload.)
    if head != "final" or not semicolon or not all(urls) or not value.isprintable():
        raise Refusal(
            Code.BAD_CONCAT,
            f"Upload-Concat: '{shown(value)}'; expected 'partial', or 'final;' and the URLs of"
            " partial uploads separated by single spaces",
        )
    return urls


def http_date(at: float) -> str:
    """An instant in the datetime format of RFC 9110, 5.6.7 (whole seconds, rounded down)."""
    return _http_date(math.floor(at))


@functools.lru_cache(maxsize=64)
def _http_date(at: int) -> str:
    # What is made in one second expires in one second.
    return formatdate(at, usegmt=True)


def content_disposition(disposition: str, filename: str | None) -> str:
    """A Content-Disposition value (RFC 6266), with the name as ASCII and, where that loses
    something, as UTF-8 too (RFC 8187). Control characters and path separators never get through.
    """
    if not filename:
        return disposition
    name = "".join(c if c.isprintable() and c not in "/\\" else "_" for c in filename)[:200]
    plain = "".join(c if c.isascii() and c not in '"%' else "_" for c in name)
    value = f'{disposition}; filename="{plain}"'
    if plain != name:
        value += f"; filename*=UTF-8''{quote(name, safe='', errors='replace')}"
    return value


def _not_base64(what: str, value: str, code: Code) -> Refusal:
    return Refusal(code, f"{what} '{shown(value)}' is not base64 (standard alphabet, with padding)")
