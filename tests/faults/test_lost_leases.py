"""Leases that are lost while their holders are at work: never two writers' bytes, never a lie."""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import anyio
import pytest
from tests.faults.fenced import Dozing, Expiring, FencedStore, Thieving
from tests.faults.rivals import Attempt, not_pure
from tests.faults.sea import Sea
from tests.support.bodies import Pause, ScriptedBody

from tidegate.engine.core import Settings
from tidegate.engine.engine import Engine
from tidegate.metadata.sqlite.store import SQLiteMetadataStore
from tidegate.ports import BodyEnd, Grant, Sink
from tidegate.protocol.commands import (
    Append,
    Checksum,
    Create,
    Download,
    Inspect,
    Payload,
    Terminate,
)
from tidegate.protocol.errors import Code, Refusal
from tidegate.protocol.model import Upload, UploadId
from tidegate.protocol.results import Appended, Created, Inspected, Readable
from tidegate.stores.local import LocalStore

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

SEA: Final = Sea(3)
LENGTH: Final = 100_000
TRUE_REFUSALS: Final = {
    Code.LOCKED,
    Code.OFFSET_MISMATCH,
    Code.CHECKSUM_MISMATCH,
    Code.UNAVAILABLE,
    Code.TOO_LARGE,
}


def water(start: int, stop: int, shift: int = 0) -> bytes:
    return SEA.water(shift, start, stop)


@pytest.fixture(autouse=True)
def no_log_file() -> Iterator[None]:
    """pytest's own handler writes to a file, on the event loop."""
    logger = logging.getLogger("tidegate")
    logger.propagate = False
    logger.addHandler(handler := logging.NullHandler())
    yield
    logger.removeHandler(handler)
    logger.propagate = True


async def create(engine: Engine, length: int) -> UploadId:
    created = await engine.handle(Create(length=length), ScriptedBody())
    assert isinstance(created, Created)
    return created.upload.id


async def inspect(engine: Engine, upload_id: UploadId) -> Upload:
    inspected = await engine.handle(Inspect(id=upload_id), ScriptedBody())
    assert isinstance(inspected, Inspected)
    return inspected.upload


# -------------------------------------------------------------- a store that loses leases


class Slow:
    """A body that comes in pieces, and hears when it is asked to stop."""

    def __init__(self, content: bytes, rng: random.Random) -> None:
        self._content = content
        self._rng = rng

    async def copy_to(self, sink: Sink, stop: anyio.Event) -> BodyEnd:
        at = 0
        while at < len(self._content):
            if stop.is_set():
                return BodyEnd.STOPPED
            size = self._rng.randint(1, 20_000)
            await sink.write([self._content[at : at + size]])
            at += size
            await anyio.sleep(self._rng.choice((0, 0.001, 0.005)))
        return BodyEnd.WHOLE

    def trailing_checksum(self) -> Checksum:
        raise NotImplementedError


class Race:
    """Many tasks that append to one upload through several engines, and what came of it."""

    def __init__(self, engines: list[Engine], upload_id: UploadId, length: int) -> None:
        self.engines = engines
        self.upload_id = upload_id
        self.length = length
        self.attempts: list[Attempt] = []
        self.acked = 0
        self.refused: set[Code] = set()

    async def run(self, rng: random.Random) -> None:
        offset = 0
        for _ in range(40):
            engine, least = rng.choice(self.engines), self.acked
            try:
                upload = (
                    await inspect(engine, self.upload_id)
                    if rng.random() < 0.3
                    else await self.append(engine, rng, offset)
                )
            except Refusal as refusal:
                self.refused.add(refusal.code)
                offset = offset if refusal.offset is None else refusal.offset
                await anyio.sleep(rng.uniform(0, 0.01))
                continue
            assert upload.offset >= least, "what was acknowledged is gone"
            self.acked = max(self.acked, upload.offset)
            offset = upload.offset

    async def append(self, engine: Engine, rng: random.Random, offset: int) -> Upload:
        stop = min(self.length, offset + rng.randint(1, 60_000))
        content = water(offset, stop, rng.getrandbits(22))
        checksum = None
        if rng.random() < 0.3:
            digest = hashlib.sha1(content, usedforsecurity=False).digest()
            checksum = Checksum("sha1", digest)
        if checksum is not None and rng.random() < 0.3:
            checksum = Checksum("sha1", bytes(20))
        # Said before: it may count though no answer comes.
        at = len(self.attempts)
        may_count = checksum is None or checksum.digest != bytes(20)
        if may_count:
            self.attempts.append(Attempt(offset, content, acknowledged=False))
        appended = await engine.handle(
            Append(
                id=self.upload_id,
                offset=offset,
                payload=Payload(length=len(content), checksum=checksum),
            ),
            Slow(content, rng),
        )
        assert isinstance(appended, Appended)
        assert may_count, "a wrong checksum was accepted"
        assert appended.upload.offset == stop
        self.attempts[at] = Attempt(offset, content, acknowledged=True)
        return appended.upload


@pytest.fixture
async def engines(
    tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[tuple[list[Engine], list[Thieving]]]:
    """Two servers' engines on one folder, with a metadata store that loses leases."""
    async with AsyncExitStack() as stack:
        thief = SQLiteMetadataStore(tmp_path / "records.db")
        # On this machine: another boot would mean that it lost its power meanwhile.
        await thief.open(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        stack.push_async_callback(thief.close)
        made, stores = [], []
        for number in range(2):
            rng = random.Random(f"{request.node.name} {number}")
            metadata = Thieving(tmp_path / "records.db", rng=rng)
            metadata.thief = thief
            settings = Settings(checkpoint_bytes=8_192, checkpoint_seconds=0.01, lease_wait=0.3)
            engine = Engine(LocalStore(tmp_path / "data"), metadata, settings=settings)
            made.append(await stack.enter_async_context(engine))
            stores.append(metadata)
        yield made, stores


@pytest.mark.parametrize("seed", range(5))
async def test_a_store_that_loses_leases(
    engines: tuple[list[Engine], list[Thieving]], tmp_path: Path, seed: int
) -> None:
    """Each byte is one writer's who began where the one before ended; what was acknowledged stays;
    what no checksum verified never counts."""
    made, stores = engines
    length = 2_000_000
    race = Race(made, await create(made[0], length), length)
    async with anyio.create_task_group() as tasks:
        for number in range(6):
            tasks.start_soon(race.run, random.Random(f"{seed} {number}"))
    assert all(store.stolen for store in stores)
    for store in stores:
        store.stealing = False
    upload = await inspect(made[1], race.upload_id)
    place = "finished" if upload.complete else "incoming"
    found = (tmp_path / "data" / upload.storage[place]).read_bytes()
    # Who lost its lease may have gone on for a moment: what it left behind them does not count.
    assert len(found) >= upload.offset >= race.acked > 0
    assert not_pure(found[: upload.offset], race.attempts) == ""
    assert {Code.LOCKED, Code.OFFSET_MISMATCH} <= race.refused <= TRUE_REFUSALS


async def test_who_lost_its_lease_before_it_opened_the_bytes(tmp_path: Path) -> None:
    """It cuts nothing off that another one added meanwhile, and that was acknowledged."""
    records, folder = tmp_path / "records.db", tmp_path / "data"
    dozing, thief = Dozing(folder), SQLiteMetadataStore(records)
    async with (
        Engine(dozing, SQLiteMetadataStore(records), tending=False) as one,
        Engine(LocalStore(folder), thief, tending=False) as other,
    ):
        upload_id = await create(one, LENGTH)
        begin = Append(id=upload_id, offset=0, payload=Payload(length=1_000))
        refused: list[Refusal] = []

        async def sleeper() -> None:
            try:
                await one.handle(begin, ScriptedBody(water(0, 1_000)))
            except Refusal as refusal:
                refused.append(refusal)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sleeper)
            await dozing.asleep.wait()
            stolen = await thief.acquire(upload_id, force=True)
            assert isinstance(stolen, Grant)
            thief.abandon(stolen.lease)
            content = water(0, 5_000, shift=99)
            added = Append(id=upload_id, offset=0, payload=Payload(length=len(content)))
            await other.handle(added, ScriptedBody(content))
            dozing.wake.set()
        assert [refusal.code for refusal in refused] == [Code.LOCKED]
        upload = await inspect(other, upload_id)
        assert upload.offset == len(content)
        assert (folder / upload.storage["incoming"]).read_bytes() == content


@pytest.mark.parametrize("servers", [1, 2])
async def test_the_newer_append_always_goes_on(tmp_path: Path, servers: int) -> None:
    """Who lets go has let go of the bytes, too, before anyone else is told that they are free."""
    records, folder = tmp_path / "records.db", tmp_path / "data"
    async with AsyncExitStack() as stack:
        engines = [
            await stack.enter_async_context(
                Engine(LocalStore(folder), SQLiteMetadataStore(records), tending=False)
            )
            for _ in range(servers)
        ]
        for _ in range(60):
            upload_id = await create(engines[0], LENGTH)
            pause = Pause()
            body = ScriptedBody(water(0, 5_000), pause)
            older = Append(id=upload_id, offset=0, payload=Payload(length=LENGTH))
            newer = Append(id=upload_id, offset=5_000, payload=Payload(length=LENGTH - 5_000))

            async def append(command: Append = older, body: ScriptedBody = body) -> None:
                with pytest.raises(Refusal):
                    await engines[0].handle(command, body)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(append)
                await pause.reached.wait()
                await engines[-1].handle(newer, ScriptedBody(water(5_000, LENGTH)))
            assert (await inspect(engines[0], upload_id)).complete


# --------------------------------------------------- a store that needs no lock, leases that expire


@pytest.fixture
def metadata() -> Expiring:
    return Expiring()


@pytest.fixture
def data() -> FencedStore:
    return FencedStore()


@pytest.fixture
async def engine(metadata: Expiring, data: FencedStore) -> AsyncIterator[Engine]:
    settings = Settings(checkpoint_bytes=10_000, checkpoint_seconds=3600, lease_wait=0.3)
    async with Engine(data, metadata, settings=settings) as engine:
        yield engine


@pytest.mark.parametrize("checksum", [False, True])
@pytest.mark.parametrize("rest", [50_000, LENGTH])
@pytest.mark.parametrize("before", [5_000, 20_000])
async def test_who_wakes_after_its_lease_expired(
    engine: Engine, metadata: Expiring, data: FencedStore, before: int, rest: int, checksum: bool
) -> None:
    """It wrote some, fell asleep, and another went on from what was committed. When it wakes it
    still has bytes to write: they don't count, and it is told so, whole or not."""
    upload_id = await create(engine, LENGTH)
    nap = Pause()
    asleep = ScriptedBody(water(0, before), nap, water(before, rest), deaf=True)
    digest = hashlib.sha1(water(0, rest), usedforsecurity=False).digest()
    payload = Payload(length=rest, checksum=Checksum("sha1", digest) if checksum else None)
    refused: list[Refusal] = []

    async def sleeper() -> None:
        with pytest.raises(Refusal) as refusal:
            await engine.handle(Append(id=upload_id, offset=0, payload=payload), asleep)
        refused.append(refusal.value)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(sleeper)
        await nap.reached.wait()
        committed = before if before >= 10_000 and not checksum else 0
        one_more = Append(id=upload_id, offset=committed, payload=Payload(length=1))
        with pytest.raises(Refusal) as locked:
            await engine.handle(one_more, ScriptedBody(b"1"))
        assert locked.value.code is Code.LOCKED
        metadata.over.add(upload_id)
        other = water(committed, LENGTH - 10, shift=77)
        await engine.handle(
            Append(id=upload_id, offset=committed, payload=Payload(length=len(other))),
            ScriptedBody(other),
        )
        nap.go.set()
    assert refused[0].code is Code.LOCKED
    upload = await inspect(engine, upload_id)
    assert upload.offset == LENGTH - 10
    assert data.content(upload) == water(0, committed) + other
    last = water(LENGTH - 10, LENGTH)
    await engine.handle(
        Append(id=upload_id, offset=LENGTH - 10, payload=Payload(length=10)), ScriptedBody(last)
    )
    readable = await engine.handle(Download(id=upload_id), ScriptedBody())
    assert isinstance(readable, Readable)
    read = b"".join([chunk async for chunk in engine.read(readable.upload, 0, LENGTH)])
    assert read == water(0, committed) + other + last


async def test_who_wakes_after_it_was_deleted(engine: Engine, data: FencedStore) -> None:
    """Of the upload nothing comes back."""
    upload_id = await create(engine, LENGTH)
    nap = Pause()
    asleep = ScriptedBody(water(0, 20_000), nap, water(20_000, LENGTH), deaf=True)
    refused: list[Refusal] = []

    async def sleeper() -> None:
        with pytest.raises(Refusal) as refusal:
            await engine.handle(
                Append(id=upload_id, offset=0, payload=Payload(length=LENGTH)), asleep
            )
        refused.append(refusal.value)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(sleeper)
        await nap.reached.wait()
        await engine.handle(Terminate(id=upload_id), ScriptedBody())
        nap.go.set()
    assert refused[0].code in {Code.LOCKED, Code.GONE}
    with pytest.raises(Refusal) as gone:
        await inspect(engine, upload_id)
    assert gone.value.code is Code.GONE
