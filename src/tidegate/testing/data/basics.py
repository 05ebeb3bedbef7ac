"""Checks of what a data store does with the bytes of one upload."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

import anyio
from msgspec.structs import replace

from tidegate.ports import AheadStore, BytesMissingError, WholeStore
from tidegate.protocol.capabilities import Capability
from tidegate.protocol.model import State
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
    read,
    same,
    writing,
)

if TYPE_CHECKING:
    from tidegate.ports import Buffer, DataStore
    from tidegate.testing.data.support import DataStoreCheck

MANY_CHUNKS: Final = 2500
"""More than a single vectored write takes (IOV_MAX is 1024 on Linux)."""


async def place_is_pure(store: DataStore) -> None:
    """The same upload is always given the same storage, and giving it stores nothing."""
    upload = new_upload(store, "one", 10)
    same(store.place(upload), upload.storage, "place, the second time")
    same(await all_stored(store), [], "what is stored after place")


async def nothing_is_there_at_first(store: DataStore) -> None:
    """A record without bytes is an upload of offset 0, whatever is asked of it."""
    upload = new_upload(store, "one", 10)
    same(await store.measure(upload), 0, "measure")
    if can(store, Capability.DISCARD):
        await store.truncate(upload, 0, journal_of(store, upload))
        same(await store.measure(upload), 0, "measure after truncate")
    if can(store, Capability.DELETE):
        await store.delete(upload)
    with raises(BytesMissingError, "a writer at 5 of an upload that has nothing"):
        await store.writer(replace(upload, offset=5), journal_of(store, replace(upload, offset=5)))
    same(await all_stored(store), [], "what is stored after all that")


async def appends_across_sessions(store: DataStore) -> None:
    """Each session begins where the last one ended, and nothing is lost or doubled between."""
    data = pattern(3 * MIB)
    upload = new_upload(store, "one", len(data))
    for start, stop in ((0, 1), (1, 4096), (4096, 4096), (4096, 1_000_003), (1_000_003, len(data))):
        upload = await append(store, upload, data[start:stop])
        same(upload.offset, stop, "the offset")
        same(await store.measure(upload), stop, "measure")
    await holds(store, upload, data)


async def takes_any_buffers(store: DataStore) -> None:
    """bytes, bytearrays, memoryviews and slices of them, empty ones too, all in one write."""
    upload = new_upload(store, "one", 14)
    word = bytearray(b"..resumable..")
    chunks: list[Buffer] = [
        b"",
        b"the ",
        memoryview(word)[2:11],
        b"",
        memoryview(b"!!")[1:],
        bytearray(b""),
    ]
    upload = await append(store, upload, *chunks)
    same(upload.offset, 14, "the offset")
    word[:] = bytes(len(word))  # the chunks are the caller's again
    await holds(store, upload, b"the resumable!")


async def takes_many_chunks(store: DataStore) -> None:
    """One write may bring more chunks than a system call takes, and of all sizes."""
    data = pattern(2 * MIB)
    sizes = [(number * 7919) % 1500 for number in range(MANY_CHUNKS)]
    chunks, at = [], 0
    for size in sizes:
        chunks.append(memoryview(data)[at : at + size])
        at += size
    upload = await append(store, new_upload(store, "one", at), *chunks)
    same(upload.offset, at, "the offset")
    await holds(store, upload, data[:at])


async def takes_a_large_chunk(store: DataStore) -> None:
    """A chunk of 8 MiB is as good as many small ones."""
    data = pattern(8 * MIB)
    await holds(store, await append(store, new_upload(store, "one", len(data)), data), data)


async def adds_to_the_digest(store: DataStore) -> None:
    """The digest sees exactly what was written, in order."""
    data = pattern(300_000)
    digest = hashlib.sha256()
    upload = new_upload(store, "one", len(data))
    async with writing(store, upload) as writer:
        await writer.write([data[:10], data[10:200_000]], digest)
        await writer.write([data[200_000:]], digest)
        upload = await flushed(store, writer, upload)
    same(digest.digest(), hashlib.sha256(data).digest(), "the digest")
    await holds(store, upload, data)


async def syncs_what_was_flushed(store: DataStore) -> None:
    """Sync answers an offset that was flushed, and may run while more is written."""
    data = pattern(2 * MIB)
    upload = new_upload(store, "one", len(data))
    async with writing(store, upload) as writer:
        await writer.write([data[:1000]])
        upload = await flushed(store, writer, upload)
        same(upload.offset, 1000, "flush")
        same(await writer.sync(), 1000, "sync")
        await writer.write([data[1000:MIB]])
        upload = await flushed(store, writer, upload)
        synced: list[int] = []

        async def sync() -> None:
            synced.append(await writer.sync())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sync)
            await writer.write([data[MIB:]])
        expect(MIB <= synced[0] <= len(data), f"a sync during a write answered {synced[0]}")
        upload = await flushed(store, writer, upload)
        same(await writer.sync(), len(data), "the last sync")
    await holds(store, upload, data)


async def closes_twice(store: DataStore) -> None:
    """Closing again, a writer or the store, does nothing."""
    writer = await store.writer(
        new_upload(store, "one", 10), journal_of(store, new_upload(store, "one", 10))
    )
    await writer.close()
    await writer.close()
    await store.close()
    await store.close()


async def keeps_uploads_apart(store: DataStore) -> None:
    """Uploads that are written at the same time do not touch each other."""
    uploads = {n: new_upload(store, f"upload-{n}", 50_000) for n in range(8)}

    async def send(number: int) -> None:
        data = pattern(50_000, number)
        upload = uploads[number]
        for at in range(0, 50_000, 10_000):
            upload = await append(store, upload, data[at : at + 10_000])
        await holds(store, upload, data)

    async with anyio.create_task_group() as tasks:
        for number in uploads:
            tasks.start_soon(send, number)


async def takes_any_id(store: DataStore) -> None:
    """An operator's naming function may return anything; no two ids ever mean the same bytes."""
    ids = [
        "a",
        "A",
        ".",
        "..",
        ".a",
        "a/b",
        "a\\b",
        "../../a",
        "a b",
        "~",
        "~a",
        "é",
        "a%2Fb",
        "-a",
    ]
    ids += ["nul", "a\nb", "x" * 128, "x" * 129, "x" * 1000, "y" * 1000]
    done = {}
    for number, name in enumerate(ids):
        done[name] = await complete(store, name, pattern(100, number))
    for number, name in enumerate(ids):
        same(await store.measure(done[name]), 100, f"measure of {name!r:.40}")
        if can(store, Capability.READ):
            data = await read(store, done[name], 0, 100)
            same(data, pattern(100, number), f"the bytes of {name!r:.40}")
    found = {stored.upload_id for stored in await all_stored(store)}
    expect(found <= set(ids), f"an upload was found that there is not: {found - set(ids)}")


async def stores_a_whole_upload_at_once(store: DataStore) -> None:
    """In one step, never over another one's bytes; afterwards it is as any other."""
    if not isinstance(store, WholeStore):
        return
    for number, data in enumerate((b"", b"x", pattern(64 * 1024))):
        upload = new_upload(store, f"at-once-{number}", len(data))
        chunks: list[Buffer] = [data[:10], memoryview(data)[10:]]
        storage = await store.store_whole(upload, chunks, durable=number > 0)
        done = replace(upload, offset=len(data), storage=storage, state=State.COMPLETE)
        same(await store.measure(done), len(data), "measure")
        if can(store, Capability.READ):
            same(await read(store, done, 0, len(data)), data, "the bytes")
        again = replace(upload, offset=len(data))
        finished = await store.finish(again, journal_of(store, upload), durable=True)
        same(finished, storage, "the storage, finished once more after a crash")
        if can(store, Capability.DELETE):
            await store.delete(done)
            same(await store.measure(done), 0, "measure after delete")


async def stores_a_small_upload_ahead_of_its_record(store: DataStore) -> None:
    """It can be read like any other, is told of as not whole, and never takes another's place."""
    if not isinstance(store, AheadStore):
        return
    for number, data in enumerate((b"", b"x", pattern(64 * 1024))):
        upload = new_upload(store, f"ahead-{number}", len(data))
        chunks: list[Buffer] = [data[:10], memoryview(data)[10:]]
        if not await store.store_ahead(upload, chunks, durable=number > 0):
            same(await store.measure(upload), 0, "measure of what was not stored")
            continue
        found = [stored for stored in await all_stored(store) if stored.upload_id == upload.id]
        expect(any(stored.marked for stored in found), "what was stored ahead is not marked")
        expect(not any(stored.whole for stored in found), "it is told of as whole")
        again = await store.store_ahead(upload, [b"other"], durable=False)
        expect(not again, "what is there was stored ahead once more")
        done = replace(upload, offset=len(data), state=State.COMPLETE)
        for _ in range(2):
            same(await store.measure(done), len(data), "measure")
            if can(store, Capability.READ):
                same(await read(store, done, 0, len(data)), data, "the bytes")
            store.confirm(done)
            store.confirm(done)
        if can(store, Capability.DELETE):
            await store.delete(done)
            same(await store.measure(done), 0, "measure after delete")


async def tells_its_free_space(store: DataStore) -> None:
    """What still fits is a number of bytes, or unknown."""
    free = await store.free_space()
    expect(free is None or free >= 0, f"free_space: {free}")


CHECKS: list[DataStoreCheck] = [
    place_is_pure,
    nothing_is_there_at_first,
    appends_across_sessions,
    takes_any_buffers,
    takes_many_chunks,
    takes_a_large_chunk,
    adds_to_the_digest,
    syncs_what_was_flushed,
    closes_twice,
    keeps_uploads_apart,
    takes_any_id,
    stores_a_whole_upload_at_once,
    stores_a_small_upload_ahead_of_its_record,
    tells_its_free_space,
]
