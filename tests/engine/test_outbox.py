"""Events: each is told at least once, those of one upload in order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from tests.engine.stage import Stage, reached, until
from tests.support.bodies import ScriptedBody

from tidegate.engine import outbox
from tidegate.engine.engine import Engine
from tidegate.engine.standing import Standing
from tidegate.events.callable import TIMEOUT, CallableSink
from tidegate.metadata.memory import MemoryMetadataStore
from tidegate.metadata.sqlite.store import SQLiteMetadataStore
from tidegate.ports import (
    Delivery,
    DeliveryError,
    Ended,
    Line,
    MetadataStore,
    Retry,
    UnavailableError,
    Undelivered,
)
from tidegate.protocol.commands import Create, Payload
from tidegate.protocol.model import STORED_EVENTS, Event, EventType, State, Upload, UploadId
from tidegate.stores.memory import MemoryStore
from tidegate.testing import FakeClock

pytestmark = pytest.mark.anyio

CLAIM_FOR = TIMEOUT + outbox.CLAIM_BEYOND


class Sink:
    """Notes what it is told; fails, or takes its time, when asked to."""

    def __init__(
        self,
        name: str = "sink",
        *,
        types: Collection[EventType] = STORED_EVENTS,
        timeout: float = TIMEOUT,
    ) -> None:
        self.name = name
        self.types = frozenset(types)
        self.timeout = timeout
        self.told: list[Delivery] = []
        self.calls = 0
        self.at_work = 0
        self.most_at_work = 0
        self.fails: Callable[[Delivery], bool] = lambda _: False
        self.failure: Exception = RuntimeError("the sink failed")
        self.before: Callable[[Delivery], Awaitable[object]] | None = None
        self.is_open = False

    async def open(self) -> None:
        self.is_open = True

    async def close(self) -> None:
        self.is_open = False

    async def deliver(self, delivery: Delivery) -> None:
        assert self.is_open
        self.calls += 1
        self.at_work += 1
        self.most_at_work = max(self.most_at_work, self.at_work)
        try:
            if self.before is not None:
                await self.before(delivery)
            if self.fails(delivery):
                raise self.failure
            self.told.append(delivery)
        finally:
            self.at_work -= 1

    @property
    def types_told(self) -> list[EventType]:
        return [delivery.event.type for delivery in self.told]


def stage(*sinks: Sink, expire_after: float = 100) -> Stage:
    """A stage on which delays are no longer than they are said to be."""
    made = Stage(sinks=sinks, options={"expire_after": expire_after})
    made.engine._outbox._chance = lambda: 0.0
    return made


async def kept(s: Stage) -> list[Undelivered]:
    return [event async for event in s.records.events()]


async def nothing_claimed(s: Stage) -> None:
    """Wait until what became of all that was told is noted."""
    await until(lambda: not any(line.claimed for line in s.records._lines.values()))


async def test_events_are_told_in_order_with_the_record() -> None:
    sink = Sink()
    async with stage(sink).open() as s:
        upload = await s.create(3)
        await s.append(upload.id, 0, b"abc")
        await s.delete(upload.id)
        await until(lambda: len(sink.told) == 3)
        assert sink.types_told == [EventType.CREATED, EventType.COMPLETED, EventType.TERMINATED]
        states = [delivery.event.upload.state for delivery in sink.told]
        assert states == [State.RECEIVING, State.COMPLETE, State.TERMINATED]
        assert [d.sequence for d in sink.told] == sorted(d.sequence for d in sink.told)
        assert len({d.key for d in sink.told}) == 3
    assert not sink.is_open


async def test_nothing_is_written_when_nobody_listens() -> None:
    async with Stage().open() as s:
        upload = await s.create(3, b"abc")
        await s.delete(upload.id)
        assert not s.records._events


async def test_only_what_somebody_wants_is_written() -> None:
    sinks = Sink("a", types=[EventType.COMPLETED]), Sink("b", types=[EventType.TERMINATED])
    async with stage(*sinks).open() as s:
        s.metadata.faults.fail("claim_events", UnavailableError("away"), times=99)
        upload = await s.create(3, b"abc")
        await s.delete(upload.id)
        types = [k.delivery.event.type for k in await kept(s)]
        assert types == [EventType.COMPLETED, EventType.TERMINATED]


async def test_each_is_told_what_it_wants() -> None:
    one, two = Sink("a", types=[EventType.COMPLETED]), Sink("b")
    async with stage(one, two).open() as s:
        upload = await s.create(3, b"abc")
        await s.delete(upload.id)
        await until(lambda: len(two.told) == 3)
        assert one.types_told == [EventType.COMPLETED]


async def test_what_nobody_wants_any_more_is_forgotten() -> None:
    before = stage(Sink())
    async with before.open() as s:
        s.metadata.faults.fail("claim_events", UnavailableError("away"), times=99)
        await s.create(3, b"abc")
    after = Sink(types=[EventType.COMPLETED])
    async with Stage(bytes_=before.bytes, records=before.records, sinks=[after]).open() as s:
        await until(lambda: not s.records._events)
        assert after.types_told == [EventType.COMPLETED]


async def test_a_command_writes_what_others_are_to_tell() -> None:
    """An engine that tends nothing, for the sinks of a server."""
    data, records = MemoryStore(), MemoryMetadataStore()
    engine = Engine(data, records, tending=False, tells=[EventType.CREATED, EventType.PROGRESS])
    async with engine:
        await engine.handle(Create(length=3, payload=Payload(length=3)), ScriptedBody(b"abc"))
        assert [e.delivery.event.type async for e in records.events()] == [EventType.CREATED]


@pytest.mark.parametrize("names", [("two words",), ("",), ("-x",), ("x" * 101,), ("a", "a")])
async def test_names_are_right_and_different(names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="name"):
        Stage(sinks=[Sink(name) for name in names])


async def test_what_failed_is_told_again_later_and_holds_up_what_follows() -> None:
    sink = Sink()
    sink.fails = lambda delivery: delivery.event.type is EventType.CREATED
    async with stage(sink).open() as s:
        first = await s.create(3, b"abc")
        await until(lambda: any(t.delivery.attempts for t in s.records._events.values()))
        other = sink.fails
        sink.fails = lambda _: False
        second = await s.create(3, b"abc")
        await until(lambda: len(sink.told) == 2)
        assert {d.event.upload.id for d in sink.told} == {second.id}
        sink.fails = other
        delays = []
        for attempt in range(2, 6):
            before = s.clock.now()
            while next(iter(s.records._events.values())).delivery.attempts < attempt:
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


async def test_what_failed_together_does_not_come_back_together() -> None:
    sink = Sink()
    sink.fails = lambda _: True
    s = Stage(sinks=[sink])
    chances = iter([0.0, 0.5, 1.0])
    s.engine._outbox._chance = lambda: next(chances)
    async with s.open():
        for _ in range(3):
            await s.create(3)
        await until(lambda: sink.calls == 3)
        await until(lambda: all(t.delivery.attempts for t in s.records._events.values()))
        delays = [(k.due_at or 0) - s.clock.now() for k in await kept(s)]
        assert sorted(delays) == [1.0, 1.125, 1.25]


async def test_delays_have_their_longest_and_then_it_is_given_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A sink that fails for a day and a bit: backed off, given up, replayed."""
    sink = Sink()
    sink.fails = lambda delivery: delivery.event.type is EventType.CREATED
    async with stage(sink).open() as s:
        await s.create(3, b"abc")
        await until(lambda: sink.calls == 1)
        began = s.clock.now()
        while not any(k.given_up for k in await kept(s)):
            await s.engine._outbox.deliver_due()
            await nothing_claimed(s)
            s.clock.advance(60)
        assert 24 < (s.clock.now() - began) / 3600 < 30
        # What follows it is told, at once.
        assert sink.calls == outbox.GIVE_UP_AFTER + 1
        assert sink.types_told == [EventType.COMPLETED]
        (left,) = await kept(s)
        assert (left.due_at, left.delivery.attempts) == (None, outbox.GIVE_UP_AFTER)
        (said,) = [r for r in caplog.records if r.levelno == logging.ERROR]
        assert said.getMessage().endswith(f"tidegate events replay {left.delivery.sequence}")
        assert "sink: RuntimeError('the sink failed')" in said.getMessage()
        sink.fails = lambda _: False
        assert await s.records.replay(left.delivery.sequence)
        await s.engine._outbox.deliver_due()
        assert sink.types_told == [EventType.COMPLETED, EventType.CREATED]
        assert await kept(s) == []


async def test_only_those_that_failed_are_told_again() -> None:
    good, bad = Sink("good"), Sink("bad")
    bad.fails = lambda delivery: delivery.attempts == 0
    s = stage(good, bad)
    async with s.open():
        await s.create(3)
        await until(lambda: bad.calls == 1)
        await until(lambda: all(t.delivery.attempts for t in s.records._events.values()))
        (left,) = await kept(s)
        assert left.delivery.done == ("good",)
        s.clock.advance(1)
        s.engine._outbox.wake()
        await until(lambda: bool(bad.told))
        assert (good.calls, bad.calls) == (1, 2)


async def test_a_sink_may_ask_for_time() -> None:
    sink = Sink()
    sink.fails, sink.failure = lambda _: True, DeliveryError("busy", retry_after=500)
    async with stage(sink).open() as s:
        await s.create(3)
        await until(lambda: all(t.delivery.attempts for t in s.records._events.values()))
        (left,) = await kept(s)
        assert left.due_at == s.clock.now() + 500
        sink.failure = DeliveryError("busy", retry_after=1e9)
        s.clock.advance(500)
        await s.engine._outbox.deliver_due()
        (left,) = await kept(s)
        assert left.due_at == s.clock.now() + outbox.LONGEST_RETRY_AFTER


async def test_what_will_never_be_taken_is_given_up_at_once() -> None:
    """By who does not take it; another sink may take it yet."""
    gone, away = Sink("gone"), Sink("away")
    gone.fails = away.fails = lambda _: True
    gone.failure = DeliveryError("gone", final=True)
    async with stage(gone, away).open() as s:
        await s.create(3)
        await until(lambda: all(t.delivery.attempts for t in s.records._events.values()))
        (left,) = await kept(s)
        assert not left.given_up
        assert {(r.sink, r.due_at is None) for r in left.delivery.retries} == {
            ("gone", True),
            ("away", False),
        }
        away.fails = lambda _: False
        s.clock.advance(1)
        await s.engine._outbox.deliver_due()
        (left,) = await kept(s)
        assert left.given_up
        assert left.delivery.done == ("away",)
        assert (gone.calls, away.calls) == (1, 2)


async def test_a_sink_that_fails_holds_up_no_other_sink() -> None:
    """It is away for a day: the others are told at once, and it of all, in order, when it is back."""
    away, other = Sink("away"), Sink("other")
    away.fails = lambda _: True
    async with stage(away, other, expire_after=1e6).open() as s:
        upload = await s.create(3)
        await until(lambda: other.types_told == [EventType.CREATED])
        await nothing_claimed(s)
        for _ in range(12):
            s.clock.advance(7200)
            await s.engine._outbox.deliver_due()
        await s.append(upload.id, 0, b"abc")
        await until(lambda: other.types_told == [EventType.CREATED, EventType.COMPLETED])
        await s.delete(upload.id)
        await until(lambda: len(other.told) == 3)
        assert [d.attempts for d in other.told] == [0, 0, 0]
        assert not away.told
        # Only its first is tried, and that not before its time.
        await nothing_claimed(s)
        first, *others = await kept(s)
        assert [r.sink for r in first.delivery.retries] == ["away"]
        assert [each.delivery.retries for each in others] == [(), ()]
        assert [each.delivery.done for each in (first, *others)] == [("other",)] * 3
        calls = away.calls
        assert await s.engine._outbox.deliver_due() == 0
        away.fails = lambda _: False
        s.clock.advance(3600)
        await s.engine._outbox.deliver_due()
        assert away.types_told == [EventType.CREATED, EventType.COMPLETED, EventType.TERMINATED]
        assert [d.attempts for d in away.told] == [13, 0, 0]
        assert away.calls == calls + 3
        assert await kept(s) == []
        assert other.calls == 3


async def test_each_sink_has_its_own_delays() -> None:
    """One that fails once is told again a second later, however long another one has failed."""
    away, other = Sink("away"), Sink("other")
    away.fails = lambda _: True
    async with stage(away, other, expire_after=1e6).open() as s:
        upload = await s.create(3)
        await until(lambda: len(other.told) == 1)
        await nothing_claimed(s)
        for _ in range(12):
            s.clock.advance(7200)
            await s.engine._outbox.deliver_due()
        failing = iter([True])
        other.fails = lambda _: next(failing, False)
        await s.append(upload.id, 0, b"abc")
        await until(lambda: other.calls == 2)
        await nothing_claimed(s)
        assert (await kept(s))[0].due_at == s.clock.now() + 1
        calls = away.calls
        s.clock.advance(1)
        await s.engine._outbox.deliver_due()
        assert other.types_told == [EventType.CREATED, EventType.COMPLETED]
        assert other.told[-1].attempts == 1
        assert away.calls == calls
        assert (await kept(s))[0].due_at == s.clock.now() - 1 + 3600


async def test_what_was_given_up_for_one_is_not_for_another() -> None:
    """Each goes on with what follows when it has an event, or when that is given up for it."""
    gone, away = Sink("gone"), Sink("away")
    gone.failure = DeliveryError("never", final=True)
    gone.fails = lambda delivery: delivery.event.type is EventType.CREATED
    away.fails = gone.fails
    async with stage(gone, away).open() as s:
        await s.create(3, b"abc")
        await until(lambda: gone.types_told == [EventType.COMPLETED])
        await nothing_claimed(s)
        assert [each.given_up for each in await kept(s)] == [False, False]
        assert not away.told
        away.fails = lambda _: False
        s.clock.advance(1)
        await s.engine._outbox.deliver_due()
        assert away.types_told == [EventType.CREATED, EventType.COMPLETED]
        (left,) = await kept(s)
        assert left.given_up
        assert left.delivery.done == ("away",)
        # A replay is for all.
        gone.fails = lambda _: False
        assert await s.records.replay(left.delivery.sequence)
        await s.engine._outbox.deliver_due()
        assert gone.types_told == [EventType.COMPLETED, EventType.CREATED]
        assert await kept(s) == []


async def test_a_line_that_takes_long_is_claimed_again() -> None:
    """No delivery is begun that may outlast the claim, and none before the one before is noted."""
    slow, quick = Sink("slow"), Sink("quick")

    async def take_long(_: Delivery) -> None:
        s.clock.advance(outbox.CLAIM_BEYOND)

    slow.before = take_long
    async with (s := stage(slow, quick)).open():
        s.metadata.faults.fail("claim_events", UnavailableError("away"), times=1)
        upload = await s.create(3, b"abc")
        await s.delete(upload.id)
        s.engine._outbox.wake()
        await until(lambda: not s.records._events)
        assert slow.types_told == [EventType.CREATED, EventType.COMPLETED, EventType.TERMINATED]
        assert quick.types_told == slow.types_told
        assert (slow.calls, quick.calls) == (3, 3)
        claims = [name for name in s.metadata.faults.calls if name == "end_claims"]
        assert len(claims) == 3


async def test_a_sink_that_hangs_holds_up_no_other_upload() -> None:
    """After some timeouts what is for it fails at once, until it is tried again, and answers."""
    hanging, other = Sink("hanging", timeout=0.05), Sink("other")
    s = stage(hanging, other)
    count = outbox.AT_ONCE + 10

    async def hang(_: Delivery) -> None:
        await anyio.sleep_forever()

    hanging.before = hang
    async with s.open():
        for _ in range(count):
            await s.create(3)
        await until(lambda: len(other.told) == count)
        await until(lambda: all(t.delivery.attempts for t in s.records._events.values()))
        assert hanging.calls < count
        calls = hanging.calls
        s.clock.advance(outbox.REST - 1)
        await s.engine._outbox.deliver_due()
        assert hanging.calls == calls
        # One finds out that it hangs still.
        s.clock.advance(10)
        await s.engine._outbox.deliver_due()
        await s.engine._outbox.deliver_due()
        assert hanging.calls == calls + 1
        hanging.before = None
        while await kept(s):
            s.clock.advance(10)
            await s.engine._outbox.deliver_due()
        assert len(hanging.told) == count
        assert other.calls == count


async def test_uploads_are_told_of_at_once_with_a_limit() -> None:
    sink = Sink()
    go = anyio.Event()
    sink.before = lambda _: go.wait()
    async with stage(sink).open() as s:
        for _ in range(outbox.AT_ONCE + 5):
            await s.create(3, b"abc")
        await until(lambda: sink.at_work == outbox.AT_ONCE)
        go.set()
        await until(lambda: not s.records._events)
        assert sink.most_at_work == outbox.AT_ONCE
        for upload in {d.event.upload.id for d in sink.told}:
            types = [d.event.type for d in sink.told if d.event.upload.id == upload]
            assert types == [EventType.CREATED, EventType.COMPLETED]


async def test_what_was_claimed_too_long_ago_is_claimed_again() -> None:
    """It waited for those before it: told now, it might outlast its claim."""
    sink = Sink()
    go = anyio.Event()
    sink.before = lambda _: go.wait()
    s = stage(sink)
    count = outbox.CLAIMED + 4
    async with s.open():
        for _ in range(count):
            await s.create(3)
        await until(lambda: sink.at_work == outbox.AT_ONCE)
        await until(lambda: s.engine._outbox._at_work == outbox.CLAIMED)
        s.clock.advance(outbox.CLAIM_BEYOND)
        again = s.clock.now() + CLAIM_FOR
        claims: set[float] = set()

        async def note(_: Delivery) -> None:
            claims.update(line.due_at for line in s.records._lines.values() if line.claimed)

        sink.before = note
        go.set()
        await until(lambda: len(sink.told) == count and not s.records._events)
        assert sink.calls == sink.most_at_work + count - outbox.AT_ONCE == count
        assert again in claims


async def test_what_is_told_at_once_is_forgotten_at_once() -> None:
    """A sink that takes no time costs neither a task nor a transaction for each event."""
    sink = Sink()
    tasks: set[int] = set()

    async def note(_: Delivery) -> None:
        tasks.add(id(asyncio.current_task()))

    sink.before = note
    s = stage(sink)
    s.engine._tending = False
    async with s.engine:
        for _ in range(5):
            await s.create(3, b"abc")
        s.engine._core.spawn(s.engine._outbox.run)
        await until(lambda: len(sink.told) == 10 and not s.records._events)
        assert s.metadata.faults.calls.count("end_claims") == 2
    assert len(tasks) <= 2


async def test_who_waits_for_one_sink_tells_others_meanwhile() -> None:
    """Also when it is not the first of those that were claimed together."""
    sink = Sink()
    first: list[str] = []

    async def wait_for_the_first(delivery: Delivery) -> None:
        first.append(delivery.event.upload.id)
        if len(first) == 2:
            await anyio.sleep_forever()

    sink.before = wait_for_the_first
    s = stage(sink)
    s.engine._tending = False
    async with s.engine:
        for _ in range(4):
            await s.create(3)
        s.engine._core.spawn(s.engine._outbox.run)
        await until(lambda: len(sink.told) == 3 and len(s.records._events) == 1)


@pytest.mark.parametrize(
    ("call", "fails"), [("claim_events", False), ("end_claims", False), ("end_claims", True)]
)
async def test_records_that_fail_delay_events(call: str, *, fails: bool) -> None:
    sink = Sink()
    failing = iter([fails])
    sink.fails = lambda _: next(failing, False)
    async with stage(sink).open() as s:
        s.metadata.faults.fail(call, UnavailableError("away"))
        await s.create(3)
        await until(lambda: s.metadata.faults.calls.count(call) >= 1)
        # It stays claimed for a while.
        s.clock.advance(CLAIM_FOR)
        s.engine._outbox.wake()
        await until(lambda: bool(sink.told) and not s.records._events)
        assert set(sink.types_told) == {EventType.CREATED}


async def test_what_a_dead_server_had_claimed_is_told_again() -> None:
    sink = Sink()
    before = stage(sink)
    async with before.open() as s:
        s.metadata.faults.fail("end_claims", UnavailableError("away"), times=9)
        await s.create(3)
        await until(lambda: bool(sink.told))
        s.die()
    async with before.again(sinks=[sink]).open() as s:
        await s.engine._outbox.deliver_due()
        assert len(sink.told) == 1
        s.clock.advance(CLAIM_FOR)
        s.engine._outbox.wake()
        await until(lambda: len(sink.told) == 2 and not s.records._events)
        assert sink.told[0].key == sink.told[1].key


async def test_what_a_stop_cut_off_is_told_at_the_next_start() -> None:
    """No claim has to run out, and who has it is not told again."""
    slow, quick = Sink("slow"), Sink("quick")
    slow.before = lambda _: anyio.sleep_forever()
    before = stage(slow, quick)
    async with before.open() as s:
        await s.create(3)
        await until(lambda: slow.at_work == 1 and len(quick.told) == 1)
    slow.before = None
    async with before.again(sinks=[slow, quick]).open() as s:
        await until(lambda: len(slow.told) == 1 and not s.records._events)
        assert quick.calls == 1


async def test_what_was_told_at_a_stop_is_not_told_again() -> None:
    sink = Sink()
    before = stage(sink)
    async with before.open() as s:
        gate = s.metadata.faults.hold("end_claims")
        await s.create(3)
        await reached(gate.reached)
    assert not before.records._events
    assert len(sink.told) == 1


async def test_a_claim_that_ran_out_is_someone_elses(caplog: pytest.LogCaptureFixture) -> None:
    """We were paused: another server is telling it by now, and says how that went."""
    sink = Sink()
    theirs: list[Line] = []

    async def slow(_: Delivery) -> None:
        s.clock.advance(CLAIM_FOR)
        theirs.extend(await s.records.claim_events(s.clock.now(), 1, CLAIM_FOR))

    sink.before = slow
    s = stage(sink)
    async with s.open():
        await s.create(3)
        await until(lambda: "took longer than its claim" in caplog.text)
        assert len(await kept(s)) == 1
        assert await s.records.end_claims([Ended(line=line) for line in theirs]) == []
        assert await kept(s) == []
        assert sink.calls == len(theirs) == 1


async def test_a_claim_that_ran_out_before_anyone_was_told_is_ended() -> None:
    """We were paused right after it: nothing is begun that others may be doing."""
    sink = Sink()
    s = stage(sink)
    async with s.open():
        gate = s.metadata.faults.hold("claim_events")
        await s.create(3)
        await reached(gate.reached)
        s.clock.advance(CLAIM_FOR)
        assert not sink.calls
        gate.go.set()
        await until(lambda: len(sink.told) == 1 and not s.records._events)
        assert s.metadata.faults.calls.count("claim_events") > 2


async def test_a_claim_that_ran_out_may_be_ours_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both end at once: the line goes on as the later one says."""
    monkeypatch.setattr(outbox, "GATHER", 0.1)
    sink = Sink()

    async def slow(_: Delivery) -> None:
        if sink.calls == 1:
            s.clock.advance(CLAIM_FOR)
            s.engine._outbox.wake()
            await until(lambda: sink.calls == 2)
        elif sink.calls == 2:
            await until(lambda: len(sink.told) == 1)

    sink.before = slow
    s = stage(sink)
    async with s.open():
        await s.create(3, b"abc")
        await until(lambda: len(sink.told) == 3 and not s.records._events)
        assert sink.types_told == [EventType.CREATED, EventType.CREATED, EventType.COMPLETED]
        assert s.engine._outbox._at_work == 0


async def test_a_claim_that_ran_out_and_is_nobodys_is_ended_at_a_stop() -> None:
    sink = Sink()
    sink.before = lambda _: anyio.sleep_forever()
    before = stage(sink)
    async with before.open() as s:
        await s.create(3)
        await until(lambda: sink.at_work == 1)
        s.metadata.faults.fail("claim_events", UnavailableError("away"), times=99)
        s.clock.advance(CLAIM_FOR)
    (line,) = await before.records.claim_events(0, 1, 1)
    assert [delivery.attempts for delivery in line.deliveries] == [0]


async def test_it_looks_from_time_to_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other servers write events too, and wake nobody here."""
    monkeypatch.setattr(outbox, "LOOK_EVERY", 0.01)
    sink = Sink()
    async with stage(sink).open() as s:
        s.engine._core.events_written = lambda: None
        await s.create(3)
        await until(lambda: bool(sink.told))


# ------------------------------------------------------------------------------------ two servers


@asynccontextmanager
async def _open(store: MetadataStore) -> AsyncIterator[MetadataStore]:
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def test_two_servers_tell_each_event_once(tmp_path: Path) -> None:
    """On one database: nobody fails, so nothing is told twice, and in order."""
    told: list[tuple[str, EventType]] = []
    by: list[int] = []

    def sink(server: int) -> CallableSink:
        async def tell(delivery: Delivery) -> None:
            told.append((delivery.event.upload.id, delivery.event.type))
            by.append(server)
            await anyio.sleep(0)

        return CallableSink(tell, name="sink")

    data = MemoryStore()
    clock = FakeClock()
    engines = [
        Engine(data, SQLiteMetadataStore(tmp_path / "db"), sinks=[sink(n)], clock=clock)
        for n in range(2)
    ]

    async def write(engine: Engine) -> None:
        for _ in range(40):
            command = Create(length=3, payload=Payload(length=3))
            await engine.handle(command, ScriptedBody(b"abc"))

    async with engines[0], engines[1]:
        async with anyio.create_task_group() as tasks:
            for engine in engines:
                tasks.start_soon(write, engine)
        await until(lambda: len(told) >= 160)
        records = engines[0]._core.metadata
        await until(lambda: _nothing_left(records))
    assert len(told) == 160
    assert set(by) == {0, 1}
    for upload in {upload for upload, _ in told}:
        types = [event for each, event in told if each == upload]
        assert types == [EventType.CREATED, EventType.COMPLETED]


async def _nothing_left(records: MetadataStore) -> bool:
    return not [event async for event in records.events()]


async def test_each_sink_is_told_how_often_it_failed_itself() -> None:
    """Not how often another one did."""
    due = Retry("other", 2, 0.0)
    upload = Upload(id=UploadId("one"), created_at=0, active_at=0)
    event = Event(type=EventType.CREATED, at=0, upload=upload)
    standing = Standing(Delivery(1, event, 2, retries=(due,)))
    assert standing.for_sink(Sink("other")).attempts == 2
    assert standing.for_sink(Sink("sink")).attempts == 0


async def test_what_nobody_tells_yet_at_a_stop_is_let_go() -> None:
    """The next server need not wait for the claim to run out."""
    sink = Sink()
    async with stage(sink).open() as s:
        await s.create(3)
        await until(lambda: len(sink.told) == 1 and not s.records._events)
        line = Line(UploadId("gone"), 1.0, ())
        s.engine._outbox._waiting.append((line, 1.0))
        await s.engine._outbox._let_go()
        assert not s.engine._outbox._waiting
        assert s.metadata.faults.calls[-1] == "end_claims"
