"""What is particular to bytes in memory."""

from __future__ import annotations

import anyio
import pytest
from msgspec.structs import replace

from tidegate.ports import BytesBusyError, DataError, NoSpaceError
from tidegate.protocol.model import State
from tidegate.stores.memory import SMALL, MemoryStore
from tidegate.testing.data import ALONE

from .conftest import append, make_upload, read_all

pytestmark = pytest.mark.anyio


async def test_the_capacity_is_that_of_all_uploads_together() -> None:
    store = MemoryStore(capacity=100)
    assert store.max_size == 100
    one = await append(store, make_upload(store, "one", 60), b"x" * 60)
    two = make_upload(store, "two", 60)
    writer = await store.writer(two, ALONE)
    with pytest.raises(NoSpaceError, match="all 100 bytes"):
        await writer.write([b"a" * 30, b"b" * 30])
    assert (await writer.flush()).offset == 40
    assert await store.free_space() == 0
    await store.delete(one)
    assert await store.free_space() == 60
    await writer.write([b"b" * 20])
    await writer.close()
    two = replace(two, offset=60)
    await store.finish(two, ALONE, durable=True)
    assert await read_all(store, two) == b"a" * 30 + b"b" * 30


async def test_room_is_given_back() -> None:
    """By truncating, by opening at an earlier offset, by deleting under a writer, by a sweep."""
    store = MemoryStore(capacity=100_000)
    upload = await append(store, make_upload(store, length=None), b"x" * 90_000)
    await store.truncate(upload, 50_000, ALONE)
    assert await store.free_space() == 50_000
    upload = await append(store, replace(upload, offset=10_000), b"x" * 20_000)
    assert await store.free_space() == 70_000
    writer = await store.writer(upload, ALONE)
    await store.delete(upload)
    with pytest.raises(DataError):
        await writer.write([b"x" * (SMALL + 1)])
    await writer.close()
    assert await store.free_space() == 100_000
    await append(store, upload := make_upload(store, "two"), b"12345")
    for found in [stored async for stored in store.stored()]:
        await store.discard(found)
        await store.discard(found)
    assert await store.free_space() == 100_000
    assert await store.measure(upload) == 0


async def test_many_writers_share_the_capacity() -> None:
    """Counted right, though threads append at the same time."""
    store = MemoryStore(capacity=1_000_000)
    stored = 0

    async def send(number: int) -> None:
        nonlocal stored
        writer = await store.writer(make_upload(store, f"upload-{number}", None), ALONE)
        try:
            while True:
                await writer.write([b"x" * (SMALL + number)])
        except NoSpaceError:
            stored += writer.offset
        await writer.close()

    async with anyio.create_task_group() as tasks:
        for number in range(8):
            tasks.start_soon(send, number)
    assert stored == store.used == 1_000_000


async def test_one_writer_at_a_time() -> None:
    store = MemoryStore()
    upload = make_upload(store)
    writer = await store.writer(upload, ALONE)
    with pytest.raises(BytesBusyError):
        await store.writer(upload, ALONE)
    await writer.close()
    again = await store.writer(upload, ALONE)
    await writer.close()  # the old one's, which must not let go of the new one's
    with pytest.raises(BytesBusyError):
        await store.writer(upload, ALONE)
    with pytest.raises(DataError, match="closed"):
        await writer.write([b"late"])
    await again.close()


async def test_a_complete_upload_is_not_written() -> None:
    store = MemoryStore()
    with pytest.raises(DataError, match="is complete"):
        await store.writer(replace(make_upload(store), state=State.COMPLETE), ALONE)


async def test_nothing_needs_a_sync() -> None:
    assert MemoryStore().boot_id == ""
