"""Memory: one budget for all uploads, which nobody can hold for ever."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from msgspec.structs import replace
from tests.stores.s3.conftest import PART, Kept, MakeStore
from tests.support.s3_faults import Asked, Faults

from tidegate.stores.s3.budget import Budget
from tidegate.stores.s3.store import S3Store

pytestmark = pytest.mark.anyio


async def slowly(kept: Kept, data: bytes, piece: int, gate: anyio.Semaphore | None = None) -> None:
    """Send a little at a time, everybody in turn."""
    async with kept.writing() as writer:
        for start in range(0, len(data), piece):
            await writer.write([data[start : start + piece]])
            if start % (3 * piece) == 0:
                kept.commit(await writer.progress())
            await checkpoint()
        kept.commit(await writer.flush())
    await kept.finish()
    assert await kept.read() == data


@pytest.mark.parametrize("uniform", [False, True])
async def test_many_slow_uploads_get_through_a_small_budget(
    uniform: bool, make_store: MakeStore, faults: Faults
) -> None:
    """Thirty of them, with memory for two parts: each gives way to the others, none is lost."""
    async with make_store(memory=2 * PART, uniform_parts=uniform, concurrency=2) as store:
        store.budget.tenure = 0.02
        chosen = random.Random(3)
        async with anyio.create_task_group() as tasks:
            for number in range(30):
                data = chosen.randbytes(chosen.randrange(2 * PART))
                length = len(data) if number % 2 else None
                kept = Kept(store, length, f"slow-{number}")
                if length is None:
                    tasks.start_soon(deferred, kept, data)
                else:
                    tasks.start_soon(slowly, kept, data, PART // 8)
    assert "PutTail" in faults.operations()


async def deferred(kept: Kept, data: bytes) -> None:
    async with kept.writing() as writer:
        for start in range(0, len(data), 7000):
            await writer.write([data[start : start + 7000]])
            await checkpoint()
        kept.commit(await writer.flush())
    kept.record = replace(kept.record, length=len(data))
    await kept.finish()
    assert await kept.read() == data


async def test_idle_uploads_do_not_hold_up_a_fast_one(make_store: MakeStore) -> None:
    """Those who hold all memory and send nothing more become tails."""
    async with make_store(memory=4 * PART) as store:
        store.budget.tenure = 0.05
        idle = [Kept(store, 2 * PART, f"idle-{n}") for n in range(4)]
        writers = []
        for kept in idle:
            writer = await store.writer(kept.record, kept.journal)
            await writer.write([b"i" * (PART - 1)])
            writers.append(writer)
        assert store.budget.free == 0
        fast = Kept(store, 8 * PART, "fast")
        with anyio.fail_after(20):
            await fast.append(b"f" * (8 * PART))
            await fast.finish()
            for kept, writer in zip(idle, writers, strict=True):
                await writer.write([b"j" * (PART + 1)])
                kept.commit(await writer.flush())
                await writer.close()
                await kept.finish()
                assert await kept.read() == b"i" * (PART - 1) + b"j" * (PART + 1)


async def test_room_that_is_not_used_goes_first(make_store: MakeStore, faults: Faults) -> None:
    """It costs no request to give it back."""
    part = 16 * PART
    both = anyio.Event()

    async def wait(_asked: Asked, go: Callable[[], Awaitable[bytes]]) -> bytes:
        if sorted(faults.parts()) == [1, 2]:
            both.set()
        await both.wait()
        return await go()

    async with make_store(memory=3 * part, part_size=part) as store:
        store.budget.tenure = 0.05
        idle = [Kept(store, part, f"idle-{n}") for n in range(2)]
        async with idle[0].writing() as first, idle[1].writing() as second:
            await first.write([b"i"])
            await second.write([b"i"])
            assert store.budget.free == part
            with anyio.fail_after(20):
                while anyio.current_time() <= second.since + store.budget.tenure:
                    await anyio.sleep(0.01)
            faults.add("UploadPart", wait, times=2)
            fast = Kept(store, 2 * part, "fast")
            with anyio.fail_after(20):
                # Its second part is sent before its first one is stored.
                await fast.append(b"f" * (2 * part))
            assert "PutTail" not in faults.operations()
            await first.write([b"j" * (part - 1)])
            idle[0].commit(await first.flush())
        await idle[0].finish()
        assert await idle[0].read() == b"i" + b"j" * (part - 1)


async def test_small_appends_are_not_read_back_often(store: S3Store, faults: Faults) -> None:
    """A hundred of them: each byte is stored again a few times only, and leaves nothing behind."""
    kept = Kept(store, 100 * 500)
    for _ in range(100):
        await kept.append(b"s" * 500)
    stored = sum(asked.size for asked in faults.asked if asked.operation == "PutTail")
    assert stored < 8 * 100 * 500
    assert len(await kept.pieces()) < 10
    await kept.finish()
    assert await kept.read() == b"s" * 50_000
    while store._behind:
        await anyio.sleep(0.01)
    assert [found.whole async for found in store.stored()] == [True]


class Idle:
    """Somebody who holds memory."""

    def __init__(self, budget: Budget, size: int, *, spare: int = 0) -> None:
        self.budget, self.size, self._spare = budget, size, spare
        self.since = 0.0
        self.evicted = False

    def spare(self) -> int:
        spared, self._spare = self._spare, 0
        self.size -= spared
        return spared

    def busy(self) -> bool:
        return self.evicted

    async def evict(self) -> None:
        self.evicted = True
        self.budget.give(self.size)


async def test_first_come_first_served() -> None:
    budget = Budget(10)
    await budget.take(10)
    served: list[int] = []

    async def take(size: int) -> None:
        await budget.take(size)
        served.append(size)

    async with anyio.create_task_group() as tasks:
        for size in (8, 1, 2):
            tasks.start_soon(take, size)
            await checkpoint()
        budget.give(7)
        await checkpoint()
        assert served == []
        budget.give(3)
        await checkpoint()
        await checkpoint()
        assert served == [8, 1]
        budget.give(1)
    assert served == [8, 1, 2]
    await budget.close()


async def test_who_gives_up_waiting_holds_nobody_up() -> None:
    budget = Budget(10)
    await budget.take(6)
    with anyio.move_on_after(0.01):
        await budget.take(10)
    with anyio.fail_after(5):
        await budget.take(4)
    budget.give(10)
    assert budget.free == 10
    await budget.close()


async def test_spare_room_before_bytes() -> None:
    budget = Budget(10)
    await budget.take(10)
    holders: list[Any] = [Idle(budget, 5, spare=1), Idle(budget, 5, spare=2)]
    for holder in holders:
        budget.join(holder)
    with anyio.fail_after(5):
        await budget.take(3)
        assert not any(holder.evicted for holder in holders)
        await budget.take(7)
    assert all(holder.evicted for holder in holders)
    assert budget.free == 0
    await budget.close()
