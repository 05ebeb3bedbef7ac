"""Stores that are measured: they are what they were, and what they do is counted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest
from tests.support.bodies import ScriptedBody

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
    BytesBusyError,
    Change,
    DataError,
    FileStore,
    LeaseLostError,
    MetadataError,
    NoSpaceError,
    PieceStore,
    ProbedStore,
    QueuedStore,
    UnavailableError,
    UploadExistsError,
    WholeStore,
)
from tidegate.protocol.commands import Append, Create, Inspect, Payload, Terminate
from tidegate.protocol.model import UploadId
from tidegate.protocol.results import Created
from tidegate.stores.local import LocalStore
from tidegate.stores.memory import MemoryStore

if TYPE_CHECKING:
    from pathlib import Path

    from tidegate.protocol.model import Upload

pytestmark = pytest.mark.anyio

OPTIONAL = (FileStore, PieceStore, ProbedStore, QueuedStore, WholeStore)


def count(measures: Measures, store: str, operation: str) -> float:
    """How many calls were observed."""
    start = CALL_SECONDS.cell(store, operation)
    return sum(measures.totals()[start : start + CALL_SECONDS.width - 1])


def errors(measures: Measures, store: str, operation: str) -> float:
    return measures.totals()[CALL_ERRORS.cell(store, operation)]


def test_a_store_can_do_what_it_could(tmp_path: Path) -> None:
    """Also what is found out by looking at it."""
    for store in (LocalStore(tmp_path), MemoryStore()):
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
