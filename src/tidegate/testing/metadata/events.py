"""Checks of the events that are written with a change, and delivered at least once, in order."""

# ruff: noqa: S101

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
from msgspec.structs import replace

from tidegate.ports import Change, Ended, Line, Retry
from tidegate.protocol.model import EventType, State
from tidegate.testing.metadata.support import NOW, end_claim, event, hold, opened, upload

if TYPE_CHECKING:
    from tidegate.ports import MetadataStore
    from tidegate.protocol.model import Upload
    from tidegate.testing.metadata.support import Check, MakeStore


async def _claim(store: MetadataStore, now: float = NOW, limit: int = 10) -> list[Line]:
    return await store.claim_events(now, limit, 60)


async def _tell(store: MetadataStore, record: Upload, *kinds: EventType) -> None:
    grant = await hold(store, record.id)
    events = tuple(event(record, kind) for kind in kinds)
    await store.commit(grant.lease, Change(upload=grant.upload, events=events, release=True))


def _types(line: Line) -> list[EventType]:
    return [delivery.event.type for delivery in line.deliveries]


async def claims_lines(make: MakeStore) -> None:
    """All that an upload has to tell is claimed together, in order; uploads don't wait for others."""
    async with opened(make) as store:
        one, two = upload(), upload()
        await store.insert(one, events=[event(one)])
        await _tell(store, one, EventType.COMPLETED, EventType.TERMINATED)
        await store.insert(two, events=[event(two)])
        first, second = await _claim(store)
        assert (first.upload_id, second.upload_id) == (one.id, two.id)
        assert [d.event for d in first.deliveries] == [
            event(one),
            event(one, EventType.COMPLETED),
            event(one, EventType.TERMINATED),
        ]
        assert [(d.event, d.attempts) for d in second.deliveries] == [(event(two), 0)]
        sequences = [d.sequence for line in (first, second) for d in line.deliveries]
        assert sequences == sorted(set(sequences))
        assert await _claim(store) == []
        assert await end_claim(store, first)
        assert not await end_claim(store, first)
        assert await _claim(store) == []
        assert await end_claim(store, second)
        assert await _claim(store, NOW + 1e6) == []
        assert [u async for u in store.events()] == []


async def adds_to_lines(make: MakeStore) -> None:
    """What an upload tells while its line waits is due at once; while it is claimed, after that."""
    async with opened(make) as store:
        record = upload()
        await store.insert(record, events=[event(record)])
        (line,) = await _claim(store)
        await _tell(store, record, EventType.COMPLETED)
        assert await _claim(store) == []
        assert await end_claim(store, line, kept=line.deliveries, due_at=NOW + 1000)
        (line,) = await _claim(store)
        assert _types(line) == [EventType.CREATED, EventType.COMPLETED]
        assert await end_claim(store, line, kept=line.deliveries, due_at=NOW + 1000)
        assert await _claim(store, NOW + 999) == []
        await _tell(store, record, EventType.TERMINATED)
        (line,) = await _claim(store)
        assert _types(line) == [EventType.CREATED, EventType.COMPLETED, EventType.TERMINATED]
        await _tell(store, record, EventType.EXPIRED)
        assert await end_claim(store, line)
        (line,) = await _claim(store)
        assert _types(line) == [EventType.EXPIRED]
        assert await end_claim(store, line)
        assert await _claim(store, NOW + 1e6) == []
        await _tell(store, record, EventType.TERMINATED)
        assert [_types(line) for line in await _claim(store)] == [[EventType.TERMINATED]]


async def claims_no_more_than_asked(make: MakeStore) -> None:
    """A claim is bounded, and what it left is there for the next."""
    async with opened(make) as store:
        records = [upload() for _ in range(5)]
        for record in records:
            await store.insert(record, events=[event(record)])
        claims = [await _claim(store, limit=2) for _ in range(4)]
        assert [len(claim) for claim in claims] == [2, 2, 1, 0]
        assert [line.upload_id for claim in claims for line in claim] == [r.id for r in records]


async def claims_run_out(make: MakeStore) -> None:
    """A claim that was not ended is someone else's then, and can't be ended any more."""
    async with opened(make) as store:
        record = upload()
        await store.insert(record, events=[event(record), event(record, EventType.COMPLETED)])
        (first,) = await store.claim_events(NOW, 10, 30)
        assert await _claim(store, NOW + 29) == []
        (again,) = await _claim(store, NOW + 30)
        assert again.deliveries == first.deliveries
        assert again.claim != first.claim
        assert not await end_claim(store, first)
        assert await _claim(store, NOW + 31) == []
        assert await end_claim(store, again, kept=again.deliveries)
        assert not await end_claim(store, first)
        ((_, _),) = [line.deliveries for line in await _claim(store)]


async def ends_late_claims(make: MakeStore) -> None:
    """A claim that ran out and that nobody has taken can still be ended."""
    async with opened(make) as store:
        record = upload()
        await store.insert(record, events=[event(record)])
        (line,) = await store.claim_events(NOW, 10, 30)
        await _tell(store, record, EventType.COMPLETED)
        assert await end_claim(store, line)
        (line,) = await _claim(store, NOW + 100)
        assert _types(line) == [EventType.COMPLETED]


async def notes_while_it_goes_on(make: MakeStore) -> None:
    """What became of events can be noted, and the claim stays as it is until it is ended."""
    async with opened(make) as store:
        record = upload()
        kinds = [EventType.CREATED, EventType.COMPLETED, EventType.TERMINATED]
        await store.insert(record, events=[event(record, kind) for kind in kinds])
        (line,) = await store.claim_events(NOW, 10, 60)
        first, second, third = line.deliveries
        failed = second.after(["queue"], [Retry("mail", 1, NOW + 5)])
        assert await end_claim(store, line, kept=[failed, third], goes_on=True)
        assert [u.delivery async for u in store.events()] == [failed, third]
        await _tell(store, record, EventType.EXPIRED)
        assert await _claim(store, NOW + 59) == []
        rest = replace(line, deliveries=(failed, third))
        assert await end_claim(store, rest, kept=[failed], due_at=NOW + 1000)
        assert not await end_claim(store, rest, goes_on=True)
        (line,) = await _claim(store)
        assert _types(line) == [EventType.COMPLETED, EventType.EXPIRED]
        assert line.deliveries[0] == failed
        (again,) = await _claim(store, NOW + 60)
        assert not await end_claim(store, line, goes_on=True, kept=line.deliveries[1:])
        assert [u.delivery async for u in store.events()] == list(again.deliveries)
        assert first not in again.deliveries


async def ends_several_at_once(make: MakeStore) -> None:
    """Each claim for itself: those that are over change nothing, and are named."""
    async with opened(make) as store:
        records = [upload() for _ in range(5)]
        for record in records:
            await store.insert(record, events=[event(record), event(record, EventType.COMPLETED)])
        lines = {line.upload_id: line for line in await store.claim_events(NOW, 10, 30)}
        (again,) = await store.claim_events(NOW + 30, 1, 60)
        told = lines.pop(again.upload_id)
        assert again.deliveries == told.deliveries
        kept, given_up, lost, forged = lines.values()
        ended = [
            Ended(line=kept, kept=kept.deliveries[1:], due_at=NOW + 1000),
            Ended(line=told),
            Ended(line=given_up, given_up=given_up.deliveries),
            Ended(line=lost),
            Ended(line=Line(forged.upload_id, NOW, forged.deliveries)),
        ]
        assert await end_claim(store, lost, kept=lost.deliveries, due_at=NOW + 2000)
        over = {told.upload_id, lost.upload_id, forged.upload_id}
        assert set(await store.end_claims(ended)) == over
        assert await store.end_claims([]) == []
        found = [u async for u in store.events()]
        left = [*told.deliveries, *kept.deliveries[1:], *given_up.deliveries, *lost.deliveries]
        left = sorted([*left, *forged.deliveries], key=lambda delivery: delivery.sequence)
        assert [u.delivery for u in found] == left
        assert [u.delivery for u in found if u.given_up] == list(given_up.deliveries)
        (line,) = await store.claim_events(NOW + 30, 10, 60)
        assert line.upload_id == forged.upload_id


async def keeps(make: MakeStore) -> None:
    """How the delivery of each event stands is given back with it, when it is due."""
    async with opened(make) as store:
        record = upload()
        await store.insert(record, events=[event(record), event(record, EventType.COMPLETED)])
        (line,) = await _claim(store)
        first, second = line.deliveries
        assert (first.done, first.retries) == ((), ())
        away = Retry("mail", 3, NOW + 100.25)
        gone = Retry("hook.2", 40, None)
        kept = first.after(["queue-2", "a:b"], [away, gone]), second.after(["queue-2"], [])
        assert await end_claim(store, line, kept=kept, due_at=NOW + 100.25)
        assert await _claim(store, NOW + 100) == []
        (line,) = await _claim(store, NOW + 100.25)
        assert line.deliveries == kept
        assert [d.attempts for d in line.deliveries] == [40, 0]
        assert await end_claim(store, line, kept=kept[:1], due_at=NOW)
        (line,) = await _claim(store)
        assert line.deliveries == kept[:1]


async def gives_up(make: MakeStore) -> None:
    """An event that was given up is never claimed again, and holds up none of the others."""
    async with opened(make) as store:
        record = upload()
        await store.insert(record, events=[event(record), event(record, EventType.COMPLETED)])
        (line,) = await _claim(store)
        first, second = line.deliveries
        first = first.after(["queue"], [Retry("mail", 1, None)])
        assert await end_claim(store, line, given_up=[first], kept=[second], due_at=NOW)
        (line,) = await _claim(store)
        assert line.deliveries == (second,)
        assert await end_claim(store, line)
        assert await _claim(store, NOW + 1e6) == []
        assert [(u.delivery, u.given_up) async for u in store.events()] == [(first, True)]
        await _tell(store, record, EventType.TERMINATED)
        (line,) = await _claim(store)
        assert _types(line) == [EventType.TERMINATED]


async def claims_once(make: MakeStore) -> None:
    """Claims that run at once never give out the same event."""
    async with opened(make) as store:
        for _ in range(20):
            record = upload()
            await store.insert(record, events=[event(record)])
        claimed: list[str] = []

        async def claim() -> None:
            claimed.extend(line.upload_id for line in await _claim(store, limit=3))

        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(claim)
        assert len(claimed) == len(set(claimed)) == 20


async def claims_once_among_two(make: MakeStore) -> None:
    """Two stores on one place never have the same line out, and forget it together."""
    async with opened(make) as here, opened(make) as there:
        record = upload()
        await here.insert(record, events=[event(record)])
        (line,) = await _claim(there)
        assert await _claim(here) == []
        await _tell(here, record, EventType.COMPLETED)
        assert await _claim(here) == []
        assert await end_claim(there, line)
        (line,) = await _claim(here)
        assert _types(line) == [EventType.COMPLETED]
        assert await _claim(there) == []
        assert await end_claim(here, line)
        assert [u async for u in there.events()] == []


async def replays(make: MakeStore) -> None:
    """What was given up is told before what its upload told since, as if it had never been tried."""
    async with opened(make) as store:
        record = upload()
        kinds = [EventType.CREATED, EventType.COMPLETED, EventType.TERMINATED]
        await store.insert(record, events=[event(record, kind) for kind in kinds])
        (line,) = await _claim(store)
        first, *others = line.deliveries
        tried = first.after(["queue"], [Retry("mail", 40, None)])
        await end_claim(store, line, given_up=[tried], kept=others, due_at=NOW + 1000)
        assert not await store.replay(others[0].sequence)
        assert await store.replay(first.sequence)
        assert not await store.replay(first.sequence)
        assert not await store.replay(first.sequence + 100)
        (line,) = await _claim(store)
        assert line.deliveries == (first, *others)
        # Of a line that is claimed, and of one that is empty.
        await end_claim(store, line, given_up=[tried], kept=others)
        (line,) = await _claim(store)
        assert await store.replay(first.sequence)
        assert await _claim(store) == []
        assert await end_claim(store, line)
        (line,) = await _claim(store)
        assert line.deliveries == (first,)
        assert await end_claim(store, line, given_up=[tried])
        assert await _claim(store, NOW + 1e6) == []
        assert await store.replay(first.sequence)
        assert [line.deliveries for line in await _claim(store)] == [(first,)]


async def lists_events(make: MakeStore) -> None:
    """All that are kept are listed by sequence, with how things stand."""
    async with opened(make) as store:
        one, two = upload(), upload()
        await store.insert(one, events=[event(one)])
        await _tell(store, one, EventType.COMPLETED, EventType.TERMINATED)
        await store.insert(two, events=[event(two)])
        first, second = await _claim(store)
        created, *others = first.deliveries
        tried = created.after(["queue"], [Retry("mail", 1, None)])
        await end_claim(store, first, given_up=[tried], kept=others, due_at=NOW)
        late = second.deliveries[0].after([], [Retry("mail", 2, NOW + 5)])
        await end_claim(store, second, kept=[late], due_at=NOW + 5)
        found = [u async for u in store.events()]
        assert [u.delivery for u in found] == [tried, *others, late]
        assert [u.given_up for u in found] == [True, False, False, False]
        assert [u.due_at for u in found] == [None, NOW, None, NOW + 5]
        await _tell(store, two, EventType.COMPLETED)
        due = [u.due_at async for u in store.events()]
        assert due[4] is None
        assert due[3] is not None
        assert due[3] <= 0


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
        (line,) = await _claim(store, limit=1)
        await end_claim(store, line, given_up=line.deliveries)
        found = await store.counts()
        assert found.uploads == {State.RECEIVING: 2, State.COMPLETE: 1, State.TERMINATED: 1}
        assert (found.pending_events, found.given_up_events) == (3, 1)
        assert found.oldest_event_at == event(one).at


CHECKS: list[Check] = [
    claims_lines,
    adds_to_lines,
    keeps,
    replays,
    lists_events,
    counts,
    claims_no_more_than_asked,
    claims_run_out,
    ends_late_claims,
    ends_several_at_once,
    notes_while_it_goes_on,
    gives_up,
    claims_once,
]

SHARED_CHECKS: list[Check] = [claims_once_among_two]
