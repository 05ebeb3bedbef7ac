"""What any data store must do, as checks that need no test runner.

    from tidegate.testing import check_data_store
    anyio.run(check_data_store, lambda: opened(MyStore(...)))

or, to see each by its name, parametrise a test over DATA_STORE_CHECKS. A check takes an open and
empty store, asks only for what the store's capabilities promise, and raises AssertionError.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from weakref import WeakKeyDictionary

import anyio
from anyio.lowlevel import checkpoint
from msgspec.structs import replace

from tidegate.ports import BytesBusyError, BytesMissingError, DataError, WholeStore
from tidegate.protocol.capabilities import Capability
from tidegate.protocol.model import Kind, State, Upload, UploadId

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.ports import Buffer, DataStore, Fence, Flushed, Stored, Writer
    from tidegate.protocol.model import Segment

MakeDataStore: TypeAlias = Callable[[], "AbstractAsyncContextManager[DataStore]"]
"""Gives an empty store, opened; closes it at the end."""
DataStoreCheck: TypeAlias = Callable[["DataStore"], Awaitable[None]]

PATIENCE: Final = 60.0
"""Seconds after which a check that hangs has failed; a store far away needs some."""
MIB: Final = 1024 * 1024
MANY_CHUNKS: Final = 2500
"""More than a single vectored write takes (IOV_MAX is 1024 on Linux)."""

DATA_STORE_CHECKS: list[DataStoreCheck] = []
"""Every check, in an order in which the first failure tells most."""


async def check_data_store(make: MakeDataStore) -> None:
    """Run every check, each on a store of its own. Raises AssertionError at the first failure."""
    for check in DATA_STORE_CHECKS:
        try:
            with anyio.fail_after(PATIENCE):
                async with make() as store:
                    await check(store)
        except TimeoutError:
            raise AssertionError(f"{_name(check)}: not done after {PATIENCE} seconds") from None
        except AssertionError as failure:
            failure.add_note(f"in the check {_name(check)}: {check.__doc__}")
            raise


def _name(check: DataStoreCheck) -> str:
    return getattr(check, "__name__", repr(check))


def _check(function: DataStoreCheck) -> DataStoreCheck:
    DATA_STORE_CHECKS.append(function)
    return function


# ------------------------------------------------------------------------------------------- tools


def _expect(condition: object, what: str) -> None:
    if not condition:
        raise AssertionError(what)


def _same(found: object, expected: object, what: str) -> None:
    _expect(found == expected, f"{what}: {_short(found)}; expected {_short(expected)}")


def _short(value: object) -> str:
    if isinstance(value, bytes) and len(value) > 40:
        return f"{len(value)} bytes, sha1 {hashlib.sha1(value, usedforsecurity=False).hexdigest()}"
    return repr(value)


@contextmanager
def _raises(expected: type[DataError], what: str) -> Iterator[None]:
    try:
        yield
    except expected:
        return
    raise AssertionError(f"{what}: nothing was raised; expected {expected.__name__}")


def _pattern(size: int, seed: int = 0) -> bytes:
    """Bytes of which no two pieces of some length are the same, so that a shift shows."""
    block = hashlib.shake_128(b"%d" % seed).digest(min(size, 64 * 1024))
    counted = (b"%016d" % n + block for n in range(size // len(block) + 1)) if size else ()
    return b"".join(counted)[:size]


def _upload(store: DataStore, name: str, length: int | None, **fields: Any) -> Upload:
    upload = Upload(
        id=UploadId(name),
        length=length,
        created_at=1_700_000_000,
        active_at=1_700_000_000,
        **fields,
    )
    return replace(upload, storage=store.place(upload))


class Journal:
    """What a metadata store would keep of one upload for a data store. See `ports.Fence`."""

    def __init__(self) -> None:
        self.storage: dict[str, Any] | None = None
        self._segments: dict[int, Segment] = {}

    async def hold(self) -> None:
        """Nobody else has it."""

    async def reserve(self, storage: dict[str, Any]) -> None:
        """Keep it."""
        self.storage = storage

    async def segments(self) -> list[Segment]:
        """Those of all that was flushed."""
        return [self._segments[index] for index in sorted(self._segments)]

    def commit(self, upload: Upload, flushed: Flushed) -> Upload:
        """The record after a writer told how far it is."""
        self._segments |= {segment.index: segment for segment in flushed.segments}
        storage = flushed.storage or self.storage or upload.storage
        self.storage = None
        return replace(upload, offset=flushed.offset, storage=storage)


ALONE: Final = Journal()
"""For calls on stores that keep nothing of their own in the record."""

_journals: WeakKeyDictionary[DataStore, dict[UploadId, Journal]] = WeakKeyDictionary()


def _journal(store: DataStore, upload: Upload) -> Journal:
    return _journals.setdefault(store, {}).setdefault(upload.id, Journal())


@asynccontextmanager
async def _writing(store: DataStore, upload: Upload) -> AsyncIterator[Writer]:
    writer = await store.writer(upload, _journal(store, upload))
    try:
        yield writer
    finally:
        await writer.close()


async def _flushed(store: DataStore, writer: Writer, upload: Upload) -> Upload:
    flushed = await writer.flush()
    _same(flushed.offset, writer.offset, "flush, after which nothing was written")
    return _journal(store, upload).commit(upload, flushed)


async def _append(store: DataStore, upload: Upload, *chunks: Buffer) -> Upload:
    """One session: open, write, flush, close. The record as it is then."""
    async with _writing(store, upload) as writer:
        _same(writer.offset, upload.offset, "the offset of a writer that was just opened")
        await writer.write(chunks)
        return await _flushed(store, writer, upload)


async def _finish(store: DataStore, upload: Upload) -> Upload:
    storage = await store.finish(upload, _journal(store, upload), durable=True)
    return replace(upload, storage=storage, state=State.COMPLETE, ended_at=1_700_000_001)


async def _complete(store: DataStore, name: str, data: bytes, kind: Kind = Kind.PARTIAL) -> Upload:
    return await _finish(
        store, await _append(store, _upload(store, name, len(data), kind=kind), data)
    )


@asynccontextmanager
async def _reading(
    store: DataStore, upload: Upload, start: int, stop: int
) -> AsyncIterator[AsyncIterator[bytes]]:
    chunks = store.read(upload, start, stop)
    try:
        yield chunks
    finally:
        if isinstance(chunks, AsyncGenerator):
            await chunks.aclose()


async def _read(store: DataStore, upload: Upload, start: int, stop: int) -> bytes:
    data = []
    async with _reading(store, upload, start, stop) as chunks:
        async for chunk in chunks:
            _expect(0 < len(chunk) <= MIB, f"a chunk of {len(chunk)} bytes")
            data.append(chunk)
    return b"".join(data)


async def _holds(store: DataStore, upload: Upload, data: bytes) -> None:
    """A whole upload's bytes are `data`, as far as the store lets us see; it is complete then."""
    done = await _finish(store, upload)
    _same(await store.measure(done), len(data), "measure, when complete")
    if Capability.READ in store.capabilities:
        _same(await _read(store, done, 0, len(data)), data, "the bytes that were stored")


async def _all_stored(store: DataStore) -> list[Stored]:
    return [found async for found in store.stored()]


def _can(store: DataStore, *needed: Capability) -> bool:
    return all(capability in store.capabilities for capability in needed)


# ------------------------------------------------------------------------------------- the basics


@_check
async def place_is_pure(store: DataStore) -> None:
    """The same upload is always given the same storage, and giving it stores nothing."""
    upload = _upload(store, "one", 10)
    _same(store.place(upload), upload.storage, "place, the second time")
    _same(await _all_stored(store), [], "what is stored after place")


@_check
async def nothing_is_there_at_first(store: DataStore) -> None:
    """A record without bytes is an upload of offset 0, whatever is asked of it."""
    upload = _upload(store, "one", 10)
    _same(await store.measure(upload), 0, "measure")
    if _can(store, Capability.DISCARD):
        await store.truncate(upload, 0, _journal(store, upload))
        _same(await store.measure(upload), 0, "measure after truncate")
    if _can(store, Capability.DELETE):
        await store.delete(upload)
    with _raises(BytesMissingError, "a writer at 5 of an upload that has nothing"):
        await store.writer(replace(upload, offset=5), _journal(store, replace(upload, offset=5)))
    _same(await _all_stored(store), [], "what is stored after all that")


@_check
async def appends_across_sessions(store: DataStore) -> None:
    """Each session begins where the last one ended, and nothing is lost or doubled between."""
    data = _pattern(3 * MIB)
    upload = _upload(store, "one", len(data))
    for start, stop in ((0, 1), (1, 4096), (4096, 4096), (4096, 1_000_003), (1_000_003, len(data))):
        upload = await _append(store, upload, data[start:stop])
        _same(upload.offset, stop, "the offset")
        _same(await store.measure(upload), stop, "measure")
    await _holds(store, upload, data)


@_check
async def takes_any_buffers(store: DataStore) -> None:
    """bytes, bytearrays, memoryviews and slices of them, empty ones too, all in one write."""
    upload = _upload(store, "one", 14)
    word = bytearray(b"..resumable..")
    chunks: list[Buffer] = [
        b"",
        b"the ",
        memoryview(word)[2:11],
        b"",
        memoryview(b"!!")[1:],
        bytearray(b""),
    ]
    upload = await _append(store, upload, *chunks)
    _same(upload.offset, 14, "the offset")
    word[:] = bytes(len(word))  # the chunks are the caller's again
    await _holds(store, upload, b"the resumable!")


@_check
async def takes_many_chunks(store: DataStore) -> None:
    """One write may bring more chunks than a system call takes, and of all sizes."""
    data = _pattern(2 * MIB)
    sizes = [(number * 7919) % 1500 for number in range(MANY_CHUNKS)]
    chunks, at = [], 0
    for size in sizes:
        chunks.append(memoryview(data)[at : at + size])
        at += size
    upload = await _append(store, _upload(store, "one", at), *chunks)
    _same(upload.offset, at, "the offset")
    await _holds(store, upload, data[:at])


@_check
async def takes_a_large_chunk(store: DataStore) -> None:
    """A chunk of 8 MiB is as good as many small ones."""
    data = _pattern(8 * MIB)
    await _holds(store, await _append(store, _upload(store, "one", len(data)), data), data)


@_check
async def adds_to_the_digest(store: DataStore) -> None:
    """The digest sees exactly what was written, in order."""
    data = _pattern(300_000)
    digest = hashlib.sha256()
    upload = _upload(store, "one", len(data))
    async with _writing(store, upload) as writer:
        await writer.write([data[:10], data[10:200_000]], digest)
        await writer.write([data[200_000:]], digest)
        upload = await _flushed(store, writer, upload)
    _same(digest.digest(), hashlib.sha256(data).digest(), "the digest")
    await _holds(store, upload, data)


@_check
async def syncs_what_was_flushed(store: DataStore) -> None:
    """Sync answers an offset that was flushed, and may run while more is written."""
    data = _pattern(2 * MIB)
    upload = _upload(store, "one", len(data))
    async with _writing(store, upload) as writer:
        await writer.write([data[:1000]])
        _same((await writer.flush()).offset, 1000, "flush")
        _same(await writer.sync(), 1000, "sync")
        await writer.write([data[1000:MIB]])
        await writer.flush()
        synced: list[int] = []

        async def sync() -> None:
            synced.append(await writer.sync())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sync)
            await writer.write([data[MIB:]])
        _expect(MIB <= synced[0] <= len(data), f"a sync during a write answered {synced[0]}")
        upload = await _flushed(store, writer, upload)
        _same(await writer.sync(), len(data), "the last sync")
    await _holds(store, upload, data)


@_check
async def closes_twice(store: DataStore) -> None:
    """Closing again, a writer or the store, does nothing."""
    writer = await store.writer(
        _upload(store, "one", 10), _journal(store, _upload(store, "one", 10))
    )
    await writer.close()
    await writer.close()
    await store.close()
    await store.close()


@_check
async def keeps_uploads_apart(store: DataStore) -> None:
    """Uploads that are written at the same time do not touch each other."""
    uploads = {n: _upload(store, f"upload-{n}", 50_000) for n in range(8)}

    async def send(number: int) -> None:
        data = _pattern(50_000, number)
        upload = uploads[number]
        for at in range(0, 50_000, 10_000):
            upload = await _append(store, upload, data[at : at + 10_000])
        await _holds(store, upload, data)

    async with anyio.create_task_group() as tasks:
        for number in uploads:
            tasks.start_soon(send, number)


@_check
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
        done[name] = await _complete(store, name, _pattern(100, number))
    for number, name in enumerate(ids):
        _same(await store.measure(done[name]), 100, f"measure of {name!r:.40}")
        if _can(store, Capability.READ):
            data = await _read(store, done[name], 0, 100)
            _same(data, _pattern(100, number), f"the bytes of {name!r:.40}")
    found = {stored.upload_id for stored in await _all_stored(store)}
    _expect(found <= set(ids), f"an upload was found that there is not: {found - set(ids)}")


@_check
async def tells_its_free_space(store: DataStore) -> None:
    """What still fits is a number of bytes, or unknown."""
    free = await store.free_space()
    _expect(free is None or free >= 0, f"free_space: {free}")


# ------------------------------------------------------------------------------------- going back


@_check
async def cuts_back_on_open(store: DataStore) -> None:
    """A writer opens at exactly the record's offset; bytes past it are gone."""
    if not _can(store, Capability.DISCARD):
        return
    data = _pattern(200_000)
    upload = _upload(store, "one", len(data))
    earlier = await _append(store, upload, data[:70_000])
    await _append(store, earlier, b"x" * 100_000)
    upload = await _append(store, earlier, data[70_000:100_000])
    _same(await store.measure(upload), 100_000, "measure")
    await _holds(store, await _append(store, upload, data[100_000:]), data)


@_check
async def truncates(store: DataStore) -> None:
    """Truncate cuts off what is past the offset, and nothing when nothing is."""
    if not _can(store, Capability.DISCARD):
        return
    data = _pattern(100_000)
    upload = await _append(store, _upload(store, "one", len(data)), data[:60_000] + b"x" * 30_000)
    await store.truncate(upload, 90_000, _journal(store, upload))
    await store.truncate(upload, 95_000, _journal(store, upload))
    _same(await store.measure(upload), 90_000, "measure after truncating at, and past, the end")
    await store.truncate(upload, 60_000, _journal(store, upload))
    _same(await store.measure(upload), 60_000, "measure after truncate")
    await _holds(store, await _append(store, replace(upload, offset=60_000), data[60_000:]), data)


@_check
async def tells_of_missing_bytes(store: DataStore) -> None:
    """A record that speaks of more than is there is not believed, and nothing is changed."""
    upload = await _append(store, _upload(store, "one", 100), _pattern(60))
    with _raises(BytesMissingError, "a writer at 61 of an upload with 60 bytes"):
        await store.writer(replace(upload, offset=61), _journal(store, replace(upload, offset=61)))
    with _raises(BytesMissingError, "finish of an upload of which 40 bytes are missing"):
        await store.finish(
            replace(upload, offset=100), _journal(store, replace(upload, offset=100)), durable=True
        )
    _same(await store.measure(upload), 60, "measure afterwards")
    rest = _pattern(100)[60:]
    await _holds(store, await _append(store, upload, rest), _pattern(60) + rest)


# -------------------------------------------------------------------------------------- finishing


@_check
async def finishes_twice(store: DataStore) -> None:
    """A crash before the commit leaves the old record: finishing again gives the same."""
    data = _pattern(100_000)
    received = await _append(store, _upload(store, "one", len(data)), data)
    for durable in (True, False, True):
        storage = await store.finish(received, _journal(store, received), durable=durable)
        _same(await store.measure(received), len(data), "measure with the old record")
    done = replace(received, storage=storage, state=State.COMPLETE)
    _same(
        await store.finish(done, _journal(store, done), durable=True),
        storage,
        "the storage, finished once more",
    )
    if _can(store, Capability.READ):
        _same(await _read(store, done, 0, len(data)), data, "the bytes")


@_check
async def goes_on_after_a_finish_that_was_not_committed(store: DataStore) -> None:
    """With the record of before a crash: measured, cut back, written on and finished again."""
    if not _can(store, Capability.DISCARD):
        return
    data = _pattern(100_000)
    earlier = await _append(store, _upload(store, "one", len(data)), data[:40_000])
    received = await _append(store, earlier, data[40_000:90_000] + b"x" * 10_000)
    await store.finish(received, _journal(store, received), durable=True)
    _same(await store.measure(earlier), len(data), "measure with the old record")
    await store.truncate(earlier, 90_000, _journal(store, earlier))
    _same(await store.measure(earlier), 90_000, "measure after truncate")
    again = await _append(store, replace(earlier, offset=90_000), data[90_000:])
    await store.finish(again, _journal(store, again), durable=False)
    again = await _append(store, earlier, data[40_000:])
    await _holds(store, again, data)


@_check
async def finishes_only_what_is_whole(store: DataStore) -> None:
    """Below its length, or without one, an upload is not finished, and goes on."""
    upload = await _append(store, _upload(store, "one", 100), _pattern(60))
    with _raises(BytesMissingError, "finish at 60 of 100 bytes"):
        await store.finish(upload, _journal(store, upload), durable=False)
    with _raises(BytesMissingError, "finish without a length"):
        await store.finish(
            replace(upload, length=None),
            _journal(store, replace(upload, length=None)),
            durable=False,
        )
    with _raises(BytesMissingError, "finish of an upload without any bytes"):
        await store.finish(
            replace(_upload(store, "two", 9), offset=9),
            _journal(store, replace(_upload(store, "two", 9), offset=9)),
            durable=False,
        )
    rest = _pattern(100)[60:]
    await _holds(store, await _append(store, upload, rest), _pattern(60) + rest)


@_check
async def holds_empty_uploads(store: DataStore) -> None:
    """An upload of length 0 is finished without a writer, or with one that wrote nothing."""
    upload = _upload(store, "one", 0)
    await _holds(store, upload, b"")
    await _holds(store, upload, b"")
    await _holds(store, await _append(store, _upload(store, "two", 0)), b"")


@_check
async def grows_without_a_length(store: DataStore) -> None:
    """An upload whose length comes last is the same upload."""
    if not _can(store, Capability.GROW):
        return
    upload = await _append(store, _upload(store, "one", None), b"the gate ")
    upload = await _append(store, upload, b"never lies")
    await _holds(store, replace(upload, length=upload.offset), b"the gate never lies")


# ---------------------------------------------------------------------------------------- reading


@_check
async def reads_ranges(store: DataStore) -> None:
    """Any range of bytes, in chunks of at most 1 MiB; none where there is nothing to read."""
    if not _can(store, Capability.READ):
        return
    data = _pattern(3 * MIB + 17)
    done = await _complete(store, "one", data)
    size = len(data)
    ranges = [(0, size), (0, 1), (size - 1, size), (MIB - 1, MIB + 1), (5, 2 * MIB), (7, 7), (0, 0)]
    for start, stop in [*ranges, (size, size)]:
        _same(await _read(store, done, start, stop), data[start:stop], f"bytes {start} to {stop}")


@_check
async def reads_what_is_whole_and_not_finished(store: DataStore) -> None:
    """What looks at bytes before they are complete reads them; also after a finish that nobody
    committed, with the record of before it.
    """
    if not _can(store, Capability.READ, Capability.PEEK):
        return
    data = _pattern(2 * MIB + 17)
    whole = await _append(store, _upload(store, "one", len(data)), data)
    _same(await _read(store, whole, 0, len(data)), data, "the bytes before the finish")
    _same(await _read(store, whole, MIB - 1, MIB + 1), data[MIB - 1 : MIB + 1], "two of them")
    await store.finish(whole, _journal(store, whole), durable=True)
    _same(await _read(store, whole, 0, len(data)), data, "the bytes, with the old record")
    await _holds(store, whole, data)


@_check
async def reading_tells_of_missing_bytes(store: DataStore) -> None:
    """What is not there is told before the first chunk."""
    if not _can(store, Capability.READ):
        return
    done = await _complete(store, "one", _pattern(2 * MIB))
    seen = 0
    with _raises(BytesMissingError, "reading past the end"):
        async for chunk in store.read(replace(done, length=3 * MIB), 0, 2 * MIB + 1):
            seen += len(chunk)
    _same(seen, 0, "bytes read before it was told")
    nowhere = replace(_upload(store, "two", 10, state=State.COMPLETE), offset=10)
    with _raises(BytesMissingError, "reading an upload that is not there"):
        await _read(store, nowhere, 0, 10)


@_check
async def reading_may_end_early(store: DataStore) -> None:
    """A reader that stops, or is cancelled, holds nothing up."""
    if not _can(store, Capability.READ):
        return
    data = _pattern(3 * MIB)
    done = await _complete(store, "one", data)
    async with _reading(store, done, 0, len(data)) as chunks:
        async for _chunk in chunks:
            break
    with anyio.CancelScope() as scope:
        async with _reading(store, done, 0, len(data)) as chunks:
            async for _chunk in chunks:
                scope.cancel()
    _same(await _read(store, done, 0, len(data)), data, "the bytes, afterwards")
    if _can(store, Capability.DELETE):
        await store.delete(done)
        _same(await store.measure(done), 0, "measure after delete")


# ---------------------------------------------------------------------------------------- copying


@_check
async def stores_a_whole_upload_at_once(store: DataStore) -> None:
    """In one step, never over another one's bytes; afterwards it is as any other."""
    if not isinstance(store, WholeStore):
        return
    for number, data in enumerate((b"", b"x", _pattern(64 * 1024))):
        upload = _upload(store, f"at-once-{number}", len(data))
        pieces: list[Buffer] = [data[:10], memoryview(data)[10:]]
        storage = await store.store_whole(upload, pieces, durable=number > 0)
        done = replace(upload, offset=len(data), storage=storage, state=State.COMPLETE)
        _same(await store.measure(done), len(data), "measure")
        if _can(store, Capability.READ):
            _same(await _read(store, done, 0, len(data)), data, "the bytes")
        again = replace(upload, offset=len(data))
        finished = await store.finish(again, _journal(store, upload), durable=True)
        _same(finished, storage, "the storage, finished once more after a crash")
        if _can(store, Capability.DELETE):
            await store.delete(done)
            _same(await store.measure(done), 0, "measure after delete")


@_check
async def copies_parts(store: DataStore) -> None:
    """A final is its parts in order; one may be there twice, and each is copied by ranges."""
    if not _can(store, Capability.COPY):
        return
    first, second = _pattern(MIB + 3, 1), _pattern(200_001, 2)
    one = await _complete(store, "one", first)
    two = await _complete(store, "two", second)
    empty = await _complete(store, "empty", b"")
    whole = first + second + first
    final = _upload(store, "final", len(whole), kind=Kind.FINAL)
    async with _writing(store, final) as writer:
        await writer.copy(one, 0, 10)
        await writer.copy(one, 10, 10)
        await writer.copy(one, 10, len(first))
        await writer.copy(empty, 0, 0)
        final = await _flushed(store, writer, final)
    _same(final.offset, len(first), "the offset after the first part")
    async with _writing(store, final) as writer:
        await writer.copy(two, 0, len(second))
        await writer.copy(one, 0, MIB)
        await writer.write([first[MIB:]])
        final = await _flushed(store, writer, final)
    _same(final.offset, len(whole), "the offset after the last part")
    if _can(store, Capability.DELETE):
        # "A final upload has its own bytes: deleting a partial afterwards does not touch it."
        await store.delete(one)
        await store.delete(two)
    await _holds(store, final, whole)


@_check
async def copying_tells_of_missing_bytes(store: DataStore) -> None:
    """A part that is shorter than its record, or gone, is not made up for."""
    if not _can(store, Capability.COPY):
        return
    part = await _complete(store, "one", _pattern(1000))
    final = _upload(store, "final", 2000, kind=Kind.FINAL)
    async with _writing(store, final) as writer:
        await writer.copy(part, 0, 500)
        with _raises(BytesMissingError, "copying past the end"):
            await writer.copy(part, 500, 1001)
        final = await _flushed(store, writer, final)
        nowhere = replace(_upload(store, "two", 10, state=State.COMPLETE), offset=10)
        with _raises(BytesMissingError, "copying what is not there"):
            await writer.copy(nowhere, 0, 10)
    _expect(500 <= final.offset <= 1000, f"the offset after a failed copy: {final.offset}")


# --------------------------------------------------------------------------------------- deleting


@_check
async def deletes_at_any_age(store: DataStore) -> None:
    """Deleting leaves nothing, in every state, and may be done again."""
    if not _can(store, Capability.DELETE):
        return
    fresh = _upload(store, "fresh", 10)
    part = await _append(store, _upload(store, "part", 10), b"12345")
    whole = await _append(store, _upload(store, "whole", 10), b"1234567890")
    uncommitted = await _append(store, _upload(store, "uncommitted", 10), b"1234567890")
    await store.finish(uncommitted, _journal(store, uncommitted), durable=True)
    complete = await _complete(store, "complete", b"1234567890")
    uploads = [fresh, part, whole, uncommitted, complete, await _complete(store, "empty", b"")]
    kept = await _complete(store, "kept", b"kept")
    for upload in uploads:
        await store.delete(upload)
        await store.delete(upload)
        _same(await store.measure(upload), 0, f"measure of {upload.id} after delete")
    found = {stored.upload_id for stored in await _all_stored(store)}
    _same(found, {kept.id}, "what is stored after all but one were deleted")
    with _raises(BytesMissingError, "a writer after delete"):
        await store.writer(part, _journal(store, part))
    with _raises(BytesMissingError, "finish after delete"):
        await store.finish(whole, _journal(store, whole), durable=True)
    _same(await store.measure(kept), 4, "measure of what was not deleted")


@_check
async def deletes_during_a_write(store: DataStore) -> None:
    """A writer at work is not waited for; what it still writes is never found again."""
    if not _can(store, Capability.DELETE):
        return
    upload = _upload(store, "one", 100)
    async with _writing(store, upload) as writer:
        await writer.write([b"12345"])
        upload = await _flushed(store, writer, upload)
        await store.delete(upload)
        try:
            await writer.write([b"67890"])
            await writer.flush()
        except DataError:
            pass  # to be told of it is fine as well
    _same(await store.measure(upload), 0, "measure after delete and more writing")
    _same(await _all_stored(store), [], "what is stored after delete and more writing")


@_check
async def finds_what_is_stored(store: DataStore) -> None:
    """A sweep finds all that is stored, with its upload and its size; discard deletes it."""
    if not _can(store, Capability.DELETE):
        return
    part = await _append(store, _upload(store, "part", 100), b"x" * 60)
    done = await _complete(store, "done", b"y" * 100)
    found = await _all_stored(store)
    sizes: dict[str, int] = {}
    for stored in found:
        sizes[stored.upload_id] = sizes.get(stored.upload_id, 0) + stored.size
        _expect(stored.place, "a place is for people to read, and was empty")
    _same(sizes, {"part": 60, "done": 100}, "the sizes by upload")
    for stored in found:
        if stored.upload_id == part.id:
            await store.discard(stored)
    _same(await store.measure(part), 0, "measure after discard")
    _same(await store.measure(done), 100, "measure of what was not discarded")
    _same({s.upload_id for s in await _all_stored(store)}, {done.id}, "what is still stored")


# ----------------------------------------------------------------------------- at the same time


@_check
async def a_rival_does_no_harm(store: DataStore) -> None:
    """A second writer is refused, where the store can tell; the first one never notices."""
    data = _pattern(100_000)
    upload = _upload(store, "one", len(data))
    async with _writing(store, upload) as writer:
        await writer.write([data[:50_000]])
        upload = await _flushed(store, writer, upload)
        try:
            rival = await store.writer(upload, _journal(store, upload))
        except BytesBusyError:
            if _can(store, Capability.DISCARD):
                with _raises(BytesBusyError, "truncate under a writer, where a rival is refused"):
                    await store.truncate(upload, 0, _journal(store, upload))
        else:
            await rival.close()
        await writer.write([data[50_000:]])
        upload = await _flushed(store, writer, upload)
    await _holds(store, upload, data)


@_check
async def survives_cancellation(store: DataStore) -> None:
    """A write that is cancelled stores a beginning of its chunks, and lets go of the upload."""
    data = _pattern(4 * MIB)
    upload = _upload(store, "one", len(data))
    for cancelled_first in (True, False):
        async with _writing(store, upload) as writer:
            await _cancelled_write(writer, data[writer.offset :], at_once=cancelled_first)
            upload = await _flushed(store, writer, upload)
        size = await store.measure(upload)
        _expect(upload.offset <= size, f"{size} bytes are stored, {upload.offset} were flushed")
        if not _can(store, Capability.DISCARD):
            upload = replace(upload, offset=size)
    await _holds(store, await _append(store, upload, data[upload.offset :]), data)


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


@_check
async def survives_cancelled_opening(store: DataStore) -> None:
    """Opening a writer and being cancelled meanwhile leaves nobody holding the upload."""
    upload = await _append(store, _upload(store, "one", 10), b"12345")
    for turns in range(6):
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_cancel_after, scope, turns)
                async with _writing(store, upload):
                    pass
    await _holds(store, await _append(store, upload, b"67890"), b"1234567890")


async def _cancel_after(scope: anyio.CancelScope, turns: int) -> None:
    for _turn in range(turns):
        await checkpoint()
    scope.cancel()


if TYPE_CHECKING:
    _: type[Fence] = Journal
