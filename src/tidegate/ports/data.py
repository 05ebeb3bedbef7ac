"""Where bytes go: a data store, and what it may be able to do besides."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import msgspec

from tidegate.ports.body import Buffer, Digest
from tidegate.protocol.model import Segment, Upload, UploadId

if TYPE_CHECKING:
    from tidegate.protocol.capabilities import Capability


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
    marked: bool = False
    """It was stored ahead of its record, and is not confirmed: see AheadStore. Not `whole`, then."""


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
class AheadStore(Protocol):
    """A data store that can take a small upload before there is a record of it.

    Until it is told of one it marks the bytes, so that a sweep finds them, though they are whole.
    """

    async def store_ahead(self, upload: Upload, chunks: Sequence[Buffer], *, durable: bool) -> bool:
        """As `WholeStore.store_whole`, under an id that nobody else can have; marked. `stored`
        tells of the bytes as not `whole`.

        False: not here, or not this one; nothing is stored. Raises NoSpaceError, SyncFailedError,
        DataError: then nothing is, either.
        """

    def confirm(self, upload: Upload) -> None:
        """There is a record of it, which says that it is complete: take the mark away, some time
        soon. Never raises, does not wait. May be called again.
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
