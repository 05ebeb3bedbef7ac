"""HTTP messages as a dialect sees them: no connection, no framing, no body but a short text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from http import HTTPStatus

import msgspec

from tidegate.protocol.errors import Code, Refusal

Header = tuple[bytes, bytes]

STATUS_PHRASES = {460: "Checksum Mismatch"}


def phrase(status: int) -> str:
    """The reason phrase of a status, those of tus included."""
    return STATUS_PHRASES.get(status) or HTTPStatus(status).phrase


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """The head of a request."""

    method: str
    path: str
    """What follows the base path, percent-encoded as it was sent; empty for the creation URL."""
    headers: Sequence[Header]
    """Names in lower case, in the order in which they came."""
    base_path: str = "/files/"
    """The path under which uploads live, with a slash at either end."""
    base_url: str = "/files/"
    """What Location begins with: `base_path`, after scheme and host unless relative."""
    may_omit_length: bool = False
    """The protocol below has bodies without Content-Length or Transfer-Encoding (HTTP/2)."""

    def values(self, name: bytes) -> list[str]:
        """All values of a field (lower-case name), without the white space around them."""
        return [v.decode("latin-1").strip(" \t") for n, v in self.headers if n == name]

    def value(self, name: bytes) -> str | None:
        """The one value of a field; None where it is missing.

        Raises Refusal when it was sent more than once with different values.
        """
        values = self.values(name)
        if not values:
            return None
        if any(value != values[0] for value in values):
            raise Refusal(
                Code.BAD_HEADER,
                f"{name.decode('latin-1').title()}: sent {len(values)} times with different values",
            )
        return values[0]


class Response(msgspec.Struct, frozen=True, kw_only=True):
    """The head of a response, and its body when that is only a few words."""

    status: int
    headers: list[Header] = []
    body: bytes = b""


def header(name: bytes, value: str) -> Header:
    """A response field. Values made here are Latin-1 and hold no control characters."""
    return name, value.encode("latin-1")


def refusal_response(refusal: Refusal, accept: str, headers: list[Header]) -> Response:
    """A refusal as text/plain, or as problem+json (RFC 9457) where that was asked for."""
    headers = list(headers)
    if "application/problem+json" in accept.lower():
        content_type = "application/problem+json"
        body = json.dumps(
            {
                "type": "about:blank",
                "title": phrase(refusal.status),
                "status": refusal.status,
                "code": refusal.code.label,
                "detail": refusal.message,
            },
            ensure_ascii=False,
        )
    else:
        content_type = "text/plain; charset=utf-8"
        body = refusal.message + "\n"
    encoded = body.encode("utf-8", "replace")
    headers += [
        header(b"content-type", content_type),
        header(b"content-length", str(len(encoded))),
        header(b"cache-control", "no-store"),
        header(b"x-content-type-options", "nosniff"),
    ]
    if refusal.retry_after is not None:
        headers.append(header(b"retry-after", str(refusal.retry_after)))
    if refusal.allow:
        headers.append(header(b"allow", ", ".join(refusal.allow)))
    if refusal.size is not None:
        headers.append(header(b"content-range", f"bytes */{refusal.size}"))
    return Response(status=refusal.status, headers=headers, body=encoded)
