"""Events that the metadata store hands over: they are told as any others are."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from tests.engine.stage import until
from tests.engine.test_outbox import Sink
from tests.support.bodies import ScriptedBody

from tidegate.engine import outbox
from tidegate.engine.engine import Engine
from tidegate.metadata.sqlite.store import SQLiteMetadataStore
from tidegate.ports import Ended, Line, UnavailableError
from tidegate.protocol.commands import Create, Payload, Terminate
from tidegate.protocol.model import EventType, UploadId
from tidegate.protocol.results import Created
from tidegate.stores.local import LocalStore
from tidegate.testing import FakeClock

pytestmark = pytest.mark.anyio

BOTH = [EventType.CREATED, EventType.COMPLETED]


class Records(SQLiteMetadataStore):
    """Notes what is claimed and ended, and fails to note what was told when asked to."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.claimed: list[UploadId] = []
        self.ended: list[Ended] = []
        self.fails = 0
        self.marks = True

    async def claim_events(self, now: float, limit: int, ttl: float) -> list[Line]:
        lines = await super().claim_events(now, limit, ttl)
        self.claimed += [line.upload_id for line in lines]
        return lines

    async def end_claims(self, ended: Sequence[Ended]) -> list[UploadId]:
        if self.fails:
            self.fails -= 1
            raise UnavailableError("away")
        self.ended += ended
        return await super().end_claims(ended)

    def told(self, line: Line, sequence: int) -> bool:
        return self.marks and super().told(line, sequence)

    async def forgot_all(self) -> bool:
        return not [event async for event in self.events()]


class Stage:
    """An engine whose outbox has looked for what is due once, and found nothing."""

    def __init__(self, tmp_path: Path, *sinks: Sink) -> None:
        self.records = Records(tmp_path / "db")
        self.clock = FakeClock()
        data = LocalStore(tmp_path)
        self.engine = Engine(data, self.records, sinks=sinks, clock=self.clock)
        self.engine._outbox._chance = lambda: 0.0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Stage]:
        async with self.engine:
            await until(self.engine._outbox.has_room)
            yield self

    async def create(self) -> UploadId:
        """A small upload, whole."""
        command = Create(length=3, payload=Payload(length=3))
        created = await self.engine.handle(command, ScriptedBody(b"abc"))
        assert isinstance(created, Created)
        return created.upload.id


async def test_they_are_told_without_being_claimed(tmp_path: Path) -> None:
    sink = Sink()
    async with Stage(tmp_path, sink).open() as s:
        ids = [await s.create() for _ in range(3)]
        await until(s.records.forgot_all)
        assert s.records.claimed == []
    for upload_id in ids:
        told = [d for d in sink.told if d.event.upload.id == upload_id]
        assert [d.event.type for d in told] == BOTH
        assert told[0].sequence < told[1].sequence


async def test_what_follows_is_told_after_them(tmp_path: Path) -> None:
    """And claimed, as it was written while they were being told."""
    sink = Sink()
    async with Stage(tmp_path, sink).open() as s:
        held = anyio.Event()
        sink.before = lambda _: held.wait()
        upload_id = await s.create()
        await until(lambda: sink.at_work == 1)
        await s.engine.handle(Terminate(id=upload_id), ScriptedBody(b""))
        held.set()
        await until(s.records.forgot_all)
        assert s.records.claimed == [upload_id]
    assert sink.types_told == [*BOTH, EventType.TERMINATED]


async def test_the_first_is_noted_before_the_second_is_told(tmp_path: Path) -> None:
    """So that it is not told again after it, should the server die."""
    sink = Sink()
    async with Stage(tmp_path, sink).open() as s:
        noted: list[int] = []

        async def look(_: object) -> None:
            noted.append(len([event async for event in s.records.events()]))

        sink.before = look
        await s.create()
        await until(s.records.forgot_all)
        assert noted == [2, 1]


async def test_others_get_their_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where no sink waits for anything."""
    monkeypatch.setattr(outbox, "BREATH", 2)
    loop = asyncio.get_running_loop()
    seen: list[str] = []

    async def look(_: object) -> None:
        seen.append("told")
        loop.call_soon(seen.append, "turn")

    sink = Sink()
    async with Stage(tmp_path, sink).open() as s:
        sink.before = look
        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(s.create)
        await until(s.records.forgot_all)
    assert s.records.claimed == []
    runs = [len(list(run)) for what, run in itertools.groupby(seen) if what == "told"]
    assert sum(runs) == 16
    assert max(runs) == 4


async def test_what_is_too_much_is_claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = Sink()
    async with Stage(tmp_path, sink).open() as s:
        monkeypatch.setattr(outbox, "HANDED_MOST", 0)
        upload_id = await s.create()
        await until(s.records.forgot_all)
        assert s.records.claimed == [upload_id]
    assert sink.types_told == BOTH


async def test_what_waits_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While not all that is due could be claimed, nothing is handed over."""
    monkeypatch.setattr(outbox, "CLAIMED", 1)
    sink = Sink()
    async with Stage(tmp_path, sink).open() as s:
        monkeypatch.setattr(outbox, "HANDED_MOST", 0)
        held = anyio.Event()
        sink.before = lambda _: held.wait()
        first = await s.create()
        await until(lambda: s.records.claimed == [first])
        monkeypatch.setattr(outbox, "HANDED_MOST", 9)
        assert not s.engine._outbox.has_room()
        second = await s.create()
        held.set()
        await until(s.records.forgot_all)
        assert s.records.claimed == [first, second]
        await until(s.engine._outbox.has_room)


async def test_that_they_were_told_is_noted_when_it_can_be(tmp_path: Path) -> None:
    """Nobody else would: they are claimed by nobody while this process lives."""
    sink = Sink()
    async with Stage(tmp_path, sink).open() as s:
        s.records.fails = 2
        await s.create()
        await until(s.records.forgot_all)
        assert s.records.fails == 0
    assert sink.types_told == BOTH


@pytest.mark.parametrize("names", [["one"], ["one", "two"]])
async def test_what_cannot_be_noted_at_once_is_claimed(tmp_path: Path, names: list[str]) -> None:
    """Before the next is told."""
    sinks = [Sink(name) for name in names]
    async with Stage(tmp_path, *sinks).open() as s:
        s.records.marks = False
        upload_id = await s.create()
        await until(s.records.forgot_all)
        assert set(s.records.claimed) == {upload_id}
        assert len(s.records.ended[0].kept) == 1
        assert not s.records.ended[0].goes_on
    for sink in sinks:
        assert sink.types_told == BOTH


async def test_two_are_told_without_being_claimed(tmp_path: Path) -> None:
    """The next when both have the one before."""
    one, two = Sink("one"), Sink("two")
    async with Stage(tmp_path, one, two).open() as s:
        held = anyio.Event()
        one.before = lambda _: held.wait()
        await s.create()
        await until(lambda: bool(two.told))
        assert two.types_told == BOTH[:1]
        held.set()
        await until(s.records.forgot_all)
        assert s.records.claimed == []
        assert len(s.records.ended) == 1
    assert one.types_told == two.types_told == BOTH


async def test_who_fails_is_told_again(tmp_path: Path) -> None:
    sink = Sink()
    sink.fails = lambda delivery: delivery.attempts == 0
    async with Stage(tmp_path, sink).open() as s:
        upload_id = await s.create()
        await until(lambda: bool(s.records.ended))
        assert sink.told == []
        s.clock.advance(outbox.FIRST_DELAY)
        await until(lambda: len(sink.told) == 1)
        await until(lambda: sink.calls == 3)
        s.clock.advance(outbox.FIRST_DELAY)
        await until(s.records.forgot_all)
        assert set(s.records.claimed) == {upload_id}
    assert [(d.event.type, d.attempts) for d in sink.told] == [(kind, 1) for kind in BOTH]


async def test_one_of_two_fails(tmp_path: Path) -> None:
    """The other one is told the next at once: the rest is claimed then, for both."""
    good, bad = Sink("good"), Sink("bad")
    bad.fails = lambda delivery: delivery.attempts == 0
    async with Stage(tmp_path, good, bad).open() as s:
        upload_id = await s.create()
        await until(lambda: len(good.told) == 2)
        assert bad.told == []
        assert set(s.records.claimed) == {upload_id}
        assert not s.records.ended[0].goes_on
        for told in (1, 2):
            await until(lambda told=told: bad.calls == 2 * told - 1)  # type: ignore[misc]
            await until(lambda: len(s.records.ended) > 1)
            s.clock.advance(outbox.FIRST_DELAY)
            await until(lambda told=told: len(bad.told) == told)  # type: ignore[misc]
        await until(s.records.forgot_all)
    assert good.types_told == bad.types_told == BOTH


async def test_what_is_not_told_at_a_stop_is_claimed_by_the_next(tmp_path: Path) -> None:
    sink = Sink()
    sink.before = lambda _: anyio.sleep_forever()
    async with Stage(tmp_path, sink).open() as s:
        ids = [await s.create() for _ in range(outbox.AT_ONCE + 1)]
        await until(lambda: sink.at_work == outbox.AT_ONCE)
    assert sink.told == []
    sink.before = None
    async with Stage(tmp_path, sink).open() as s:
        await until(s.records.forgot_all)
        assert sorted(s.records.claimed) == sorted(ids)
    assert len(sink.told) == 2 * len(ids)
