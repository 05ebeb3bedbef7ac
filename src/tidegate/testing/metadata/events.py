"""Checks of the events that are written with a change, and delivered at least once, in order."""

# ruff: noqa: S101

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
from msgspec.structs import replace

from tidegate.ports import Change
from tidegate.protocol.model import EventType, State
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


async def remembers_who_has_it(make: MakeStore) -> None:
    """The sinks that have an event are given back with it, and forgotten when it is replayed."""
    async with opened(make) as store:
        record = upload()
        await store.insert(record, events=[event(record)])
        (first,) = await _claim(store)
        assert first.done == ()
        await store.postpone(first.sequence, NOW + 1, done=["mail", "queue-2"])
        (again,) = await _claim(store, NOW + 1)
        assert (again.attempts, again.done) == (1, ("mail", "queue-2"))
        await store.postpone(first.sequence, None, done=["mail"])
        assert await store.replay(first.sequence)
        (replayed,) = await _claim(store)
        assert (replayed.attempts, replayed.done) == (0, ())


async def replays_in_order(make: MakeStore) -> None:
    """A replayed event is delivered before what its upload had to tell since."""
    async with opened(make) as store:
        record = upload()
        await store.insert(record, events=[event(record)])
        await _tell(store, record, EventType.COMPLETED, EventType.TERMINATED)
        (first,) = await _claim(store)
        await store.postpone(first.sequence, None)
        assert await store.replay(first.sequence)
        assert not await store.replay(first.sequence)
        assert not await store.replay(first.sequence + 100)
        for kind in (EventType.CREATED, EventType.COMPLETED, EventType.TERMINATED):
            (next_,) = await _claim(store)
            assert next_.event.type is kind
            assert not await store.replay(next_.sequence)
            await store.acknowledge(next_.sequence)


async def lists_events(make: MakeStore) -> None:
    """All that are kept are listed by sequence, with how things stand."""
    async with opened(make) as store:
        one, two = upload(), upload()
        await store.insert(one, events=[event(one)])
        await _tell(store, one, EventType.COMPLETED)
        await store.insert(two, events=[event(two)])
        (first, third) = await _claim(store)
        await store.postpone(first.sequence, None)
        await store.postpone(third.sequence, NOW + 5)
        found = [u async for u in store.events()]
        assert [u.delivery.event for u in found] == [
            event(one),
            event(one, EventType.COMPLETED),
            event(two),
        ]
        assert [u.given_up for u in found] == [True, False, False]
        assert found[0].due_at is None
        assert found[1].due_at is not None
        assert found[1].due_at <= NOW
        assert found[2].due_at == NOW + 5
        assert [u.delivery.attempts for u in found] == [1, 0, 1]


async def counts(make: MakeStore) -> None:
    """Uploads are counted by state, and events that are pending or were given up."""
    async with opened(make) as store:
        found = await store.counts()
        assert (found.uploads, found.pending_events, found.given_up_events) == ({}, 0, 0)
        assert found.oldest_event_at is None
        one, two, done, gone = upload(), upload(), upload(), upload()
        for record in (one, two, done, gone):
            await store.insert(record, events=[event(record)])
        for record, state in ((done, State.COMPLETE), (gone, State.TERMINATED)):
            grant = await hold(store, record.id)
            ended = replace(grant.upload, state=state, ended_at=NOW)
            await store.commit(grant.lease, Change(upload=ended, release=True))
        (first,) = await _claim(store, limit=1)
        await store.postpone(first.sequence, None)
        found = await store.counts()
        assert found.uploads == {State.RECEIVING: 2, State.COMPLETE: 1, State.TERMINATED: 1}
        assert (found.pending_events, found.given_up_events) == (3, 1)
        assert found.oldest_event_at == event(one).at


CHECKS: list[Check] = [
    delivers_in_order,
    remembers_who_has_it,
    replays_in_order,
    lists_events,
    counts,
    claims_no_more_than_asked,
    claims_run_out,
    postpones,
    gives_up,
    ignores_unknown_events,
    claims_once,
]

SHARED_CHECKS: list[Check] = [claims_once_among_two]
