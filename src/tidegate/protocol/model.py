"""What an upload is: the record that every server of a cluster agrees on."""

from __future__ import annotations

import enum
from typing import Any, NewType

import msgspec

UploadId = NewType("UploadId", str)
"""The last segment of an upload's URL: URL-safe, at least 128 random bits unless an operator names
uploads."""

NOWHERE = UploadId("")
"""What no upload is called: the id in a command whose path can name none."""

MAX_LENGTH = 2**63 - 1
"""The largest length or offset, in bytes: what a signed 64-bit integer, and so every store, holds."""


class Kind(enum.StrEnum):
    """What an upload is for. A kind never changes, and is not a state."""

    REGULAR = "regular"
    PARTIAL = "partial"
    FINAL = "final"


class State(enum.StrEnum):
    """Where an upload is in its life. Only `lifecycle.advance` moves it."""

    RECEIVING = "receiving"
    COMPLETE = "complete"
    EXPIRED = "expired"
    TERMINATED = "terminated"
    FAILED = "failed"


class Segment(msgspec.Struct, frozen=True):
    """A stored piece of an upload, for stores that keep it in pieces (parts of an S3 upload).

    `index` orders the pieces, `start` and `length` are bytes of the upload, `storage` is opaque.
    """

    index: int
    start: int
    length: int
    storage: dict[str, Any] = {}


class Upload(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """The record of one upload. Immutable: a change is a new record, committed by a metadata store.

    Times are seconds since the epoch, sizes and offsets are bytes.
    """

    id: UploadId
    kind: Kind = Kind.REGULAR
    state: State = State.RECEIVING

    length: int | None = None
    """The size of the whole upload; None while it is deferred, or cannot be computed yet."""
    offset: int = 0
    """Acknowledged: bytes [0, offset) are what the client sent, and survive any process's death."""
    synced_offset: int = 0
    """Of those, bytes [0, synced_offset) survive a loss of power."""
    boot_id: str = ""
    """The boot of the machine under which bytes past `synced_offset` were written; empty when all
    is synced, or the store needs no sync."""
    unverified: bool = False
    """The store may hold bytes past `offset` that no checksum has verified: they never count."""

    metadata: str = ""
    """Upload-Metadata to the letter, as the client sent it; empty when there was none."""
    concat: str = ""
    """Upload-Concat to the letter, as the client sent it; empty for a regular upload."""
    parts: tuple[UploadId, ...] = ()
    """For a final upload: the partial uploads in order; one may stand here more than once."""

    storage: dict[str, Any] = {}
    """What the data store needs to find the bytes again. Opaque to everything else."""
    principal: str | None = None
    """Who created the upload; None where nobody is asked."""
    name: str | None = None
    """Where the finished bytes are to be found, below where the store keeps such: a relative path
    that a hook gave; None: as the store names them."""
    max_size: int | None = None
    """What it may come to at most, beside the server's own limit: a hook's or a principal's word."""
    expire_after: float | None = None
    """Seconds without activity after which it is given up; None: the server's own time."""
    guarded: bool = False
    """A hook is asked before its completion: a server that has none leaves it unfinished."""

    created_at: float
    active_at: float
    """The last POST or PATCH that was carried out."""
    expires_at: float | None = None
    """When an unfinished upload (or a partial) is given up; None: never."""
    ended_at: float | None = None
    """When the upload left `receiving`, and again when it left `complete`."""
    version: int = 0
    """Counts commits; a commit of an older version is refused."""

    @property
    def complete(self) -> bool:
        """Whether the upload is whole, and its completion was carried out."""
        return self.state is State.COMPLETE

    @property
    def gone(self) -> bool:
        """Whether only a tombstone is left, which answers 410."""
        return self.state in GONE

    @property
    def promised(self) -> int:
        """What it will come to, in bytes: its length, or what has come while that is not known."""
        return self.offset if self.length is None else self.length

    @property
    def whole(self) -> bool:
        """Whether every byte is acknowledged, so that completion is due or done."""
        return self.length is not None and self.offset == self.length

    @property
    def undone(self) -> bool:
        """Whether something is left to do to it though nobody asks: its completion, or a sync."""
        return self.state is State.RECEIVING and (self.whole or self.offset > self.synced_offset)


GONE = frozenset({State.EXPIRED, State.TERMINATED, State.FAILED})


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """Who makes a request. Raises ValueError for what is none."""

    id: str
    """The same for all requests of one user, tenant or service: uploads belong to it."""
    max_size: int | None = None
    """The largest upload that it may make, in bytes; None: what the server allows."""
    claims: dict[str, Any] = {}
    """What else is known of it, for hooks; never stored, never logged."""

    def __post_init__(self) -> None:
        """Check what would do harm in a record or a comparison."""
        if not self.id or not self.id.isprintable():
            raise ValueError("a principal's id is empty, or has control characters")
        if self.max_size is not None and self.max_size < 0:
            raise ValueError(f"a principal's max_size is {self.max_size}: expected 0 or more bytes")


class EventType(enum.StrEnum):
    """What can be told of an upload."""

    CREATED = "created"
    COMPLETED = "completed"
    TERMINATED = "terminated"
    EXPIRED = "expired"
    PROGRESS = "progress"
    """More of it is acknowledged. Told now and then to who asks for it, and never stored."""


STORED_EVENTS = frozenset(EventType) - {EventType.PROGRESS}
"""What is committed with the change it tells of, and so told at least once."""


class Event(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Something that happened to an upload, committed together with the change it tells of."""

    type: EventType
    at: float
    upload: Upload
    """The record as the change left it."""
