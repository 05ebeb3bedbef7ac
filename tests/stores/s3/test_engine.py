"""An engine on a bucket that dies again and again, at any point: no offset lies, nothing is lost."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from tests.stores.s3.conftest import PART
from tests.support.bodies import NOTHING, ScriptedBody
from tests.support.faulty import FaultyMetadata
from tests.support.logs import logs_kept
from tests.support.s3_faults import Asked, Faults
from tests.support.s3_server import S3Server

from tidegate.engine.core import Settings
from tidegate.engine.engine import Engine
from tidegate.metadata.memory import MemoryMetadataStore
from tidegate.ports import BodyEnd, DataError, Hold, MetadataError
from tidegate.protocol.commands import Append, Checksum, Create, Download, Inspect, Payload
from tidegate.protocol.errors import Code, Refusal
from tidegate.protocol.model import Kind, UploadId
from tidegate.protocol.results import Created, Inspected, Readable
from tidegate.testing import FakeClock

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _logged() -> Iterator[None]:
    """What is logged on purpose goes nowhere: pytest's handlers write to files, on the loop."""
    with logs_kept():
        yield


MONTH = 30 * 86_400.0


class Server:
    """One process after the other, on the same bucket and records."""

    def __init__(self, server: S3Server, prefix: str, chosen: random.Random) -> None:
        self.server = server
        self.prefix = prefix
        self.chosen = chosen
        self.records = MemoryMetadataStore()
        self.clock = FakeClock()
        self.deaths = 0

    @asynccontextmanager
    async def process(self) -> AsyncIterator[tuple[Engine, FaultyMetadata]]:
        store = self.server.store(
            self.prefix,
            least_part=PART,
            part_size=PART,
            memory=8 * PART,
            concurrency=self.chosen.choice([1, 3]),
            uniform_parts=False,
        )
        metadata = FaultyMetadata(self.records)
        settings = Settings(
            checkpoint_bytes=self.chosen.choice([PART // 2, 3 * PART]),
            copy_step=2 * PART,
            sweep_every=1e6,
            orphan_age=1.0,
        )
        engine = Engine(
            store, metadata, settings=settings, clock=self.clock, expire_after=10 * MONTH
        )
        try:
            async with engine:
                yield engine, metadata
        except MetadataError:
            assert metadata.faults.dead is not None
        assert store.budget.free == store.budget.limit, "memory that nobody gave back"


class Sender:
    """A client that wants its upload to arrive, whatever happens."""

    def __init__(self, data: bytes, *, deferred: bool, kind: Kind = Kind.REGULAR) -> None:
        self.data = data
        self.deferred = deferred
        self.kind = kind
        self.id = UploadId("")
        self.shown = 0
        self.done = False

    async def create(self, engine: Engine) -> None:
        length = None if self.deferred else len(self.data)
        command = Create(kind=self.kind, length=length, deferred=self.deferred)
        result = await engine.handle(command, NOTHING)
        assert isinstance(result, Created)
        self.id = result.upload.id

    async def step(self, engine: Engine, chosen: random.Random) -> None:
        """Ask how far it is, and send something."""
        result = await engine.handle(Inspect(id=self.id), NOTHING)
        assert isinstance(result, Inspected)
        upload = result.upload
        assert self.shown <= upload.offset <= len(self.data), "an offset went back"
        self.shown = upload.offset
        if upload.complete:
            self.done = True
            return
        size = chosen.choice([0, 1, 1000, PART - 1, PART, 2 * PART + 5, len(self.data)])
        rest = self.data[upload.offset : upload.offset + size]
        pieces = [rest[at : at + 20_000] for at in range(0, len(rest), 20_000)]
        end, checksum, declared = BodyEnd.WHOLE, None, len(rest)
        sent = rest
        match chosen.randrange(4):
            case 0 if pieces:
                end, pieces = BodyEnd.DROPPED, pieces[: chosen.randrange(len(pieces))]
                sent = b"".join(pieces)
            case 1:
                checksum = Checksum("sha1", hashlib.sha1(rest).digest())
            case 2 if rest:
                # Other bytes than the client has, and not what it says: none of them may count.
                pieces = [bytes(len(piece)) for piece in pieces]
                checksum = Checksum("sha1", hashlib.sha1(rest).digest())
        whole = upload.offset + len(rest) == len(self.data)
        command = Append(
            id=self.id,
            offset=upload.offset,
            length=len(self.data) if self.deferred and whole and chosen.random() < 0.7 else None,
            payload=Payload(length=declared, checksum=checksum),
        )
        if upload.length is not None:
            command = Append(id=self.id, offset=upload.offset, length=None, payload=command.payload)
        try:
            await engine.handle(command, ScriptedBody(*pieces, end=end))
        except Refusal:
            return
        self.shown = max(self.shown, upload.offset + len(sent) if end is BodyEnd.WHOLE else 0)


@pytest.mark.parametrize("checked", [False, True])
async def test_a_writer_whose_way_to_the_bucket_is_broken_lets_go(
    *, checked: bool, way: tuple[S3Server, Faults], request: pytest.FixtureRequest
) -> None:
    """What it has stored counts; who wants the upload goes on without the rest."""
    data = random.Random(8).randbytes(PART + 1000)
    stuck, over = anyio.Event(), anyio.Event()

    async def stick(_asked: Asked, _go: Callable[[], Awaitable[bytes]]) -> bytes:
        stuck.set()
        await over.wait()
        return b""

    way[1].add("PutTail", stick)
    store = way[0].store(
        request.node.name, least_part=PART, part_size=PART, memory=8 * PART, uniform_parts=False
    )
    settings = Settings(sweep_every=1e6, let_go_within=0.2)
    async with Engine(store, MemoryMetadataStore(), settings=settings) as engine:
        created = await engine.handle(Create(length=len(data) + 1), NOTHING)
        assert isinstance(created, Created)
        upload_id = created.upload.id
        checksum = Checksum("sha1", hashlib.sha1(data).digest()) if checked else None

        async def append(offset: int, more: bytes, checksum: Checksum | None = None) -> None:
            payload = Payload(length=len(more), checksum=checksum)
            command = Append(id=upload_id, offset=offset, payload=payload)
            await engine.handle(command, ScriptedBody(more))

        async def refused() -> None:
            with pytest.raises(Refusal) as raised:
                await append(0, data, checksum)
            assert raised.value.code is Code.LOCKED

        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(refused)
                await stuck.wait()
                if checked:
                    # A HEAD does not interrupt it.
                    await append(0, b"")
                result = await engine.handle(Inspect(id=upload_id), NOTHING)
                assert isinstance(result, Inspected)
                offset = 0 if checked else PART
                assert result.upload.offset == offset
            await append(offset, data[offset:] + b"x")
        result = await engine.handle(Inspect(id=upload_id), NOTHING)
        assert isinstance(result, Inspected)
        assert result.upload.complete
        read = [chunk async for chunk in engine.read(result.upload, 0, len(data))]
        assert b"".join(read) == data
        over.set()


async def test_a_completion_that_does_not_end_is_carried_out_by_the_next(
    way: tuple[S3Server, Faults], request: pytest.FixtureRequest
) -> None:
    stuck, over = anyio.Event(), anyio.Event()

    async def stick(_asked: Asked, _go: Callable[[], Awaitable[bytes]]) -> bytes:
        stuck.set()
        await over.wait()
        return b""

    way[1].add("CompleteMultipartUpload", stick)
    data = random.Random(9).randbytes(PART + 1000)
    store = way[0].store(request.node.name, least_part=PART, part_size=PART, memory=8 * PART)
    settings = Settings(sweep_every=1e6, let_go_within=0.2)
    async with Engine(store, MemoryMetadataStore(), settings=settings) as engine:
        created = await engine.handle(Create(length=len(data)), NOTHING)
        assert isinstance(created, Created)

        async def refused() -> None:
            payload = Payload(length=len(data))
            with pytest.raises(Refusal) as raised:
                await engine.handle(
                    Append(id=created.upload.id, payload=payload), ScriptedBody(data)
                )
            assert raised.value.code is Code.LOCKED

        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(refused)
                await stuck.wait()
                result = await engine.handle(Inspect(id=created.upload.id), NOTHING)
        assert isinstance(result, Inspected)
        assert result.upload.complete
        read = [chunk async for chunk in engine.read(result.upload, 0, len(data))]
        assert b"".join(read) == data
        over.set()


async def is_held(records: MemoryMetadataStore, upload_id: UploadId) -> bool:
    loaded = await records.load(upload_id)
    return loaded is not None and loaded.hold is Hold.HELD


@pytest.mark.parametrize("silent", [False, True])
async def test_an_assembler_that_is_cut_off_leaves_it_to_others(
    *,
    silent: bool,
    way: tuple[S3Server, Faults],
    moto_server: S3Server,
    request: pytest.FixtureRequest,
) -> None:
    """Nobody asks it to, and its requests would be made again for a minute."""
    over = anyio.Event()

    async def cut_off(_asked: Asked, _go: Callable[[], Awaitable[bytes]]) -> bytes:
        if silent:
            await over.wait()
        return b""

    options: dict[str, Any] = {"least_part": PART, "part_size": PART, "memory": 8 * PART}
    options["patience"] = 60.0
    settings = Settings(sweep_every=1e6, let_go_within=0.3, assemble_within=0.1)
    records = MemoryMetadataStore()
    data = random.Random(10).randbytes(2 * PART + 1000)
    near = moto_server.store(request.node.name, **options)
    far = way[0].store(request.node.name, **options)
    async with Engine(near, records, settings=settings) as healthy:
        part = await healthy.handle(
            Create(kind=Kind.PARTIAL, length=len(data), payload=Payload(length=len(data))),
            ScriptedBody(data),
        )
        assert isinstance(part, Created)
        async with Engine(far, records, settings=settings) as lonely:
            for operation in "UploadPart", "HeadBucket":
                way[1].add(operation, cut_off, times=1000)
            final = await lonely.handle(
                Create(kind=Kind.FINAL, parts=(part.upload.id, part.upload.id)), NOTHING
            )
            assert isinstance(final, Created)
            assert not final.upload.complete
            with anyio.fail_after(20):
                while not await is_held(records, final.upload.id):
                    await anyio.sleep(0.01)
                while True:
                    result = await healthy.handle(Inspect(id=final.upload.id), NOTHING)
                    assert isinstance(result, Inspected)
                    if result.upload.complete:
                        break
                    await anyio.sleep(0.01)
            over.set()
            way[1].clear()
        read = [chunk async for chunk in healthy.read(result.upload, 0, 2 * len(data))]
        assert b"".join(read) == 2 * data


async def test_an_assembly_that_is_slow_goes_on(
    way: tuple[S3Server, Faults], request: pytest.FixtureRequest
) -> None:
    """As long as the bucket answers others."""
    looked, copies = 0, 0

    async def look(_asked: Asked, go: Callable[[], Awaitable[bytes]]) -> bytes:
        nonlocal looked
        looked += 1
        return await go()

    async def crawl(_asked: Asked, go: Callable[[], Awaitable[bytes]]) -> bytes:
        nonlocal copies
        copies += 1
        before = looked
        with anyio.fail_after(10):
            while looked < before + 2:
                await anyio.sleep(0.01)
        return await go()

    data = random.Random(11).randbytes(PART)
    store = way[0].store(request.node.name, least_part=PART, part_size=PART, memory=8 * PART)
    settings = Settings(sweep_every=1e6, let_go_within=1, assemble_within=30)
    async with Engine(store, MemoryMetadataStore(), settings=settings) as engine:
        part = await engine.handle(
            Create(kind=Kind.PARTIAL, length=PART, payload=Payload(length=PART)),
            ScriptedBody(data),
        )
        assert isinstance(part, Created)
        way[1].add("UploadPart", crawl)
        way[1].add("HeadBucket", look, times=1000)
        final = await engine.handle(Create(kind=Kind.FINAL, parts=(part.upload.id,)), NOTHING)
        assert isinstance(final, Created)
        assert final.upload.complete
        assert copies == 1


@pytest.mark.parametrize("seed", range(6))
async def test_every_upload_arrives(
    seed: int, way: tuple[S3Server, Faults], request: pytest.FixtureRequest
) -> None:
    chosen = random.Random(seed)
    server = Server(way[0], request.node.name, chosen)
    kinds = [Kind.REGULAR, Kind.REGULAR, Kind.PARTIAL, Kind.PARTIAL]
    senders = [
        Sender(chosen.randbytes(chosen.randrange(5 * PART)), deferred=chosen.random() < 0.4, kind=k)
        for k in kinds
    ]
    async with server.process() as (engine, _):
        for sender in senders:
            await sender.create(engine)
    with anyio.fail_after(50):
        while not all(sender.done for sender in senders):
            await live_and_die(server, senders, way[1], deadly=chosen.random() < 0.6)
    async with server.process() as (engine, _):
        parts = tuple(s.id for s in senders if s.kind is Kind.PARTIAL)
        command = Create(kind=Kind.FINAL, parts=parts)
        final = await engine.handle(command, NOTHING)
        assert isinstance(final, Created)
        whole = b"".join(s.data for s in senders if s.kind is Kind.PARTIAL)
        for upload_id, data in [
            *((s.id, s.data) for s in senders if s.kind is Kind.REGULAR),
            (final.upload.id, whole),
        ]:
            result = await engine.handle(Download(id=upload_id), NOTHING)
            assert isinstance(result, Readable)
            assert result.upload.offset == len(data)
            read = [chunk async for chunk in engine.read(result.upload, 0, len(data))]
            assert b"".join(read) == data
        # What is in the bucket is of today, whatever the clock of the engine says.
        server.clock.advance(time.time())
        await engine.sweep()
        store = engine._core.data
        left = [stored.place async for stored in store.stored() if not stored.whole]
        assert left == []


async def live_and_die(
    server: Server, senders: list[Sender], faults: Faults, *, deadly: bool
) -> None:
    """One process: it carries out some requests at a time, and may die in the middle of them."""
    chosen = server.chosen
    async with server.process() as (engine, metadata):
        if deadly:
            at = len(faults.asked) + chosen.randrange(1, 25)
            server.deaths += 1

        async def send(sender: Sender) -> None:
            for _ in range(3):
                if not sender.done:
                    await sender.step(engine, chosen)

        try:
            async with anyio.create_task_group() as tasks:
                if deadly:
                    tasks.start_soon(kill, metadata, faults, at, tasks.cancel_scope)
                async with anyio.create_task_group() as sending:
                    for sender in senders:
                        sending.start_soon(send, sender)
                tasks.cancel_scope.cancel()
        except* (DataError, MetadataError, Refusal):
            assert metadata.faults.dead is not None


async def kill(metadata: FaultyMetadata, faults: Faults, at: int, scope: anyio.CancelScope) -> None:
    """Die at a request to the bucket, wherever others are."""
    while len(faults.asked) < at:
        await anyio.sleep(0)
    metadata.die()
    scope.cancel()
