"""Progress: told now and then to who wants it, and nobody waits for it."""

from __future__ import annotations

import anyio
import pytest
from tests.engine.stage import Stage, beside, until
from tests.engine.test_outbox import Sink
from tests.support.bodies import Pause

from tidegate.engine import progress
from tidegate.protocol.model import STORED_EVENTS, EventType

pytestmark = pytest.mark.anyio


def wanting(name: str = "sink", **options: float) -> Sink:
    return Sink(name, types=[EventType.PROGRESS], **options)


async def test_the_progress_of_an_upload_is_told_with_its_offset() -> None:
    sink = wanting()
    async with Stage(sinks=[sink], progress_every=5.0).open() as s:
        upload = await s.create(9)
        await s.append(upload.id, 0, b"abc")
        await until(lambda: len(sink.told) == 1)
        # Too soon for another.
        await s.append(upload.id, 3, b"d")
        s.clock.advance(5)
        await s.append(upload.id, 4, b"ef")
        await until(lambda: len(sink.told) == 2)
        await s.append(upload.id, 6, b"ghi")
        assert [(d.sequence, d.event.upload.offset) for d in sink.told] == [(0, 3), (0, 6)]
        assert len({d.key for d in sink.told}) == 2
        assert not s.records._events


async def test_a_long_body_is_told_of_while_it_comes() -> None:
    """At its checkpoints, and of each upload by itself."""
    sink = wanting()
    async with Stage(sinks=[sink], checkpoint_bytes=4, progress_every=1.0).open() as s:
        one, two = await s.create(100), await s.create(100)
        pause = Pause()
        async with beside() as start:
            request = start(s.append, one.id, 0, b"12345", pause, b"67890", chunked=True)
            await until(lambda: len(sink.told) == 1)
            s.clock.advance(1)
            pause.go.set()
            await request.answer()
        await until(lambda: len(sink.told) == 2)
        await s.append(two.id, 0, b"1", chunked=True)
        await until(lambda: len(sink.told) == 3)
        told = [(d.event.upload.id, d.event.upload.offset) for d in sink.told]
        assert told == [(one.id, 5), (one.id, 10), (two.id, 1)]


async def test_who_does_not_want_it_is_not_told() -> None:
    sink = Sink(types=STORED_EVENTS)
    async with Stage(sinks=[sink]).open() as s:
        upload = await s.create(9)
        await s.append(upload.id, 0, b"abc")
        await until(lambda: sink.types_told == [EventType.CREATED])
        assert not s.engine._progress._told


async def test_a_slow_sink_makes_nobody_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it can't keep up with is dropped; others are told."""
    monkeypatch.setattr(progress, "QUEUED", 2)
    slow, quick = wanting("slow"), wanting("quick")
    go = anyio.Event()
    slow.before = lambda _: go.wait()
    async with Stage(sinks=[slow, quick]).open() as s:
        for number in range(6):
            upload = await s.create(9)
            await s.append(upload.id, 0, b"abc")
            await until(lambda number=number: len(quick.told) == number + 1)  # type: ignore[misc]
        go.set()
        await until(lambda: len(slow.told) == 3)
        await anyio.wait_all_tasks_blocked()
        assert len(slow.told) == 3


@pytest.mark.parametrize("hangs", [False, True])
async def test_a_sink_that_fails_is_told_of_the_next(hangs: bool) -> None:
    sink = wanting(timeout=0.02)

    async def hang(_: object) -> None:
        await anyio.sleep_forever()

    sink.before = hang if hangs else None
    sink.fails = lambda _: True
    async with Stage(sinks=[sink]).open() as s:
        upload = await s.create(9)
        await s.append(upload.id, 0, b"abc")
        await until(lambda: sink.calls == 1 and sink.at_work == 0)
        sink.fails, sink.before = lambda _: False, None
        s.clock.advance(60)
        await s.append(upload.id, 3, b"def")
        await until(lambda: len(sink.told) == 1)
