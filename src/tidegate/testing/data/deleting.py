"""Checks of deleting, and of what happens at the same time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import anyio
from anyio.lowlevel import checkpoint
from msgspec.structs import replace

from tidegate.ports import BytesBusyError, BytesMissingError, DataError
from tidegate.protocol.capabilities import Capability
from tidegate.testing.data.support import (
    MIB,
    all_stored,
    append,
    can,
    complete,
    expect,
    flushed,
    holds,
    journal_of,
    new_upload,
    pattern,
    raises,
    same,
    writing,
)

if TYPE_CHECKING:
    from tidegate.ports import Buffer, DataStore, Writer
    from tidegate.testing.data.support import DataStoreCheck


# --------------------------------------------------------------------------------------- deleting
async def deletes_at_any_age(store: DataStore) -> None:
    """Deleting leaves nothing, in every state, and may be done again."""
    if not can(store, Capability.DELETE):
        return
    fresh = new_upload(store, "fresh", 10)
    part = await append(store, new_upload(store, "part", 10), b"12345")
    whole = await append(store, new_upload(store, "whole", 10), b"1234567890")
    uncommitted = await append(store, new_upload(store, "uncommitted", 10), b"1234567890")
    await store.finish(uncommitted, journal_of(store, uncommitted), durable=True)
    done = await complete(store, "complete", b"1234567890")
    uploads = [fresh, part, whole, uncommitted, done, await complete(store, "empty", b"")]
    kept = await complete(store, "kept", b"kept")
    for upload in uploads:
        await store.delete(upload)
        await store.delete(upload)
        same(await store.measure(upload), 0, f"measure of {upload.id} after delete")
    found = {stored.upload_id for stored in await all_stored(store)}
    same(found, {kept.id}, "what is stored after all but one were deleted")
    with raises(BytesMissingError, "a writer after delete"):
        await store.writer(part, journal_of(store, part))
    with raises(BytesMissingError, "finish after delete"):
        await store.finish(whole, journal_of(store, whole), durable=True)
    same(await store.measure(kept), 4, "measure of what was not deleted")


async def deletes_during_a_write(store: DataStore) -> None:
    """A writer at work is not waited for; what it still writes is never found again."""
    if not can(store, Capability.DELETE):
        return
    upload = new_upload(store, "one", 100)
    async with writing(store, upload) as writer:
        await writer.write([b"12345"])
        upload = await flushed(store, writer, upload)
        await store.delete(upload)
        try:
            await writer.write([b"67890"])
            await writer.flush()
        except DataError:
            pass  # to be told of it is fine as well
    same(await store.measure(upload), 0, "measure after delete and more writing")
    same(await all_stored(store), [], "what is stored after delete and more writing")


async def finds_what_is_stored(store: DataStore) -> None:
    """A sweep finds all that is stored, with its upload and its size; discard deletes it."""
    if not can(store, Capability.DELETE):
        return
    part = await append(store, new_upload(store, "part", 100), b"x" * 60)
    done = await complete(store, "done", b"y" * 100)
    found = await all_stored(store)
    sizes: dict[str, int] = {}
    for stored in found:
        sizes[stored.upload_id] = sizes.get(stored.upload_id, 0) + stored.size
        expect(stored.place, "a place is for people to read, and was empty")
    same(sizes, {"part": 60, "done": 100}, "the sizes by upload")
    for stored in found:
        if stored.upload_id == part.id:
            await store.discard(stored)
    same(await store.measure(part), 0, "measure after discard")
    same(await store.measure(done), 100, "measure of what was not discarded")
    same({s.upload_id for s in await all_stored(store)}, {done.id}, "what is still stored")


# ------------------------------------------------------------------------------- at the same time
async def a_rival_does_no_harm(store: DataStore) -> None:
    """A second writer is refused, where the store can tell; the first one never notices."""
    data = pattern(100_000)
    upload = new_upload(store, "one", len(data))
    async with writing(store, upload) as writer:
        await writer.write([data[:50_000]])
        upload = await flushed(store, writer, upload)
        try:
            rival = await store.writer(upload, journal_of(store, upload))
        except BytesBusyError:
            if can(store, Capability.DISCARD):
                with raises(BytesBusyError, "truncate under a writer, where a rival is refused"):
                    await store.truncate(upload, 0, journal_of(store, upload))
        else:
            await rival.close()
        await writer.write([data[50_000:]])
        upload = await flushed(store, writer, upload)
    await holds(store, upload, data)


async def survives_cancellation(store: DataStore) -> None:
    """A write that is cancelled stores a beginning of its chunks, and lets go of the upload."""
    data = pattern(4 * MIB)
    upload = new_upload(store, "one", len(data))
    for cancelled_first in (True, False):
        async with writing(store, upload) as writer:
            await _cancelled_write(writer, data[writer.offset :], at_once=cancelled_first)
            upload = await flushed(store, writer, upload)
        size = await store.measure(upload)
        expect(upload.offset <= size, f"{size} bytes are stored, {upload.offset} were flushed")
        if not can(store, Capability.DISCARD):
            upload = replace(upload, offset=size)
    await holds(store, await append(store, upload, data[upload.offset :]), data)


async def _cancelled_write(writer: Writer, data: bytes, *, at_once: bool) -> None:
    chunks: Sequence[Buffer] = [data[: len(data) // 2]]
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            if at_once:
                scope.cancel()
            else:
                tasks.start_soon(checkpoint)
                tasks.start_soon(_cancel_soon, scope)
            await writer.write(chunks)


async def _cancel_soon(scope: anyio.CancelScope) -> None:
    await checkpoint()
    scope.cancel()


async def survives_cancelled_opening(store: DataStore) -> None:
    """Opening a writer and being cancelled meanwhile leaves nobody holding the upload."""
    upload = await append(store, new_upload(store, "one", 10), b"12345")
    for turns in range(6):
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_cancel_after, scope, turns)
                async with writing(store, upload):
                    pass
    await holds(store, await append(store, upload, b"67890"), b"1234567890")


async def _cancel_after(scope: anyio.CancelScope, turns: int) -> None:
    for _turn in range(turns):
        await checkpoint()
    scope.cancel()


CHECKS: list[DataStoreCheck] = [
    deletes_at_any_age,
    deletes_during_a_write,
    finds_what_is_stored,
    a_rival_does_no_harm,
    survives_cancellation,
    survives_cancelled_opening,
]
