"""Small uploads whose bytes are stored before their record: what a crash between the two leaves."""

from __future__ import annotations

from typing import Any

import pytest
from tests.engine.stage import Stage, beside, reached, refused, until
from tests.support.faulty import FaultyAheadStore

from tidegate.engine.core import Settings
from tidegate.engine.sweep import UNBORN
from tidegate.ports import (
    DataError,
    Delivery,
    Durability,
    Hold,
    NoRoomError,
    NoSpaceError,
    SyncFailedError,
    UnavailableError,
)
from tidegate.protocol.errors import Code, Refusal
from tidegate.protocol.model import EventType, Kind, UploadId

pytestmark = pytest.mark.anyio

ORPHAN_AGE = Settings().orphan_age


def _stage(**options: Any) -> Stage:
    return Stage(store=FaultyAheadStore, **options)


def _data(s: Stage) -> FaultyAheadStore:
    assert isinstance(s.data, FaultyAheadStore)
    return s.data


def _next(before: Stage) -> Stage:
    """The next process, on the same disk."""
    stage = before.again(store=FaultyAheadStore)
    _data(stage).marked = _data(before).marked
    return stage


def _only(s: Stage) -> UploadId:
    (upload_id,) = s.bytes._uploads
    return upload_id


async def _orphans(s: Stage) -> int:
    swept = await s.engine.sweep()
    assert swept is not None
    assert not swept.failed
    return len(swept.orphans)


@pytest.mark.parametrize("durability", list(Durability))
async def test_one_transaction_makes_a_small_upload(durability: Durability) -> None:
    told: list[EventType] = []

    async def sink(delivery: Delivery) -> None:
        told.append(delivery.event.type)

    async with _stage(sink=sink, durability=durability).open() as s:
        upload = await s.create(6, b"abc", b"def")
        assert upload.complete
        assert s.data.faults.calls == ["store_ahead"]
        assert s.metadata.faults.calls.count("insert") == 1
        assert "commit" not in s.metadata.faults.calls
        assert s.hold(upload.id) is Hold.FREE
        assert not _data(s).marked
        found = await s.head(upload.id)
        assert (found.complete, found.offset, found.length) == (True, 6, 6)
        assert found.synced_offset == (0 if durability is Durability.NONE else 6)
        assert (found.expires_at, found.ended_at) == (None, s.clock.now())
        assert await s.download(upload.id) == b"abcdef"
        await until(lambda: told == [EventType.CREATED, EventType.COMPLETED])
        part = await s.create(3, b"abc", kind=Kind.PARTIAL)
        assert part.expires_at is not None
        assert (await s.final(part.id, part.id)).complete


@pytest.mark.parametrize("settings", [{"new_id": lambda _: "mine"}, {"max_unfinished": 1000}])
async def test_where_the_record_may_be_refused_it_comes_first(settings: dict[str, Any]) -> None:
    """Somebody else may have the name, or there may be no room."""
    async with _stage(**settings).open() as s:
        assert (await s.create(3, b"abc")).complete
        assert s.data.faults.calls == ["store_whole"]


async def test_a_store_that_cannot_do_it_this_time() -> None:
    async with _stage().open() as s:
        _data(s).willing = False
        upload = await s.create(3, b"abc")
        assert s.data.faults.calls == ["store_ahead", "store_whole"]
        assert await s.download(upload.id) == b"abc"


@pytest.mark.parametrize("error", [DataError("bad"), NoSpaceError("full"), SyncFailedError("no")])
async def test_bytes_that_cannot_be_stored(error: Exception) -> None:
    async with _stage().open() as s:
        s.data.faults.fail("store_ahead", error)
        with pytest.raises(Refusal):
            await s.create(3, b"abc")
        assert not s.records._records
        assert "insert" not in s.metadata.faults.calls


@pytest.mark.parametrize("error", [UnavailableError("away"), NoRoomError("full")])
async def test_bytes_do_not_add_up_while_no_record_can_be_written(error: Exception) -> None:
    async with _stage().open() as s:
        s.metadata.faults.fail("insert", error, times=3)
        for _ in range(3):
            with pytest.raises(Refusal):
                await s.create(3, b"abc")
        assert s.data.faults.calls == ["store_ahead"]
        orphan = _only(s)
        assert _data(s).marked == {orphan}
        await s.create(3, b"abc")
        assert s.data.faults.calls == ["store_ahead", "store_whole"]
        await s.create(3, b"abc")
        assert s.data.faults.calls == ["store_ahead", "store_whole", "store_ahead"]
        s.clock.advance(ORPHAN_AGE - 1)
        assert await _orphans(s) == 0
        s.clock.advance(1)
        assert await _orphans(s) == 1
        assert orphan not in s.bytes._uploads
        assert len(s.bytes._uploads) == len(s.records._records) == 2


async def test_a_record_that_was_written_after_all_has_its_bytes() -> None:
    async with _stage().open() as s:
        s.metadata.faults.fail("insert", UnavailableError("in doubt"), after=True)
        async with refused(Code.UNAVAILABLE):
            await s.create(3, b"abc")
        upload_id = _only(s)
        assert (await s.head(upload_id)).complete
        assert await s.download(upload_id) == b"abc"
        assert await _orphans(s) == 0
        assert not _data(s).marked
        s.clock.advance(ORPHAN_AGE)
        assert await _orphans(s) == 0
        assert await s.download(upload_id) == b"abc"


async def test_a_process_that_dies_before_the_record() -> None:
    first = _stage()
    async with first.open() as s, beside() as start:
        gate = s.metadata.faults.hold("insert")
        request = start(s.create, 3, b"abc")
        await reached(gate.reached)
        s.die()
        request.scope.cancel()
        await request.answer()
    async with _next(first).open() as s:
        async with refused(Code.NOT_FOUND):
            await s.head(_only(s))
        assert await _orphans(s) == 0
        s.clock.advance(ORPHAN_AGE)
        assert await _orphans(s) == 1
        assert not s.bytes._uploads


async def test_a_process_that_dies_after_the_record() -> None:
    first = _stage()
    async with first.open() as s, beside() as start:
        gate = s.metadata.faults.hold("insert", after=True)
        request = start(s.create, 3, b"abc")
        await reached(gate.reached)
        s.die()
        request.scope.cancel()
        await request.answer()
    second = _next(first)
    upload_id = _only(first)
    assert _data(second).marked == {upload_id}
    async with second.open() as s:
        swept = await s.engine.sweep(dry_run=True)
        assert swept is not None
        assert (await s.head(upload_id)).complete
        assert await _orphans(s) == 0
        assert not _data(s).marked
        assert await s.download(upload_id) == b"abc"


async def test_a_dry_run_of_the_sweep_leaves_a_mark() -> None:
    async with _stage().open() as s:
        await s.create(3, b"abc")
        upload_id = _only(s)
        _data(s).marked.add(upload_id)
        assert await s.engine.sweep(dry_run=True) is not None
        assert _data(s).marked == {upload_id}
        assert await _orphans(s) == 0
        assert not _data(s).marked


async def test_a_sweep_that_deletes_orphans_at_once_spares_what_gets_its_record() -> None:
    """Of another server, between the bytes and the record."""
    async with _stage(orphan_age=0.0).open() as s, beside() as start:
        gate = s.metadata.faults.hold("insert")
        request = start(s.create, 3, b"abc")
        await reached(gate.reached)
        assert _data(s).marked
        s.clock.advance(UNBORN - 1)
        assert await _orphans(s) == 0
        gate.go.set()
        made = await request.answer()
        assert await s.download(made.id) == b"abc"
