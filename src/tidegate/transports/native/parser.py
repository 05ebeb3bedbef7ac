"""The one place that knows which parser reads the heads of requests: bytes in, a `Head` out.

It is given whole heads, so that what belongs to the body is never in its hands: how the body is
framed is decided by `framing`, and its chunks are read by `chunked`.
"""

from __future__ import annotations

import re
from typing import Final

import httptools
import msgspec

from tidegate.protocol.dialects.http import Header

END: Final = b"\r\n\r\n"
_REQUEST_LINE: Final = re.compile(
    rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+ [\x21-\x7e]+ HTTP/[0-9]\.[0-9]\r\n"
)


class Rejected(Exception):
    """What came is not HTTP as we speak it: answer `status`, and close."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.before: list[memoryview] = []
        """The content of a body that came, in the same piece, before what is wrong with it."""


class Head(msgspec.Struct, frozen=True):
    """The head of a request, as it was sent."""

    method: str
    target: str
    version: str
    """`1.0` or `1.1`, when `framing` accepts it."""
    headers: list[Header]
    """Names in lower case."""
    keep_alive: bool
    """Whether version and Connection say that the connection is to be kept."""


class _Events:
    """What httptools calls."""

    __slots__ = ("headers", "keep_alive", "parser", "target")

    def __init__(self) -> None:
        self.target = b""
        self.headers: list[Header] = []
        self.keep_alive = False
        self.parser = httptools.HttpRequestParser(self)
        # These two are judged by `framing`, which tells 400 from 501.
        self.parser.set_dangerous_leniencies(
            lenient_transfer_encoding=True, lenient_chunked_length=True
        )

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        # Once the message is complete, as it is here without a body, it has forgotten.
        self.keep_alive = self.parser.should_keep_alive()


def parse(raw: bytes) -> Head:
    """A head from what came up to and with the empty line that ends it. Raises Rejected."""
    events = _Events()
    parser = events.parser
    try:
        parser.feed_data(raw)
    except httptools.HttpParserUpgrade:
        # "A server MAY ignore a received Upgrade header field" (RFC 9110, 7.8): its body is a body.
        pass
    except httptools.HttpParserInvalidMethodError:
        if _REQUEST_LINE.match(raw):
            raise Rejected(501, "this server knows no such method") from None
        raise Rejected(400, "not a valid request: no method, target and version") from None
    except httptools.HttpParserError as error:
        raise Rejected(400, f"not a valid request: {str(error).lower()}") from None
    method = parser.get_method()
    # httptools also takes several spaces, or none of what belongs there.
    if not raw.startswith(b"%b %b HTTP/" % (method, events.target)):
        raise Rejected(400, "not a valid request: no method, target and version")
    return Head(
        method.decode("ascii"),
        events.target.decode("latin-1"),
        parser.get_http_version(),
        events.headers,
        events.keep_alive,
    )


def parse_trailers(raw: bytes) -> list[Header]:
    """The fields of a trailer section, up to and with its empty line. Raises Rejected."""
    return [] if raw == b"\r\n" else parse(b"GET / HTTP/1.1\r\n" + raw).headers
