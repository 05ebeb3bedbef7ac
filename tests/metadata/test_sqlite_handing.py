"""Events that the SQLite store hands to who delivers them in the same process."""

from __future__ import annotations

import signal
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from tidegate.metadata.sqlite.store import SQLiteMetadataStore
from tidegate.ports import (
    HANDED,
    Change,
    Ended,
    HandingStore,
    Line,
    Retry,
    Undelivered,
    UploadExistsError,
)
from tidegate.protocol.model import EventType, UploadId
from tidegate.testing.metadata.support import NOW, event, hold, opened, until, upload

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
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
    """Wait until this is claimed: a store looks now and then for what others left."""

    async def found() -> bool:
        lines = await claimed(store)
        assert lines in ([], [*wanted])
        return bool(lines)

    await until(found)


def line_of(store: SQLiteMetadataStore) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(store._path)
    try:
        return connection.execute("SELECT upload_id, due_at, claimed, more FROM line").fetchall()
    finally:
        connection.close()


CREATED, COMPLETED, TERMINATED = EventType.CREATED, EventType.COMPLETED, EventType.TERMINATED


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


async def test_what_is_told_is_forgotten(store: SQLiteMetadataStore, outlet: Outlet) -> None:
    """The first before the second, as the outlet notes it."""
    await insert(store)
    (line,) = outlet.lines
    rest = line.deliveries[1:]
    assert await store.end_claims([Ended(line=line, kept=rest, goes_on=True)]) == []
    assert [k.delivery for k in await listed(store)] == [*rest]
    assert await claimed(store) == []
    assert await store.end_claims([Ended(line=replace(line, deliveries=rest))]) == []
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
    both = [CREATED, COMPLETED]
    assert await claimed(store) == [(record.id, both), (another.id, both)]


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
    await store.end_claims([Ended(line=line, kept=line.deliveries[1:], goes_on=True)])
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
    with child("hand") as process:
        upload_id = UploadId(process.says())
        assert await claimed(store) == []
        assert len(await listed(store)) == 1
        process.signal(signal.SIGKILL)
        process.process.wait()
        await looked(store, (upload_id, [CREATED]))
    assert line_of(store)[0][2] == 1


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


async def test_they_are_found_by_their_index(store: SQLiteMetadataStore) -> None:
    connection = sqlite3.connect(store._path)
    for query in (
        "SELECT 1 FROM handed WHERE upload_id = ?",
        "SELECT DISTINCT holder FROM handed",
        "DELETE FROM handed WHERE upload_id = ?",
    ):
        plan = connection.execute(f"EXPLAIN QUERY PLAN {query}", ["x"] * query.count("?"))
        assert "handed_upload" in plan.fetchone()[3], query
    connection.close()
