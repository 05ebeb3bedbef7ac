"""Ending an upload, and freeing what it held."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engine.core import log
from tidegate.ports import DataError, MetadataError
from tidegate.protocol.lifecycle import Transition, advance
from tidegate.protocol.model import EventType, Kind

if TYPE_CHECKING:
    from tidegate.engine.core import Core
    from tidegate.engine.sessions import Session
    from tidegate.protocol.model import Upload


async def end(core: Core, held: Session, upload: Upload) -> None:
    """Terminate an upload. Raises MetadataError: then it is not."""
    gone = advance(upload, Transition.TERMINATE, core.clock.now())
    await held.commit(gone, events=core.events(EventType.TERMINATED, gone), durable=core.durable)
    core.unsynced.discard(gone.id)
    if gone.kind is Kind.PARTIAL:
        core.part_changed(gone.id)
    try:
        # A pending final needs the bytes of a partial that was whole.
        needed = gone.kind is Kind.PARTIAL and gone.whole
        if not (needed and await core.metadata.pending_finals(gone.id)):
            await core.data.delete(gone)
            await free_parts(core, gone)
    except (DataError, MetadataError) as error:
        # It is gone for the client; the sweep deletes what is left with its tombstone.
        log.error("upload %s: terminated, its bytes are still there: %s", gone.id, error)


async def free_parts(core: Core, final: Upload) -> None:
    """Delete the bytes of terminated parts that only this final, which is done with, needed."""
    for part in set(final.parts):
        loaded = await core.metadata.load(part)
        if (
            loaded is not None
            and loaded.upload.gone
            and not await core.metadata.pending_finals(part)
        ):
            await core.data.delete(loaded.upload)
