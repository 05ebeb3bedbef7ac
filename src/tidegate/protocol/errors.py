"""Refusals: a stable code, a status, a message that says what was wrong and what was expected.

The message is for the person who wrote the client. It never carries what only the server may know.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping


class Code(enum.Enum):
    """Every reason for which a request is refused, with the HTTP status that tells of it."""

    BAD_REQUEST = "bad_request", 400
    BAD_HEADER = "bad_header", 400
    BAD_LENGTH = "bad_length", 400
    BAD_METADATA = "bad_metadata", 400
    BAD_CHECKSUM = "bad_checksum", 400
    UNKNOWN_ALGORITHM = "unknown_algorithm", 400
    BAD_CONCAT = "bad_concat", 400
    NOT_OFFERED = "not_offered", 400
    FINAL_UPLOAD = "final_upload", 403
    UNFINISHED = "unfinished", 403
    DENIED = "denied", 403
    """An application's own refusal, which has a status of its own: see Denied."""
    NOT_FOUND = "not_found", 404
    METHOD_NOT_ALLOWED = "method_not_allowed", 405
    OFFSET_MISMATCH = "offset_mismatch", 409
    EXISTS = "exists", 409
    GONE = "gone", 410
    UNSUPPORTED_VERSION = "unsupported_version", 412
    TOO_LARGE = "too_large", 413
    UNSUPPORTED_TYPE = "unsupported_type", 415
    UNSUPPORTED_ENCODING = "unsupported_encoding", 415
    RANGE_NOT_SATISFIABLE = "range_not_satisfiable", 416
    LOCKED = "locked", 423
    TOO_MANY = "too_many", 429
    CHECKSUM_MISMATCH = "checksum_mismatch", 460
    INTERNAL = "internal", 500
    UNSUPPORTED_TRANSFER_CODING = "unsupported_transfer_coding", 501
    UNAVAILABLE = "unavailable", 503
    # 503 and not 408: clients give up on most of 4xx (tus-js-client on all but 409 and 423), and
    # browsers repeat a request that gets 408 behind their page's back.
    STALLED = "stalled", 503
    STOPPING = "stopping", 503
    BUSY = "busy", 503
    NO_SPACE = "no_space", 507

    def __init__(self, label: str, status: int) -> None:
        self.label = label
        self.status = status


class Refusal(Exception):
    """A request that is not carried out. A dialect renders it.

    `retry_after` is in whole seconds; None: trying again will not help, or the client knows when.
    `offset` is the upload's committed offset where the client may want it (409); `allow` the methods
    that would do (405); `size` the number of bytes that there are (416).
    """

    def __init__(
        self,
        code: Code,
        message: str,
        *,
        retry_after: int | None = None,
        offset: int | None = None,
        allow: tuple[str, ...] = (),
        size: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after = retry_after
        self.offset = offset
        self.allow = allow
        self.size = size

    @property
    def status(self) -> int:
        """The HTTP status of the refusal's code."""
        return self.code.status

    def __repr__(self) -> str:
        return f"Refusal({self.code.label}, {self.message!r})"


_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"(?:[!-~\x80-\xff](?:[ -~\t\x80-\xff]*[!-~\x80-\xff])?)?")
_OURS = frozenset(
    "connection content-length date keep-alive proxy-connection te tus-resumable tus-version"
    " trailer transfer-encoding upgrade upload-length upload-offset vary".split()
)
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


class Denied(Refusal):
    """A request that an application refuses, in its own words: what `authorize` and hooks raise.

    `status` is of the 4xx or 5xx, or a redirect with a Location. Without a `body` the client gets
    `message` as it gets every refusal, as text or as problem+json; with one, that body to the
    letter. A 401 that brings no challenge gets the one for bearer tokens, since it must have one
    (RFC 9110, 15.5.2). Raises ValueError for a status, a header or a body that is not to be sent.
    """

    def __init__(
        self,
        status: int = 403,
        message: str = "the request is not allowed",
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | str | None = None,
    ) -> None:
        super().__init__(Code.DENIED, message)
        given = {name.lower(): value for name, value in (headers or {}).items()}
        if not 400 <= status <= 599 and not (status in _REDIRECTS and "location" in given):
            raise ValueError(
                f"a refusal with the status {status}: expected 400 to 599, or a redirect with a"
                " Location"
            )
        for name, value in given.items():
            _check_field(name, value)
        if body is None and "content-type" in given:
            raise ValueError("a Content-Type without a body: expected both, or neither")
        if status == 401:
            given.setdefault("www-authenticate", "Bearer")
        self._status = status
        self.headers = [(n.encode("ascii"), v.encode("latin-1")) for n, v in given.items()]
        self.body = body.encode() if isinstance(body, str) else body

    @property
    def status(self) -> int:
        """The HTTP status that was given."""
        return self._status

    @property
    def lasting(self) -> bool:
        """Whether it is about the request, rather than about who was to decide."""
        return self._status < 500


def _check_field(name: str, value: str) -> None:
    # The value may be a secret (a cookie): it is not in the message.
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not the name of a header")
    if name in _OURS or name.startswith("access-control-"):
        raise ValueError(f"the header {name} is the server's to set")
    if not _VALUE.fullmatch(value):
        raise ValueError(f"the value of the header {name} has characters that no header has")
