"""Receiving the bytes of a request into an upload that is held."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

import anyio
from msgspec.structs import replace

from tidegate.engine.completion import complete
from tidegate.engine.core import locked, log, stopping
from tidegate.engine.sessions import go_back
from tidegate.measures import RECEIVED
from tidegate.ports import (
    BodyEnd,
    DataError,
    MetadataError,
    NoSpaceError,
    SyncFailedError,
)
from tidegate.protocol.decide import unverifiable
from tidegate.protocol.errors import Code, Refusal
from tidegate.protocol.model import Kind

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from tidegate.engine.core import Core
    from tidegate.engine.sessions import Session
    from tidegate.ports import (
        Body,
        Buffer,
        Digest,
        DirectSink,
        Flushed,
        Sink,
        Splice,
        Store,
        Writer,
    )
    from tidegate.protocol.commands import Checksum, Payload
    from tidegate.protocol.model import Segment, Upload

KEEP_WITHIN = 5.0
"""Seconds for storing what had arrived when a request is cancelled: half of the 10 s that common
supervisors give a service to stop."""


async def receive(
    core: Core, held: Session, body: Body, payload: Payload, *, length: int | None, room: int | None
) -> Upload:
    """Add a request's bytes to the upload that `held` holds, and return its record.

    `length` is the upload's length from now on, `room` how many bytes may come at most. What
    arrived is kept when the client goes away, the disk is full or another request wants the upload
    (which ends in a refusal), unless a checksum was to cover it: then all of it counts, or nothing.
    If the upload is whole then, it is complete when this returns.

    Raises Refusal, and what the stores raise.
    """
    receiver = _Receiver(core, held, payload, length=length, room=room)
    try:
        await _receive(receiver, body, payload)
    except SyncFailedError:
        await receiver.lose_unsynced()
        raise
    except anyio.get_cancelled_exc_class():
        with anyio.move_on_after(KEEP_WITHIN, shield=True):
            await (receiver.keep_stored() if held.overdue else receiver.salvage_cancelled())
        raise
    finally:
        await receiver.close()
    return held.upload


async def gather(core: Core, body: Body, payload: Payload) -> Sequence[Buffer]:
    """A small body, held in memory until all of it is there. Raises Refusal when it ends before.

    Of one that was cut short nothing is kept: nobody knows of an upload yet that could go on.
    """
    # Not isinstance: with a protocol that takes longer than all the rest.
    at_hand = getattr(body, "at_hand", None)
    if at_hand is not None and not core.draining:
        whole: Sequence[Buffer] | None = at_hand()
        if whole is not None:
            return whole
    gathered = _Gathered()
    stop = anyio.Event()
    with core.receiving(stop):
        end = await body.copy_to(gathered, stop)
    if gathered.size != payload.length:
        _tell_why(core, end)
        raise Refusal(Code.BAD_REQUEST, "the body is shorter than Content-Length")
    return gathered.chunks


class _Gathered:
    """The sink of a small body."""

    def __init__(self) -> None:
        self.chunks: list[bytes] = []
        self.size = 0

    async def write(self, chunks: Sequence[Buffer]) -> None:
        """Keep `chunks`; see Sink."""
        for chunk in chunks:
            self.chunks.append(bytes(chunk))
            self.size += len(chunk)


async def _receive(receiver: _Receiver, body: Body, payload: Payload) -> None:
    end = BodyEnd.WHOLE
    if payload.length != 0:
        try:
            with receiver.core.receiving(receiver.held.wanted):
                await receiver.prepare()
                end = await body.copy_to(receiver, receiver.held.wanted)
        except NoSpaceError:
            await receiver.salvage()
            raise
        except Refusal:
            await receiver.discard()
            raise
    if payload.length is not None:
        # Stopped, or gone, with nothing left to send is whole.
        missing = receiver.received < payload.length
        if not missing:
            end = BodyEnd.WHOLE
        elif end is BodyEnd.WHOLE:
            end = BodyEnd.DROPPED
    if end is not BodyEnd.WHOLE:
        await receiver.salvage()
        if not receiver.held.upload.complete:
            _tell_why(receiver.core, end)
        return
    await receiver.verify(body)
    await receiver.keep()


def _tell_why(core: Core, end: BodyEnd) -> None:
    """Refuse a body that was not read to its end, unless it is the client who is gone."""
    if end is BodyEnd.STOPPED:
        raise stopping() if core.draining else locked()
    if end is BodyEnd.STALLED:
        raise Refusal(
            Code.STALLED, "too little came for too long; what arrived is kept, go on", retry_after=1
        )


class _Receiver:
    """The sink of one request: counts, verifies, stores, and says from time to time how far it is."""

    def __init__(
        self, core: Core, held: Session, payload: Payload, *, length: int | None, room: int | None
    ) -> None:
        self.core = core
        self.held = held
        self._payload = payload
        self._length = length
        self._room = room
        self.received = 0
        self._measured = 0
        self._writer: Writer | None = None
        self._segments: tuple[Segment, ...] = ()
        self._digest = _digest(core, payload)
        self._checkpoint_bytes = held.upload.offset + core.settings.checkpoint_bytes
        self._checkpoint_time = core.clock.monotonic() + core.settings.checkpoint_seconds
        self._synced = held.upload.synced_offset
        self._syncing: anyio.Event | None = None
        self._sync_failure: SyncFailedError | None = None

    async def prepare(self) -> None:
        """Before the first byte: say that the store may hold bytes that nobody has verified.

        From then on a HEAD does not interrupt, and a crash cuts them off. (After a loss of power
        they do not count in any case: this need not survive one.)
        """
        if self._digest is not None and not self.held.upload.complete:
            unverified = replace(self.held.upload, unverified=True)
            await self.held.commit(unverified, settled=False)

    async def write(self, chunks: Sequence[Buffer]) -> None:
        """Store `chunks`; see Sink."""
        if not self._count(sum(map(len, chunks))):
            return
        self._measure()
        self._raise_sync_failure()
        writer = self._writer or await self._open()
        await writer.write(chunks, self._digest)
        if self._digest is None and self._checkpoint_due(writer.offset):
            await self._checkpoint(writer)

    async def pour(self, burst: Callable[[Store, Splice | None], Awaitable[None]]) -> bool:
        """Let a thread store; see DirectSink."""
        if self._room == 0:
            # Complete, perhaps: there is nothing to open, and nothing should come.
            return False
        self._raise_sync_failure()
        writer = self._writer or await self._open()
        # Not isinstance: with a protocol that takes ten times as long as all the rest here.
        write = getattr(writer, "write_blocking", None)
        if write is None:
            return False

        def store(chunks: Sequence[Buffer]) -> None:
            if self._count(sum(map(len, chunks))):
                write(chunks, self._digest)

        await burst(store, self._splice(writer))
        self._measure()
        if self._digest is None and self._checkpoint_due(writer.offset):
            await self._checkpoint(writer)
        return True

    def _splice(self, writer: Writer) -> Splice | None:
        """What stores bytes that nobody has to see; None where that can't be."""
        move = getattr(writer, "splice_blocking", None)
        if move is None or self._digest is not None:
            return None

        def splice(pipe: int, count: int) -> None:
            self._count(count)
            move(pipe, count)

        return splice

    def _count(self, size: int) -> int:
        """Count what came. Raises Refusal when it is too much."""
        self.received += size
        # "The new offset MUST be the sum of the offset before the PATCH request and the number of
        # bytes received": what can't be stored must not be there.
        if self._room is not None and self.received > self._room:
            raise Refusal(
                Code.TOO_LARGE, f"the body has more than the {self._room} bytes that may still come"
            )
        return size

    def _measure(self) -> None:
        """Let it be known how much came; on the event loop."""
        self.core.measures.add(RECEIVED.start, self.received - self._measured)
        self._measured = self.received

    async def _open(self) -> Writer:
        self.held.settled = False
        await self.held.hold()
        self._writer = await self.core.data.writer(self.held.upload, self.held)
        return self._writer

    def _checkpoint_due(self, offset: int) -> bool:
        due = (
            offset >= self._checkpoint_bytes or self.core.clock.monotonic() >= self._checkpoint_time
        )
        # Whole is what the commit of the completion says, and nothing before it.
        return due and offset != self._length

    async def _checkpoint(self, writer: Writer) -> None:
        settings = self.core.settings
        upload = await self._stored(await writer.progress(), writer)
        await self.held.commit(
            upload, settled=False, segments=self._segments, durable=self.core.acks_durable
        )
        self._segments = ()
        self.core.progressed(upload)
        # Not from what is stored: of a store far away that is some way behind.
        self._checkpoint_bytes = writer.offset + settings.checkpoint_bytes
        self._checkpoint_time = self.core.clock.monotonic() + settings.checkpoint_seconds
        if self.core.durable and self._syncing is None:
            self._syncing = anyio.Event()
            self.core.spawn(self._sync_behind, writer, self._syncing)

    async def _progress(self, writer: Writer | None) -> Upload:
        """The record with all that came."""
        if writer is None:
            return self.core.touched(replace(self.held.upload, length=self._length))
        return await self._stored(await writer.flush(), writer)

    async def _stored(self, flushed: Flushed, writer: Writer) -> Upload:
        """The record with what is stored by now."""
        upload = self.core.touched(replace(self.held.upload, length=self._length))
        self._segments += flushed.segments
        self._synced = max(self._synced, flushed.synced)
        if self.core.acks_durable:
            self._synced = await writer.sync()
        return replace(
            upload,
            offset=flushed.offset,
            storage=upload.storage if flushed.storage is None else flushed.storage,
            synced_offset=min(self._synced, flushed.offset),
            boot_id=self.core.data.boot_id if flushed.offset > self._synced else "",
        )

    async def _sync_behind(self, writer: Writer, done: anyio.Event) -> None:
        """Sync what was checkpointed while more comes in."""
        try:
            self._synced = await writer.sync()
        except DataError as failure:
            self._sync_failure = SyncFailedError(str(failure))
        finally:
            self._syncing = None
            done.set()

    async def _wait_synced(self) -> None:
        if self._syncing is not None:
            await self._syncing.wait()
        self._raise_sync_failure()

    def _raise_sync_failure(self) -> None:
        if self._sync_failure is not None:
            raise self._sync_failure

    async def verify(self, body: Body) -> None:
        """Hold what was received against its checksum. Raises Refusal, with nothing kept."""
        if self._digest is None:
            return
        # "Once the entire request has been received, the Server MUST verify the uploaded chunk
        # against the provided checksum using the specified algorithm."
        try:
            expected = self._payload.checksum or body.trailing_checksum()
            refusal = unverifiable(expected, self.core.offer)
            if refusal is not None:
                raise refusal
            if not hmac.compare_digest(_digest_of(self._digest, expected), expected.digest):
                raise Refusal(
                    Code.CHECKSUM_MISMATCH,
                    f"Upload-Checksum: the {self.received} bytes received have another"
                    f" {expected.algorithm}; they were discarded",
                )
        except Refusal:
            # "the uploaded chunk MUST be discarded, and the upload and its offset MUST NOT be
            # updated."
            await self.discard()
            raise

    async def keep(self) -> None:
        """Make what was stored count, and let the upload go; if it is whole, complete it."""
        if self.held.upload.complete:
            # Nothing was added. Of what is complete, only a partial can still expire.
            if self.held.upload.kind is Kind.PARTIAL:
                await self.held.commit(self.core.touched(self.held.upload), release=True)
            return
        await self._wait_synced()
        self.held.settled = False
        upload = replace(await self._progress(self._writer), unverified=False)
        # Before the lease is: who waits for that opens the bytes at once.
        await self.close()
        if upload.whole:
            await complete(self.core, self.held, upload, segments=self._segments, release=True)
            return
        if self.core.durable and upload.offset > upload.synced_offset:
            self.core.unsynced.add(upload.id)
        await self.held.commit(
            upload, segments=self._segments, release=True, durable=self.core.acks_durable
        )
        self.core.progressed(upload)

    async def salvage(self) -> None:
        """Keep what arrived of a body that was cut short; nothing, where a checksum covers it.

        "The Server SHOULD always attempt to store as much of the received data as possible."
        """
        if self._digest is not None:
            await self.discard()
        elif self._writer is not None:
            await self.keep()

    async def salvage_cancelled(self) -> None:
        """The same for a request that was cancelled. What fails is left to the recovery."""
        if self.held.in_doubt:
            # The commit may have been done: what it speaks of must not be cut off now.
            return
        try:
            try:
                await self.salvage()
            except SyncFailedError:
                await self.lose_unsynced()
        except (Refusal, DataError, MetadataError) as error:
            log.warning("upload %s: cancelled, not kept yet: %s", self.held.upload.id, error)

    async def keep_stored(self) -> None:
        """Make count what is stored by now; what fails, and all else, is left to the recovery."""
        if self._writer is None or self._digest is not None or self.held.in_doubt:
            return
        try:
            upload = await self._stored(await self._writer.progress(), self._writer)
            await self.held.commit(upload, settled=False, segments=self._segments)
        except (DataError, MetadataError) as error:
            log.warning("upload %s: not kept: %s", self.held.upload.id, error)

    async def discard(self) -> None:
        """Cut off what came since the last checkpoint: the request is refused."""
        if self._writer is None and not self.held.upload.unverified:
            return
        await self._wait_synced()
        await self.close()
        await go_back(self.core, self.held, self.held.upload.offset)

    async def lose_unsynced(self) -> None:
        """A sync failed: only what was synced before is sure to be there."""
        await self.close()
        await go_back(self.core, self.held, min(self._synced, self.held.upload.offset))

    async def close(self) -> None:
        """Let go of the bytes."""
        self._measure()
        writer, self._writer = self._writer, None
        if writer is None:
            return
        with anyio.CancelScope(shield=True):
            if self._syncing is not None:
                await self._syncing.wait()
            await writer.close()


class _AllDigests:
    """Every algorithm at once, for a checksum that only the trailer will name."""

    def __init__(self, core: Core) -> None:
        self.running = {a.name: a.start() for a in core.offer.algorithms.values()}

    def update(self, data: Buffer, /) -> None:
        for running in self.running.values():
            running.update(data)

    def digest(self) -> bytes:
        raise NotImplementedError


def _digest(core: Core, payload: Payload) -> Digest | None:
    if payload.trailing_checksum:
        return _AllDigests(core)
    if payload.checksum is None:
        return None
    return core.offer.algorithms[payload.checksum.algorithm].start()


def _digest_of(running: Digest, expected: Checksum) -> bytes:
    if isinstance(running, _AllDigests):
        return running.running[expected.algorithm].digest()
    return running.digest()


if TYPE_CHECKING:
    _: type[DirectSink] = _Receiver
    __: type[Sink] = _Gathered
