"""What a client knows of its uploads: their bytes, and what the server may and may not say of them."""

from __future__ import annotations

import base64
import random
import time
from dataclasses import dataclass, field
from typing import Literal

POOL = 8 * 1024 * 1024
"""Bytes from which all content is cut; no two places in it look alike."""

Kind = Literal["regular", "partial", "final"]


class Broken(AssertionError):
    """The server broke a promise."""


class Sea:
    """Random bytes, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self._pool = random.Random(seed).randbytes(POOL)

    def water(self, shift: int, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of the content that begins at `shift`."""
        at = (shift + start) % POOL
        found = self._pool[at : at + stop - start]
        while len(found) < stop - start:
            found += self._pool[: stop - start - len(found)]
        return found


@dataclass
class Known:
    """One upload, as its client knows it. It has one client, which sends one request at a time."""

    sea: Sea
    key: str
    length: int
    shift: int
    expire_after: float
    kind: Kind = "regular"
    parts: list[Known] = field(default_factory=list)
    deferred: bool = False
    """Whether the length is still to be told."""

    path: str | None = None
    """Where it is, once the server said so. Without, it may exist all the same."""
    acked: int = 0
    """What was acknowledged: the offset is never below it."""
    ceiling: int = 0
    """What was sent so that it may count: the offset is never above it."""
    lingering: int = 0
    """As `ceiling`, by requests that were given up here and that may still be carried out."""
    kept: int = 0
    """What the server had stored of a plain append without an answer: the offset is not below it."""
    either: tuple[int, ...] | None = None
    """After a checksummed append without an answer: the offset is one of these, nothing between."""
    shown_complete: bool = False
    deleting: bool = False
    """A DELETE was sent."""
    deleted: bool = False
    """... and answered."""
    gone: bool = False
    """It was not there any more, as it may be."""
    was_cut: bool = False
    """A request was given up here, so that what is stored may change at any time."""
    active_at: float = 0.0
    """When the last POST or PATCH that was acknowledged began."""
    said: list[str] = field(default_factory=list)
    """The last that was heard, for the report."""

    @property
    def id(self) -> str:
        assert self.path is not None
        return self.path.rpartition("/")[2]

    @property
    def metadata(self) -> str:
        """Its Upload-Metadata, by which its record is known even when no Location arrived."""
        return f"key {base64.b64encode(self.key.encode()).decode()}"

    def content(self, start: int, stop: int) -> bytes:
        if self.kind != "final":
            return self.sea.water(self.shift, start, stop)
        return b"".join(part.content(0, part.length) for part in self.parts)[start:stop]

    def fail(self, what: str) -> Broken:
        heard = "; ".join(self.said[-12:])
        return Broken(f"{self.kind} {self.key} at {self.path}: {what} (heard: {heard})")

    def may_expire(self, *, margin: float = 0.0) -> bool:
        """Whether its time may be up."""
        if self.shown_complete and self.kind != "partial":
            return False
        return time.time() + margin >= self.active_at + self.expire_after

    # ------------------------------------------------------------------------- what it was told

    def hear(self, what: str) -> None:
        self.said.append(what)
        del self.said[:-40]

    def shows(self, offset: int, *, complete: bool) -> None:
        """HEAD said so, and no writer is at work any more but those that linger."""
        self.hear(f"at {offset}{' complete' if complete else ''}")
        if self.deleted or (self.gone and not self.may_expire()):
            raise self.fail("it is there again")
        # Its time was up, but while somebody holds it (who sweeps, or recovers) that does not count.
        self.gone = False
        if offset < self.acked:
            raise self.fail(f"offset {offset}, but {self.acked} were acknowledged")
        if offset > max(self.ceiling, self.lingering):
            raise self.fail(f"offset {offset}, but only {self.ceiling} were sent")
        if self.either is not None and offset not in self.either and offset > self.lingering:
            raise self.fail(f"offset {offset} of {self.either}: unverified bytes count")
        if offset < self.kept:
            raise self.fail(f"offset {offset}, but {self.kept} bytes were stored and count")
        if self.shown_complete and not complete:
            raise self.fail("it was complete, and is not any more")
        self.acked = self.ceiling = offset
        self.kept, self.either = 0, None
        self.shown_complete = complete

    def acknowledged(self, offset: int, *, complete: bool, since: float) -> None:
        """A POST or PATCH that began `since` was answered by 2xx."""
        self.hear(f"ack {offset}{' complete' if complete else ''}")
        self.acked = self.ceiling = offset
        self.kept, self.either = 0, None
        self.active_at = since
        self.shown_complete = self.shown_complete or complete

    def sent_plain(self, stop: int, *, lingers: bool) -> None:
        """Bytes up to `stop` may count; there was no answer."""
        self.hear(f"sent to {stop}{' lingers' if lingers else ''}")
        self.ceiling = max(self.ceiling, stop)
        if lingers:
            self.lingering = max(self.lingering, stop)

    def sent_checked(self, offset: int, stop: int) -> None:
        """All up to `stop` counts, or nothing from `offset` on; there was no answer."""
        self.hear(f"sent checked {offset} or {stop}")
        self.ceiling = max(self.ceiling, stop)
        self.either = (offset, stop)

    def is_gone(self, status: int) -> None:
        """It answered 404 or 410."""
        self.hear(f"gone {status}")
        if not (self.deleting or self.gone or self.may_expire()):
            raise self.fail(f"{status}, but nobody deleted it and its time is not up")
        self.gone = True
