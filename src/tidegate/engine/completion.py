"""What happens once an upload is whole, before anyone is told that it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

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

    Until the commit the record does not say that the upload is whole: should anything fail, the
    next request tries again. With `storage` the store has finished it already. Raises what the
    stores raise.
    """
    held.settled = False
    if storage is not None:
        upload = replace(upload, storage=storage)
    elif segments:
        # Whoever finds a store that was told to put them together must find them committed, too.
        upload = await held.commit(upload, settled=False, segments=segments, durable=core.durable)
    else:
        await held.hold()
    if storage is None:
        storage = await core.data.finish(upload, held, durable=core.durable)
    synced = upload.offset if core.durable else upload.synced_offset
    done = advance(
        replace(
            upload,
            storage=storage,
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
