"""What is due behind the requests: syncing what was acknowledged, completing what was put off."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from tidegate.engine.core import log
from tidegate.engine.sessions import go_back, session, sync
from tidegate.ports import DataError, MetadataError, SyncFailedError, UnknownUploadError
from tidegate.protocol.errors import Denied, Refusal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tidegate.engine.core import Core
    from tidegate.engine.sessions import Session
    from tidegate.protocol.model import UploadId


async def take_over(core: Core) -> None:
    """What servers acknowledged that died before they synced it is for us to sync, and what
    they left whole for us to complete.
    """
    try:
        async for upload in core.metadata.undone():
            if core.durable and upload.offset > upload.synced_offset:
                if not core.lost_power(upload):
                    core.unsynced.add(upload.id)
            elif upload.whole:
                core.put_off.add(upload.id)
    except MetadataError as error:
        log.error("what other servers left undone is not known: %s", error)


async def complete_all(core: Core) -> None:
    """Ask hooks again that gave no answer when an upload was whole."""
    await _hold_each(core, core.put_off, _completed, undone="complete")


async def sync_all(core: Core) -> None:
    """Sync what was acknowledged and is unfinished, so that a reboot loses little, a clean one
    nothing.
    """
    await _hold_each(core, core.unsynced, _synced, undone="synced")


async def _hold_each(
    core: Core, due: set[UploadId], work: Callable[[Core, Session], Awaitable[None]], *, undone: str
) -> None:
    """Do `work` to each upload of `due`; what it can't be done to stays due."""
    for upload_id in list(due):
        due.discard(upload_id)
        try:
            async with session(core, upload_id, ask=False) as held:
                await work(core, held)
        except (UnknownUploadError, Denied):
            continue
        except (Refusal, DataError, MetadataError) as error:
            # Perhaps whoever has just received it has not let it go yet.
            due.add(upload_id)
            log.warning("upload %s: not %s yet: %s", upload_id, undone, error)


async def _completed(_core: Core, _held: Session) -> None:
    """Nothing: to hold it is to recover it, and so to complete it."""


async def _synced(core: Core, held: Session) -> None:
    upload = held.upload
    if upload.gone or upload.complete or upload.synced_offset == upload.offset:
        return
    try:
        synced = await sync(core, held, upload)
    except SyncFailedError:
        await go_back(core, held, upload.synced_offset)
        raise
    boot_id = "" if synced >= upload.offset else upload.boot_id
    await held.commit(
        replace(upload, synced_offset=min(synced, upload.offset), boot_id=boot_id),
        durable=True,
    )
