"""Stores that are measured: they are what they were, and what they do is counted."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest
from msgspec.structs import replace
from tests.support.bodies import ScriptedBody
from tests.support.faulty import FaultyStore

from tidegate.engine.core import Settings
from tidegate.engine.engine import Engine
from tidegate.engine.measured import measured_data, measured_metadata
from tidegate.measures import (
    CALL_ERRORS,
    CALL_SECONDS,
    CALLS,
    RECEIVED,
    RECOVERIES,
    TAKEOVERS,
    Measures,
)
from tidegate.metadata.memory import MemoryMetadataStore
from tidegate.metadata.sqlite.store import SQLiteMetadataStore
from tidegate.ports import (
    BlockingWriter,
    BytesBusyError,
    Change,
    DataError,
    FileStore,
    LeaseLostError,
    LinkStore,
    MetadataError,
    NoSpaceError,
    PieceStore,
    ProbedStore,
    QueuedStore,
    SplicingWriter,
    UnavailableError,
    UploadExistsError,
    WholeStore,
)
from tidegate.protocol.commands import Append, Create, Inspect, Payload, Terminate
from tidegate.protocol.model import State, Upload, UploadId
from tidegate.protocol.results import Created
from tidegate.stores.local import LocalStore
from tidegate.stores.memory import MemoryStore
from tidegate.stores.s3.store import S3Store
from tidegate.testing.data import ALONE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tidegate.ports import Digest, Fence

pytestmark = pytest.mark.anyio

OPTIONAL = (FileStore, LinkStore, PieceStore, ProbedStore, QueuedStore, WholeStore)


def count(measures: Measures, store: str, operation: str) -> float:
    """How many calls were observed."""
    start = CALL_SECONDS.cell(store, operation)
    return sum(measures.totals()[start : start + CALL_SECONDS.width - 1])


def errors(measures: Measures, store: str, operation: str) -> float:
    return measures.totals()[CALL_ERRORS.cell(store, operation)]


def test_a_store_can_do_what_it_could(tmp_path: Path) -> None:
    """Also what is found out by looking at it."""
    for store in (LocalStore(tmp_path), MemoryStore(), S3Store("bucket")):
        found = measured_data(store, Measures())
        for port in OPTIONAL:
            assert isinstance(found, port) is isinstance(store, port), port
        assert found.capabilities is store.capabilities
    for records in (SQLiteMetadataStore(tmp_path / "db"), MemoryMetadataStore()):
        same = measured_metadata(records, Measures())
        for port in OPTIONAL:
            assert isinstance(same, port) is isinstance(records, port), port
        assert same.shared is records.shared


async def upload(engine: Engine, content: bytes, length: int) -> Upload:
    command = Create(length=length, payload=Payload(length=len(content)))
    result = await engine.handle(command, ScriptedBody(content))
    assert isinstance(result, Created)
    return result.upload


async def test_every_call_is_counted(tmp_path: Path) -> None:
    measures = Measures()
    metadata = SQLiteMetadataStore(tmp_path / "db")
    data = LocalStore(tmp_path / "data")
    async with Engine(data, metadata, measures=measures, tending=False) as engine:
        made = await upload(engine, b"abc", 9)
        command = Append(id=made.id, offset=3, payload=Payload(length=6))
        await engine.handle(command, ScriptedBody(b"defghi"))
        await engine.handle(Inspect(id=made.id), ScriptedBody(b""))
        await engine.handle(Terminate(id=made.id), ScriptedBody(b""))
        await upload(engine, b"small", 5)
    never = {("data", "copy"), ("data", "measure"), ("metadata", "release")}
    silent = {call for call in CALLS if not count(measures, *call)}
    assert silent <= never | {("data", "sync")}
    assert count(measures, "data", "write") == 2
    assert count(measures, "data", "store_whole") == 1
    assert count(measures, "metadata", "insert") == 2
    assert measures.totals()[RECEIVED.start] == 14
    assert not any(errors(measures, *call) for call in CALLS)


async def test_what_threads_write_is_counted(tmp_path: Path) -> None:
    """By a thread, while the event loop counts other things."""
    measures = Measures()
    metadata = MemoryMetadataStore()
    data = measured_data(LocalStore(tmp_path), measures)
    async with Engine(data, metadata, tending=False) as engine:
        made = await upload(engine, b"", 9)
        grant = await metadata.acquire(made.id)
        assert not hasattr(grant, "hold")

        class Free:
            async def hold(self) -> None:
                pass

        writer = await data.writer(made, Free())  # type: ignore[arg-type]
        write = getattr(writer, "write_blocking")  # noqa: B009
        for piece in (b"abc", b"def"):
            await anyio.to_thread.run_sync(write, [piece])
        assert count(measures, "data", "write") == 0
        flushed = await writer.flush()
        assert (flushed.offset, writer.offset) == (6, 6)
        assert count(measures, "data", "write") == 2
        await anyio.to_thread.run_sync(write, [b"ghi"])
        await writer.close()
        assert count(measures, "data", "write") == 3


@pytest.mark.parametrize(
    ("error", "counts"),
    [
        (UnavailableError("away"), 1),
        (MetadataError("broken"), 1),
        (LeaseLostError("taken"), 0),
        (UploadExistsError("there"), 0),
    ],
)
async def test_a_refusal_is_no_failure(error: MetadataError, counts: int) -> None:
    class Records(MemoryMetadataStore):
        async def commit(self, *_: object) -> Upload:
            raise error

    measures = Measures()
    records = measured_metadata(Records(), measures)
    with pytest.raises(type(error)):
        await records.commit(None, Change(upload=None))  # type: ignore[arg-type]
    assert count(measures, "metadata", "commit") == 1
    assert errors(measures, "metadata", "commit") == counts


@pytest.mark.parametrize(
    ("error", "counts"), [(DataError("x"), 1), (NoSpaceError("x"), 1), (BytesBusyError("x"), 0)]
)
async def test_nor_is_that_of_a_data_store(error: DataError, counts: int) -> None:
    class Bytes(MemoryStore):
        async def delete(self, upload: Upload) -> None:
            raise error

    measures = Measures()
    with pytest.raises(type(error)):
        await measured_data(Bytes(), measures).delete(None)  # type: ignore[arg-type]
    assert errors(measures, "data", "delete") == counts


async def test_a_recovery_and_a_takeover_are_counted() -> None:
    measures = Measures()
    metadata = MemoryMetadataStore()
    async with Engine(MemoryStore(), metadata, measures=measures, tending=False) as engine:
        first, second = await upload(engine, b"abc", 9), await upload(engine, b"abc", 9)
        grant = await metadata.acquire(first.id)
        metadata.abandon(grant.lease)  # type: ignore[union-attr]
        await engine.handle(Inspect(id=first.id), ScriptedBody(b""))
        assert measures.totals()[RECOVERIES.start] == 1
        await metadata.acquire(second.id)  # and never let go
        await engine.handle(Terminate(id=UploadId(second.id)), ScriptedBody(b""))
        assert measures.totals()[TAKEOVERS.start] == 1


async def test_what_threads_write_is_counted_when_the_task_looks(tmp_path: Path) -> None:
    measures = Measures()
    store = measured_data(LocalStore(tmp_path), measures)
    await store.open()
    made = Upload(id=UploadId("one"), length=6, created_at=0, active_at=0)
    made = replace(made, storage=store.place(made))
    writer = await store.writer(made, ALONE)
    assert isinstance(writer, SplicingWriter)
    out_of, into = os.pipe()
    os.write(into, b"def")

    def write() -> None:
        writer.write_blocking([b"abc"])
        writer.splice_blocking(out_of, 3)

    await anyio.to_thread.run_sync(write)
    assert count(measures, "data", "write") == 0
    assert (await writer.progress()).offset == 6
    assert count(measures, "data", "write") == 2
    await writer.close()
    for end in out_of, into:
        os.close(end)
    await store.close()


@pytest.mark.parametrize("size", [3, 6])
async def test_a_store_without_threads_is_counted_too(size: int) -> None:
    measures = Measures()
    store = measured_data(FaultyStore(MemoryStore()), measures)
    made = Upload(id=UploadId("one"), length=6, created_at=0, active_at=0)
    writer = await store.writer(made, ALONE)
    assert not isinstance(writer, BlockingWriter)
    await writer.write([b"x" * size])
    assert (await writer.progress()).offset == size
    await writer.close()
    assert count(measures, "data", "write") == 1


async def test_what_is_copied_is_counted() -> None:
    measures = Measures()
    store = measured_data(MemoryStore(), measures)
    part, final = (
        Upload(id=UploadId(name), length=3, created_at=0, active_at=0) for name in ("part", "final")
    )
    writer = await store.writer(part, ALONE)
    await writer.write([b"abc"])
    await writer.close()
    writer = await store.writer(final, ALONE)
    await writer.copy(replace(part, offset=3, state=State.COMPLETE), 0, 3)
    assert writer.offset == 3
    await writer.close()
    assert count(measures, "data", "copy") == 1


class OneThread:
    """A writer that threads can write to, and not splice."""

    def __init__(self) -> None:
        self.written = 0

    def write_blocking(self, chunks: Sequence[bytes], digest: Digest | None = None) -> None:
        self.written += sum(map(len, chunks))


async def test_a_writer_that_cannot_splice_still_cannot() -> None:
    class Store(MemoryStore):
        async def writer(self, upload: Upload, fence: Fence) -> Any:
            return OneThread()

    store = measured_data(Store(), Measures())
    made = Upload(id=UploadId("one"), created_at=0, active_at=0)
    writer = await store.writer(made, ALONE)
    assert isinstance(writer, BlockingWriter)
    assert not hasattr(writer, "splice_blocking")


async def test_a_store_that_has_a_probe_is_probed() -> None:
    probed: list[str] = []

    class Store(MemoryStore):
        async def probe(self) -> None:
            probed.append("data")

    class Records(MemoryMetadataStore):
        async def probe(self) -> None:
            probed.append("metadata")

    async with Engine(Store(), Records(), tending=False) as engine:
        await engine.probe_data()
        await engine.probe_metadata()
    async with Engine(MemoryStore(), MemoryMetadataStore(), tending=False) as engine:
        await engine.probe_data()
        await engine.probe_metadata()
    assert probed == ["data", "metadata"]


async def test_a_small_upload_with_a_name_of_its_own_is_counted_where_it_is_stored(
    tmp_path: Path,
) -> None:
    """After its record: somebody else's may be called so."""
    measures = Measures()
    settings = Settings(new_id=lambda _: "mine")
    engine = Engine(
        LocalStore(tmp_path),
        MemoryMetadataStore(),
        settings=settings,
        measures=measures,
        tending=False,
    )
    async with engine:
        made = await engine.handle(
            Create(length=3, payload=Payload(length=3)), ScriptedBody(b"abc")
        )
    assert isinstance(made, Created)
    assert made.upload.complete
    cells = measures.totals()
    start = CALL_SECONDS.cell("data", "store_whole")
    assert sum(cells[start : start + CALL_SECONDS.width - 1]) == 1
