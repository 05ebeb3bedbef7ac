"""What is told of every request, by whichever way it came in: a line, and what is counted."""

from __future__ import annotations

import functools
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import unquote

import msgspec

from tidegate.measures import (
    BROKEN,
    DROPPED,
    METHODS,
    NO_STATUS,
    OUTCOMES,
    REQUEST_SECONDS,
    REQUESTS,
    SENT,
    STATUSES,
    Measures,
)
from tidegate.ports import Body
from tidegate.protocol import fields
from tidegate.protocol.errors import Code

if TYPE_CHECKING:
    from tidegate.protocol.dialects.http import Request
    from tidegate.transports.service import Answer

log = logging.getLogger("tidegate.access")

SANE_ID: Final = re.compile(r"[A-Za-z0-9._~+/=:@-]{1,128}")
"""Request ids that are taken over: what UUIDs, trace ids, ULIDs and base64 are made of."""


class Line(msgspec.Struct, omit_defaults=True, gc=False):
    """A request, as a log line tells of it. What the client sent is not made safe yet.

    It can be part of no cycle, so the collector need not look at the many that there are.
    """

    timestamp: datetime
    request_id: str
    method: str
    path: str
    """Without its query, which may hold a secret."""
    status: int | None
    """None: nothing was answered."""
    outcome: str
    """One of `measures.OUTCOMES`: `ok`, a refusal's code, or how it was cut short."""
    bytes_in: int
    bytes_out: int
    seconds: float
    worker: int
    upload: str | None = None
    client: str | None = None
    metadata: dict[str, str] | None = None


class Sent(msgspec.Struct):
    """What a client was sent of an answer."""

    bytes: int = 0
    """Of its body."""
    whole: bool = True
    instead: int | None = None
    """The status that was sent instead of it: what came was not HTTP."""


class SeenBody(Body, Protocol):
    """The body of a request, as far as a line tells of it."""

    received: int
    """Bytes that came."""

    @property
    def cut_short(self) -> bool:
        """Whether the client went away before it had sent all of it."""


Send = Callable[["Answer", Sent], Awaitable[None]]
"""Sends an answer, and says in its second argument how far it got."""


def log_line(line: Line) -> None:
    """Give a line to whatever handles `tidegate.access`."""
    if log.isEnabledFor(logging.INFO):
        fields = msgspec.structs.asdict(line)
        del fields["timestamp"]  # whoever handles it has that
        log.info("request", extra={"tidegate": fields})


class Access:
    """Sees requests through from their head to the end of their answer.

    `tell` is given a line about each (None: none is made), `metadata`: with what the client says of
    its file. With `measures` they are counted.
    """

    def __init__(
        self,
        measures: Measures | None,
        *,
        tell: Callable[[Line], None] | None = log_line,
        metadata: bool = False,
    ) -> None:
        self._measures = measures
        self._tell = tell
        self._metadata = metadata
        self.place = 0
        """Which of several processes this is."""
        self.in_flight = 0
        self._prefix = ""
        self._count = 0
        """How many ids were made; none, before this is the process that makes them."""

    async def see_through(
        self,
        request: Request,
        body: SeenBody,
        *,
        path: str,
        client: str | None,
        answering: Awaitable[Answer],
        send: Send,
    ) -> Sent:
        """Wait for the answer to a request, send it, and tell of both. Raises what `send` raises.

        `path` is the one that the client asked for, `client` who that is.
        """
        began = time.perf_counter()
        request_id = self._id(request)
        self.in_flight += 1
        answered: Answer | None = None
        sent = Sent(whole=False)
        try:
            answered = await answering
            answered.headers.append((b"x-request-id", request_id.encode("ascii")))
            sent.whole = True
            try:
                await send(answered, sent)
            except BaseException:
                sent.whole = False
                raise
            return sent
        finally:
            self.in_flight -= 1
            self._told(request, body, answered, sent, path, client, request_id, began)

    def reject(self, status: int, client: str | None) -> None:
        """Tell of what came and was not a request: it was answered with `status`."""
        if self._measures is not None:
            requests, _ = _cells("other", status, Code.BAD_REQUEST.label)
            self._measures.add(requests)
        if self._tell is not None:
            self._tell(
                Line(
                    datetime.now(UTC),
                    self._new_id(),
                    "-",
                    "-",
                    status,
                    Code.BAD_REQUEST.label,
                    bytes_in=0,
                    bytes_out=0,
                    seconds=0.0,
                    worker=self.place,
                    client=client,
                )
            )

    def _told(
        self,
        request: Request,
        body: SeenBody,
        answer: Answer | None,
        sent: Sent,
        path: str,
        client: str | None,
        request_id: str,
        began: float,
    ) -> None:
        if answer is not None and answer.quiet:
            return
        seconds = time.perf_counter() - began
        status = None if answer is None else answer.status
        outcome = BROKEN if answer is None else answer.outcome
        if sent.instead is not None:
            status, outcome = sent.instead, Code.BAD_REQUEST.label
        elif body.cut_short or (answer is not None and not sent.whole):
            outcome = DROPPED
        measures = self._measures
        if measures is not None:
            method = request.method if request.method in METHODS else "other"
            requests, durations = _cells(method, status, outcome)
            measures.add(requests)
            measures.observe(REQUEST_SECONDS, durations, seconds)
            if sent.bytes:
                measures.add(SENT.start, sent.bytes)
        if self._tell is None:
            return
        upload = None if answer is None else answer.upload
        # By position, which takes half the time.
        self._tell(
            Line(
                datetime.now(UTC),
                request_id,
                request.method,
                path,
                status,
                outcome,
                body.received,
                sent.bytes,
                int(seconds * 1e6) / 1e6,
                self.place,
                upload.id if upload is not None else _named(request),
                client,
                _metadata(upload.metadata) if self._metadata and upload is not None else None,
            )
        )

    def _id(self, request: Request) -> str:
        # As a loop it takes a third of the time, and most requests bring none.
        for name, _ in request.headers:
            if name == b"x-request-id":
                given = request.values(name)
                if len(given) == 1 and SANE_ID.fullmatch(given[0]):
                    return given[0]
                break
        return self._new_id()

    def _new_id(self) -> str:
        """One that no other process makes."""
        if not self._count:
            self._prefix = secrets.token_hex(6)
        self._count += 1
        return f"{self._prefix}{self._count:06x}"


def _named(request: Request) -> str | None:
    """The upload that a request speaks of, whether there is one or not."""
    path = request.path
    return unquote(path) if path and "/" not in path else None


def _metadata(raw: str) -> dict[str, str]:
    pairs = fields.metadata_pairs(raw)
    return {key: value.decode("utf-8", "replace") for key, value in pairs.items()}


@functools.cache  # its arguments are few: nothing that a client can choose
def _cells(method: str, status: int | None, outcome: str) -> tuple[int, int]:
    """Where such requests are counted, and their durations."""
    shown = NO_STATUS if status is None else str(status)
    if shown not in STATUSES:
        shown = f"{shown[0]}xx"
    counted = REQUESTS.cell(method, shown, outcome if outcome in OUTCOMES else "other")
    return counted, REQUEST_SECONDS.cell(method)
