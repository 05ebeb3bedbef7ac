"""Real servers that share one folder and one database, and all want to write to one upload.

Never two writers' bytes, never a false acknowledgement; who died, sleeps or lost its lease included.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from tests.faults.rivals import Attempt, Disk, Patch, Server, not_pure, revive, rivals, until
from tests.faults.sea import Sea
from tests.faults.wire import Answer, Lost

from tidegate.engine.core import Settings

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]

SEED: Final = 20260101
LENGTH: Final = 100_000
LEASE_WAIT: Final = Settings().lease_wait
SEA: Final = Sea(SEED)


def water(start: int, stop: int, *, shift: int = 0) -> bytes:
    return SEA.water(shift, start, stop)


@pytest.fixture(scope="module", params=["native", "asgi"])
def stage(request: pytest.FixtureRequest) -> Iterator[tuple[Disk, list[Server]]]:
    """A folder and its servers, for all tests: each has uploads of its own."""
    with tempfile.TemporaryDirectory(prefix="tidegate-rivals-") as name:
        folder = Path(name)
        with rivals(folder, 3, request.param) as servers:
            yield Disk(folder), servers


@pytest.fixture
def disk(stage: tuple[Disk, list[Server]]) -> Disk:
    return stage[0]


@pytest.fixture
def servers(stage: tuple[Disk, list[Server]]) -> Iterator[list[Server]]:
    """Three; those that the test kills are started again."""
    yield stage[1]
    revive(stage[1])


async def begun(disk: Disk, patch: Patch, path: str, size: int) -> None:
    """The first bytes of the body are sent, and stored."""
    await patch.send(water(0, size))
    await disk.holds(path, size)


async def finish(server: Server, path: str, offset: int) -> None:
    """The rest of the upload can be sent, and then it is what was sent."""
    answer = await server.ask("PATCH", path, water(offset, LENGTH), upload_offset=offset)
    assert (answer.status, answer.offset) == (204, LENGTH), answer
    assert (await server.ask("GET", path)).body == water(0, LENGTH)


async def quick(asked: float) -> None:
    """Nobody waited until a lease was given up for lost; how quick exactly depends on the machine."""
    assert time.monotonic() - asked < LEASE_WAIT - 1


# ---------------------------------------------------------------------------- one asks the other


async def test_head_elsewhere_makes_the_writer_let_go(servers: list[Server], disk: Disk) -> None:
    """The writer keeps its bytes and answers 423; the offset that HEAD tells is final."""
    one, other, _ = servers
    path = await one.create(LENGTH)
    async with one.patch(path, 0, LENGTH) as patch:
        await begun(disk, patch, path, 5_000)
        asked = time.monotonic()
        head = await other.ask("HEAD", path)
        await quick(asked)
        assert (head.status, head.offset) == (200, 5_000)
        assert (await patch.answer()).status == 423
        await patch.send(water(5_000, 6_000))
    assert disk.content(path) == water(0, 5_000)
    await finish(other, path, 5_000)


async def test_a_newer_patch_elsewhere_goes_on(servers: list[Server], disk: Disk) -> None:
    one, other, _ = servers
    path = await one.create(LENGTH)
    async with one.patch(path, 0, LENGTH) as patch:
        await begun(disk, patch, path, 5_000)
        asked = time.monotonic()
        await finish(other, path, 5_000)
        await quick(asked)
        assert (await patch.answer()).status == 423


async def test_an_append_that_is_refused_disturbs_nobody(servers: list[Server], disk: Disk) -> None:
    one, other, _ = servers
    path = await one.create(LENGTH)
    async with one.patch(path, 0, LENGTH) as patch:
        await begun(disk, patch, path, 5_000)
        beyond = await other.ask("PATCH", path, b"x" * (LENGTH + 1), upload_offset=0)
        assert beyond.status == 413
        await patch.send(water(5_000, LENGTH))
        answer = await patch.answer()
        assert (answer.status, answer.offset) == (204, LENGTH)
    assert (await other.ask("GET", path)).body == water(0, LENGTH)


async def test_delete_elsewhere_ends_it(servers: list[Server], disk: Disk) -> None:
    one, other, third = servers
    path = await one.create(LENGTH)
    async with one.patch(path, 0, LENGTH) as patch:
        await begun(disk, patch, path, 5_000)
        asked = time.monotonic()
        assert (await other.ask("DELETE", path)).status == 204
        await quick(asked)
        assert (await patch.answer()).status in {410, 423}
    assert disk.files(path) == []
    for server in (one, other, third):
        assert (await server.ask("HEAD", path)).status == 410


async def test_head_does_not_interrupt_a_checksummed_append(
    servers: list[Server], disk: Disk
) -> None:
    """Elsewhere, too, it tells what was committed, and the append goes on."""
    one, other, _ = servers
    path = await one.create(LENGTH)
    digest = base64.b64encode(hashlib.sha1(water(0, LENGTH)).digest()).decode()
    async with one.patch(path, 0, LENGTH, upload_checksum=f"sha1 {digest}") as patch:
        await begun(disk, patch, path, 5_000)
        head = await other.ask("HEAD", path)
        assert (head.status, head.offset) == (200, 0)
        await patch.send(water(5_000, LENGTH))
        answer = await patch.answer()
        assert (answer.status, answer.offset) == (204, LENGTH)
    assert (await other.ask("GET", path)).body == water(0, LENGTH)


# --------------------------------------------------------------------------------- all at once


@pytest.mark.parametrize("seed", range(SEED, SEED + 3))
async def test_all_at_once(servers: list[Server], disk: Disk, seed: int) -> None:
    """Many clients append to one upload through all servers, each other bytes, and ask how far it
    is; in the end each byte is one writer's, and those that were acknowledged are there."""
    length = 3_000_000
    path = await servers[0].create(length)
    attempts: list[Attempt] = []
    shown: list[int] = [0]
    rngs = [random.Random(f"{seed} {number}") for number in range(8)]
    await asyncio.gather(*(_append(rng, servers, path, length, attempts, shown) for rng in rngs))
    head = await servers[0].ask("HEAD", path)
    assert head.offset is not None
    found = disk.content(path)[: head.offset]
    assert len(found) == head.offset
    assert not_pure(found, attempts) == ""
    assert any(attempt.acknowledged for attempt in attempts)
    assert (await servers[1].ask("DELETE", path)).status == 204


async def _append(
    rng: random.Random,
    servers: list[Server],
    path: str,
    length: int,
    attempts: list[Attempt],
    shown: list[int],
) -> None:
    offset = 0
    for _ in range(15):
        least = shown[-1]
        server = rng.choice(servers)
        if rng.random() < 0.3:
            answer = await server.ask("HEAD", path)
        else:
            content = water(
                offset, min(length, offset + rng.randint(1, 60_000)), shift=rng.getrandbits(22)
            )
            answer = await server.ask(
                "PATCH", path, content, pause=rng.uniform(0, 0.02), upload_offset=offset
            )
            attempts.append(Attempt(offset, content, answer.status == 204))
            if answer.status == 204:
                assert answer.offset == offset + len(content)
        assert answer.status in {200, 204, 409, 423}, answer
        if answer.offset is not None:
            # What was shown before this was asked is true for ever.
            assert answer.offset >= least
            offset = answer.offset
            shown.append(max(offset, shown[-1]))
        elif answer.status in {409, 423}:
            offset = (await server.ask("HEAD", path)).offset or offset


@pytest.mark.parametrize("seed", range(SEED, SEED + 3))
async def test_deleted_in_the_middle(servers: list[Server], disk: Disk, seed: int) -> None:
    """Nobody is told that bytes were added once the end of the upload was acknowledged."""
    rng = random.Random(seed)
    path = await servers[0].create(LENGTH)

    async def append(server: Server) -> Answer:
        pause = rng.uniform(0, 0.02)
        return await server.ask("PATCH", path, water(0, LENGTH), pause=pause, upload_offset=0)

    async def delete() -> Answer:
        await asyncio.sleep(rng.uniform(0, 0.1))
        return await servers[2].ask("DELETE", path)

    *appended, deleted = await asyncio.gather(*map(append, servers), delete())
    assert deleted.status == 204
    for answer in appended:
        assert answer.status in {204, 409, 410, 413, 423}, answer
    for answer in await asyncio.gather(*map(append, servers)):
        assert answer.status == 410
    await until(lambda: disk.files(path) == [])


# ------------------------------------------------------------------------------- dead, asleep


async def test_a_killed_writer_is_followed_at_once(servers: list[Server], disk: Disk) -> None:
    one, other, _ = servers
    path = await one.create(LENGTH)
    async with one.patch(path, 0, LENGTH) as patch:
        await begun(disk, patch, path, 5_000)
        one.process.kill()
        asked = time.monotonic()
        head = await other.ask("HEAD", path)
        await quick(asked)
        assert (head.status, head.offset) == (200, 5_000)
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await patch.answer()
    await finish(other, path, 5_000)


async def test_a_killed_writer_of_unverified_bytes_is_followed_at_once(
    servers: list[Server], disk: Disk
) -> None:
    one, other, _ = servers
    path = await one.create(LENGTH)
    digest = base64.b64encode(hashlib.sha1(water(0, LENGTH)).digest()).decode()
    async with one.patch(path, 0, LENGTH, upload_checksum=f"sha1 {digest}") as patch:
        await begun(disk, patch, path, 5_000)
        one.process.kill()
        asked = time.monotonic()
        await finish(other, path, 0)
        await quick(asked)


async def _asks_in_vain(servers: list[Server], path: str, offset: int) -> None:
    """Of a sleeper nothing can be had."""
    answers = await asyncio.gather(
        servers[0].ask("HEAD", path),
        servers[1].ask("HEAD", path),
        servers[0].ask("PATCH", path, water(offset, LENGTH), upload_offset=offset),
    )
    for answer in answers:
        assert answer.status == 423
        assert int(answer.fields["retry-after"]) > 0


async def test_a_sleeping_writer_keeps_the_upload_and_lets_go_when_it_wakes(
    servers: list[Server], disk: Disk
) -> None:
    """It was asked to let go in its sleep: it keeps what it stored, and says 423."""
    one, *others = servers
    path = await one.create(LENGTH)
    async with one.patch(path, 0, LENGTH) as patch:
        await begun(disk, patch, path, 5_000)
        with one.asleep():
            await _asks_in_vain(others, path, 5_000)
        head = await others[0].ask("HEAD", path)
        assert head.status == 200
        assert head.offset == 5_000
        assert (await patch.answer()).status == 423
    await finish(others[1], path, 5_000)


async def test_a_sleeping_writer_goes_on_when_nobody_asked(
    servers: list[Server], disk: Disk
) -> None:
    one, other, _ = servers
    path = await one.create(LENGTH)
    async with one.patch(path, 0, LENGTH) as patch:
        await begun(disk, patch, path, 5_000)
        with one.asleep():
            await patch.send(water(5_000, LENGTH))
        answer = await patch.answer()
        assert (answer.status, answer.offset) == (204, LENGTH)
    assert (await other.ask("GET", path)).body == water(0, LENGTH)


@pytest.mark.parametrize("checksum", [False, True])
@pytest.mark.parametrize("rest", [0, 1_000, LENGTH - 5_000])
async def test_deleted_under_a_sleeping_writer(
    servers: list[Server], disk: Disk, rest: int, checksum: bool
) -> None:
    """DELETE works. The writer that wakes, with the rest of the body before it, gets no bytes
    counted and no 2xx, and leaves no file."""
    one, other, third = servers
    path = await one.create(LENGTH)
    digest = base64.b64encode(hashlib.sha1(water(0, LENGTH)).digest()).decode()
    fields = {"upload_checksum": f"sha1 {digest}"} if checksum else {}
    async with one.patch(path, 0, LENGTH, **fields) as patch:
        await begun(disk, patch, path, 5_000)
        with one.asleep():
            await patch.send(water(5_000, 5_000 + rest))
            asked = time.monotonic()
            assert (await other.ask("DELETE", path)).status == 204
            await quick(asked)
            assert (await third.ask("HEAD", path)).status == 410
            assert disk.files(path) == []
        answer = await patch.answer()
        assert answer.status in {404, 410, 423, 503}, answer
    for server in (one, other, third):
        assert (await server.ask("HEAD", path)).status == 410
        assert (await server.ask("GET", path)).status == 410
    assert disk.files(path) == []


async def test_a_sleeping_writer_that_is_killed_is_followed_at_once(
    servers: list[Server], disk: Disk
) -> None:
    """Who waits for it meanwhile need not ask again."""
    one, other, _ = servers
    path = await one.create(LENGTH)
    async with one.patch(path, 0, LENGTH) as patch:
        await begun(disk, patch, path, 5_000)
        with one.asleep():
            waiting = asyncio.create_task(other.ask("HEAD", path))
            await asyncio.sleep(0)
            one.process.kill()
            head = await waiting
    assert (head.status, head.offset) == (200, 5_000)
    await finish(other, path, 5_000)


async def test_servers_are_killed_while_all_append(servers: list[Server], disk: Disk) -> None:
    """As `test_all_at_once`, with servers that die in the middle of it."""
    length = 3_000_000
    path = await servers[0].create(length)
    attempts: list[Attempt] = []
    acked = 0
    done = asyncio.Event()

    async def append(rng: random.Random) -> None:
        nonlocal acked
        while not done.is_set():
            server = rng.choice(servers)
            try:
                least = acked
                head = await server.ask("HEAD", path)
                if head.offset is None:
                    continue
                assert head.offset >= least
                acked = max(acked, head.offset)
                content = water(
                    head.offset,
                    min(length, head.offset + rng.randint(1, 60_000)),
                    shift=rng.getrandbits(22),
                )
                attempt = Attempt(head.offset, content, acknowledged=False)
                attempts.append(attempt)
                answer = await server.ask(
                    "PATCH", path, content, pause=rng.uniform(0, 0.02), upload_offset=head.offset
                )
                if answer.status == 204:
                    attempts.append(Attempt(head.offset, content, acknowledged=True))
                    acked = max(acked, answer.offset or 0)
            except (Lost, OSError):
                await asyncio.sleep(0.01)

    async def kill(rng: random.Random) -> None:
        for _ in range(8):
            await asyncio.sleep(rng.uniform(0, 0.3))
            await asyncio.to_thread(rng.choice(servers).process.restart, kill=True)
        done.set()

    await asyncio.gather(
        kill(random.Random(SEED)),
        *(append(random.Random(f"{SEED} {number}")) for number in range(6)),
    )
    head = await servers[0].ask("HEAD", path)
    assert head.offset is not None
    assert head.offset >= acked
    assert not_pure(disk.content(path)[: head.offset], attempts) == ""
