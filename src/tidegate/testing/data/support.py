"""What the checks of data stores share."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from weakref import WeakKeyDictionary

from msgspec.structs import replace

from tidegate.ports import DataError, PieceStore
from tidegate.protocol.capabilities import Capability
from tidegate.protocol.model import Kind, State, Upload, UploadId

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.ports import Buffer, DataStore, Flushed, Stored, Writer
    from tidegate.protocol.model import Segment

DataStoreCheck: TypeAlias = Callable[["DataStore"], Awaitable[None]]

MIB: Final = 1024 * 1024


def expect(condition: object, what: str) -> None:
    """Raise AssertionError unless a condition holds."""
    if not condition:
        raise AssertionError(what)


def same(found: object, expected: object, what: str) -> None:
    """Raise AssertionError unless two values are the same."""
    expect(found == expected, f"{what}: {_short(found)}; expected {_short(expected)}")


def _short(value: object) -> str:
    if isinstance(value, bytes) and len(value) > 40:
        return f"{len(value)} bytes, sha1 {hashlib.sha1(value, usedforsecurity=False).hexdigest()}"
    return repr(value)


@contextmanager
def raises(expected: type[DataError], what: str) -> Iterator[None]:
    """Expect an exception."""
    try:
        yield
    except expected:
        return
    raise AssertionError(f"{what}: nothing was raised; expected {expected.__name__}")


def pattern(size: int, seed: int = 0) -> bytes:
    """Bytes of which no two pieces of some length are the same, so that a shift shows."""
    block = hashlib.shake_128(b"%d" % seed).digest(min(size, 64 * 1024))
    counted = (b"%016d" % n + block for n in range(size // len(block) + 1)) if size else ()
    return b"".join(counted)[:size]


def new_upload(store: DataStore, name: str, length: int | None, **fields: Any) -> Upload:
    """A record as the engine would make it."""
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
        self._storage: dict[str, Any] | None = None
        self._segments: dict[int, Segment] = {}

    async def hold(self) -> None:
        """Nobody else has it."""

    async def reserve(self, storage: dict[str, Any]) -> None:
        """Keep it."""
        self._storage = storage

    async def segments(self) -> list[Segment]:
        """Those of all that was flushed."""
        return [self._segments[index] for index in sorted(self._segments)]

    def commit(self, upload: Upload, flushed: Flushed) -> Upload:
        """The record after a writer told how far it is."""
        self._segments |= {segment.index: segment for segment in flushed.segments}
        storage = flushed.storage or self._storage or upload.storage
        self._storage = None
        return replace(upload, offset=flushed.offset, storage=storage)

    def record(self, upload: Upload) -> Upload:
        """The record when what a writer told was not committed, but what it reserved was."""
        return replace(upload, storage=self._storage or upload.storage)


ALONE: Final = Journal()
"""For calls on stores that keep nothing of their own in the record."""

_journals: WeakKeyDictionary[DataStore, dict[UploadId, Journal]] = WeakKeyDictionary()


def journal_of(store: DataStore, upload: Upload) -> Journal:
    """What is committed of an upload in a store."""
    return _journals.setdefault(store, {}).setdefault(upload.id, Journal())


def keeps_pieces(store: DataStore) -> bool:
    """Whether only what was committed is there."""
    return isinstance(store, PieceStore)


@asynccontextmanager
async def writing(store: DataStore, upload: Upload) -> AsyncIterator[Writer]:
    """A writer of an upload, closed at the end."""
    writer = await store.writer(upload, journal_of(store, upload))
    try:
        yield writer
    finally:
        await writer.close()


async def flushed(store: DataStore, writer: Writer, upload: Upload) -> Upload:
    """Flush and commit; the record then."""
    flushed = await writer.flush()
    same(flushed.offset, writer.offset, "flush, after which nothing was written")
    return journal_of(store, upload).commit(upload, flushed)


async def append(
    store: DataStore, upload: Upload, *chunks: Buffer, committed: bool = True
) -> Upload:
    """One session: open, write, flush, close. The record as it is then, if that was committed."""
    async with writing(store, upload) as writer:
        same(writer.offset, upload.offset, "the offset of a writer that was just opened")
        await writer.write(chunks)
        if committed:
            return await flushed(store, writer, upload)
        await writer.flush()
        return journal_of(store, upload).record(upload)


async def finish(store: DataStore, upload: Upload) -> Upload:
    """The record of an upload that was finished."""
    storage = await store.finish(upload, journal_of(store, upload), durable=True)
    return replace(upload, storage=storage, state=State.COMPLETE, ended_at=1_700_000_001)


async def complete(store: DataStore, name: str, data: bytes, kind: Kind = Kind.PARTIAL) -> Upload:
    """A complete upload, made in one go."""
    return await finish(
        store, await append(store, new_upload(store, name, len(data), kind=kind), data)
    )


@asynccontextmanager
async def reading(
    store: DataStore, upload: Upload, start: int, stop: int
) -> AsyncIterator[AsyncIterator[bytes]]:
    """The chunks of a download, closed at the end."""
    chunks = store.read(upload, start, stop)
    try:
        yield chunks
    finally:
        if isinstance(chunks, AsyncGenerator):
            await chunks.aclose()


async def read(store: DataStore, upload: Upload, start: int, stop: int) -> bytes:
    """A range of bytes."""
    data = []
    async with reading(store, upload, start, stop) as chunks:
        async for chunk in chunks:
            expect(0 < len(chunk) <= MIB, f"a chunk of {len(chunk)} bytes")
            data.append(chunk)
    return b"".join(data)


async def holds(store: DataStore, upload: Upload, data: bytes) -> None:
    """A whole upload's bytes are `data`, as far as the store lets us see; it is complete then."""
    done = await finish(store, upload)
    same(await store.measure(done), len(data), "measure, when complete")
    if Capability.READ in store.capabilities:
        same(await read(store, done, 0, len(data)), data, "the bytes that were stored")


async def all_stored(store: DataStore) -> list[Stored]:
    """What a sweep would find."""
    return [found async for found in store.stored()]


def can(store: DataStore, *needed: Capability) -> bool:
    """Whether a store has all of these capabilities."""
    return all(capability in store.capabilities for capability in needed)
