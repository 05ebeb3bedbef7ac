"""Holding every record against the bytes that are stored, and mending what can be mended."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from tidegate.engine.sessions import Session, go_back, recover
from tidegate.ports import (
    DataError,
    Grant,
    Hold,
    LeaseLostError,
    MetadataError,
    UnknownUploadError,
)
from tidegate.protocol.errors import Refusal
from tidegate.protocol.model import State, Upload, UploadId

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tidegate.engine.core import Core


class Finding(msgspec.Struct, frozen=True):
    """Something that does not agree."""

    subject: str
    """The upload's id, or the place of bytes that belong to none."""
    problem: str
    """In words for the operator."""
    mended: bool = False
    lost: bool = False
    """Acknowledged bytes are gone: nothing here can bring them back."""


class Checked(msgspec.Struct):
    """How a check went on, at some point of it."""

    uploads: int = 0
    in_use: int = 0
    """Left alone, since someone is at work on them."""


async def check(core: Core, checked: Checked, *, repair: bool) -> AsyncIterator[Finding]:
    """Check every record and all that is stored; `checked` tells how far it is.

    With `repair` what can be mended without loss is: what a crash left is recovered, a completed
    upload that was not published is, bytes of what ended are deleted. An unfinished upload that has
    lost bytes goes back to those that it has, so that its client can send the rest again. Of a
    completed one that has lost bytes, and of bytes without a record, nothing is touched. Without
    `repair` nothing is written. Raises MetadataError, DataError.
    """
    async for upload in core.metadata.uploads():
        checked.uploads += 1
        try:
            finding = await _check(core, checked, upload.id, repair=repair)
        except (UnknownUploadError, LeaseLostError):
            continue
        except (DataError, MetadataError) as error:
            finding = Finding(upload.id, f"cannot be checked: {error}")
        except Refusal:
            finding = Finding(upload.id, "is whole, and waits for a hook that only a server has")
        if finding is not None:
            yield finding
    async for stored in core.data.stored():
        if await core.metadata.load(stored.upload_id) is None:
            kept = "whole, so that no sweep deletes them" if stored.whole else "see sweep"
            yield Finding(stored.place, f"{stored.size} bytes that belong to no upload ({kept})")


async def _check(
    core: Core, checked: Checked, upload_id: UploadId, *, repair: bool
) -> Finding | None:
    if not repair:
        loaded = await core.metadata.load(upload_id)
        if loaded is None:
            return None
        if loaded.hold is Hold.HELD:
            checked.in_use += 1
            return None
        stored = await core.data.measure(loaded.upload)
        return _finding(loaded.upload, stored, abandoned=loaded.hold is Hold.ABANDONED)
    grant = await core.metadata.acquire(upload_id)
    if not isinstance(grant, Grant):
        checked.in_use += 1
        return None
    held = Session(core, grant)
    try:
        stored = await core.data.measure(held.upload)
        finding = _finding(held.upload, stored, abandoned=not held.settled)
        if finding is None:
            return None
        return await _mend(core, held, finding, stored)
    finally:
        await held.end()


def _finding(upload: Upload, stored: int, *, abandoned: bool) -> Finding | None:
    if upload.gone:
        if stored:
            return Finding(upload.id, f"is {upload.state}, and still holds {stored} bytes")
        return None
    if stored < upload.offset:
        return Finding(
            upload.id,
            f"acknowledged {upload.offset} bytes ({upload.state}), holds {stored}",
            lost=True,
        )
    if upload.state is State.COMPLETE and stored > upload.offset:
        return Finding(upload.id, f"is complete with {upload.offset} bytes, holds {stored}")
    if abandoned:
        return Finding(upload.id, "was left in the middle by a server that died")
    if stored > upload.offset:
        return Finding(upload.id, f"acknowledged {upload.offset} bytes, holds {stored}")
    return None


async def _mend(core: Core, held: Session, finding: Finding, stored: int) -> Finding:
    upload = held.upload
    if upload.gone:
        if await core.metadata.pending_finals(upload.id):
            return replace(finding, problem="is needed by a pending final; nothing to mend")
        await core.data.delete(upload)
        held.settled = True
    elif upload.state is State.COMPLETE and stored != upload.offset:
        return finding
    elif held.settled:
        # Nobody died over it: what is past the offset was never meant to count.
        await go_back(core, held, min(upload.offset, stored), stored=stored)
    else:
        await recover(core, held)
    return replace(finding, mended=True)
