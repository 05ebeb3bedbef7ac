"""What happens once an upload is whole, before anyone is told that it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from tidegate.engine.ending import end
from tidegate.protocol.capabilities import Capability
from tidegate.protocol.errors import Denied
from tidegate.protocol.lifecycle import Transition, advance
from tidegate.protocol.model import EventType, Kind

if TYPE_CHECKING:
    from tidegate.engine.core import Core
    from tidegate.engine.sessions import Session
    from tidegate.protocol.model import Segment, Upload


async def complete(
    core: Core,
    held: Session,
    upload: Upload,
    *,
    segments: tuple[Segment, ...] = (),
    release: bool = False,
    storage: dict[str, Any] | None = None,
) -> Upload:
    """Carry out the completion of a whole upload, and commit it with its event.

    Until the commit nobody is told that the upload is whole: should anything fail, the next request
    tries again. With `storage` the store has finished it already. Raises what the stores raise, and
    Refusal where a hook is against it, or says nothing.
    """
    held.settled = False
    guarded = upload.guarded or core.gate.guards(upload.kind)
    held.finishing, held.asking = True, guarded
    declared = core.keeps_pieces and upload.length != held.upload.length
    if storage is not None:
        upload = replace(upload, storage=storage)
    elif segments or declared or guarded:
        # Whoever finds a store that was told to put them together must find them committed, too,
        # and that nothing more may come; and what a hook puts off must not be sent again, nor what it
        # decides about be taken back: where that is not synced yet, its sync sees to it.
        decided = guarded and not upload.boot_id
        durable = core.durable and (bool(segments) or declared or decided)
        upload = await held.commit(upload, settled=False, segments=segments, durable=durable)
    else:
        await held.hold()
    if storage is None:
        upload = await _finished(core, held, upload, guarded=guarded)
    synced = upload.offset if core.durable else upload.synced_offset
    done = advance(
        replace(
            upload,
            synced_offset=synced,
            boot_id=core.data.boot_id if synced < upload.offset else "",
            unverified=False,
        ),
        Transition.COMPLETE,
        core.clock.now(),
    )
    core.unsynced.discard(upload.id)
    committed = await held.commit(
        done,
        events=core.events(EventType.COMPLETED, done),
        release=release,
        durable=core.durable,
    )
    if committed.kind is Kind.PARTIAL:
        core.part_changed(committed.id)
    return committed


async def _finished(core: Core, held: Session, upload: Upload, *, guarded: bool) -> Upload:
    """The record of a whole upload that is ready to be read. Raises what `complete` raises."""
    # Before anyone else can read it, unless the store itself reads only what is finished.
    early = guarded and Capability.PEEK in core.data.capabilities
    if early:
        upload = await held.sync(upload)
        await _ask(core, held, upload)
    storage = await core.data.finish(upload, held, durable=core.durable)
    # The store may have reserved something meanwhile, which was a commit.
    upload = replace(upload, storage=storage, version=held.upload.version)
    if guarded and not early:
        await _ask(core, held, upload)
    return upload


async def _ask(core: Core, held: Session, upload: Upload) -> None:
    """Ask the hook; if it is against the upload, end that. Raises Refusal, unless it agrees."""
    core.put_off.add(upload.id)
    try:
        await core.gate.before_complete(core.data, upload, held.request)
    except Denied as denied:
        if denied.lasting:
            core.put_off.discard(upload.id)
            await end(core, held, upload)
        raise
    core.put_off.discard(upload.id)
    # It may have taken its time.
    await held.hold()
