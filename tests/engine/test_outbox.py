"""Events: each is told at least once, those of one upload in order."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
from tests.engine.stage import Stage, reached, until

from tidegate.engine import outbox
from tidegate.ports import Delivery, UnavailableError
from tidegate.protocol.model import EventType, State

pytestmark = pytest.mark.anyio


class Sink:
    """Notes what it is told; fails, or takes its time, when asked to."""

    def __init__(self) -> None:
        self.told: list[Delivery] = []
        self.fails: Callable[[Delivery], bool] = lambda _: False
        self.before: Callable[[], Awaitable[None]] | None = None

    async def __call__(self, delivery: Delivery) -> None:
        if self.before is not None:
            await self.before()
        if self.fails(delivery):
            raise RuntimeError("the sink failed")
        self.told.append(delivery)

    @property
    def types(self) -> list[EventType]:
        return [delivery.event.type for delivery in self.told]


async def test_events_are_told_in_order_with_the_record() -> None:
    sink = Sink()
    async with Stage(sink=sink).open() as s:
        upload = await s.create(3)
        await s.append(upload.id, 0, b"abc")
        await s.delete(upload.id)
        await until(lambda: len(sink.told) == 3)
        assert sink.types == [EventType.CREATED, EventType.COMPLETED, EventType.TERMINATED]
        states = [delivery.event.upload.state for delivery in sink.told]
        assert states == [State.RECEIVING, State.COMPLETE, State.TERMINATED]
        assert [d.sequence for d in sink.told] == sorted(d.sequence for d in sink.told)


async def test_nothing_is_written_when_nobody_listens() -> None:
    async with Stage().open() as s:
        upload = await s.create(3, b"abc")
        await s.delete(upload.id)
        assert not s.records._events


async def test_what_failed_is_told_again_later_and_holds_up_what_follows() -> None:
    sink = Sink()
    sink.fails = lambda delivery: delivery.event.type is EventType.CREATED
    async with Stage(sink=sink).open() as s:
        first = await s.create(3, b"abc")
        await until(lambda: any(t.attempts for t in s.records._events.values()))
        other = sink.fails
        sink.fails = lambda _: False
        second = await s.create(3, b"abc")
        await until(lambda: len(sink.told) == 2)
        assert {d.event.upload.id for d in sink.told} == {second.id}
        sink.fails = other
        delays = []
        for attempt in range(2, 6):
            before = s.clock.now()
            while next(iter(s.records._events.values())).attempts < attempt:
                s.clock.advance(0.5)
                await s.engine._outbox.deliver_due()
            delays.append(s.clock.now() - before)
        assert delays == [1, 2, 4, 8]
        sink.fails = lambda _: False
        s.clock.advance(16)
        s.engine._outbox.wake()
        await until(lambda: len(sink.told) == 4)
        assert [d.event.type for d in sink.told if d.event.upload.id == first.id] == [
            EventType.CREATED,
            EventType.COMPLETED,
        ]
        assert sink.told[2].attempts == 5


async def test_delays_have_their_longest_and_then_it_is_given_up() -> None:
    sink = Sink()
    sink.fails = lambda delivery: delivery.event.type is EventType.CREATED
    async with Stage(sink=sink).open() as s:
        await s.create(3, b"abc")
        for _ in range(outbox.GIVE_UP_AFTER):
            await s.engine._outbox.deliver_due()
            s.clock.advance(outbox.LONGEST_DELAY)
        # Given up, and what follows it is told.
        await s.engine._outbox.deliver_due()
        assert sink.types == [EventType.COMPLETED]
        (kept,) = s.records._events.values()
        assert (kept.due_at, kept.attempts) == (None, outbox.GIVE_UP_AFTER)


async def test_all_sinks_are_told() -> None:
    sinks = [Sink(), Sink()]
    sinks[1].fails = lambda delivery: delivery.attempts == 0

    async def both(delivery: Delivery) -> None:
        for sink in sinks:
            await sink(delivery)

    async with Stage(sink=both).open() as s:
        await s.create(3)
        await until(lambda: bool(sinks[0].told))
        s.clock.advance(1)
        s.engine._outbox.wake()
        await until(lambda: bool(sinks[1].told))
        assert len(sinks[0].told) == 2


@pytest.mark.parametrize("call", ["claim_events", "acknowledge", "postpone"])
async def test_records_that_fail_delay_events(call: str) -> None:
    sink = Sink()
    failing = iter([True])
    if call == "postpone":
        sink.fails = lambda _: next(failing, False)
    stage = Stage(sink=sink)
    async with stage.open() as s:
        s.metadata.faults.fail(call, UnavailableError("away"))
        await s.create(3)
        await until(lambda: s.metadata.faults.calls.count(call) >= 1)
        # It stays claimed for a while.
        s.clock.advance(outbox.CLAIM_FOR)
        s.engine._outbox.wake()
        await until(lambda: bool(sink.told) and not s.records._events)
        assert set(sink.types) == {EventType.CREATED}


async def test_what_a_dead_server_had_claimed_is_told_again() -> None:
    sink = Sink()
    stage = Stage(sink=sink)
    async with stage.open() as s:
        s.metadata.faults.fail("acknowledge", UnavailableError("away"), times=9)
        await s.create(3)
        await until(lambda: bool(sink.told))
        s.die()
    async with stage.again(sink=sink).open() as s:
        await s.engine._outbox.deliver_due()
        assert len(sink.told) == 1
        s.clock.advance(outbox.CLAIM_FOR)
        s.engine._outbox.wake()
        await until(lambda: len(sink.told) == 2 and not s.records._events)
        assert sink.told[0].sequence == sink.told[1].sequence


async def test_claims_that_ran_out_are_not_delivered() -> None:
    """The sink was slow: another server may be telling them by now, and what follows."""
    sink = Sink()
    async with Stage(sink=sink).open() as s:

        async def slow() -> None:
            s.clock.advance(outbox.CLAIM_FOR)

        sink.before = slow
        gate = s.metadata.faults.hold("claim_events")
        for _ in range(3):
            await s.create(3)
        await reached(gate.reached)
        s.metadata.faults.calls.clear()
        gate.go.set()
        await until(lambda: len({d.sequence for d in sink.told}) == 3)
        # Three claims, of which each got one told before it ran out.
        assert s.metadata.faults.calls.count("acknowledge") == 3
        assert s.metadata.faults.calls.count("claim_events") >= 2
        assert len(sink.told) == 3


async def test_it_looks_from_time_to_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other servers write events too, and wake nobody here."""
    monkeypatch.setattr(outbox, "LOOK_EVERY", 0.01)
    sink = Sink()
    async with Stage(sink=sink).open() as s:
        s.engine._core.events_written = lambda: None
        await s.create(3)
        await until(lambda: bool(sink.told))
