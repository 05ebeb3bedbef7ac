"""Bodies that a thread of the transport stores, without the event loop: the engine sees to them
between two bursts.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from tests.support.bodies import ScriptedBody

from tidegate.engine.core import Settings
from tidegate.engine.engine import Engine
from tidegate.metadata.memory import MemoryMetadataStore
from tidegate.ports import BodyEnd, DataStore, DirectSink, Fence, Sink, Splice, Store, Writer
from tidegate.protocol.commands import Append, Checksum, Create, Payload
from tidegate.protocol.errors import Code, Refusal
from tidegate.protocol.model import Upload, UploadId
from tidegate.protocol.results import Created
from tidegate.stores.local import LocalStore
from tidegate.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio


class PouringBody:
    """Gives each of its bursts from a thread; `offsets` are those committed after each."""

    def __init__(self, metadata: MemoryMetadataStore, *bursts: Sequence[bytes]) -> None:
        self._metadata = metadata
        self._bursts = bursts
        self.upload = UploadId("")
        self.poured: list[bool] = []
        self.offsets: list[int] = []
        self.unseen: list[bool] = []
        """Whether nobody has to see the bytes of each."""

    async def copy_to(self, sink: Sink, stop: anyio.Event) -> BodyEnd:
        """See Body."""
        assert isinstance(sink, DirectSink)
        for chunks in self._bursts:

            async def burst(
                store: Store, splice: Splice | None, chunks: Sequence[bytes] = chunks
            ) -> None:
                self.unseen.append(splice is not None)
                if splice is None:
                    await anyio.to_thread.run_sync(store, chunks)
                else:
                    await anyio.to_thread.run_sync(_through_a_pipe, splice, b"".join(chunks))

            self.poured.append(await sink.pour(burst))
            loaded = await self._metadata.load(self.upload)
            assert loaded is not None
            self.offsets.append(loaded.upload.offset)
        return BodyEnd.WHOLE

    def trailing_checksum(self) -> Checksum:
        """There is none."""
        raise NotImplementedError


def _through_a_pipe(splice: Splice, data: bytes) -> None:
    out_of, into = os.pipe()
    try:
        os.write(into, data)
        splice(out_of, len(data))
    finally:
        os.close(out_of)
        os.close(into)


class Nothing(PouringBody):
    """No body."""


@asynccontextmanager
async def engine(data: DataStore) -> AsyncIterator[tuple[Engine, MemoryMetadataStore, UploadId]]:
    """An engine that commits every four bytes, and an upload of twelve."""
    metadata = MemoryMetadataStore()
    settings = Settings(checkpoint_bytes=4, checkpoint_seconds=3600)
    async with Engine(data, metadata, settings=settings, tending=False) as opened:
        created = await opened.handle(Create(length=12), Nothing(metadata))
        assert isinstance(created, Created)
        yield opened, metadata, created.upload.id


async def test_progress_is_committed_between_bursts(tmp_path: Path) -> None:
    async with engine(LocalStore(tmp_path)) as (opened, metadata, upload):
        body = PouringBody(metadata, [b"ab", b"c"], [b"", b"de"], [], [b"fghijk"], [b"l"])
        body.upload = upload
        command = Append(id=upload, offset=0, payload=Payload(length=12))
        await opened.handle(command, body)
        assert body.poured == [True] * 5
        assert body.unseen == [True] * 5
        # The last burst makes it whole: that is for the completion to say.
        assert body.offsets == [0, 5, 5, 11, 11]
        loaded = await metadata.load(upload)
        assert loaded is not None
        assert loaded.upload.complete
        assert [c async for c in opened.read(loaded.upload, 0, 12)] == [b"abcdefghijkl"]


async def test_a_checksum_is_verified_and_nothing_committed_before(tmp_path: Path) -> None:
    async with engine(LocalStore(tmp_path)) as (opened, metadata, upload):
        digest = hashlib.sha256(b"abcdefgh").digest()
        for last, offset in ((b"!", 0), (b"h", 8)):
            body = PouringBody(metadata, [b"abcde"], [b"fg", last])
            body.upload = upload
            payload = Payload(length=8, checksum=Checksum("sha256", digest))
            command = Append(id=upload, offset=0, payload=payload)
            if offset:
                await opened.handle(command, body)
            else:
                with pytest.raises(Refusal) as refusal:
                    await opened.handle(command, body)
                assert refusal.value.code is Code.CHECKSUM_MISMATCH
            assert body.offsets == [0, 0]
            assert body.unseen == [False] * 2
            loaded = await metadata.load(upload)
            assert loaded is not None
            assert (loaded.upload.offset, loaded.upload.unverified) == (offset, False)


async def test_too_much_is_refused_in_the_thread(tmp_path: Path) -> None:
    async with engine(LocalStore(tmp_path)) as (opened, metadata, upload):
        body = PouringBody(metadata, [b"abcde"], [b"fghijklm"])
        body.upload = upload
        with pytest.raises(Refusal) as refusal:
            await opened.handle(Append(id=upload, offset=0, payload=Payload(length=None)), body)
        assert refusal.value.code is Code.TOO_LARGE
        loaded = await metadata.load(upload)
        assert loaded is not None
        # What had been acknowledged stays.
        assert loaded.upload.offset == 5


class Plain(LocalStore):
    """One whose writers can't splice."""

    async def writer(self, upload: Upload, fence: Fence) -> Writer:
        return PlainWriter(await super().writer(upload, fence))


class PlainWriter:
    def __init__(self, inner: Writer) -> None:
        self.write_blocking = inner.write_blocking  # type: ignore[attr-defined]
        self.flush = self.progress = inner.flush
        self.copy, self.write, self.sync = inner.copy, inner.write, inner.sync
        self._inner = inner

    @property
    def offset(self) -> int:
        return self._inner.offset

    async def close(self) -> None:
        await self._inner.close()


async def test_a_writer_that_cannot_splice_is_given_the_bytes(tmp_path: Path) -> None:
    async with engine(Plain(tmp_path)) as (opened, metadata, upload):
        body = PouringBody(metadata, [], [b"abcdefghijkl"])
        body.upload = upload
        await opened.handle(Append(id=upload, offset=0, payload=Payload(length=12)), body)
        assert (body.poured, body.unseen) == ([True] * 2, [False] * 2)


async def test_a_store_without_files_is_written_to_by_the_loop() -> None:
    async with engine(MemoryStore()) as (opened, metadata, upload):
        body = PouringBody(metadata, [b"abc"])
        body.upload = upload
        await opened.handle(Append(id=upload, offset=0, payload=Payload(length=None)), body)
        assert body.poured == [False]


async def test_nothing_is_opened_for_what_is_complete(tmp_path: Path) -> None:
    async with engine(LocalStore(tmp_path)) as (opened, metadata, upload):
        body = PouringBody(metadata, [b"abcdefghijkl"])
        body.upload = upload
        await opened.handle(Append(id=upload, offset=0, payload=Payload(length=12)), body)
        again = PouringBody(metadata, [b""])
        again.upload = upload
        await opened.handle(Append(id=upload, offset=12, payload=Payload(length=None)), again)
        assert again.poured == [False]


async def test_a_file_is_opened_where_there_are_files(tmp_path: Path) -> None:
    for data, is_file in ((LocalStore(tmp_path), True), (MemoryStore(), False)):
        async with engine(data) as (opened, metadata, upload):
            body = ScriptedBody(b"abcdefghijkl")
            await opened.handle(Append(id=upload, offset=0, payload=Payload(length=12)), body)
            loaded = await metadata.load(upload)
            assert loaded is not None
            file = await opened.open_file(loaded.upload, 12)
            assert (file is not None) is is_file
            if file is not None:
                await anyio.to_thread.run_sync(file.close)
