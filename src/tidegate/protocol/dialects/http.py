"""HTTP messages as a dialect sees them: no connection, no framing, no body but a short text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import msgspec

from tidegate.protocol.errors import Code, Denied, Refusal

Header = tuple[bytes, bytes]

STATUS_PHRASES = {460: "Checksum Mismatch"}


def phrase(status: int) -> str:
    """The reason phrase of a status, those of tus included."""
    try:
        return STATUS_PHRASES.get(status) or HTTPStatus(status).phrase
    except ValueError:
        # An application's own: "A client SHOULD ignore the reason-phrase content" (RFC 9112, 4).
        return "Refused"


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
    url: str = "/files/"
    """What the client called, as far as we know: with scheme and host, the path and the query as
    they were sent."""
    client: str | None = None
    """The address of the client, for those who decide, for logs and limits."""
    scope: Mapping[str, Any] = {}
    """What a framework around us knows of the request, for those who decide."""
    may_omit_length: bool = False
    """The protocol below has bodies without Content-Length or Transfer-Encoding (HTTP/2)."""

    found: dict[bytes, list[str]] = {}
    """The values by their names, once somebody asked."""

    def values(self, name: bytes) -> list[str]:
        """All values of a field (lower-case name), without the white space around them."""
        # A dozen fields are asked for, most of which are not there.
        found = self.found
        if not found:
            for key, value in self.headers:
                found.setdefault(key, []).append(value.decode("latin-1").strip(" \t"))
        return found.get(name, [])

    def value(self, name: bytes) -> str | None:
        """The one value of a field; None where it is missing.

        Raises Refusal when it was sent more than once with different values.
        """
        values = self.values(name)
        if not values:
            return None
        if len(values) > 1 and any(value != values[0] for value in values):
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
    """A refusal as text/plain, or as problem+json (RFC 9457) where that was asked for; an
    application's own as it wants to have it.
    """
    headers = list(headers)
    if isinstance(refusal, Denied):
        headers += refusal.headers
    content_type, body = _words(refusal, accept)
    headers.append(header(b"content-length", str(len(body))))
    given = {name for name, _ in headers}
    headers += [
        field
        for field in (
            header(b"content-type", content_type),
            header(b"cache-control", "no-store"),
            header(b"x-content-type-options", "nosniff"),
        )
        if field[0] not in given
    ]
    if refusal.retry_after is not None:
        headers.append(header(b"retry-after", str(refusal.retry_after)))
    if refusal.allow:
        headers.append(header(b"allow", ", ".join(refusal.allow)))
    if refusal.size is not None:
        headers.append(header(b"content-range", f"bytes */{refusal.size}"))
    return Response(status=refusal.status, headers=headers, body=body)


def _words(refusal: Refusal, accept: str) -> tuple[str, bytes]:
    """The body that tells of a refusal, and its type."""
    if isinstance(refusal, Denied) and refusal.body is not None:
        return "text/plain; charset=utf-8", refusal.body
    if "application/problem+json" not in accept.lower():
        return "text/plain; charset=utf-8", f"{refusal.message}\n".encode("utf-8", "replace")
    problem = {
        "type": "about:blank",
        "title": phrase(refusal.status),
        "status": refusal.status,
        "code": refusal.code.label,
        "detail": refusal.message,
    }
    text = json.dumps(problem, ensure_ascii=False)
    return "application/problem+json", text.encode("utf-8", "replace")
