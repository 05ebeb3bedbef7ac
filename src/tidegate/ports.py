"""What the engine asks of the outside: where bytes go, where records live, what time it is.

Each port says what the caller guarantees and what the implementer owes. `tidegate.testing` holds
checks that any implementation can be run through.

Two rules hold for every port: nothing blocks the event loop (a disk, a hash, a lock are waited for
in a worker thread), and a driver's own exception never crosses the port: it is translated, once, to
the exceptions named here.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable
from urllib.parse import quote

import anyio
import msgspec

from tidegate.protocol.model import Event, EventType, Kind, Segment, State, Upload, UploadId

if TYPE_CHECKING:
    from tidegate.protocol.capabilities import Capability
    from tidegate.protocol.commands import Checksum

Buffer: TypeAlias = bytes | bytearray | memoryview
Store: TypeAlias = Callable[[Sequence[Buffer]], None]
"""Stores chunks, in order; blocking, to be called from one thread at a time, not the event loop's.
What it raises ends the body's reading."""
Splice: TypeAlias = Callable[[int, int], None]
"""Stores so many bytes that are in a pipe, of which it is given the end to read from, and which
nobody needs to see. Otherwise as Store; what it leaves in the pipe when it raises is lost."""


class Durability(enum.StrEnum):
    """What an acknowledgement promises about a loss of power."""

    COMPLETE = "complete"
    """What was shown as complete survives it; the offset of an unfinished upload may go back to
    what was synced."""
    ACK = "ack"
    """Whatever was acknowledged survives it."""
    NONE = "none"
    """Nothing is ever synced. A crash of a process still loses nothing."""


class Clock(Protocol):
    """What time it is."""

    def now(self) -> float:
        """Seconds since the epoch, for what is written down."""

    def monotonic(self) -> float:
        """Seconds since some instant, never going back, for measuring how long something took."""


# --------------------------------------------------------------------------- the body of a request


class Sink(Protocol):
    """Where a body's bytes go."""

    async def write(self, chunks: Sequence[Buffer]) -> None:
        """Take `chunks`, in order, all or none before raising.

        The chunks belong to the sink until it returns. Whatever it raises ends the body's reading.
        """


@runtime_checkable
class DirectSink(Sink, Protocol):
    """A sink that a body may also write to from a thread of its own: what fast transports are for."""

    async def pour(self, burst: Callable[[Store, Splice | None], Awaitable[None]]) -> bool:
        """Let `burst` store what it likes from a thread of its own, without the event loop.

        It is given what stores chunks and, where that can be, what stores bytes out of a pipe. It
        may use both until it returns or raises, and raises what they raise. It returns from time to
        time, so that the sink can see to what it has stored (64 MiB, a quarter of a second). False:
        `write` is the only way now; nothing was done.
        """


class BodyEnd(enum.Enum):
    """How the reading of a body ended."""

    WHOLE = enum.auto()
    """All of it was read."""
    DROPPED = enum.auto()
    """The client went away; all that arrived was given to the sink."""
    STOPPED = enum.auto()
    """The reader was asked to stop; all that it had read was given to the sink."""
    STALLED = enum.auto()
    """The client sent nothing, or too little, for too long; all that arrived was given."""


class Body(Protocol):
    """The bytes of one request, read at most once.

    Until `copy_to` is called nothing of the body is read, and a client that sent
    `Expect: 100-continue` is not told to go on.
    """

    async def copy_to(self, sink: Sink, stop: anyio.Event) -> BodyEnd:
        """Give the body to `sink` until it ends, or until `stop` is set.

        Memory in use does not depend on the size of the body, nor on the speed of the client. When
        `stop` is set reading ends at once, whatever the client does. Raises what the sink raises.
        """

    def trailing_checksum(self) -> Checksum:
        """The checksum that the trailer brought, once `copy_to` has returned WHOLE.

        Only called when the head announced it, and the transport has Capability.TRAILERS. Raises
        Refusal when the trailer brought none, more than one, or a malformed one.
        """


class Digest(Protocol):
    """A running checksum, as in hashlib."""

    def update(self, data: Buffer, /) -> None:
        """Add bytes."""

    def digest(self) -> bytes:
        """The digest of all that was added."""


# --------------------------------------------------------------------------------- where bytes go


class DataError(Exception):
    """The data store could not do what was asked. The message is for the operator only."""


class NoSpaceError(DataError):
    """There is no room. Nothing is wrong with what is stored."""


class SyncFailedError(DataError):
    """What was written may not survive a loss of power, though it can be read now.

    The operating system tells of it once: another sync would succeed and mean nothing. The caller
    goes back to what was synced before.
    """


class BytesBusyError(DataError):
    """Another process holds the upload's bytes: it is alive (perhaps paused) and may write."""


class BytesMissingError(DataError):
    """Bytes that the record speaks of are not there."""


class Writer(Protocol):
    """One session of writing to one upload. One task uses it at a time.

    No more than one writer is open per upload: the caller holds the upload's lease, and a store on
    a local disk holds an exclusive lock besides.
    """

    @property
    def offset(self) -> int:
        """Where the next byte goes."""

    async def write(self, chunks: Sequence[Buffer], digest: Digest | None = None) -> None:
        """Append `chunks`, and add them to `digest`, both off the event loop.

        Bytes written count once `flush` has returned. Raises NoSpaceError (what fitted is kept, and
        `offset` tells how much) or DataError.
        """

    async def copy(self, part: Upload, start: int, stop: int) -> None:
        """Append bytes [start, stop) of another, complete upload, without reading them here.

        Needs Capability.COPY. Raises BytesMissingError when `part` is shorter, NoSpaceError,
        DataError.
        """

    async def progress(self) -> Flushed:
        """What is stored by now so that it survives this process's death, without waiting for more
        than is there: in between, so that little is lost.

        What was told of before, by this or `flush`, was committed. Raises DataError.
        """

    async def flush(self) -> Flushed:
        """What is stored so that it survives this process's death: all that was written before.

        As for `progress`; a writer of which no more is wanted should be told by it last.
        """

    async def sync(self) -> int:
        """Make what was flushed survive a loss of power; return the offset up to which it does.

        May run while `write` runs in another task. Raises SyncFailedError.
        """

    async def close(self) -> None:
        """Let go of the upload. Never raises, may be called twice."""


@runtime_checkable
class BlockingWriter(Protocol):
    """A writer that a thread can write to without the event loop."""

    def write_blocking(self, chunks: Sequence[Buffer], digest: Digest | None = None) -> None:
        """As `Writer.write`; blocks. From any thread, one at a time, never with `write`."""


@runtime_checkable
class SplicingWriter(BlockingWriter, Protocol):
    """One that can have the kernel move the bytes, without anybody seeing them."""

    def splice_blocking(self, pipe: int, count: int) -> None:
        """Append `count` bytes that are in a pipe, read from its end `pipe`. As `write_blocking`."""


class Flushed(msgspec.Struct, frozen=True):
    """What a writer has stored."""

    offset: int
    segments: tuple[Segment, ...] = ()
    """Pieces that are new, or take another's place, since the last that were told of. The caller
    commits them with the offset, or the upload comes to nothing."""
    storage: dict[str, Any] | None = None
    """The record's new `storage`, when it changed."""
    synced: int = 0
    """Up to where it survives a loss of power, too, for stores that need no sync to know."""


class Fence(Protocol):
    """The lease under which a data store works, as far as the store has to do with it.

    To be called by the task that called the store, before that call returns; and, by a writer's
    methods, as long as it is open.
    """

    async def hold(self) -> None:
        """See that nobody else has the upload by now: before what they may have added is cut off.

        Raises LeaseLostError, UnavailableError.
        """

    async def reserve(self, storage: dict[str, Any]) -> None:
        """Make `storage` the record's, before something is stored that only it tells of.

        Raises LeaseLostError, UnavailableError, NoRoomError.
        """

    async def segments(self) -> list[Segment]:
        """The upload's pieces that were committed, by index. Raises UnavailableError."""


class Stored(msgspec.Struct, frozen=True):
    """Something that a sweep found in a data store."""

    upload_id: UploadId
    size: int
    modified_at: float
    place: str
    """For people: where it is. Two places may belong to one upload."""
    whole: bool = False
    """`finish` has made it ready to be read: should its record be lost, it may be all that is left
    of a complete upload, and no sweep deletes it."""


class OpenFile(Protocol):
    """A file that is open for reading."""

    def use(self) -> AbstractContextManager[int]:
        """Its descriptor, valid inside the context. In any thread. Raises DataError when closed."""

    def close(self) -> None:
        """Close it as soon as nobody uses it; may block. Never raises."""


@runtime_checkable
class FileStore(Protocol):
    """A data store whose complete uploads are files, which the kernel can send by itself."""

    async def open_file(self, upload: Upload, stop: int) -> OpenFile:
        """The file of a complete upload, which has `stop` bytes at least: [0, offset) are its own.

        Raises BytesMissingError, DataError.
        """


class Shown(msgspec.Struct, frozen=True):
    """How a file is presented to whoever downloads it: values of HTTP's header fields."""

    content_type: str
    content_disposition: str
    cache_control: str


@runtime_checkable
class LinkStore(Protocol):
    """A data store that clients can read from by themselves, if they are given a link."""

    async def link(self, upload: Upload, shown: Shown) -> str | None:
        """A URL at which a complete upload can be read for some minutes; None: not here, read it.

        Raises DataError.
        """


@runtime_checkable
class WholeStore(Protocol):
    """A data store that can take a small upload at once, where a writer takes many steps."""

    async def store_whole(
        self, upload: Upload, chunks: Sequence[Buffer], *, durable: bool
    ) -> dict[str, Any]:
        """Store all bytes of an upload of which nothing is stored yet, as a writer does and
        `DataStore.finish`; return its `storage`. All of it, or nothing, is there at any time.

        The caller holds the lease. Raises NoSpaceError, SyncFailedError, DataError.
        """


@runtime_checkable
class PieceStore(Protocol):
    """A data store that keeps an upload in pieces, of which some may be left over.

    Only what was committed is there: `measure` says no more, and `truncate` is never asked for less.
    Before `finish` the whole record was committed, with its length, and is the one that comes back.
    """

    def speaks_of(self, upload: Upload, segments: Sequence[Segment], stored: Stored) -> bool:
        """Whether a record, with its segments, speaks of something that `stored` found.

        Where it does not, it was left behind by a writer that died or lost its lease. Pure. The
        caller holds the lease, and the record is not gone.
        """


class DataStore(Protocol):
    """Holds bytes and nothing else.

    What it needs to find them again stands in the record's `storage`, which `place` makes before
    the record is written, so that no byte is ever stored that no record speaks of (a crash may
    leave a record without bytes; that is an upload of offset 0).

    The caller holds the upload's lease for `writer`, `truncate`, `finish`; `read` is only called on
    complete uploads (but see Capability.PEEK); `delete` and `measure` may be called at any time.
    """

    capabilities: Capability
    boot_id: str
    """Under which boot unsynced bytes survive a process's death. Empty: sync means nothing here."""
    max_size: int | None
    """The largest upload that it can hold, in bytes; None: no limit of its own."""

    async def open(self) -> None:
        """Acquire what is needed. Raises DataError, in words for the operator."""

    async def close(self) -> None:
        """Let go of all that `open` acquired. May be called twice."""

    def place(self, upload: Upload) -> dict[str, Any]:
        """The `storage` of a new upload. Pure and quick; the same upload gives the same.

        Where the bytes have a name that people see, `upload.name` is it, when there is one.
        """

    async def writer(self, upload: Upload, fence: Fence) -> Writer:
        """Open the upload's bytes for appending at exactly `upload.offset`.

        Bytes past it are cut off first (the caller has recovered what counts), once `fence` held
        while nobody else could write. Raises BytesBusyError, BytesMissingError when fewer bytes are
        there, NoSpaceError, DataError, and what `fence` raises.
        """

    async def measure(self, upload: Upload) -> int:
        """How many bytes, in order and without a gap, are truly there. 0 when there are none."""

    async def truncate(self, upload: Upload, offset: int, fence: Fence) -> None:
        """Cut off all bytes past `offset`; fine when there are none. `fence` as for `writer`.

        Raises BytesBusyError, DataError, and what `fence` raises.
        """

    async def finish(self, upload: Upload, fence: Fence, *, durable: bool) -> dict[str, Any]:
        """Make a whole upload (offset = length) ready to be read; return its `storage`.

        Its segments, if it has any, were committed. With `durable` its bytes, and its name, survive
        a loss of power when this returns. Doing it again after a crash, with the old record, gives
        the same. Raises BytesMissingError when it is not whole, SyncFailedError, DataError, and
        what `fence` raises.
        """

    def read(self, upload: Upload, start: int, stop: int) -> AsyncIterator[bytes]:
        """Bytes [start, stop) in chunks of at most 1 MiB. Needs Capability.READ.

        With Capability.PEEK also of an upload that is whole and not finished, or finished without a
        commit, to who holds its lease. Raises BytesMissingError before the first chunk when they are not there, DataError.
        """

    async def delete(self, upload: Upload) -> None:
        """Delete the upload's bytes, wherever it is in its life. Fine when there are none.

        A writer that is still at work is not waited for: what it writes is never found again.
        """

    def stored(self) -> AsyncIterator[Stored]:
        """All that is stored, in any order, for the sweep and the check."""

    async def discard(self, stored: Stored) -> None:
        """Delete something that `stored` found and that no record speaks of."""

    async def free_space(self) -> int | None:
        """Bytes that still fit; None where that is unknown or has no meaning."""


# ------------------------------------------------------------- what either store may tell besides


@runtime_checkable
class ProbedStore(Protocol):
    """A store that can say whether it is reached, better than what is asked of it otherwise can."""

    async def probe(self) -> None:
        """Return when it can do its work, as far as a quick look tells. Raises DataError, or
        MetadataError.
        """


@runtime_checkable
class QueuedStore(Protocol):
    """A store whose calls may have to wait for their turn."""

    def queued(self) -> int:
        """How many wait, or are at work, in this process. Quick."""


# ------------------------------------------------------------------------------ where records live


class MetadataError(Exception):
    """The metadata store could not do what was asked; nothing was changed."""


class UnavailableError(MetadataError):
    """It cannot be reached or is busy, for now.."""


class NoRoomError(MetadataError):
    """It has no room for more records."""


class UploadExistsError(MetadataError):
    """There is, or was, an upload with this id."""


class UnknownUploadError(MetadataError):
    """There is no upload with this id."""


class PartUnavailableError(MetadataError):
    """A part of a new final upload is not there (any more)."""

    def __init__(self, part: UploadId) -> None:
        super().__init__(f"no partial upload {part}")
        self.part = part


class OverLimitError(MetadataError):
    """With the new upload, unfinished ones would need more room than they may."""


class PinnedError(MetadataError):
    """A pending final upload needs this partial."""


class LeaseLostError(MetadataError):
    """The lease is not held any more: someone else may be writing. Nothing was changed."""


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


class Delivery(msgspec.Struct, frozen=True):
    """An event that was claimed for delivery."""

    sequence: int
    """Grows with every event of the store; 0 for progress, which is not stored."""
    event: Event
    attempts: int
    """How many deliveries failed before this one."""
    done: tuple[str, ...] = ()
    """The sinks that have it already, by name."""

    @property
    def key(self) -> str:
        """The idempotency key: the same whenever this event is told, and of no other event.

        URL-safe, without full stops.
        """
        upload = self.event.upload
        upload_id = quote(upload.id, safe="").replace(".", "%2E")
        return f"{self.sequence or f'p{upload.offset}'}-{upload_id}"


class Undelivered(msgspec.Struct, frozen=True):
    """An event that is kept for delivery, as a list for people shows it."""

    delivery: Delivery
    due_at: float | None
    """When it is delivered next; None: it waits for an older one of its upload, or was given up."""
    given_up: bool


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

    async def claim_events(self, now: float, limit: int, ttl: float) -> list[Delivery]:
        """Take events for delivery, for `ttl` seconds: of each upload the oldest undelivered one,
        if it is due and nobody else has claimed it.
        """

    async def acknowledge(self, sequence: int) -> None:
        """The event was delivered: forget it."""

    async def postpone(
        self, sequence: int, due_at: float | None, *, done: Sequence[str] = ()
    ) -> None:
        """Delivery failed: try again at `due_at`; None: give it up (kept, not claimed again).

        `done` are the sinks that have it, in all attempts.
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


# ------------------------------------------------------------------------------ who is told


class DeliveryError(Exception):
    """A sink did not take an event. The message is for the operator only, and tells no secret."""

    def __init__(
        self, message: str, *, retry_after: float | None = None, final: bool = False
    ) -> None:
        """`retry_after`: not again before so many seconds; `final`: it never will."""
        super().__init__(message)
        self.retry_after = retry_after
        self.final = final


class EventSink(Protocol):
    """Who is told of events: of each at least once, of those of one upload in order.

    Progress apart, which may be left out and may come late. Several events, of different uploads,
    are delivered at once.
    """

    name: str
    """Under which it is remembered what it has, over restarts. See `engine.outbox.NAME`."""
    types: frozenset[EventType]
    """What it wants to be told of."""
    timeout: float
    """Seconds after which a delivery is cancelled, and has failed."""

    async def open(self) -> None:
        """Acquire what is needed. Waits for nobody who is told: they may be away."""

    async def close(self) -> None:
        """Let go of all that `open` acquired. May be called twice."""

    async def deliver(self, delivery: Delivery) -> None:
        """Return once the event was taken.

        Whatever it raises makes the event be told again, later; DeliveryError says more.
        """
