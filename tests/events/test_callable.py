"""Callables that are told of events."""

from __future__ import annotations

import functools
import threading

import anyio
import pytest
from tests.events.samples import delivery

from tidegate.events.callable import CallableSink, as_sinks
from tidegate.ports import Delivery
from tidegate.protocol.model import STORED_EVENTS, EventType

pytestmark = pytest.mark.anyio


class Listener:
    """An object that can be called."""

    def __init__(self) -> None:
        self.told: list[tuple[int, bool]] = []

    async def __call__(self, told: Delivery) -> None:
        self.told.append((told.sequence, threading.current_thread() is threading.main_thread()))


async def hear(told: list[int], delivery: Delivery) -> None:
    told.append(delivery.sequence)


async def test_coroutine_functions_run_on_the_loop() -> None:
    listener, told = Listener(), list[int]()
    await CallableSink(listener).deliver(delivery(1))
    assert listener.told == [(1, True)]
    await CallableSink(functools.partial(hear, told)).deliver(delivery(2))
    await CallableSink(lambda d: hear(told, d)).deliver(delivery(3))
    assert told == [2, 3]


async def test_other_functions_run_in_a_thread() -> None:
    threads: list[threading.Thread] = []
    await CallableSink(lambda _: threads.append(threading.current_thread())).deliver(delivery())
    assert threads[0] is not threading.main_thread()


async def test_a_thread_that_takes_too_long_is_left_behind() -> None:
    began, go, ended = threading.Event(), threading.Event(), threading.Event()

    def wait(_: Delivery) -> None:
        began.set()
        go.wait(20)
        ended.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(CallableSink(wait).deliver, delivery())
        assert await anyio.to_thread.run_sync(began.wait, 20)
        tasks.cancel_scope.cancel()
    assert not ended.is_set()
    go.set()
    assert await anyio.to_thread.run_sync(ended.wait, 20)


@pytest.mark.parametrize("threaded", [False, True])
async def test_what_it_raises_is_raised(threaded: bool) -> None:
    def fail(_: Delivery) -> None:
        raise RuntimeError("no")

    async def fail_soon(_: Delivery) -> None:
        fail(_)

    with pytest.raises(RuntimeError, match="no"):
        await CallableSink(fail if threaded else fail_soon).deliver(delivery())


async def test_names() -> None:
    """After where it is defined; of equal ones the later get a number, if nobody named them."""
    listener = Listener()
    named = CallableSink(print, name="mail", types=[EventType.COMPLETED], timeout=5)
    bound = functools.partial(hear, [])
    found = as_sinks([listener, listener, named, bound, lambda _: None])
    module = __name__.lstrip("_")
    assert [sink.name for sink in found] == [
        f"{module}.Listener",
        f"{module}.Listener-2",
        "mail",
        f"{module}.hear",
        f"{module}.test_names.locals.lambda",
    ]
    assert found[2].types == {EventType.COMPLETED}
    assert found[2].timeout == 5
    assert found[0].types == STORED_EVENTS
