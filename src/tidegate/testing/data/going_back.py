"""Checks of bytes that do not count, and of finishing what is whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from tidegate.ports import BytesMissingError
from tidegate.protocol.capabilities import Capability
from tidegate.protocol.model import State
from tidegate.testing.data.support import (
    append,
    can,
    holds,
    journal_of,
    keeps_pieces,
    new_upload,
    pattern,
    raises,
    read,
    same,
)

if TYPE_CHECKING:
    from tidegate.ports import DataStore
    from tidegate.testing.data.support import DataStoreCheck


# ------------------------------------------------------------------------------------- going back
async def cuts_back_on_open(store: DataStore) -> None:
    """A writer opens at exactly the record's offset; bytes past it are gone."""
    if not can(store, Capability.DISCARD):
        return
    data = pattern(200_000)
    upload = new_upload(store, "one", len(data))
    earlier = await append(store, upload, data[:70_000])
    earlier = await append(store, earlier, b"x" * 100_000, committed=False)
    upload = await append(store, earlier, data[70_000:100_000])
    same(await store.measure(upload), 100_000, "measure")
    await holds(store, await append(store, upload, data[100_000:]), data)


async def truncates(store: DataStore) -> None:
    """Truncate cuts off what is past the offset, and nothing when nothing is."""
    if not can(store, Capability.DISCARD):
        return
    data = pattern(100_000)
    upload = await append(store, new_upload(store, "one", len(data)), data[:60_000])
    await store.truncate(upload, 60_000, journal_of(store, upload))
    await store.truncate(upload, 95_000, journal_of(store, upload))
    same(await store.measure(upload), 60_000, "measure after truncating at, and past, the end")
    upload = await append(store, upload, b"x" * 30_000, committed=False)
    await store.truncate(upload, 60_000, journal_of(store, upload))
    same(await store.measure(upload), 60_000, "measure after truncate")
    await holds(store, await append(store, upload, data[60_000:]), data)


async def truncates_what_counted(store: DataStore) -> None:
    """Also what was acknowledged can be cut off: after a loss of power, it may not be there."""
    if not can(store, Capability.DISCARD) or keeps_pieces(store):
        return
    data = pattern(100_000)
    upload = await append(store, new_upload(store, "one", len(data)), data[:60_000] + b"x" * 30_000)
    await store.truncate(upload, 60_000, journal_of(store, upload))
    same(await store.measure(upload), 60_000, "measure after truncate")
    await holds(store, await append(store, replace(upload, offset=60_000), data[60_000:]), data)


async def tells_of_missing_bytes(store: DataStore) -> None:
    """A record that speaks of more than is there is not believed, and nothing is changed."""
    upload = await append(store, new_upload(store, "one", 100), pattern(60))
    with raises(BytesMissingError, "a writer at 61 of an upload with 60 bytes"):
        await store.writer(
            replace(upload, offset=61), journal_of(store, replace(upload, offset=61))
        )
    with raises(BytesMissingError, "finish of an upload of which 40 bytes are missing"):
        await store.finish(
            replace(upload, offset=100),
            journal_of(store, replace(upload, offset=100)),
            durable=True,
        )
    same(await store.measure(upload), 60, "measure afterwards")
    rest = pattern(100)[60:]
    await holds(store, await append(store, upload, rest), pattern(60) + rest)


# -------------------------------------------------------------------------------------- finishing
async def finishes_twice(store: DataStore) -> None:
    """A crash before the commit leaves the old record: finishing again gives the same."""
    data = pattern(100_000)
    received = await append(store, new_upload(store, "one", len(data)), data)
    for durable in (True, False, True):
        storage = await store.finish(received, journal_of(store, received), durable=durable)
        same(await store.measure(received), len(data), "measure with the old record")
    done = replace(received, storage=storage, state=State.COMPLETE)
    same(
        await store.finish(done, journal_of(store, done), durable=True),
        storage,
        "the storage, finished once more",
    )
    if can(store, Capability.READ):
        same(await read(store, done, 0, len(data)), data, "the bytes")


async def goes_on_after_a_finish_that_was_not_committed(store: DataStore) -> None:
    """With the record of before a crash: measured, cut back, written on and finished again.

    Of a store that keeps pieces the record was committed before.
    """
    if not can(store, Capability.DISCARD) or keeps_pieces(store):
        return
    data = pattern(100_000)
    earlier = await append(store, new_upload(store, "one", len(data)), data[:40_000])
    received = await append(store, earlier, data[40_000:90_000] + b"x" * 10_000)
    await store.finish(received, journal_of(store, received), durable=True)
    same(await store.measure(earlier), len(data), "measure with the old record")
    await store.truncate(earlier, 90_000, journal_of(store, earlier))
    same(await store.measure(earlier), 90_000, "measure after truncate")
    again = await append(store, replace(earlier, offset=90_000), data[90_000:])
    await store.finish(again, journal_of(store, again), durable=False)
    again = await append(store, earlier, data[40_000:])
    await holds(store, again, data)


async def finishes_only_what_is_whole(store: DataStore) -> None:
    """Below its length, or without one, an upload is not finished, and goes on."""
    upload = await append(store, new_upload(store, "one", 100), pattern(60))
    with raises(BytesMissingError, "finish at 60 of 100 bytes"):
        await store.finish(upload, journal_of(store, upload), durable=False)
    with raises(BytesMissingError, "finish without a length"):
        await store.finish(
            replace(upload, length=None),
            journal_of(store, replace(upload, length=None)),
            durable=False,
        )
    with raises(BytesMissingError, "finish of an upload without any bytes"):
        await store.finish(
            replace(new_upload(store, "two", 9), offset=9),
            journal_of(store, replace(new_upload(store, "two", 9), offset=9)),
            durable=False,
        )
    rest = pattern(100)[60:]
    await holds(store, await append(store, upload, rest), pattern(60) + rest)


async def holds_empty_uploads(store: DataStore) -> None:
    """An upload of length 0 is finished without a writer, or with one that wrote nothing."""
    upload = new_upload(store, "one", 0)
    await holds(store, upload, b"")
    await holds(store, upload, b"")
    await holds(store, await append(store, new_upload(store, "two", 0)), b"")


async def grows_without_a_length(store: DataStore) -> None:
    """An upload whose length comes last is the same upload."""
    if not can(store, Capability.GROW):
        return
    upload = await append(store, new_upload(store, "one", None), b"the gate ")
    upload = await append(store, upload, b"never lies")
    await holds(store, replace(upload, length=upload.offset), b"the gate never lies")


CHECKS: list[DataStoreCheck] = [
    cuts_back_on_open,
    truncates,
    truncates_what_counted,
    tells_of_missing_bytes,
    finishes_twice,
    goes_on_after_a_finish_that_was_not_committed,
    finishes_only_what_is_whole,
    holds_empty_uploads,
    grows_without_a_length,
]
