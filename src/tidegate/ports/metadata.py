"""Where records, leases and events live, so that they change together."""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import anyio
import msgspec

from tidegate.ports.events import Ended, Line, Undelivered
from tidegate.protocol.model import Event, Kind, Segment, State, Upload, UploadId

if TYPE_CHECKING:
    from tidegate.protocol.capabilities import Capability


class Lease(msgspec.Struct, frozen=True):
    """The right to write to one upload. `token` grows with every lease of the upload."""

    upload_id: UploadId
    holder: str
    token: int


class Grant(msgspec.Struct, frozen=True):
    """A lease that was acquired, and the record as it was at that instant."""

    lease: Lease
    upload: Upload
    settled: bool
    """False: the last holder never released, so the bytes must be recovered before anything else."""
    boot_id: str
    """What the last holder gave `MetadataStore.open`, when it never released; else empty. A holder
    that never committed hands down that of the one before it, whose bytes it did not recover."""
    wanted: anyio.Event
    """Set when someone asks for the lease, or when it is lost: let go soon."""


class Held(msgspec.Struct, frozen=True):
    """A lease that could not be acquired, since a holder that is alive has it."""

    upload: Upload


class Hold(enum.Enum):
    """Who holds an upload, as `load` saw it."""

    FREE = enum.auto()
    HELD = enum.auto()
    """By someone alive."""
    ABANDONED = enum.auto()
    """By someone who died or gave up: acquire it and recover."""


class Loaded(msgspec.Struct, frozen=True):
    """A record, and whether someone is at work on it."""

    upload: Upload
    hold: Hold


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One atomic change of one upload: all of it happens, or none."""

    upload: Upload
    """The new record. Its `version` is the one that was read; the store adds one."""
    segments: tuple[Segment, ...] = ()
    """To add, or to replace by index."""
    events: tuple[Event, ...] = ()
    release: bool = False
    """Let the lease go, settled, in the same transaction."""
    durable: bool = False
    """Must survive a loss of power before the commit returns."""
    unless_pinned: bool = False
    """Refuse with PinnedError when a pending final needs this partial."""
    forget: bool = False
    """Remove record, segments and lease. Events stay until they are delivered."""


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """How much room all uploads that are receiving may need together, in bytes; None: any.

    An upload counts with its length; while that is not known, with what has come of it.
    """

    unfinished: int | None = None
    """What they may come to, when all are whole."""
    missing: int | None = None
    """What may still be to come."""


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """How much a metadata store holds."""

    uploads: dict[State, int]
    """Of each state that there are any of."""
    pending_events: int
    """Still to be delivered."""
    given_up_events: int
    oldest_event_at: float | None
    """When the oldest of those that are still to be delivered happened."""


class MetadataStore(Protocol):
    """Holds records, leases, segments and events in one place, so that they change together.

    All methods may run concurrently, from one event loop. Each is one transaction. Cancelling a
    call leaves it done or not done, never half done.
    """

    capabilities: Capability
    shared: bool
    """Whether several processes may open the same store at once."""
    leases_expire: bool
    """Whether a lease can be taken from a holder that lives, since it was not heard of for some
    time: it may have been paused, or cut off. The store keeps the leases of its process from
    expiring by itself, as long as it can."""

    async def open(self, boot_id: str = "") -> None:
        """Acquire what is needed, create or migrate the schema. Raises MetadataError, in words for
        the operator.

        `boot_id` is written into every lease, so that whoever finds one that was never released
        knows whether unsynced bytes can still be there (DataStore.boot_id).
        """

    async def close(self) -> None:
        """Let go of all that `open` acquired. May be called twice."""

    async def insert(
        self,
        upload: Upload,
        *,
        lease: bool = False,
        events: Sequence[Event] = (),
        durable: bool = False,
        room: Room | None = None,
    ) -> Grant | None:
        """Write a new record (its `version` 0 becomes 1), and take its lease when asked to.

        The parts of a new final must be partial uploads that are receiving or complete: checked in
        the same transaction, as is `room`. Raises UploadExistsError, PartUnavailableError,
        OverLimitError, NoRoomError, UnavailableError.
        """

    async def load(self, upload_id: UploadId) -> Loaded | None:
        """The record and its hold, or None."""

    async def segments(self, upload_id: UploadId) -> list[Segment]:
        """By index."""

    async def acquire(self, upload_id: UploadId, *, force: bool = False) -> Grant | Held:
        """Take the upload's lease if it is free, or its holder is dead.

        With `force` it is taken from a holder that is alive, whose `wanted` is set and whose next
        commit fails. Raises UnknownUploadError, UnavailableError.
        """

    async def request_release(self, upload_id: UploadId) -> None:
        """Ask the holder to let go: its `wanted` is set at once in this process, within 200 ms in
        another. Fine when nobody holds it.
        """

    async def wait_released(self, upload_id: UploadId, timeout: float) -> None:
        """Return when the lease may be free, or after `timeout` seconds. May return early."""

    async def renew(self, lease: Lease) -> None:
        """See that the lease is held still, and will be for some seconds: what can't be fenced by a
        commit may be done then. Raises LeaseLostError, UnavailableError.
        """

    async def commit(self, lease: Lease, change: Change) -> Upload:
        """Carry out `change`, fenced by `lease`; return the record as it stands now.

        Raises LeaseLostError when the lease is not held any more or the version is stale,
        PinnedError, NoRoomError, UnavailableError.
        """

    async def release(self, lease: Lease) -> None:
        """Let go, settled: record and bytes agree. Fine when it is not held any more."""

    def abandon(self, lease: Lease) -> None:
        """Let go without a word: whoever comes next must recover. At once, never raises."""

    async def pending_finals(self, part: UploadId | None = None) -> list[UploadId]:
        """Final uploads that are still receiving: all, or those that need `part`."""

    def uploads(
        self, *, state: State | None = None, kind: Kind | None = None
    ) -> AsyncIterator[Upload]:
        """All records (of a state, of a kind) by id. What changes meanwhile may be missed."""

    def undone(self) -> AsyncIterator[Upload]:
        """All records that are `undone`, by id. What changes meanwhile may be missed.

        Asked for at every start and stop: it should cost what there is of those, however many
        others there are.
        """

    async def expired(self, now: float, limit: int) -> list[UploadId]:
        """Uploads with `expires_at` <= now that may expire, that nobody holds alive and that no
        pending final needs; oldest first.
        """

    async def tombstones(self, ended_before: float, limit: int) -> list[UploadId]:
        """Expired, terminated and failed uploads that ended before a time, oldest first."""

    async def take_turn(self, name: str, now: float, ttl: float) -> bool:
        """Be the one, of all that share the store, who does `name` for `ttl` seconds from now.

        False when someone else is, as far as the store can tell: where it knows that a holder died,
        the turn is free at once. One's own turn can be taken again, to make it longer.
        """

    async def end_turn(self, name: str) -> None:
        """Let someone else have the turn, if it is ours."""

    async def claim_events(self, now: float, limit: int, ttl: float) -> list[Line]:
        """Take what uploads have to tell for delivery, for `ttl` seconds: all events of each of at
        most `limit` that are due and that nobody else has claimed, those that wait longest first.
        """

    async def end_claims(self, ended: Sequence[Ended]) -> list[UploadId]:
        """Note what became of lines, each another upload's, and let go of those that are over.

        What was told is forgotten; of what is kept, or given up, `done` and `retries` are noted, and
        what was given up is not claimed again. Returns the uploads whose claim is not held any more:
        someone else has or had the line, and nothing is changed. (Or it was ended by this, and the
        answer was lost on its way.) What raises may have ended some of them.
        """

    def events(self) -> AsyncIterator[Undelivered]:
        """All events that are kept, by sequence. What changes meanwhile may be missed."""

    async def replay(self, sequence: int) -> bool:
        """Have an event that was given up delivered after all, as if it had never been tried.

        What its upload had to tell since, and was not delivered yet, waits for it. False when no
        such event was given up.
        """

    async def counts(self) -> Counts:
        """How much there is, now or a moment ago."""


@runtime_checkable
class Versioned(Protocol):
    """A metadata store whose schema has versions. `open` brings an older one to the newest."""

    newest_schema: int
    """The version that it knows; one above that is refused."""

    async def schema_version(self) -> int:
        """The version that is there, 0 for none. Opens nothing, changes nothing.

        Raises MetadataError.
        """
