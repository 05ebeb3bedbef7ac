"""Holding an upload: its lease, its record as it stands, and the recovery of what a crash left."""

from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import anyio
from msgspec.structs import replace

from tidegate.engine.completion import complete
from tidegate.engine.core import locked, log
from tidegate.measures import LEASE_WAITS, MOVED, RECOVERIES
from tidegate.ports import Change, DataError, Grant, Held, MetadataError, SyncFailedError
from tidegate.protocol.model import Kind, State

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tidegate.engine.core import Core
    from tidegate.hooks import UploadRequest
    from tidegate.ports import Fence, ProbedStore
    from tidegate.protocol.model import Event, Segment, Upload, UploadId


ASK_AGAIN = 0.5
"""Seconds after which the holder is asked again: it may be another one, who was quicker than us when
the one that we asked let go, and was never asked."""


class Session:
    """The time during which one task holds an upload's lease.

    `upload` is the record as it was last committed. While `settled` is false the record and the
    bytes may disagree: if the session ends like that, whoever comes next recovers.
    """

    def __init__(self, core: Core, grant: Grant) -> None:
        self._core = core
        self.lease = grant.lease
        self.wanted = grant.wanted
        self.upload = grant.upload
        self.settled = grant.settled and not core.doubtful(grant.upload)
        self.lost_power = not self.settled and (
            core.lost_power(grant.upload) or grant.boot_id not in ("", core.data.boot_id)
        )
        """Whether the machine went down since the last holder wrote: only what was synced counts."""
        self.request: UploadRequest | None = None
        """What brings the last byte, if anything does: for a hook to see."""
        self.released = False
        self.in_doubt = False
        """A commit was begun, and nobody knows whether it was done: touch no bytes."""
        self.finishing = False
        """Its completion is being carried out."""
        self.asking = False
        """... and a hook is asked about it."""
        self.cut_off: DataError | None = None
        """Why it is given up, nobody having asked for it: its bytes can't be reached from here."""
        self.overdue = False
        """Somebody has wanted it for so long that it is given up, whatever is under way."""

    async def commit(
        self,
        upload: Upload,
        *,
        settled: bool = True,
        release: bool = False,
        durable: bool = False,
        events: tuple[Event, ...] = (),
        segments: tuple[Segment, ...] = (),
        unless_pinned: bool = False,
        forget: bool = False,
    ) -> Upload:
        """Make `upload` the record. Raises what MetadataStore.commit raises."""
        before = self.upload.state
        # Should this task be cancelled, or the commit fail, nobody knows how things stand.
        self.settled = False
        self.in_doubt = True
        change = Change(
            upload=upload,
            segments=segments,
            events=events,
            release=release,
            durable=durable,
            unless_pinned=unless_pinned,
            forget=forget,
        )
        self.upload = await self._core.metadata.commit(self.lease, change)
        self.in_doubt = False
        self.settled = settled
        self.released = release
        if self.upload.state is not before:
            self._core.measures.add(MOVED[self.upload.state].start)
        if events:
            self._core.events_written()
        return self.upload

    async def hold(self) -> None:
        """See that the lease was not lost, before bytes are cut off or moved. See ports.Fence."""
        await self._core.metadata.renew(self.lease)

    async def reserve(self, storage: dict[str, Any]) -> None:
        """Make `storage` the record's, before what only it tells of is stored. See ports.Fence."""
        await self.commit(replace(self.upload, storage=storage), settled=False)

    async def segments(self) -> list[Segment]:
        """The pieces that were committed. See ports.Fence."""
        return await self._core.metadata.segments(self.upload.id)

    async def sync(self, upload: Upload) -> Upload:
        """Make all of a whole upload survive a loss of power, where it does not yet; its record.

        Raises SyncFailedError, and what the stores raise.
        """
        if not self._core.durable or not upload.boot_id:
            return upload
        await sync(self._core, self, upload)
        self._core.unsynced.discard(upload.id)
        synced = replace(upload, synced_offset=upload.offset, boot_id="")
        return await self.commit(synced, settled=False, durable=True)

    async def end(self) -> None:
        """Let the lease go, if it is still held."""
        if self.released:
            return
        self.released = True
        if not self.settled:
            self._core.metadata.abandon(self.lease)
            return
        with anyio.CancelScope(shield=True):
            try:
                await self._core.metadata.release(self.lease)
            except MetadataError as error:
                log.warning("upload %s: its lease could not be released: %s", self.upload.id, error)
                self._core.metadata.abandon(self.lease)


async def acquire(core: Core, upload_id: UploadId, wait: float) -> Grant | None:
    """The lease, asking whoever has it to let go, for at most `wait` seconds; None: in vain."""
    grant = await core.metadata.acquire(upload_id)
    if isinstance(grant, Grant):
        return grant
    began = anyio.current_time()
    try:
        while (left := began + wait - anyio.current_time()) > 0:
            await core.metadata.request_release(upload_id)
            await core.metadata.wait_released(upload_id, min(left, ASK_AGAIN))
            grant = await core.metadata.acquire(upload_id)
            if isinstance(grant, Grant):
                return grant
        return None
    finally:
        waited = anyio.current_time() - began
        core.measures.observe(LEASE_WAITS, LEASE_WAITS.start, waited)


@asynccontextmanager
async def session(core: Core, upload_id: UploadId, *, ask: bool = True) -> AsyncIterator[Session]:
    """Hold an upload, with its record and its bytes in agreement.

    With `ask` a writer at work is asked to let go; without, it is left alone, and who works without
    being waited for lets go where the data store can't be reached, since others may reach it.
    Raises Refusal (locked) when it cannot be had, or was wanted for too long
    (`Settings.let_go_within`), and what the stores raise.
    """
    if ask:
        grant = await acquire(core, upload_id, core.settings.lease_wait)
    else:
        attempt = await core.metadata.acquire(upload_id)
        grant = None if isinstance(attempt, Held) else attempt
    if grant is None:
        raise locked()
    held = Session(core, grant)
    try:
        with _letting_go(core, held, behind=not ask) as scope:
            if not held.settled:
                await recover(core, held)
            yield held
        if scope.cancelled_caught:
            if held.cut_off is not None:
                raise held.cut_off
            log.warning("upload %s: wanted elsewhere, and not stored in time", upload_id)
            raise locked()
    finally:
        await held.end()


@contextmanager
def _letting_go(core: Core, held: Session, *, behind: bool) -> Iterator[anyio.CancelScope]:
    """What is cancelled when it goes on for too long after somebody wanted the upload, or, `behind`
    the requests, as soon as the data store can't be reached.

    Only where pieces are stored far away: what a writer waits for may be a way to there that is
    broken here, and nowhere else. What it has stored counts; the next one does without the rest.
    """
    with anyio.CancelScope() as scope:
        if not core.keeps_pieces or core.at_rest:
            yield scope
            return
        watching, looking = anyio.CancelScope(), anyio.CancelScope()
        core.spawn(_give_up_late, core, held, watching, scope)
        if behind and core.probed_store is not None:
            core.spawn(_give_up_cut_off, core, core.probed_store, held, looking, scope)
        try:
            yield scope
        finally:
            watching.cancel()
            looking.cancel()


async def _give_up_late(
    core: Core, held: Session, watching: anyio.CancelScope, scope: anyio.CancelScope
) -> None:
    with watching:
        await held.wanted.wait()
        await anyio.sleep(core.settings.let_go_within)
        if held.finishing:
            await anyio.sleep(held.upload.offset / core.settings.complete_rate)
        # A hook may take its time, and is not asked again and again.
        if not held.asking:
            held.overdue = True
            scope.cancel()


async def _give_up_cut_off(
    core: Core,
    store: ProbedStore,
    held: Session,
    looking: anyio.CancelScope,
    scope: anyio.CancelScope,
) -> None:
    """Whether a request is slow, or will never be answered, only another one can tell."""
    within = core.settings.let_go_within
    with looking:
        while held.cut_off is None:
            await anyio.sleep(within)
            try:
                with anyio.fail_after(within):
                    await store.probe()
            except (DataError, TimeoutError) as failure:
                if not held.asking:
                    why = str(failure) or f"no answer within {within:g} s"
                    held.cut_off = DataError(f"left to who can reach its bytes: {why}")
        scope.cancel()


async def recover(core: Core, held: Session) -> None:
    """Bring the record and the bytes together again after a holder that never let go.

    A plain append's bytes were written in order by the one writer: they count. Those of an append
    with a checksum were never verified: they do not. After a loss of power only what was synced
    does (DESIGN: Offsets, crashes, durability).
    """
    upload = held.upload
    if upload.state is not State.RECEIVING:
        held.settled = True
        return
    core.measures.add(RECOVERIES.start)
    stored = await core.data.measure(upload)
    if held.lost_power:
        keep = upload.synced_offset
    elif upload.unverified or upload.kind is Kind.FINAL:
        keep = upload.offset
    else:
        keep = stored if upload.length is None else min(stored, upload.length)
    if stored < max(keep, upload.offset):
        log.error("upload %s: acknowledged %d bytes, found %d", upload.id, upload.offset, stored)
        keep = min(keep, stored)
    try:
        await go_back(core, held, keep, stored=stored, completing=True)
    except SyncFailedError:
        await go_back(core, held, min(upload.synced_offset, keep))
        raise


async def go_back(
    core: Core, held: Session, keep: int, *, stored: int | None = None, completing: bool = False
) -> None:
    """Make exactly the bytes [0, keep) count, of those that are stored, and commit it.

    With `completing` its completion is carried out if that makes the upload whole.
    """
    upload = held.upload
    held.settled = False
    await held.hold()
    if stored is None or keep < stored:
        await core.data.truncate(upload, keep, held)
    synced = min(upload.synced_offset, keep)
    if core.acks_durable and synced < keep:
        synced = await sync(core, held, replace(upload, offset=keep))
    recovered = replace(
        upload,
        offset=keep,
        synced_offset=synced,
        boot_id=core.data.boot_id if keep > synced else "",
        unverified=False,
    )
    if core.durable and keep > synced:
        core.unsynced.add(upload.id)
    if completing and recovered.whole and recovered.kind is not Kind.FINAL:
        await complete(core, held, recovered)
    elif recovered != upload:
        await held.commit(recovered, durable=core.acks_durable)
    held.settled = True


async def sync(core: Core, held: Session, upload: Upload) -> int:
    """Sync an upload's bytes: how many from its start survive a loss of power then.

    Raises SyncFailedError, and what the store raises.
    """
    writer = await core.data.writer(upload, held)
    try:
        return await writer.sync()
    finally:
        await writer.close()


if TYPE_CHECKING:
    _: type[Fence] = Session
