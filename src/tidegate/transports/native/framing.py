"""How a body is framed, by its head: every rule of RFC 9112, 6 that the parser leaves open."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import msgspec

from tidegate.transports.native.parser import Rejected

if TYPE_CHECKING:
    from tidegate.transports.native.parser import Head

MOST: Final = 2**63 - 1
_HOST: Final = re.compile(
    rb"(?:[A-Za-z0-9._~%!$&'()*+,;=-]*|\[[0-9A-Fa-f:.%A-Za-z~_-]+\])(?::[0-9]*)?"
)


class Framing(msgspec.Struct, frozen=True):
    """What follows a head, and what comes after that."""

    length: int | None
    """Bytes of body; None: it is chunked."""
    keep_alive: bool
    expects_continue: bool
    """The client may wait for `100 Continue` before it sends the body."""


def framing(head: Head) -> Framing:
    """How the body of a request is framed. Raises Rejected, after which nothing more is read."""
    host: bytes | None = None
    hosts = 0
    length: int | None = None
    codings: list[bytes] = []
    expects = False
    for name, value in head.headers:
        if name == b"host":
            host = value
            hosts += 1
        elif name == b"content-length":
            digits = value.strip(b" \t")
            if length is not None or not digits.isdigit() or len(digits) > 19:
                raise Rejected(400, "Content-Length: expected one number")
            length = int(digits)
        elif name == b"transfer-encoding":
            codings += [coding.strip(b" \t").lower() for coding in value.split(b",")]
        elif name == b"expect":
            expects = value.strip(b" \t").lower() == b"100-continue"
    if head.version == "0.9":
        raise Rejected(400, "not a valid request: no version")
    if head.version not in {"1.1", "1.0"}:
        raise Rejected(505, "this server speaks HTTP/1.1")
    # "A server MUST respond with a 400 (Bad Request) status code to any HTTP/1.1 request message
    # that lacks a Host header field and to any request message that contains more than one Host
    # header field line or a Host header field with an invalid field value." (RFC 9112, 3.2)
    if hosts > 1 or (not hosts and head.version == "1.1"):
        raise Rejected(400, f"Host: sent {hosts} times; expected once")
    if host is not None and not _HOST.fullmatch(host.strip(b" \t")):
        raise Rejected(400, "Host: not the name of a host")
    if codings:
        _check_codings(head, codings, length)
        return Framing(None, head.keep_alive, expects and head.version == "1.1")
    if length is not None and length > MOST:
        raise Rejected(400, f"Content-Length: more than {MOST}")
    # "A server that receives a 100-continue expectation in an HTTP/1.0 request MUST ignore that
    # expectation." (RFC 9110, 10.1.1)
    return Framing(length or 0, head.keep_alive, expects and head.version == "1.1")


def _check_codings(head: Head, codings: list[bytes], length: int | None) -> None:
    # "A server or client that receives an HTTP/1.0 message containing a Transfer-Encoding header
    # field MUST treat the message as if the framing is faulty" (RFC 9112, 6.1).
    if head.version == "1.0":
        raise Rejected(400, "Transfer-Encoding: not in HTTP/1.0")
    # "A server MAY reject a request that contains both Content-Length and Transfer-Encoding"; one
    # that does not can be made to see two requests where a proxy saw one.
    if length is not None:
        raise Rejected(400, "both Content-Length and Transfer-Encoding; expected one of them")
    if codings != [b"chunked"]:
        # "A sender MUST NOT apply the chunked transfer coding more than once to a message body"
        if codings.count(b"chunked") > 1:
            raise Rejected(400, "Transfer-Encoding: chunked more than once")
        # "A server that receives a request message with a transfer coding it does not understand
        # SHOULD respond with 501 (Not Implemented)."
        raise Rejected(501, "Transfer-Encoding: expected chunked alone")
