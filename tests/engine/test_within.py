"""A limit for what may not have to wait: all that `await` promises holds."""

from __future__ import annotations

import asyncio

import anyio
import pytest
from tests.engine.stage import until

from tidegate.engine.within import within

pytestmark = pytest.mark.anyio


async def test_what_waits_for_nothing_needs_no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidegate.engine.within.asyncio.timeout", None)
    done = []

    async def work() -> None:
        done.append(asyncio.current_task())

    assert await within(0, work())
    assert done == [asyncio.current_task()]


async def test_what_waits_goes_on() -> None:
    """More than once, for a loop, for futures and their results, and for anyio's scopes."""
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    found = []

    async def work() -> None:
        await asyncio.sleep(0)
        with anyio.move_on_after(30):
            found.append(await future)
        with anyio.move_on_after(0.001):
            await anyio.sleep_forever()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(asyncio.sleep, 0)
        found.append(2)

    asyncio.get_running_loop().call_soon(future.set_result, 1)
    assert await within(30, work())
    assert found == [1, 2]


async def test_what_takes_too_long_is_cancelled() -> None:
    ended = []

    async def work() -> None:
        try:
            await asyncio.sleep(30)
        finally:
            ended.append(True)

    assert not await within(0.001, work())
    assert ended
    # Whoever waited for it was not.
    await asyncio.sleep(0)


async def test_what_ends_all_the_same_has_ended() -> None:
    """It was asked to end, and had come to its end already."""

    async def work() -> None:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            return

    assert await within(0.001, work())


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("error", [TimeoutError("its own"), ValueError("wrong")])
async def test_what_it_raises_is_raised(error: Exception, *, waits: bool) -> None:
    async def work() -> None:
        if waits:
            await asyncio.sleep(0)
        raise error

    with pytest.raises(type(error)) as caught:
        await within(30, work())
    assert caught.value is error


async def test_who_is_cancelled_cancels_it() -> None:
    ended = []

    async def work() -> None:
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            ended.append(True)
            raise

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(within, 30, work())
        await until(lambda: len(asyncio.all_tasks()) > 1)
        await asyncio.sleep(0)
        tasks.cancel_scope.cancel()
    assert ended == [True]
