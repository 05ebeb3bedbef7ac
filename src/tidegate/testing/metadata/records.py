"""Checks of what a metadata store does with records, segments and parts."""

# ruff: noqa: S101

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from tidegate.ports import (
    Change,
    Hold,
    LeaseLostError,
    PartUnavailableError,
    PinnedError,
    Room,
    UnknownUploadError,
    UploadExistsError,
)
from tidegate.protocol.model import EventType, Kind, Segment, State, Upload, UploadId
from tidegate.testing.metadata.support import (
    NOW,
    add,
    change,
    end,
    event,
    final,
    hold,
    new_id,
    opened,
    partial,
    raises,
    upload,
)

if TYPE_CHECKING:
    from tidegate.testing.metadata.support import Check, MakeStore

# ------------------------------------------------------------------------------- insert and load


async def inserts_a_record(make: MakeStore) -> None:
    """What was inserted is loaded as it was, as version 1, free."""
    async with opened(make) as store:
        record = upload(
            length=2**63 - 1,
            offset=2**62,
            synced_offset=3,
            boot_id="boot",
            unverified=True,
            metadata="filename w6QudHh0,empty",
            storage={"path": "a/ä", "parts": [1, {"x": None}], "big": 2**53},
            principal="somebody",
            expires_at=NOW + 0.123456789,
        )
        assert await store.insert(record) is None
        loaded = await store.load(record.id)
        assert loaded is not None
        assert loaded.upload == replace(record, version=1)
        assert loaded.hold is Hold.FREE


async def inserts_with_a_lease(make: MakeStore) -> None:
    """A record can be inserted and held at once; it needs no recovery."""
    async with opened(make, "boot") as store:
        record = upload()
        grant = await store.insert(record, lease=True)
        assert grant is not None
        assert grant.upload == replace(record, version=1)
        assert grant.settled
        assert not grant.boot_id
        assert not grant.wanted.is_set()
        assert grant.lease.upload_id == record.id
        loaded = await store.load(record.id)
        assert loaded is not None
        assert loaded.hold is Hold.HELD
        after = await store.commit(grant.lease, Change(upload=replace(grant.upload, offset=1)))
        assert (after.offset, after.version) == (1, 2)


async def inserts_what_is_complete(make: MakeStore) -> None:
    """An upload that is complete as soon as it is told of: it needs no room, and its events come in
    their order.
    """
    async with opened(make) as store:
        made = upload(length=60)
        whole = replace(made, offset=60, state=State.COMPLETE, ended_at=NOW)
        told = [event(made, EventType.CREATED), event(whole, EventType.COMPLETED)]
        assert await store.insert(whole, events=told, durable=True) is None
        loaded = await store.load(whole.id)
        assert loaded is not None
        assert loaded.upload == replace(whole, version=1)
        assert loaded.hold is Hold.FREE
        assert (await store.counts()).uploads == {State.COMPLETE: 1}
        assert [found.id async for found in store.uploads(state=State.COMPLETE)] == [whole.id]
        assert await store.tombstones(NOW + 1, 10) == []
        await store.insert(upload(length=100), room=Room(unfinished=100, missing=100))
        (line,) = await store.claim_events(NOW, 10, 60)
        assert [delivery.event for delivery in line.deliveries] == told


async def refuses_a_second_record(make: MakeStore) -> None:
    """An id is used once; the refused insert changes nothing and tells of nothing."""
    async with opened(make) as store:
        record = upload()
        await add(store, record)
        again = replace(record, length=7)
        with raises(UploadExistsError):
            await store.insert(again, lease=True, events=[event(again)])
        loaded = await store.load(record.id)
        assert loaded is not None
        assert loaded.upload.length == 100
        assert loaded.hold is Hold.FREE
        assert await store.claim_events(NOW, 10, 60) == []


async def refuses_a_second_record_of_one_that_ended(make: MakeStore) -> None:
    """A tombstone keeps its id."""
    async with opened(make) as store:
        record = upload()
        await add(store, record)
        await end(store, record.id, State.TERMINATED, NOW)
        with raises(UploadExistsError):
            await store.insert(record)


async def knows_no_other(make: MakeStore) -> None:
    """An unknown id: None, nothing, or UnknownUploadError, and no wait."""
    async with opened(make) as store:
        unknown = new_id()
        assert await store.load(unknown) is None
        assert await store.segments(unknown) == []
        assert await store.pending_finals(unknown) == []
        with raises(UnknownUploadError):
            await store.acquire(unknown)
        await store.request_release(unknown)
        await store.wait_released(unknown, 3600)


async def takes_odd_ids(make: MakeStore) -> None:
    """An id is a string like any other."""
    async with opened(make) as store:
        ids = [UploadId(text) for text in ("a' OR 1", "%", "_", "A", "a", "..", "x" * 200)]
        await add(store, *[upload(upload_id) for upload_id in ids])
        assert [found.id async for found in store.uploads()] == sorted(ids)
        await change(store, ids[3], offset=1)
        loaded = await store.load(ids[4])
        assert loaded is not None
        assert loaded.upload.offset == 0


# ---------------------------------------------------------------------------------------- commit


async def commits_every_field(make: MakeStore) -> None:
    """The record that was committed is the one that is loaded, one version on."""
    async with opened(make) as store:
        record = upload(length=None)
        await add(store, record)
        grant = await hold(store, record.id)
        new = replace(
            grant.upload,
            state=State.COMPLETE,
            length=5,
            offset=5,
            synced_offset=5,
            storage={"etag": '"x"'},
            active_at=NOW + 5,
            expires_at=None,
            ended_at=NOW + 6,
        )
        after = await store.commit(grant.lease, Change(upload=new, release=True, durable=True))
        assert after == replace(new, version=2)
        loaded = await store.load(record.id)
        assert loaded is not None
        assert loaded.upload == after
        assert loaded.hold is Hold.FREE


async def refuses_a_stale_version(make: MakeStore) -> None:
    """A commit of an older record changes nothing, and the lease counts as lost."""
    async with opened(make) as store:
        record = upload()
        await add(store, record)
        grant = await hold(store, record.id)
        after = await store.commit(grant.lease, Change(upload=replace(grant.upload, offset=1)))
        stale = replace(grant.upload, offset=50)
        with raises(LeaseLostError):
            await store.commit(
                grant.lease,
                Change(upload=stale, segments=(Segment(0, 0, 50),), events=(event(stale),)),
            )
        loaded = await store.load(record.id)
        assert loaded is not None
        assert loaded.upload == after
        assert loaded.hold is Hold.ABANDONED
        assert await store.segments(record.id) == []
        assert await store.claim_events(NOW, 10, 60) == []


async def refuses_another_uploads_lease(make: MakeStore) -> None:
    """A lease is good for its own upload only."""
    async with opened(make) as store:
        mine, other = upload(), upload()
        await add(store, mine, other)
        grant, others = await hold(store, mine.id), await hold(store, other.id)
        with raises(LeaseLostError):
            await store.commit(grant.lease, Change(upload=replace(others.upload, offset=9)))
        loaded = await store.load(other.id)
        assert loaded is not None
        assert loaded.upload.offset == 0


async def keeps_segments(make: MakeStore) -> None:
    """Segments are added, replaced by index, and listed by index."""
    async with opened(make) as store:
        record = upload()
        await add(store, record)
        grant = await hold(store, record.id)
        second, first = Segment(1, 10, 5), Segment(0, 0, 10, {"etag": "a"})
        after = await store.commit(
            grant.lease, Change(upload=grant.upload, segments=(second, first))
        )
        assert await store.segments(record.id) == [first, second]
        replaced, big = Segment(1, 10, 2**62, {"etag": "b"}), Segment(10_000, 2**62, 1)
        await store.commit(grant.lease, Change(upload=after, segments=(big, replaced)))
        assert await store.segments(record.id) == [first, replaced, big]


async def forgets(make: MakeStore) -> None:
    """Forgetting removes record, segments and lease; what was told is still delivered."""
    async with opened(make) as store:
        record = upload()
        await add(store, record)
        grant = await hold(store, record.id)
        await store.commit(
            grant.lease,
            Change(
                upload=grant.upload,
                segments=(Segment(0, 0, 1),),
                events=(event(grant.upload),),
                forget=True,
            ),
        )
        assert await store.load(record.id) is None
        assert await store.segments(record.id) == []
        await store.wait_released(record.id, 3600)
        with raises(UnknownUploadError):
            await store.acquire(record.id)
        assert len(await store.claim_events(NOW, 10, 60)) == 1
        # Its id can be used again, but not with the old lease.
        new = await store.insert(record, lease=True)
        assert new is not None
        assert new.lease.token > grant.lease.token
        with raises(LeaseLostError):
            await store.commit(grant.lease, Change(upload=new.upload))
        assert await store.segments(record.id) == []


# ----------------------------------------------------------------------------------------- parts


async def checks_parts(make: MakeStore) -> None:
    """The parts of a final are partial uploads that are receiving or complete."""
    async with opened(make) as store:
        receiving, whole, ended, regular = partial(), partial(), partial(), upload()
        await add(store, receiving, whole, ended, regular)
        await change(store, whole.id, state=State.COMPLETE, offset=100)
        await end(store, ended.id, State.EXPIRED, NOW)
        good = final(receiving, whole, receiving)
        await add(store, good)
        for bad in (ended, regular, good, partial()):
            refused = final(whole, bad)
            with raises(PartUnavailableError) as caught:
                await store.insert(refused, lease=True)
            assert [error.part for error in caught] == [bad.id]
            assert await store.load(refused.id) is None
            assert refused.id not in await store.pending_finals()


async def pins_parts(make: MakeStore) -> None:
    """A part that a pending final needs can be kept from ending, for as long as it is needed."""
    async with opened(make) as store:
        one, two, free = partial(), partial(), partial()
        await add(store, one, two, free)
        first, second = final(one, two, one), final(two)
        await add(store, first, second)
        assert await store.pending_finals() == sorted([first.id, second.id])
        assert await store.pending_finals(one.id) == [first.id]
        assert await store.pending_finals(two.id) == sorted([first.id, second.id])
        assert await store.pending_finals(free.id) == []

        grant = await hold(store, two.id)
        gone = replace(grant.upload, state=State.TERMINATED, ended_at=NOW)
        pinned = Change(upload=gone, unless_pinned=True, events=(event(gone),))
        with raises(PinnedError):
            await store.commit(grant.lease, pinned)
        # The lease is still good, and nothing was changed.
        await store.renew(grant.lease)
        loaded = await store.load(two.id)
        assert loaded is not None
        assert loaded.upload == grant.upload
        await end(store, first.id, State.FAILED, NOW)
        with raises(PinnedError):
            await store.commit(grant.lease, pinned)
        await change(store, second.id, state=State.COMPLETE)
        assert await store.pending_finals(two.id) == []
        await store.commit(grant.lease, pinned)
        assert [line.upload_id for line in await store.claim_events(NOW, 9, 60)] == [two.id]


async def unpins_what_a_forgotten_final_needed(make: MakeStore) -> None:
    """A final that is forgotten needs nothing any more."""
    async with opened(make) as store:
        part = partial()
        await add(store, part)
        needs = final(part)
        await add(store, needs)
        grant = await hold(store, needs.id)
        await store.commit(grant.lease, Change(upload=grant.upload, forget=True))
        assert await store.pending_finals() == []
        grant = await hold(store, part.id)
        await store.commit(grant.lease, Change(upload=grant.upload, unless_pinned=True))


# ----------------------------------------------------------------------------------------- lists


async def lists_uploads(make: MakeStore) -> None:
    """All records by id, of a state, of a kind; more than fit in a page."""
    async with opened(make) as store:
        records: list[Upload] = [upload(f"r{index:04}") for index in range(600)]
        parts = [partial(f"p{index}") for index in range(3)]
        await add(store, *reversed(records), *parts)
        await add(store, final(parts[0]))
        await end(store, parts[1].id, State.EXPIRED, NOW)
        everything = [found.id async for found in store.uploads()]
        assert everything == sorted(everything)
        assert len(everything) == 604
        found = [one.id async for one in store.uploads(kind=Kind.PARTIAL)]
        assert found == [UploadId("p0"), UploadId("p1"), UploadId("p2")]
        assert [one.id async for one in store.uploads(state=State.EXPIRED)] == ["p1"]
        found = [one.id async for one in store.uploads(kind=Kind.PARTIAL, state=State.RECEIVING)]
        assert found == [UploadId("p0"), UploadId("p2")]
        assert [one async for one in store.uploads(state=State.FAILED)] == []


async def lists_what_is_undone(make: MakeStore) -> None:
    """What is whole and not complete, or not synced, for as long as it is; more than fit in a page."""
    async with opened(make) as store:

        async def undone() -> list[str]:
            return [one.id async for one in store.undone()]

        whole, empty = upload(offset=100, synced_offset=100), upload(length=0)
        unsynced, deferred = partial(offset=7, synced_offset=6), upload(length=None, offset=7)
        new, synced = upload(), upload(offset=7, synced_offset=7)
        await add(
            store,
            *(whole, empty, unsynced, deferred, new, synced),
            upload(length=None),
            upload(length=None, offset=7, synced_offset=7),
            # Of what is complete nothing is left to do, synced or not.
            upload(offset=100, state=State.COMPLETE, ended_at=NOW),
        )
        due = [whole, empty, unsynced, deferred]
        assert await undone() == sorted(each.id for each in due)
        assert whole in [replace(each, version=0) async for each in store.undone()]
        # With what happens to an upload it comes to the list, stays there, and leaves it.
        await change(store, new.id, offset=1)
        await change(store, unsynced.id, offset=8, synced_offset=7)
        due.append(new)
        assert await undone() == sorted(each.id for each in due)
        await change(store, whole.id, state=State.COMPLETE, ended_at=NOW)
        await change(store, unsynced.id, synced_offset=8)
        await end(store, new.id, State.EXPIRED, NOW)
        grant = await hold(store, deferred.id)
        assert deferred.id in await undone()
        await store.commit(grant.lease, Change(upload=grant.upload, forget=True))
        assert await undone() == [empty.id]
        many = [upload(f"r{index:04}", offset=1) for index in range(600)]
        await add(store, *reversed(many))
        assert await undone() == sorted([empty.id, *(each.id for each in many)])


async def lists_what_expired(make: MakeStore) -> None:
    """Uploads whose time is up, oldest first, but none that is held, or must not expire."""
    async with opened(make) as store:
        times = [NOW + seconds for seconds in range(5)]
        fifth, third, first, fourth, second = (
            upload(expires_at=times[index]) for index in (4, 2, 0, 3, 1)
        )
        forever = upload()
        await add(store, fifth, third, first, fourth, second, forever)
        assert await store.expired(NOW - 1, 10) == []
        assert await store.expired(NOW, 10) == [first.id]
        assert await store.expired(NOW + 3, 10) == [first.id, second.id, third.id, fourth.id]
        assert await store.expired(NOW + 3, 2) == [first.id, second.id]
        grant = await hold(store, first.id)
        assert await store.expired(NOW + 3, 2) == [second.id, third.id]
        store.abandon(grant.lease)
        assert await store.expired(NOW + 3, 1) == [first.id]
        await change(store, first.id, expires_at=NOW + 100)
        assert await store.expired(NOW + 3, 1) == [second.id]
        # Whatever a record says, what was completed is not swept.
        await change(store, second.id, state=State.COMPLETE, offset=100)
        await end(store, third.id, State.EXPIRED, NOW)
        assert await store.expired(NOW + 3, 10) == [fourth.id]


async def lists_partials_that_expired(make: MakeStore) -> None:
    """A partial expires complete or not, unless a pending final needs it."""
    async with opened(make) as store:
        whole, needed = partial(expires_at=NOW), partial(expires_at=NOW)
        await add(store, whole, needed)
        await change(store, whole.id, state=State.COMPLETE, offset=100)
        needs = final(needed)
        await add(store, needs)
        assert await store.expired(NOW, 10) == [whole.id]
        await end(store, needs.id, State.FAILED, NOW)
        assert sorted(await store.expired(NOW, 10)) == sorted([whole.id, needed.id])


async def lists_tombstones(make: MakeStore) -> None:
    """What ended before a time, oldest first; never what was completed."""
    async with opened(make) as store:
        ends = {
            State.EXPIRED: upload(),
            State.TERMINATED: upload(),
            State.FAILED: upload(),
        }
        whole, open_ = upload(), upload()
        await add(store, *ends.values(), whole, open_)
        for state, seconds in ((State.FAILED, 1), (State.EXPIRED, 2), (State.TERMINATED, 3)):
            await end(store, ends[state].id, state, NOW + seconds)
        await change(store, whole.id, state=State.COMPLETE, offset=100, ended_at=NOW)
        expected = [ends[State.FAILED].id, ends[State.EXPIRED].id, ends[State.TERMINATED].id]
        assert await store.tombstones(NOW + 1, 10) == []
        assert await store.tombstones(NOW + 3, 10) == expected[:2]
        assert await store.tombstones(NOW + 9, 10) == expected
        assert await store.tombstones(NOW + 9, 1) == expected[:1]


CHECKS: list[Check] = [
    inserts_a_record,
    inserts_with_a_lease,
    inserts_what_is_complete,
    refuses_a_second_record,
    refuses_a_second_record_of_one_that_ended,
    knows_no_other,
    takes_odd_ids,
    commits_every_field,
    refuses_a_stale_version,
    refuses_another_uploads_lease,
    keeps_segments,
    forgets,
    checks_parts,
    pins_parts,
    unpins_what_a_forgotten_final_needed,
    lists_uploads,
    lists_what_is_undone,
    lists_what_expired,
    lists_partials_that_expired,
    lists_tombstones,
]
