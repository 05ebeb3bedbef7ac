"""Giving up what expired, forgetting what ended long ago, deleting what belongs to nothing.

A completed regular or final upload is never touched: the lifecycle has no way from there by time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import msgspec
from msgspec.structs import replace

from tidegate.engine.core import log
from tidegate.engine.ending import free_parts
from tidegate.engine.sessions import Session
from tidegate.ports import (
    DataError,
    Grant,
    Hold,
    LeaseLostError,
    MetadataError,
    PieceStore,
    PinnedError,
    UnknownUploadError,
)
from tidegate.protocol.capabilities import Capability
from tidegate.protocol.lifecycle import Transition, advance, may_expire
from tidegate.protocol.model import EventType, Kind, UploadId

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tidegate.engine.core import Core
    from tidegate.ports import Stored
    from tidegate.protocol.model import Upload

BATCH = 500
"""Uploads looked at between two looks at the metadata store."""


TURN = "sweep"
TURN_FOR = 3600.0
"""Seconds after which another server sweeps, should the one at it have died."""
UNBORN = 3600.0
"""Seconds for which what was stored ahead of its record may still get one, however soon orphans are
to be deleted: many times as long as a metadata store is waited for."""


class Swept(msgspec.Struct):
    """What a sweep did, or with a dry run would have done."""

    expired: list[UploadId] = []
    forgotten: list[UploadId] = []
    orphans: list[str] = []
    """Places, in the data store's own words."""
    freed: int = 0
    """Bytes of orphans, and of expired uploads as far as they were acknowledged."""
    failed: list[str] = []
    """What could not be done, in words for the operator."""


async def sweep(core: Core, *, dry_run: bool = False, orphans: bool = True) -> Swept:
    """Sweep once; with `orphans` look through all that is stored, too.

    One upload's failure does not stop the rest. Raises MetadataError, DataError.
    """
    swept = Swept()
    await _expire_all(core, swept, dry_run=dry_run)
    await _forget_all(core, swept, dry_run=dry_run)
    if orphans:
        async for stored in core.data.stored():
            await _sweep_stored(core, swept, stored, dry_run=dry_run)
    return swept


async def sweep_in_turn(core: Core, *, orphans: bool) -> Swept | None:
    """Sweep, unless another server is at it (None). Raises MetadataError, DataError."""
    if not await core.metadata.take_turn(TURN, core.clock.now(), TURN_FOR):
        return None
    try:
        swept = await sweep(core, orphans=orphans)
    finally:
        with anyio.CancelScope(shield=True):
            await core.metadata.end_turn(TURN)
    if swept.expired or swept.forgotten or swept.orphans:
        log.info(
            "sweep: %d expired, %d forgotten, %d orphans",
            len(swept.expired),
            len(swept.forgotten),
            len(swept.orphans),
        )
    return swept


async def _expire_all(core: Core, swept: Swept, *, dry_run: bool) -> None:
    async def due(limit: int) -> list[UploadId]:
        return await core.metadata.expired(core.clock.now(), limit)

    async def expire(held: Session) -> None:
        await _expire(core, swept, held, dry_run=dry_run)

    if Capability.EXPIRY in core.metadata.capabilities:
        async for upload_id in _fresh(due):
            await _hold(core, swept, upload_id, expire)


async def _forget_all(core: Core, swept: Swept, *, dry_run: bool) -> None:
    async def due(limit: int) -> list[UploadId]:
        before = core.clock.now() - core.settings.tombstone_age
        return await core.metadata.tombstones(before, limit)

    async def forget(held: Session) -> None:
        await _forget(core, swept, held, dry_run=dry_run)

    async for upload_id in _fresh(due):
        await _hold(core, swept, upload_id, forget)


async def _fresh(due: Callable[[int], Awaitable[list[UploadId]]]) -> AsyncIterator[UploadId]:
    """All that is due, each once, though what could not be dealt with stays on the list."""
    seen: set[UploadId] = set()
    while True:
        fresh = [upload_id for upload_id in await due(BATCH + len(seen)) if upload_id not in seen]
        if not fresh:
            return
        seen.update(fresh)
        for upload_id in fresh:
            yield upload_id


async def _expire(core: Core, swept: Swept, held: Session, *, dry_run: bool) -> None:
    upload = held.upload
    now = core.clock.now()
    if upload.expires_at is None or upload.expires_at > now or not may_expire(upload):
        return
    later = await core.parts_active_until(upload)
    if later > now:
        if not dry_run:
            await held.commit(replace(upload, expires_at=later))
        return
    if dry_run:
        if not await core.metadata.pending_finals(upload.id):
            swept.expired.append(upload.id)
            swept.freed += upload.offset
        return
    gone = advance(upload, Transition.EXPIRE, now)
    await held.commit(
        gone,
        events=core.events(EventType.EXPIRED, gone),
        durable=core.durable,
        unless_pinned=upload.kind is Kind.PARTIAL,
        settled=False,
    )
    await core.data.delete(gone)
    held.settled = True
    await free_parts(core, gone)
    swept.expired.append(upload.id)
    swept.freed += upload.offset


async def _forget(core: Core, swept: Swept, held: Session, *, dry_run: bool) -> None:
    upload = held.upload
    if not upload.gone or await core.metadata.pending_finals(upload.id):
        return
    if not dry_run:
        await core.data.delete(upload)
        await held.commit(upload, forget=True, release=True)
    swept.forgotten.append(upload.id)


async def _sweep_stored(core: Core, swept: Swept, stored: Stored, *, dry_run: bool) -> None:
    """Delete bytes that no record speaks of, if they are old enough not to be on their way.

    Not those of a whole upload: should the records be lost, or be others, these are the files.
    """
    least = max(core.settings.orphan_age, UNBORN) if stored.marked else core.settings.orphan_age
    is_old = stored.modified_at <= core.clock.now() - least
    if stored.whole or not (is_old or stored.marked):
        return

    async def discard() -> None:
        if not dry_run:
            await core.data.discard(stored)
        swept.orphans.append(stored.place)
        swept.freed += stored.size

    async def discard_if_left_over(held: Session) -> None:
        if await _is_left_over(core, held.upload, stored):
            await discard()

    try:
        loaded = await core.metadata.load(stored.upload_id)
        if loaded is None:
            if is_old:
                await discard()
        elif stored.marked and loaded.upload.complete:
            # Whoever stored it died after the commit.
            if core.ahead_store is not None and not dry_run:
                core.ahead_store.confirm(loaded.upload)
        elif (
            is_old
            and loaded.hold is not Hold.HELD
            and await _is_left_over(core, loaded.upload, stored)
        ):
            # Once more under its lease: it may have been on its way into the record.
            await _hold(core, swept, stored.upload_id, discard_if_left_over)
    except (DataError, MetadataError) as error:
        swept.failed.append(f"{stored.place}: {error}")


async def _is_left_over(core: Core, upload: Upload, stored: Stored) -> bool:
    """Whether it is a piece that an upload does not need. What is gone, is deleted as a whole."""
    if not isinstance(core.data, PieceStore) or upload.gone:
        return False
    segments = await core.metadata.segments(upload.id)
    return not core.data.speaks_of(upload, segments, stored)


async def _hold(
    core: Core, swept: Swept, upload_id: UploadId, act: Callable[[Session], Awaitable[None]]
) -> None:
    """Act on one upload if nobody else has it; note what goes wrong, and go on."""
    try:
        grant = await core.metadata.acquire(upload_id)
        if not isinstance(grant, Grant):
            return
        held = Session(core, grant)
        try:
            await act(held)
        finally:
            await held.end()
    except (UnknownUploadError, PinnedError, LeaseLostError) as error:
        log.debug("sweep: upload %s is left alone: %s", upload_id, error)
    except (DataError, MetadataError) as error:
        log.error("sweep: upload %s: %s", upload_id, error)
        swept.failed.append(f"{upload_id}: {error}")
