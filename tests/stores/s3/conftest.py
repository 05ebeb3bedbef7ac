"""A store behind a way on which things go wrong, and uploads in it as an engine would keep them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from msgspec.structs import replace
from tests.support.s3 import LEAST_PART
from tests.support.s3_faults import Faults, faulty
from tests.support.s3_server import S3Server

from tidegate.ports import Flushed
from tidegate.protocol.model import Segment, State, Upload, UploadId
from tidegate.stores.s3.store import S3Store
from tidegate.stores.s3.writer import S3Writer
from tidegate.testing.data import Journal

PART = LEAST_PART


class Kept:
    """An upload with its record and its pieces, and what is done with it in few words."""

    def __init__(
        self, store: S3Store, length: int | None, name: str = "one", **fields: Any
    ) -> None:
        self.store = store
        self.journal = Journal()
        upload = Upload(
            id=UploadId(name), length=length, **{"created_at": 1e9, "active_at": 1e9} | fields
        )
        self.record = replace(upload, storage=store.place(upload))

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[S3Writer]:
        writer = await self.store.writer(self.journal.record(self.record), self.journal)
        assert isinstance(writer, S3Writer)
        try:
            yield writer
        finally:
            await writer.close()

    def commit(self, flushed: Flushed) -> None:
        self.record = self.journal.commit(self.record, flushed)

    async def append(self, *chunks: bytes) -> None:
        async with self.writing() as writer:
            await writer.write(chunks)
            self.commit(await writer.flush())

    async def finish(self) -> None:
        record = self.journal.record(self.record)
        storage = await self.store.finish(record, self.journal, durable=True)
        self.record = replace(record, storage=storage, state=State.COMPLETE)

    async def read(self) -> bytes:
        return b"".join([c async for c in self.store.read(self.record, 0, self.record.offset)])

    async def pieces(self) -> list[Segment]:
        return [segment for segment in await self.journal.segments() if segment.length]


@pytest.fixture
async def way(moto_server: S3Server) -> AsyncIterator[tuple[S3Server, Faults]]:
    async with faulty(moto_server) as found:
        yield found


@pytest.fixture
def faults(way: tuple[S3Server, Faults]) -> Faults:
    return way[1]


MakeStore = Callable[..., Any]


@pytest.fixture
def make_store(way: tuple[S3Server, Faults], request: pytest.FixtureRequest) -> MakeStore:
    @asynccontextmanager
    async def make(**options: Any) -> AsyncIterator[S3Store]:
        small = {"least_part": PART, "part_size": PART, "memory": 8 * PART}
        store = way[0].store(request.node.name, **small | options)
        await store.open()
        try:
            yield store
            assert store.budget.free == store.budget.limit, "memory that nobody gave back"
        finally:
            await store.close()

    return make


@pytest.fixture
async def store(make_store: MakeStore) -> AsyncIterator[S3Store]:
    async with make_store() as store:
        yield store
