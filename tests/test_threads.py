"""Blocking calls in threads, one at a time or several in one hop."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import anyio
import anyio.lowlevel
import pytest

from tidegate.threads import TOGETHER, Threads

pytestmark = pytest.mark.anyio


@pytest.fixture
def threads() -> Iterator[Threads]:
    threads = Threads(4, "test")
    yield threads
    threads.close()


async def _gathered(threads: Threads, count: int) -> list[int]:
    """The threads in which so many calls of one turn of the loop were made."""
    found: list[int] = []

    async def one() -> None:
        found.append(await threads.run_together(threading.get_ident))

    async with anyio.create_task_group() as tasks:
        for _ in range(count):
            tasks.start_soon(one)
    return found


async def test_a_call_returns_or_raises(threads: Threads) -> None:
    assert await threads.run(divmod, 7, 2) == (3, 1)
    assert await threads.run_together(divmod, 7, 2) == (3, 1)
    for run in (threads.run, threads.run_together):
        with pytest.raises(ZeroDivisionError):
            await run(divmod, 7, 0)
    assert threads.under_way == 0


async def test_calls_of_one_turn_go_together(threads: Threads) -> None:
    assert len(set(await _gathered(threads, TOGETHER))) == 1
    assert threads.under_way == 0


async def test_so_many_and_no_more(threads: Threads) -> None:
    """Else a slow disk would hold up all with one."""
    gate = threading.Event()
    done: list[int] = []

    async def one(number: int) -> None:
        await threads.run_together(gate.wait if number < TOGETHER else int)
        done.append(number)

    async with anyio.create_task_group() as tasks:
        for number in range(TOGETHER + 1):
            tasks.start_soon(one, number)
        with anyio.fail_after(10):
            while done != [TOGETHER]:
                await anyio.sleep(0.001)
        gate.set()
    assert sorted(done) == list(range(TOGETHER + 1))


async def test_one_that_fails_leaves_the_others_alone(threads: Threads) -> None:
    found: dict[int, object] = {}

    async def one(number: int) -> None:
        try:
            found[number] = await threads.run_together(divmod, 6, number)
        except ZeroDivisionError:
            found[number] = None

    async with anyio.create_task_group() as tasks:
        for number in range(3):
            tasks.start_soon(one, number)
    assert found == {0: None, 1: (6, 0), 2: (3, 0)}


async def test_one_that_was_cancelled_in_time_is_not_called(threads: Threads) -> None:
    called: list[int] = []
    gate, reached = threading.Event(), threading.Event()

    def hold() -> None:
        reached.set()
        gate.wait()

    async with anyio.create_task_group() as tasks:
        async with anyio.create_task_group() as cancelled:
            tasks.start_soon(threads.run_together, hold)
            cancelled.start_soon(threads.run_together, called.append, 1)
            with anyio.fail_after(10):
                while not reached.is_set():
                    await anyio.sleep(0.001)
            cancelled.cancel_scope.cancel()
        gate.set()
    assert called == []


async def test_what_is_posted_is_done_whatever_it_raises(threads: Threads) -> None:
    done: list[int] = []
    threads.post_together(divmod, 1, 0)
    threads.post_together(done.append, 1)
    with anyio.fail_after(10):
        while not done:
            await anyio.sleep(0.001)


async def test_closing_leaves_nothing_undone() -> None:
    threads = Threads(2, "test")
    await threads.run(int)
    done = threading.Event()
    threads.post_together(done.set)
    threads.close()
    with anyio.fail_after(10):
        while not done.is_set():
            await anyio.sleep(0.001)
