"""Stores that fail, or hold still, at a call that a test chose; and that die with their process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import anyio.lowlevel
from msgspec.structs import replace

from tidegate.ports import DataError, UnavailableError
from tidegate.protocol.model import Segment
from tidegate.testing.data import ALONE

if TYPE_CHECKING:
    from tidegate.ports import (
        AheadStore,
        Buffer,
        Change,
        Counts,
        DataStore,
        Digest,
        Ended,
        Fence,
        Flushed,
        Grant,
        Held,
        Lease,
        Line,
        Loaded,
        MetadataStore,
        PieceStore,
        Room,
        Stored,
        Undelivered,
        WholeStore,
        Writer,
    )
    from tidegate.protocol.model import Event, Kind, State, Upload, UploadId
    from tidegate.stores.s3.store import S3Store

T = TypeVar("T")


class Gate:
    """Holds a call until the test lets it go on."""

    def __init__(self) -> None:
        self.reached = anyio.Event()
        self.go = anyio.Event()

    async def __call__(self) -> None:
        self.reached.set()
        await self.go.wait()


class _Fault:
    def __init__(
        self, act: Callable[[], Awaitable[None]], *, skip: int, times: int, after: bool
    ) -> None:
        self.act = act
        self.skip = skip
        self.times = times
        self.after = after


class Faults:
    """What is to go wrong, by the name of the call; `calls` tells which were made."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.dead: Exception | None = None
        """The process died: every call raises this, and does nothing."""
        self._planned: dict[str, list[_Fault]] = {}

    def fail(
        self, call: str, error: Exception, *, skip: int = 0, times: int = 1, after: bool = False
    ) -> None:
        """Raise `error` from a call; `after` it was carried out: how things stand is in doubt."""

        async def act() -> None:
            raise error

        self.do(call, act, skip=skip, times=times, after=after)

    def hold(self, call: str, *, skip: int = 0, after: bool = False) -> Gate:
        """Hold one call."""
        gate = Gate()
        self.do(call, gate, skip=skip, after=after)
        return gate

    def do(
        self,
        call: str,
        act: Callable[[], Awaitable[None]],
        *,
        skip: int = 0,
        times: int = 1,
        after: bool = False,
    ) -> None:
        """Do something at a call, but for the first `skip` of them."""
        self._planned.setdefault(call, []).append(_Fault(act, skip=skip, times=times, after=after))

    def clear(self) -> None:
        """Let all go well from now on."""
        self._planned.clear()

    async def around(self, call: str, act: Callable[[], Awaitable[T]]) -> T:
        """Carry out a call, or what is planned in its place. Others run meanwhile, as they would."""
        await anyio.lowlevel.checkpoint()
        if self.dead is not None:
            raise self.dead
        self.calls.append(call)
        due = self._due(call)
        for fault in due:
            if not fault.after:
                await fault.act()
        result = await act()
        for fault in due:
            if fault.after:
                await fault.act()
        return result

    def _due(self, call: str) -> list[_Fault]:
        due: list[_Fault] = []
        for fault in self._planned.get(call, []):
            if fault.skip:
                fault.skip -= 1
            elif fault.times:
                fault.times -= 1
                due.append(fault)
        return due


class FaultyStore:
    """A DataStore around another one.

    `boot_id` can be set, to the next boot of the machine; `storage` is what the next flush says
    changed, and `pieces` what it says was stored.
    """

    def __init__(self, inner: DataStore, *, boot_id: str | None = None) -> None:
        self.inner = inner
        self.faults = Faults()
        self.capabilities = inner.capabilities
        self.max_size = inner.max_size
        self.boot_id = inner.boot_id if boot_id is None else boot_id
        self._own_boot_id = boot_id is not None
        self.writers: list[FaultyWriter] = []
        self.storage: dict[str, Any] | None = None
        self.pieces: tuple[Segment, ...] = ()
        self.free: int | None = None
        self.copied = 0
        """Bytes, by all writers together."""

    def die(self) -> None:
        """End as a process does: what is called from now on does nothing."""
        self.faults.dead = DataError("the process is dead")

    async def open(self) -> None:
        await self.faults.around("open", self.inner.open)
        if not self._own_boot_id:
            self.boot_id = self.inner.boot_id

    async def close(self) -> None:
        await self.inner.close()

    def place(self, upload: Upload) -> dict[str, Any]:
        return self.inner.place(upload)

    async def writer(self, upload: Upload, fence: Fence) -> Writer:
        writer = await self.faults.around("writer", lambda: self.inner.writer(upload, fence))
        self.writers.append(FaultyWriter(self, writer))
        return self.writers[-1]

    async def measure(self, upload: Upload) -> int:
        return await self.faults.around("measure", lambda: self.inner.measure(upload))

    async def truncate(self, upload: Upload, offset: int, fence: Fence) -> None:
        await self.faults.around("truncate", lambda: self.inner.truncate(upload, offset, fence))

    async def finish(self, upload: Upload, fence: Fence, *, durable: bool) -> dict[str, Any]:
        return await self.faults.around(
            "finish", lambda: self.inner.finish(upload, fence, durable=durable)
        )

    def read(self, upload: Upload, start: int, stop: int) -> AsyncIterator[bytes]:
        return self.inner.read(upload, start, stop)

    async def delete(self, upload: Upload) -> None:
        await self.faults.around("delete", lambda: self.inner.delete(upload))

    async def stored(self) -> AsyncIterator[Stored]:
        async def nothing() -> None: ...

        await self.faults.around("stored", nothing)
        async for found in self.inner.stored():
            yield found

    async def discard(self, stored: Stored) -> None:
        await self.faults.around("discard", lambda: self.inner.discard(stored))

    async def free_space(self) -> int | None:
        return self.free


class FaultyPieceStore(FaultyStore):
    """One that keeps pieces beside what the inner one stores, and says so in the record.

    Each writer reserves the name of a piece before it writes; what it flushes is that piece.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.left_over: list[Stored] = []

    async def writer(self, upload: Upload, fence: Fence) -> Writer:
        writer = await super().writer(upload, fence)
        return FaultyPieceWriter(self, writer, upload, fence)

    def speaks_of(self, upload: Upload, segments: Sequence[Segment], stored: Stored) -> bool:
        return stored.place in {f"piece {segment.index}" for segment in segments}

    async def stored(self) -> AsyncIterator[Stored]:
        for found in self.left_over:
            yield found

    async def discard(self, stored: Stored) -> None:
        await self.faults.around("discard", anyio.lowlevel.checkpoint)
        self.left_over.remove(stored)


class FaultyBucket(FaultyStore):
    """One around a store that keeps pieces by itself."""

    inner: S3Store

    def speaks_of(self, upload: Upload, segments: Sequence[Segment], stored: Stored) -> bool:
        return self.inner.speaks_of(upload, segments, stored)


class FaultyWholeStore(FaultyStore):
    """One that takes small uploads at once."""

    async def store_whole(
        self, upload: Upload, chunks: Sequence[Buffer], *, durable: bool
    ) -> dict[str, Any]:
        async def store() -> dict[str, Any]:
            writer = await self.inner.writer(upload, ALONE)
            await writer.write(chunks)
            await writer.close()
            whole = replace(upload, offset=writer.offset)
            return await self.inner.finish(whole, ALONE, durable=durable)

        return await self.faults.around("store_whole", store)


class FaultyAheadStore(FaultyWholeStore):
    """One that takes them ahead of their records, if `willing`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.willing = True
        self.marked: set[UploadId] = set()
        """Of which there may be no record."""

    async def store_ahead(self, upload: Upload, chunks: Sequence[Buffer], *, durable: bool) -> bool:
        async def store() -> bool:
            if not self.willing:
                return False
            writer = await self.inner.writer(upload, ALONE)
            await writer.write(chunks)
            await writer.close()
            await self.inner.finish(replace(upload, offset=writer.offset), ALONE, durable=durable)
            self.marked.add(upload.id)
            return True

        return await self.faults.around("store_ahead", store)

    async def stored(self) -> AsyncIterator[Stored]:
        async for found in super().stored():
            yield replace(found, marked=found.upload_id in self.marked)

    def confirm(self, upload: Upload) -> None:
        if self.faults.dead is None:
            self.marked.discard(upload.id)


class FaultyWriter:
    """A Writer around another one."""

    def __init__(self, store: FaultyStore, inner: Writer) -> None:
        self._store = store
        self._faults = store.faults
        self.inner = inner
        self.closed = False

    @property
    def offset(self) -> int:
        return self.inner.offset

    async def write(self, chunks: Sequence[Buffer], digest: Digest | None = None) -> None:
        await self._faults.around("write", lambda: self.inner.write(chunks, digest))

    async def copy(self, part: Upload, start: int, stop: int) -> None:
        await self._faults.around("copy", lambda: self.inner.copy(part, start, stop))
        self._store.copied += stop - start

    async def flush(self) -> Flushed:
        flushed = await self._faults.around("flush", self.inner.flush)
        storage, self._store.storage = self._store.storage, None
        pieces, self._store.pieces = self._store.pieces, ()
        if storage is None and not pieces:
            return flushed
        return type(flushed)(flushed.offset, pieces, storage)

    progress = flush

    async def sync(self) -> int:
        return await self._faults.around("sync", self.inner.sync)

    async def close(self) -> None:
        # Also when the process is dead: the kernel closes what it had open.
        self.closed = True
        await self.inner.close()


class FaultyPieceWriter(FaultyWriter):
    def __init__(
        self, store: FaultyPieceStore, inner: Writer, upload: Upload, fence: Fence
    ) -> None:
        super().__init__(store, inner)
        self._upload = upload
        self._fence = fence
        self._reserved = False

    async def write(self, chunks: Sequence[Buffer], digest: Digest | None = None) -> None:
        if not self._reserved:
            self._reserved = True
            before = await self._fence.segments()
            storage = {**self._upload.storage, "next": len(before) + 1}
            await self._fence.reserve(storage)
            length = (self._upload.length or 0) - self._upload.offset
            piece = Segment(len(before), self._upload.offset, length, {"piece": len(before)})
            self._store.pieces = (piece,)
        await super().write(chunks, digest)


class FaultyMetadata:
    """A MetadataStore around another one. `leases` are those that were granted and not let go."""

    def __init__(self, inner: MetadataStore) -> None:
        self.inner = inner
        self.faults = Faults()
        self.capabilities = inner.capabilities
        self.shared = inner.shared
        self.leases_expire = inner.leases_expire
        self.leases: dict[int, Lease] = {}
        self.turn_is_free = True

    def die(self) -> None:
        """End as a process does: nothing more is written, and its leases are left behind."""
        self.faults.dead = UnavailableError("the process is dead")
        for lease in self.leases.values():
            self.inner.abandon(lease)

    def _granted(self, grant: Grant | Held | None) -> None:
        lease = getattr(grant, "lease", None)
        if lease is not None:
            self.leases[lease.token] = lease

    async def open(self, boot_id: str = "") -> None:
        await self.faults.around("open", lambda: self.inner.open(boot_id))

    async def close(self) -> None:
        await self.inner.close()

    async def insert(
        self,
        upload: Upload,
        *,
        lease: bool = False,
        events: Sequence[Event] = (),
        durable: bool = False,
        room: Room | None = None,
    ) -> Grant | None:
        grant = await self.faults.around(
            "insert",
            lambda: self.inner.insert(
                upload, lease=lease, events=events, durable=durable, room=room
            ),
        )
        self._granted(grant)
        return grant

    async def load(self, upload_id: UploadId) -> Loaded | None:
        return await self.faults.around("load", lambda: self.inner.load(upload_id))

    async def segments(self, upload_id: UploadId) -> list[Segment]:
        return await self.faults.around("segments", lambda: self.inner.segments(upload_id))

    async def acquire(self, upload_id: UploadId, *, force: bool = False) -> Grant | Held:
        grant = await self.faults.around(
            "force" if force else "acquire", lambda: self.inner.acquire(upload_id, force=force)
        )
        self._granted(grant)
        return grant

    async def request_release(self, upload_id: UploadId) -> None:
        await self.faults.around("request_release", lambda: self.inner.request_release(upload_id))

    async def wait_released(self, upload_id: UploadId, timeout: float) -> None:
        await self.faults.around(
            "wait_released", lambda: self.inner.wait_released(upload_id, timeout)
        )

    async def renew(self, lease: Lease) -> None:
        await self.faults.around("renew", lambda: self.inner.renew(lease))

    async def commit(self, lease: Lease, change: Change) -> Upload:
        return await self.faults.around("commit", lambda: self.inner.commit(lease, change))

    async def release(self, lease: Lease) -> None:
        await self.faults.around("release", lambda: self.inner.release(lease))

    def abandon(self, lease: Lease) -> None:
        if self.faults.dead is None:
            self.inner.abandon(lease)

    async def pending_finals(self, part: UploadId | None = None) -> list[UploadId]:
        return await self.faults.around("pending_finals", lambda: self.inner.pending_finals(part))

    def uploads(
        self, *, state: State | None = None, kind: Kind | None = None
    ) -> AsyncIterator[Upload]:
        return self.inner.uploads(state=state, kind=kind)

    def undone(self) -> AsyncIterator[Upload]:
        return self.inner.undone()

    async def expired(self, now: float, limit: int) -> list[UploadId]:
        return await self.faults.around("expired", lambda: self.inner.expired(now, limit))

    async def tombstones(self, ended_before: float, limit: int) -> list[UploadId]:
        return await self.faults.around(
            "tombstones", lambda: self.inner.tombstones(ended_before, limit)
        )

    async def take_turn(self, name: str, now: float, ttl: float) -> bool:
        return self.turn_is_free and await self.faults.around(
            "take_turn", lambda: self.inner.take_turn(name, now, ttl)
        )

    async def end_turn(self, name: str) -> None:
        await self.faults.around("end_turn", lambda: self.inner.end_turn(name))

    async def claim_events(self, now: float, limit: int, ttl: float) -> list[Line]:
        return await self.faults.around(
            "claim_events", lambda: self.inner.claim_events(now, limit, ttl)
        )

    async def end_claims(self, ended: Sequence[Ended]) -> list[UploadId]:
        return await self.faults.around("end_claims", lambda: self.inner.end_claims(ended))

    def events(self) -> AsyncIterator[Undelivered]:
        return self.inner.events()

    async def replay(self, sequence: int) -> bool:
        return await self.faults.around("replay", lambda: self.inner.replay(sequence))

    async def counts(self) -> Counts:
        return await self.faults.around("counts", self.inner.counts)


if TYPE_CHECKING:
    _: type[DataStore] = FaultyStore
    ____: type[WholeStore] = FaultyWholeStore
    _______: type[AheadStore] = FaultyAheadStore
    _____: type[PieceStore] = FaultyPieceStore
    ______: type[PieceStore] = FaultyBucket
    __: type[Writer] = FaultyWriter
    ___: type[MetadataStore] = FaultyMetadata
