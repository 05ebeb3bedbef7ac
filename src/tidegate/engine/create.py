"""Making an upload, with or without its first bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import anyio
from msgspec.structs import replace

from tidegate.engine.append import gather, receive
from tidegate.engine.completion import complete
from tidegate.engine.core import log, random_id
from tidegate.engine.sessions import Session
from tidegate.measures import CREATED, MOVED, RECEIVED
from tidegate.ports import (
    DataError,
    Grant,
    LeaseLostError,
    MetadataError,
    PartUnavailableError,
    Room,
    UploadExistsError,
)
from tidegate.protocol import decide
from tidegate.protocol.errors import Code, Refusal
from tidegate.protocol.fields import render_metadata
from tidegate.protocol.lifecycle import Transition, advance
from tidegate.protocol.model import EventType, Kind, Upload, UploadId
from tidegate.protocol.results import Created

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tidegate.engine.concat import Assembler
    from tidegate.engine.core import Core
    from tidegate.hooks import Changes, UploadRequest
    from tidegate.ports import Body, Buffer
    from tidegate.protocol.commands import Create, Payload
    from tidegate.protocol.decide import Case, CreatePlan


AT_ONCE: Final = 64 * 1024
"""Bytes of a small upload: what a connection's buffer holds anyway while its head is read."""


async def create(
    core: Core,
    assembler: Assembler,
    command: Create,
    body: Body,
    request: UploadRequest | None = None,
) -> Created:
    """Make an upload. Raises Refusal, and what the stores raise; then there is none."""
    parts: dict[UploadId, Upload] = {}
    if command.malformed is None:
        for part in set(command.parts):
            loaded = await core.load(part)
            if loaded is not None:
                parts[part] = loaded.upload
    case = replace(core.case(command, None, request), parts=parts)
    plan = decide.create(case)
    upload = _new(core, case, plan)
    changes = await core.gate.before_create(request, upload)
    if changes is not None:
        upload = _changed(core, upload, changes)
        # It may be less than was allowed so far.
        plan = decide.create(replace(case, max_size=changes.max_size))
    upload = replace(upload, storage=core.data.place(upload))
    # What is to be looked at first is not stored as if it were complete.
    at_once = None if upload.guarded else _at_once(core, plan)
    chunks = None if at_once is None else await gather(core, body, at_once)
    room = await _room(core)
    # What somebody named may be what somebody else's is called.
    named = core.settings.new_id is not random_id or (
        changes is not None and changes.id is not None
    )
    if chunks is not None and room is None and not (named or core.records_first):
        whole = await _store_ahead(core, upload, chunks)
        if whole is not None:
            return Created(whole, with_payload=True)
    held = await _insert(core, upload, room, lease=plan.complete or plan.payload is not None)
    if held is not None:
        held.request = request
        await _begin(core, held, plan, body, chunks)
        upload = held.upload
    elif command.kind is Kind.FINAL:
        upload = await assembler.assemble_soon(upload.id, request) or upload
    return Created(upload, with_payload=plan.payload is not None)


def _new(core: Core, case: Case[Create], plan: CreatePlan) -> Upload:
    command, principal, now = case.command, case.principal, case.now
    upload = Upload(
        id=UploadId(""),
        kind=command.kind,
        length=plan.length,
        metadata=command.metadata,
        concat=command.concat,
        parts=command.parts,
        principal=None if principal is None else principal.id,
        # Of other kinds, who sends the bytes says how many they may be.
        max_size=principal.max_size if principal and command.kind is Kind.FINAL else None,
        guarded=core.gate.guards(command.kind),
        created_at=now,
        active_at=now,
    )
    return core.touched(replace(upload, id=UploadId(core.settings.new_id(upload))))


def _changed(core: Core, upload: Upload, changes: Changes) -> Upload:
    """The upload as a hook wants it."""
    limits = [n for n in (upload.max_size, changes.max_size) if n is not None]
    upload = replace(
        upload,
        id=upload.id if changes.id is None else UploadId(changes.id),
        name=changes.name,
        max_size=min(limits, default=None),
        expire_after=changes.expire_after,
    )
    if changes.metadata is not None:
        upload = replace(upload, metadata=render_metadata(changes.metadata))
    return core.touched(upload)


async def _store_ahead(core: Core, upload: Upload, chunks: Sequence[Buffer]) -> Upload | None:
    """Store a small upload, and only then write its record, complete: one commit, and no lease,
    since nobody knows of it. None: not here; nothing was done.

    Should this process die in between, the bytes are marked as what no record speaks of, and the
    sweep deletes them. After a loss of power they may have lost the mark: that leaves a file, as it
    does where the record was written first, which is not synced before them.
    """
    store = core.ahead_store
    if store is None or not await store.store_ahead(upload, chunks, durable=core.durable):
        return None
    length = upload.promised
    synced = length if core.durable else 0
    now = core.clock.now()
    whole = advance(
        replace(
            upload,
            offset=length,
            synced_offset=synced,
            boot_id=core.data.boot_id if synced < length else "",
        ),
        Transition.COMPLETE,
        now,
    )
    events = core.events(EventType.CREATED, upload) + core.events(EventType.COMPLETED, whole)
    try:
        await core.metadata.insert(whole, events=events, durable=core.durable)
    except MetadataError:
        # It may have been done all the same: the bytes stay as they are. So that they do not add
        # up, the next record is written first.
        core.records_first = True
        raise
    store.confirm(whole)
    core.measures.add(RECEIVED.start, length)
    core.measures.add(CREATED.start)
    core.measures.add(MOVED[whole.state].start)
    if whole.kind is Kind.PARTIAL:
        core.part_changed(whole.id)
    if events:
        core.events_written()
    return whole


async def _insert(core: Core, upload: Upload, room: Room | None, *, lease: bool) -> Session | None:
    try:
        grant = await core.metadata.insert(
            upload,
            lease=lease,
            events=core.events(EventType.CREATED, upload),
            durable=core.acks_durable,
            room=room,
        )
    except PartUnavailableError as error:
        number = upload.parts.index(error.part) + 1
        raise Refusal(
            Code.GONE, f"Upload-Concat: part {number} is gone; upload it again"
        ) from error
    except UploadExistsError as error:
        raise Refusal(Code.EXISTS, "there is, or was, an upload with this name") from error
    core.records_first = False
    core.measures.add(CREATED.start)
    core.events_written()
    return None if grant is None else Session(core, grant)


async def _room(core: Core) -> Room | None:
    """How much all unfinished uploads may need, the new one included."""
    settings = core.settings
    missing = None
    if settings.reserve_disk is not None:
        free = await core.data.free_space()
        missing = None if free is None else max(0, free - settings.reserve_disk)
    if missing is None and settings.max_unfinished is None:
        return None
    return Room(unfinished=settings.max_unfinished, missing=missing)


def _at_once(core: Core, plan: CreatePlan) -> Payload | None:
    """The payload, if it is all of a small upload: held in memory, a store can take it in one step,
    and nothing has to be taken back.
    """
    payload = plan.payload
    if payload is None or payload.length is None or payload.length != plan.length:
        return None
    checked = payload.checksum is not None or payload.trailing_checksum
    fits = payload.length <= AT_ONCE and core.whole_store is not None
    return payload if fits and not checked else None


async def _begin(
    core: Core, held: Session, plan: CreatePlan, body: Body, chunks: Sequence[Buffer] | None
) -> None:
    """The first bytes of an upload; if they are refused, there is no upload."""
    try:
        if plan.payload is None:
            await complete(core, held, held.upload, release=True)
        elif chunks is not None and core.whole_store is not None:
            held.settled = False
            core.measures.add(RECEIVED.start, plan.payload.length or 0)
            storage = await core.whole_store.store_whole(held.upload, chunks, durable=core.durable)
            whole = replace(held.upload, offset=plan.length)
            await complete(core, held, whole, storage=storage, release=True)
        else:
            await receive(core, held, body, plan.payload, length=plan.length, room=plan.room)
    except LeaseLostError:
        raise  # someone who knows of it ended it
    except (Refusal, DataError, MetadataError):
        with anyio.CancelScope(shield=True):
            await _undo(core, held)
        raise
    finally:
        await held.end()


async def _undo(core: Core, held: Session) -> None:
    """Take back an upload that nobody knows of yet.

    What fails is logged: the client is to be told why there is no upload. It expires then.
    """
    upload = held.upload
    try:
        if held.released:
            again = await core.metadata.acquire(upload.id)
            if not isinstance(again, Grant):
                return
            held = Session(core, again)
        try:
            # Another version: someone knew of it after all, and went on with it. Gone: a hook ended
            # it, and what it is called is not to be used again.
            if held.upload.version == upload.version and not upload.gone:
                # In this order: a record that stays must not speak of bytes that are gone.
                await held.commit(
                    upload,
                    forget=True,
                    release=True,
                    events=core.events(EventType.TERMINATED, upload),
                )
                await core.data.delete(upload)
                if upload.kind is Kind.PARTIAL:
                    core.part_changed(upload.id)
        finally:
            await held.end()
    except (DataError, MetadataError) as error:
        log.error("upload %s was refused, and could not be taken back: %s", upload.id, error)
