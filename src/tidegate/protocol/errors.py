"""Refusals: a stable code, a status, a message that says what was wrong and what was expected.

The message is for the person who wrote the client. It never carries what only the server may know.
"""

from __future__ import annotations

import enum


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
