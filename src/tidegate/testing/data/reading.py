"""Checks of reading, and of copying one upload into another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
from msgspec.structs import replace

from tidegate.ports import BytesMissingError
from tidegate.protocol.capabilities import Capability
from tidegate.protocol.model import Kind, State
from tidegate.testing.data.support import (
    MIB,
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
    reading,
    same,
    writing,
)

if TYPE_CHECKING:
    from tidegate.ports import DataStore
    from tidegate.testing.data.support import DataStoreCheck


# ---------------------------------------------------------------------------------------- reading
async def reads_ranges(store: DataStore) -> None:
    """Any range of bytes, in chunks of at most 1 MiB; none where there is nothing to read."""
    if not can(store, Capability.READ):
        return
    data = pattern(3 * MIB + 17)
    done = await complete(store, "one", data)
    size = len(data)
    ranges = [(0, size), (0, 1), (size - 1, size), (MIB - 1, MIB + 1), (5, 2 * MIB), (7, 7), (0, 0)]
    for start, stop in [*ranges, (size, size)]:
        same(await read(store, done, start, stop), data[start:stop], f"bytes {start} to {stop}")


async def reads_what_is_whole_and_not_finished(store: DataStore) -> None:
    """What looks at bytes before they are complete reads them; also after a finish that nobody
    committed, with the record of before it.
    """
    if not can(store, Capability.READ, Capability.PEEK):
        return
    data = pattern(2 * MIB + 17)
    whole = await append(store, new_upload(store, "one", len(data)), data)
    same(await read(store, whole, 0, len(data)), data, "the bytes before the finish")
    same(await read(store, whole, MIB - 1, MIB + 1), data[MIB - 1 : MIB + 1], "two of them")
    await store.finish(whole, journal_of(store, whole), durable=True)
    same(await read(store, whole, 0, len(data)), data, "the bytes, with the old record")
    await holds(store, whole, data)


async def reading_tells_of_missing_bytes(store: DataStore) -> None:
    """What is not there is told before the first chunk."""
    if not can(store, Capability.READ):
        return
    done = await complete(store, "one", pattern(2 * MIB))
    seen = 0
    with raises(BytesMissingError, "reading past the end"):
        async for chunk in store.read(replace(done, length=3 * MIB), 0, 2 * MIB + 1):
            seen += len(chunk)
    same(seen, 0, "bytes read before it was told")
    nowhere = replace(new_upload(store, "two", 10, state=State.COMPLETE), offset=10)
    with raises(BytesMissingError, "reading an upload that is not there"):
        await read(store, nowhere, 0, 10)


async def reading_may_end_early(store: DataStore) -> None:
    """A reader that stops, or is cancelled, holds nothing up."""
    if not can(store, Capability.READ):
        return
    data = pattern(3 * MIB)
    done = await complete(store, "one", data)
    async with reading(store, done, 0, len(data)) as chunks:
        async for _chunk in chunks:
            break
    with anyio.CancelScope() as scope:
        async with reading(store, done, 0, len(data)) as chunks:
            async for _chunk in chunks:
                scope.cancel()
    same(await read(store, done, 0, len(data)), data, "the bytes, afterwards")
    if can(store, Capability.DELETE):
        await store.delete(done)
        same(await store.measure(done), 0, "measure after delete")


# ---------------------------------------------------------------------------------------- copying
async def copies_parts(store: DataStore) -> None:
    """A final is its parts in order; one may be there twice, and each is copied by ranges."""
    if not can(store, Capability.COPY):
        return
    first, second = pattern(MIB + 3, 1), pattern(200_001, 2)
    one = await complete(store, "one", first)
    two = await complete(store, "two", second)
    empty = await complete(store, "empty", b"")
    whole = first + second + first
    final = new_upload(store, "final", len(whole), kind=Kind.FINAL)
    async with writing(store, final) as writer:
        await writer.copy(one, 0, 10)
        await writer.copy(one, 10, 10)
        await writer.copy(one, 10, len(first))
        await writer.copy(empty, 0, 0)
        final = await flushed(store, writer, final)
    same(final.offset, len(first), "the offset after the first part")
    async with writing(store, final) as writer:
        await writer.copy(two, 0, len(second))
        await writer.copy(one, 0, MIB)
        await writer.write([first[MIB:]])
        final = await flushed(store, writer, final)
    same(final.offset, len(whole), "the offset after the last part")
    if can(store, Capability.DELETE):
        # "A final upload has its own bytes: deleting a partial afterwards does not touch it."
        await store.delete(one)
        await store.delete(two)
    await holds(store, final, whole)


async def copying_tells_of_missing_bytes(store: DataStore) -> None:
    """A part that is shorter than its record, or gone, is not made up for."""
    if not can(store, Capability.COPY):
        return
    part = await complete(store, "one", pattern(1000))
    final = new_upload(store, "final", 2000, kind=Kind.FINAL)
    async with writing(store, final) as writer:
        await writer.copy(part, 0, 500)
        with raises(BytesMissingError, "copying past the end"):
            await writer.copy(part, 500, 1001)
        final = await flushed(store, writer, final)
        nowhere = replace(new_upload(store, "two", 10, state=State.COMPLETE), offset=10)
        with raises(BytesMissingError, "copying what is not there"):
            await writer.copy(nowhere, 0, 10)
    expect(500 <= final.offset <= 1000, f"the offset after a failed copy: {final.offset}")


CHECKS: list[DataStoreCheck] = [
    reads_ranges,
    reads_what_is_whole_and_not_finished,
    reading_tells_of_missing_bytes,
    reading_may_end_early,
    copies_parts,
    copying_tells_of_missing_bytes,
]
