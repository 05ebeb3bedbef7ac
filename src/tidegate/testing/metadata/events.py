"""Checks of the events that are written with a change, and delivered at least once, in order."""

# ruff: noqa: S101

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from tidegate.ports import Change
from tidegate.protocol.model import EventType
from tidegate.testing.metadata.support import NOW, event, hold, opened, upload

if TYPE_CHECKING:
    from tidegate.ports import Delivery, MetadataStore
    from tidegate.protocol.model import Upload
    from tidegate.testing.metadata.support import Check, MakeStore


async def _claim(store: MetadataStore, now: float = NOW, limit: int = 10) -> list[Delivery]:
    return await store.claim_events(now, limit, 60)


async def _tell(store: MetadataStore, record: Upload, *kinds: EventType) -> None:
    grant = await hold(store, record.id)
    events = tuple(event(record, kind) for kind in kinds)
    await store.commit(grant.lease, Change(upload=grant.upload, events=events, release=True))


async def delivers_in_order(make: MakeStore) -> None:
    """Of an upload one event is out at a time, the oldest first; uploads don't wait for others."""
    async with opened(make) as store:
        one, two = upload(), upload()
        await store.insert(one, events=[event(one)])
        await _tell(store, one, EventType.COMPLETED, EventType.TERMINATED)
        await store.insert(two, events=[event(two)])
        first = await _claim(store)
        assert [(d.event, d.attempts) for d in first] == [(event(one), 0), (event(two), 0)]
        assert first[0].sequence < first[1].sequence
        assert await _claim(store) == []
        await store.acknowledge(first[0].sequence)
        (second,) = await _claim(store)
        assert second.event == event(one, EventType.COMPLETED)
        assert second.sequence > first[0].sequence
        await store.acknowledge(second.sequence)
        await store.acknowledge(second.sequence)
        (third,) = await _claim(store)
        assert third.event == event(one, EventType.TERMINATED)
        await store.acknowledge(third.sequence)
        await store.acknowledge(first[1].sequence)
        assert await _claim(store, NOW + 1e6) == []


async def claims_no_more_than_asked(make: MakeStore) -> None:
    """A claim is bounded, and what it left is there for the next."""
    async with opened(make) as store:
        records = [upload() for _ in range(5)]
        for record in records:
            await store.insert(record, events=[event(record)])
        claims = [await _claim(store, limit=2) for _ in range(4)]
        assert [len(claim) for claim in claims] == [2, 2, 1, 0]
        assert [d.event.upload.id for claim in claims for d in claim] == [r.id for r in records]


async def claims_run_out(make: MakeStore) -> None:
    """What was claimed, and neither acknowledged nor postponed, is delivered again."""
    async with opened(make) as store:
        record = upload()
        await store.insert(record, events=[event(record), event(record, EventType.COMPLETED)])
        (first,) = await store.claim_events(NOW, 10, 30)
        assert await _claim(store, NOW + 29) == []
        (again,) = await _claim(store, NOW + 30)
        assert again.sequence == first.sequence
        assert again.event == first.event


async def postpones(make: MakeStore) -> None:
    """A failed delivery is due later, counts, and keeps its upload's later events waiting."""
    async with opened(make) as store:
        record = upload()
        await store.insert(record, events=[event(record), event(record, EventType.COMPLETED)])
        (first,) = await _claim(store)
        await store.postpone(first.sequence, NOW + 100)
        assert await _claim(store, NOW + 99) == []
        (again,) = await _claim(store, NOW + 100)
        assert (again.sequence, again.attempts) == (first.sequence, 1)
        await store.postpone(first.sequence, NOW + 200)
        (again,) = await _claim(store, NOW + 200)
        assert again.attempts == 2
        await store.acknowledge(again.sequence)
        (second,) = await _claim(store)
        assert second.event == event(record, EventType.COMPLETED)
        assert second.attempts == 0


async def gives_up(make: MakeStore) -> None:
    """An event that was given up is never claimed again, and holds up none that come after it."""
    async with opened(make) as store:
        record = upload()
        await store.insert(record, events=[event(record)])
        (first,) = await _claim(store)
        await _tell(store, record, EventType.COMPLETED)
        await store.postpone(first.sequence, None)
        (second,) = await _claim(store, NOW + 1e6)
        assert second.event.type is EventType.COMPLETED
        await store.postpone(first.sequence, NOW)
        await store.acknowledge(second.sequence)
        assert await _claim(store, NOW + 1e6) == []
        await _tell(store, record, EventType.TERMINATED)
        (third,) = await _claim(store)
        assert third.event.type is EventType.TERMINATED


async def ignores_unknown_events(make: MakeStore) -> None:
    """Acknowledging or postponing what is not there does nothing."""
    async with opened(make) as store:
        await store.acknowledge(12345)
        await store.postpone(12345, NOW)
        await store.postpone(12345, None)
        assert await _claim(store) == []


async def claims_once(make: MakeStore) -> None:
    """Claims that run at once never give out the same event."""
    async with opened(make) as store:
        for _ in range(20):
            record = upload()
            await store.insert(record, events=[event(record)])
        claimed: list[int] = []

        async def claim() -> None:
            claimed.extend(delivery.sequence for delivery in await _claim(store, limit=3))

        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(claim)
        assert len(claimed) == len(set(claimed)) == 20


async def claims_once_among_two(make: MakeStore) -> None:
    """Two stores on one place never have the same event out, and forget it together."""
    async with opened(make) as here, opened(make) as there:
        record = upload()
        await here.insert(record, events=[event(record), event(record, EventType.COMPLETED)])
        (first,) = await _claim(there)
        assert await _claim(here) == []
        await there.acknowledge(first.sequence)
        (second,) = await _claim(here)
        assert second.event.type is EventType.COMPLETED
        assert await _claim(there) == []


CHECKS: list[Check] = [
    delivers_in_order,
    claims_no_more_than_asked,
    claims_run_out,
    postpones,
    gives_up,
    ignores_unknown_events,
    claims_once,
]

SHARED_CHECKS: list[Check] = [claims_once_among_two]
