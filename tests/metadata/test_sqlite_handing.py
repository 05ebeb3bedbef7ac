"""Events that the SQLite store hands to who delivers them in the same process."""

from __future__ import annotations

import errno
import os
import signal
import sqlite3
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from msgspec.structs import replace
from tests.metadata.test_sqlite import Failing, in_one_batch

from tidegate.metadata.sqlite import handed, handing
from tidegate.metadata.sqlite.store import SQLiteMetadataStore
from tidegate.ports import (
    HANDED,
    Change,
    Ended,
    HandingStore,
    Line,
    NoRoomError,
    Retry,
    Undelivered,
    UploadExistsError,
)
from tidegate.protocol.model import EventType, UploadId
from tidegate.testing.metadata.support import NOW, event, hold, opened, until, upload

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tidegate.ports import MetadataStore
    from tidegate.protocol.model import Upload

    StartChild = Callable[..., AbstractContextManager[Any]]

pytestmark = pytest.mark.anyio


class Outlet:
    """Takes lines, as long as it has room."""

    def __init__(self) -> None:
        self.room = True
        self.lines: list[Line] = []

    def has_room(self) -> bool:
        return self.room

    def take(self, line: Line) -> None:
        self.lines.append(line)


@pytest.fixture
async def other(path: Path) -> AsyncIterator[MetadataStore]:
    """Another process's store; here, to look at what it could claim."""
    async with opened(lambda: SQLiteMetadataStore(path)) as store:
        yield store


@pytest.fixture
def outlet(store: SQLiteMetadataStore) -> Outlet:
    outlet = Outlet()
    store.hand_over(outlet)
    return outlet


async def insert(store: MetadataStore, *, lease: bool = False) -> Upload:
    """A small upload that one request created and completed."""
    record = upload()
    events = [event(record), event(record, EventType.COMPLETED)]
    await store.insert(record, events=events, lease=lease)
    return record


async def end(store: MetadataStore, upload_id: UploadId) -> None:
    """Have it tell one thing more."""
    grant = await hold(store, upload_id)
    told = (event(grant.upload, EventType.TERMINATED),)
    await store.commit(grant.lease, Change(upload=grant.upload, events=told, release=True))


async def claimed(store: MetadataStore, now: float = NOW) -> list[tuple[UploadId, list[EventType]]]:
    lines = await store.claim_events(now, 10, 60)
    return [(line.upload_id, [d.event.type for d in line.deliveries]) for line in lines]


async def listed(store: MetadataStore) -> list[Undelivered]:
    return [found async for found in store.events()]


async def looked(store: MetadataStore, *wanted: tuple[UploadId, list[EventType]]) -> None:
    """Wait until this is claimed, in any order: a store looks now and then for what others left."""

    async def found() -> bool:
        lines = await claimed(store)
        assert sorted(lines) in ([], sorted(wanted))
        return bool(lines)

    await until(found)


def line_of(store: SQLiteMetadataStore) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(store._path)
    try:
        return connection.execute("SELECT upload_id, due_at, claimed, more FROM line").fetchall()
    finally:
        connection.close()


def others_files(store: SQLiteMetadataStore) -> list[Path]:
    """Those in which others mark what they told."""
    ours = store._liveness.file(store._liveness.holder)
    return [file for file in ours.parent.glob("holder-*") if file != ours]


CREATED, COMPLETED, TERMINATED = EventType.CREATED, EventType.COMPLETED, EventType.TERMINATED
BOTH = [CREATED, COMPLETED]


async def test_first_events_are_handed_over(
    store: SQLiteMetadataStore, other: MetadataStore, outlet: Outlet
) -> None:
    """Nobody claims them, and there is no line of them, while they are listed and counted."""
    assert isinstance(store, HandingStore)
    record = await insert(store)
    (line,) = outlet.lines
    assert (line.upload_id, line.claim) == (record.id, HANDED)
    created, completed = line.deliveries
    assert created.event == event(record)
    assert completed.event == event(record, COMPLETED)
    assert completed.sequence == created.sequence + 1
    assert await claimed(store) == await claimed(other) == []
    assert line_of(store) == []
    kept = await listed(other)
    assert [k.delivery for k in kept] == [created, completed]
    assert [(k.due_at, k.given_up) for k in kept] == [(None, False)] * 2
    assert (await other.counts()).pending_events == 2


async def test_what_is_taken_out_meanwhile_is_listed_and_counted_once(
    store: SQLiteMetadataStore,
    other: MetadataStore,
    outlet: Outlet,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It goes from one table to the other, between the reads of one and of the other."""
    await insert(store)
    (line,) = outlet.lines
    found = handed.events

    def late(db: sqlite3.Connection, after: int, told: handed.Told) -> list[Undelivered]:
        with sqlite3.connect(store._path) as beside:
            ended = Ended(line=line, kept=line.deliveries)
            handed.take_out(beside, line.deliveries[0].sequence, [ended])
        beside.close()
        return found(db, after, told)

    monkeypatch.setattr(handed, "events", late)
    assert [kept.delivery for kept in await listed(other)] == [*line.deliveries]
    assert (await other.counts()).pending_events == 2


async def test_what_is_told_is_forgotten(store: SQLiteMetadataStore, outlet: Outlet) -> None:
    """The first before the second, as the outlet notes it."""
    await insert(store)
    (line,) = outlet.lines
    first, *rest = line.deliveries
    assert store.told(line, first.sequence)
    assert [k.delivery for k in await listed(store)] == rest
    assert (await store.counts()).pending_events == 1
    assert await claimed(store) == []
    assert await store.end_claims([Ended(line=replace(line, deliveries=tuple(rest)))]) == []
    assert await listed(store) == []
    assert line_of(store) == []


async def test_with_a_lease_too(store: SQLiteMetadataStore, outlet: Outlet) -> None:
    record = await insert(store, lease=True)
    assert [line.upload_id for line in outlet.lines] == [record.id]


async def test_without_room_they_are_claimed(store: SQLiteMetadataStore, outlet: Outlet) -> None:
    outlet.room = False
    record = await insert(store)
    outlet.room = True
    store.hand_over(None)
    another = await insert(store)
    assert outlet.lines == []
    assert await claimed(store) == [(record.id, BOTH), (another.id, BOTH)]


async def test_a_refused_upload_hands_nothing_over(
    store: SQLiteMetadataStore, outlet: Outlet
) -> None:
    record = await insert(store)
    with pytest.raises(UploadExistsError):
        await store.insert(record, events=[event(record)])
    assert len(outlet.lines) == 1
    assert len(await listed(store)) == 2


async def test_what_follows_waits_for_them(
    store: SQLiteMetadataStore, other: MetadataStore, outlet: Outlet
) -> None:
    """Whoever writes it, and whoever delivers it."""
    record = await insert(store)
    await end(other, record.id)
    assert await claimed(other) == []
    assert [k.due_at for k in await listed(store)] == [None, None, None]
    (line,) = outlet.lines
    assert store.told(line, line.deliveries[0].sequence)
    await end(other, record.id)
    assert await claimed(other) == []
    await store.end_claims([Ended(line=replace(line, deliveries=line.deliveries[1:]))])
    assert await claimed(other) == [(record.id, [TERMINATED, TERMINATED])]


async def test_what_was_not_taken_is_told_again_by_anyone(
    store: SQLiteMetadataStore, other: MetadataStore, outlet: Outlet
) -> None:
    record = await insert(store)
    (line,) = outlet.lines
    created, completed = line.deliveries
    after = created.after(["mail"], [Retry("log", 1, NOW + 5)])
    await store.end_claims([Ended(line=line, kept=[after, completed], due_at=NOW + 5)])
    assert await claimed(other, NOW + 4) == []
    (again,) = await other.claim_events(NOW + 5, 10, 60)
    assert again.upload_id == record.id
    assert again.deliveries == (after, completed)


async def test_what_was_not_taken_is_told_with_what_follows(
    store: SQLiteMetadataStore, other: MetadataStore, outlet: Outlet
) -> None:
    """At once, as of any upload that has more to tell."""
    record = await insert(store)
    await end(other, record.id)
    (line,) = outlet.lines
    await store.end_claims([Ended(line=line, kept=line.deliveries, due_at=NOW + 5)])
    assert await claimed(other) == [(record.id, [CREATED, COMPLETED, TERMINATED])]


async def test_what_nobody_had_time_for_is_claimed(
    store: SQLiteMetadataStore, other: MetadataStore, outlet: Outlet
) -> None:
    """As at a stop."""
    record = await insert(store)
    (line,) = outlet.lines
    await store.end_claims([Ended(line=line, kept=line.deliveries)])
    assert await claimed(other) == [(record.id, [CREATED, COMPLETED])]


async def test_one_that_is_given_up(store: SQLiteMetadataStore, outlet: Outlet) -> None:
    record = await insert(store)
    (line,) = outlet.lines
    given_up = line.deliveries[0].after([], [Retry("log", 40, None)])
    ended = Ended(line=line, kept=line.deliveries[1:], given_up=[given_up])
    await store.end_claims([ended])
    assert [(k.delivery, k.given_up) for k in await listed(store)] == [
        (given_up, True),
        (line.deliveries[1], False),
    ]
    assert await claimed(store) == [(record.id, [COMPLETED])]
    assert await store.replay(given_up.sequence)


async def test_all_that_is_given_up(store: SQLiteMetadataStore, outlet: Outlet) -> None:
    await insert(store)
    (line,) = outlet.lines
    given_up = [d.after([], [Retry("log", 40, None)]) for d in line.deliveries]
    await store.end_claims([Ended(line=line, given_up=given_up)])
    assert line_of(store) == []
    assert [k.given_up for k in await listed(store)] == [True, True]


async def test_together_with_what_was_claimed(store: SQLiteMetadataStore, outlet: Outlet) -> None:
    outlet.room = False
    await insert(store)
    (ours,) = await store.claim_events(NOW, 10, 60)
    outlet.room = True
    await insert(store)
    (handed,) = outlet.lines
    assert await store.end_claims([Ended(line=ours), Ended(line=handed)]) == []
    assert await listed(store) == []


async def test_a_closed_process_leaves_them_to_others(path: Path, other: MetadataStore) -> None:
    async with opened(lambda: SQLiteMetadataStore(path)) as store:
        assert isinstance(store, SQLiteMetadataStore)
        store.hand_over(Outlet())
        record = await insert(store)
        await end(store, record.id)
        assert await claimed(other) == []
    await looked(other, (record.id, [CREATED, COMPLETED, TERMINATED]))


async def test_a_killed_process_leaves_them_to_others(
    store: SQLiteMetadataStore, child: StartChild
) -> None:
    """What it told is not told again, and what followed that goes on."""
    with child("hand") as process:
        ids = [UploadId(process.says()) for _ in range(3)]
        await end(store, ids[1])
        assert await claimed(store) == []
        assert [k.delivery.event.type for k in await listed(store)] == [
            *(COMPLETED, CREATED, COMPLETED),
            TERMINATED,
        ]
        (file,) = others_files(store)
        process.signal(signal.SIGKILL)
        process.process.wait()
        one, two, three = (ids[0], [COMPLETED]), (ids[1], [TERMINATED]), (ids[2], BOTH)
        await looked(store, two, one, three)
    assert [row[2] for row in line_of(store)] == [1, 1, 1]
    assert not file.exists()


async def test_what_a_killed_process_told_is_kept_for_who_starts_next(
    path: Path, child: StartChild
) -> None:
    """Though a start clears away the files of those that are dead."""
    with child("hand") as process:
        ids = [UploadId(process.says()) for _ in range(3)]
        process.signal(signal.SIGKILL)
        process.process.wait()
    async with opened(lambda: SQLiteMetadataStore(path)) as store:
        assert isinstance(store, SQLiteMetadataStore)
        await looked(store, (ids[0], [COMPLETED]), (ids[2], BOTH))
        assert not others_files(store)


async def test_sequences_go_on_behind_them(
    store: SQLiteMetadataStore, other: MetadataStore, outlet: Outlet
) -> None:
    """Of an upload they grow, whoever writes; none is used twice, not even after a failure."""
    record = await insert(store)
    await end(other, record.id)
    another = await insert(store)
    sequences = [k.delivery.sequence for k in await listed(store)]
    assert sequences == sorted({*sequences})
    assert len(sequences) == 5
    of_record = [
        k.delivery.sequence for k in await listed(store) if k.delivery.event.upload.id == record.id
    ]
    assert [d.sequence for d in outlet.lines[0].deliveries] == of_record[:2]
    with pytest.raises(UploadExistsError):
        await store.insert(another, events=[event(another)])
    await insert(store)
    assert len({k.delivery.sequence for k in await listed(store)}) == 7


async def test_a_list_of_them_has_pages(store: SQLiteMetadataStore, outlet: Outlet) -> None:
    """In order, with others between them."""
    for number in range(300):
        outlet.room = number % 3 != 0
        await insert(store)
    sequences = [k.delivery.sequence for k in await listed(store)]
    assert sequences == sorted({*sequences})
    assert len(sequences) == 600


async def insert_together(store: SQLiteMetadataStore, count: int) -> None:
    await in_one_batch(store, *(insert(store) for _ in range(count)))


def rows_of(store: SQLiteMetadataStore) -> int:
    connection = sqlite3.connect(store._path)
    try:
        return int(connection.execute("SELECT count(*) FROM handed").fetchone()[0])
    finally:
        connection.close()


async def test_those_of_a_transaction_are_one_row(
    store: SQLiteMetadataStore, other: MetadataStore, outlet: Outlet
) -> None:
    """Until all of them are told; what follows one of them waits for that."""
    await insert_together(store, 3)
    assert rows_of(store) == 1
    one, two, three = outlet.lines
    await end(other, one.upload_id)
    await store.end_claims([Ended(line=one), Ended(line=three)])
    assert [k.delivery.event.type for k in await listed(other)] == [CREATED, COMPLETED, TERMINATED]
    assert await claimed(other) == []
    await end(other, two.upload_id)
    await store.end_claims([Ended(line=two)])
    assert rows_of(store) == 0
    lines = await claimed(other)
    assert sorted(lines) == sorted((line.upload_id, [TERMINATED]) for line in (one, two))


async def test_one_of_a_row_is_taken_out(
    store: SQLiteMetadataStore, other: MetadataStore, outlet: Outlet
) -> None:
    """The others stay; it is claimed, and what follows it, by anyone."""
    await insert_together(store, 3)
    one, two, three = outlet.lines
    assert store.told(two, two.deliveries[0].sequence)
    await store.end_claims([Ended(line=two, kept=two.deliveries[1:]), Ended(line=one)])
    assert rows_of(store) == 1
    assert await claimed(other) == [(two.upload_id, [COMPLETED])]
    assert len(await listed(store)) == 3
    await store.end_claims([Ended(line=three, kept=three.deliveries)])
    assert rows_of(store) == 0
    await end(other, three.upload_id)
    assert await claimed(other) == [(three.upload_id, [*BOTH, TERMINATED])]


async def test_what_is_noted_twice(store: SQLiteMetadataStore, outlet: Outlet) -> None:
    """As at a stop that cuts short what notes it."""
    await insert_together(store, 2)
    one, two = outlet.lines
    ended = [Ended(line=one, kept=one.deliveries), Ended(line=two)]
    async with anyio.create_task_group() as tasks:
        for _ in range(2):
            tasks.start_soon(store.end_claims, ended)
    assert await store.end_claims(ended) == []
    assert rows_of(store) == 0
    assert await claimed(store) == [(one.upload_id, BOTH)]


async def test_without_room_for_marks_they_are_claimed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    async with opened(lambda: SQLiteMetadataStore(path)) as store:
        assert isinstance(store, SQLiteMetadataStore)
        store.hand_over(outlet := Outlet())
        record = await insert(store)
        assert outlet.lines == []
        assert await claimed(store) == [(record.id, BOTH)]


async def test_there_are_so_many_marks(
    store: SQLiteMetadataStore, outlet: Outlet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has none can't be noted at once; others' stay."""
    monkeypatch.setattr(handing, "_MARKS", 4)
    lines = outlet.lines
    for _ in range(3):
        await insert(store)
    for line in lines[:2]:
        assert store.told(line, line.deliveries[0].sequence)
    assert not store.told(lines[2], lines[2].deliveries[0].sequence)
    assert len(await listed(store)) == 4
    await store.end_claims([Ended(line=lines[0])])
    assert store.told(lines[2], lines[2].deliveries[0].sequence)
    assert len(await listed(store)) == 2


async def test_what_was_rolled_back_is_not_handed_over(
    store: SQLiteMetadataStore, other: MetadataStore, outlet: Outlet
) -> None:
    """Nor are its sequences others' as well."""
    with Failing(store, "COMMIT", sqlite3.SQLITE_FULL), pytest.raises(NoRoomError):
        await insert(store)
    assert outlet.lines == []
    assert await listed(store) == []
    record = await insert(store)
    await end(other, record.id)
    kept = await listed(store)
    assert [k.delivery.event.type for k in kept] == [*BOTH, TERMINATED]
    assert len({k.delivery.sequence for k in kept}) == 3


async def test_others_of_its_transaction_are_refused(
    store: SQLiteMetadataStore, outlet: Outlet
) -> None:
    """Before it and after it."""
    there = await insert(store)

    def refused(*, lease: bool) -> Awaitable[object]:
        return store.insert(there, events=[event(there)], lease=lease)

    results = await in_one_batch(
        store,
        refused(lease=True),
        insert(store),
        refused(lease=True),
        refused(lease=False),
        insert(store, lease=True),
        refused(lease=True),
    )
    assert [type(result) for result in results].count(UploadExistsError) == 4
    assert rows_of(store) == 2
    assert len(outlet.lines) == 3
    sequences = [k.delivery.sequence for k in await listed(store)]
    assert len({*sequences}) == 6
    for line in outlet.lines:
        assert store.told(line, line.deliveries[0].sequence)
    assert [k.delivery.event.type for k in await listed(store)] == [COMPLETED] * 3
    await store.end_claims([Ended(line=line) for line in outlet.lines])
    assert rows_of(store) == 0


async def test_they_are_found_by_an_index(store: SQLiteMetadataStore) -> None:
    """As far as it is asked with every event."""
    connection = sqlite3.connect(store._path)
    for query, index in (
        ("SELECT 1 FROM handed WHERE first = (SELECT handed FROM upload WHERE id = ?)", "PRIMARY"),
        ("SELECT 1 FROM line WHERE due_at = ? LIMIT 1", "line_due"),
    ):
        plan = connection.execute(f"EXPLAIN QUERY PLAN {query}", ["x"]).fetchall()
        assert all("SEARCH" in row[3] or "SUBQUERY" in row[3] for row in plan), plan
        assert any(index in row[3] for row in plan), plan
    connection.close()
