"""Checks of who may write to an upload, and of how one asks for it."""

# ruff: noqa: S101

from __future__ import annotations

import functools
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import anyio
from msgspec.structs import replace

from tidegate.ports import Change, Grant, Held, Hold, LeaseLostError, UploadExistsError
from tidegate.testing.metadata.support import (
    NOW,
    add,
    event,
    hold,
    opened,
    patience,
    raises,
    until,
    upload,
)

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from tidegate.ports import MetadataStore
    from tidegate.protocol.model import UploadId
    from tidegate.testing.metadata.support import Check, MakeStore


async def _hold_of(store: MetadataStore, upload_id: UploadId) -> Hold:
    loaded = await store.load(upload_id)
    assert loaded is not None
    return loaded.hold


# ----------------------------------------------------------------------------------- one process


async def grants_one_lease(make: MakeStore) -> None:
    """Who comes second gets the record, not the lease; a lease that was let go is settled."""
    async with opened(make) as store:
        record = upload()
        await add(store, record)
        grant = await hold(store, record.id)
        assert grant.settled
        assert grant.upload == replace(record, version=1)
        assert await _hold_of(store, record.id) is Hold.HELD
        after = await store.commit(grant.lease, Change(upload=replace(grant.upload, offset=1)))
        second = await store.acquire(record.id)
        assert second == Held(after)
        assert not grant.wanted.is_set()
        await store.release(grant.lease)
        assert await _hold_of(store, record.id) is Hold.FREE
        again = await hold(store, record.id)
        assert again.settled
        assert again.upload == after
        assert again.lease.token > grant.lease.token


async def releases_with_a_commit(make: MakeStore) -> None:
    """A lease that was let go with a commit is good for nothing any more."""
    async with opened(make) as store:
        record = upload()
        await add(store, record)
        grant = await hold(store, record.id)
        after = await store.commit(grant.lease, Change(upload=grant.upload, release=True))
        assert await _hold_of(store, record.id) is Hold.FREE
        with raises(LeaseLostError):
            await store.commit(grant.lease, Change(upload=after))
        with raises(LeaseLostError):
            await store.renew(grant.lease)
        await store.release(grant.lease)
        store.abandon(grant.lease)
        assert await _hold_of(store, record.id) is Hold.FREE


async def tells_of_abandonment(make: MakeStore) -> None:
    """Who comes after a holder that gave up has to recover, and learns under which boot it ran."""
    async with opened(make, "boot") as store:
        record = upload()
        await add(store, record)
        grant = await hold(store, record.id)
        assert not grant.boot_id
        store.abandon(grant.lease)
        store.abandon(grant.lease)
        assert await _hold_of(store, record.id) is Hold.ABANDONED
        with raises(LeaseLostError):
            await store.commit(grant.lease, Change(upload=grant.upload))
        with raises(LeaseLostError):
            await store.renew(grant.lease)
        await store.release(grant.lease)
        assert await _hold_of(store, record.id) is Hold.ABANDONED
        second = await hold(store, record.id)
        assert not second.settled
        assert second.boot_id == "boot"
        assert second.lease.token > grant.lease.token
        # A commit without release settles nothing.
        await store.commit(second.lease, Change(upload=second.upload))
        store.abandon(second.lease)
        third = await hold(store, record.id)
        assert not third.settled
        await store.release(third.lease)
        assert (await hold(store, record.id)).settled


async def takes_a_lease_by_force(make: MakeStore) -> None:
    """A holder that is alive can be overruled; it is told, and can change nothing any more."""
    async with opened(make) as store:
        record = upload()
        await add(store, record)
        old = await hold(store, record.id)
        new = await hold(store, record.id, force=True)
        assert not new.settled
        assert new.lease.token > old.lease.token
        assert old.wanted.is_set()
        assert not new.wanted.is_set()
        stale = replace(old.upload, offset=7)
        with raises(LeaseLostError):
            await store.commit(old.lease, Change(upload=stale, events=(event(stale),)))
        with raises(LeaseLostError):
            await store.renew(old.lease)
        await store.release(old.lease)
        store.abandon(old.lease)
        assert await _hold_of(store, record.id) is Hold.HELD
        await store.renew(new.lease)
        after = await store.commit(new.lease, Change(upload=replace(new.upload, offset=1)))
        assert after.offset == 1
        assert await store.claim_events(NOW, 10, 60) == []
        await store.release(new.lease)
        free = await hold(store, record.id, force=True)
        assert free.settled


async def asks_for_release(make: MakeStore) -> None:
    """The holder, and only it, is told at once that someone wants the lease."""
    async with opened(make) as store:
        record, other = upload(), upload()
        await add(store, record, other)
        grant, others = await hold(store, record.id), await hold(store, other.id)
        await store.request_release(record.id)
        assert grant.wanted.is_set()
        assert not others.wanted.is_set()
        await store.request_release(record.id)
        await store.release(grant.lease)
        await store.request_release(record.id)
        assert not (await hold(store, record.id)).wanted.is_set()


async def waits_for_release(make: MakeStore) -> None:
    """Whoever waits is woken by a release, a commit that releases, and an abandonment."""
    async with opened(make) as store:
        record = upload()
        await add(store, record)
        async with patience():
            await store.wait_released(record.id, 3600)

        async def release(grant: Grant) -> None:
            await store.release(grant.lease)

        async def commit(grant: Grant) -> None:
            await store.commit(grant.lease, Change(upload=grant.upload, release=True))

        async def abandon(grant: Grant) -> None:
            store.abandon(grant.lease)

        for let_go in (release, commit, abandon):
            grant = await hold(store, record.id)
            async with patience(), anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(store.wait_released, record.id, 3600)
                await anyio.lowlevel.checkpoint()
                await let_go(grant)


async def waits_no_longer_than_asked(make: MakeStore) -> None:
    """A lease that is not let go is waited for so long, and no longer."""
    async with opened(make) as store:
        record = upload()
        await add(store, record)
        grant = await hold(store, record.id)
        async with patience():
            await store.wait_released(record.id, 0)
            await store.wait_released(record.id, 0.05)
        await store.renew(grant.lease)


async def misses_no_wake_up(make: MakeStore) -> None:
    """A release between the refusal and the wait is not missed, whenever it comes."""
    async with opened(make) as store:
        record = upload()
        await add(store, record)
        for turns in range(12):
            grant = await hold(store, record.id)

            async def release_soon(grant: Grant = grant, turns: int = turns) -> None:
                for _ in range(turns):
                    await anyio.lowlevel.checkpoint()
                await store.release(grant.lease)

            async with patience(), anyio.create_task_group() as tasks:
                tasks.start_soon(release_soon)
                while isinstance(await store.acquire(record.id), Held):
                    await store.wait_released(record.id, 3600)
            grant = await hold(store, record.id, force=True)
            await store.release(grant.lease)


async def lets_one_at_a_time(make: MakeStore) -> None:
    """Fifty tasks want one upload: each gets it, no two at once, and no change is lost."""
    async with opened(make) as store:
        await _race([store], tasks_each=50)


async def _race(stores: list[MetadataStore], tasks_each: int) -> None:
    record = upload()
    await add(stores[0], record)
    holders: list[int] = []
    tokens: list[int] = []

    async def work(store: MetadataStore, number: int) -> None:
        attempt = await store.acquire(record.id)
        while isinstance(attempt, Held):
            await store.request_release(record.id)
            await store.wait_released(record.id, 3600)
            attempt = await store.acquire(record.id)
        holders.append(number)
        assert len(holders) == 1, "two hold the lease"
        assert attempt.settled
        tokens.append(attempt.lease.token)
        for _ in range(number % 3):
            await anyio.lowlevel.checkpoint()
        after = replace(attempt.upload, offset=attempt.upload.offset + 1)
        # Before the commit: once it is done another may be quicker than we are.
        holders.remove(number)
        await store.commit(attempt.lease, Change(upload=after, release=True))

    async with patience(), anyio.create_task_group() as tasks:
        for index, store in enumerate(stores):
            for number in range(tasks_each):
                tasks.start_soon(work, store, index * tasks_each + number)
    loaded = await stores[0].load(record.id)
    assert loaded is not None
    assert loaded.upload.offset == tasks_each * len(stores)
    assert tokens == sorted(set(tokens))


async def survives_cancellation(make: MakeStore) -> None:
    """A cancelled call is done or not done, and holds up nobody who comes after."""
    async with opened(make) as store:
        for turns in range(15):
            record = upload()
            await _cancel_after(turns, store.insert(record))
            with suppress(UploadExistsError):
                await add(store, record)

            got = await _cancel_after(turns, store.acquire(record.id))
            if isinstance(got, Grant):
                await store.release(got.lease)
            # If nobody got the lease, there is nobody who will let it go.
            await until(functools.partial(_can_be_had, store, record.id))

            grant = await hold(store, record.id)
            change = Change(upload=replace(grant.upload, offset=1), release=True)
            await _cancel_after(turns, store.commit(grant.lease, change))
            store.abandon(grant.lease)
            grant = await hold(store, record.id)
            assert grant.settled == (grant.upload.offset == 1)
            await _cancel_after(turns, store.release(grant.lease))
            store.abandon(grant.lease)
            await hold(store, record.id)


async def _cancel_after(turns: int, call: Coroutine[Any, Any, object]) -> object:
    """Cancel a call after some turns of the event loop; what it returned if it was quicker."""
    returned: list[object] = []

    async def run() -> None:
        returned.append(await call)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        for _ in range(turns + 1):
            await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    return returned[0] if returned else None


async def _can_be_had(store: MetadataStore, upload_id: UploadId) -> bool:
    attempt = await store.acquire(upload_id)
    if isinstance(attempt, Held):
        return False
    await store.release(attempt.lease)
    return True


# ----------------------------------------------------------------------- two on the same place


async def shares_records(make: MakeStore) -> None:
    """Two stores on one place see the same, and fence each other."""
    async with opened(make) as here, opened(make) as there:
        record = upload()
        await add(here, record)
        grant = await hold(there, record.id)
        assert await here.acquire(record.id) == Held(grant.upload)
        assert await _hold_of(here, record.id) is Hold.HELD
        after = await there.commit(grant.lease, Change(upload=replace(grant.upload, offset=9)))
        loaded = await here.load(record.id)
        assert loaded is not None
        assert loaded.upload == after
        with raises(LeaseLostError):
            await here.commit(grant.lease, Change(upload=after))
        await there.renew(grant.lease)
        await there.release(grant.lease)
        assert (await hold(here, record.id)).settled


async def asks_another_for_release(make: MakeStore) -> None:
    """A request reaches the holder in another store, and the release whoever waits for it."""
    async with opened(make) as here, opened(make) as there:
        record, other = upload(), upload()
        await add(here, record, other)
        grant, others = await hold(there, record.id), await hold(there, other.id)
        await here.request_release(record.id)
        async with patience():
            await grant.wanted.wait()
            assert not others.wanted.is_set()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(here.wait_released, record.id, 3600)
                await there.commit(grant.lease, Change(upload=grant.upload, release=True))
        assert (await hold(here, record.id)).settled


async def tells_another_of_abandonment(make: MakeStore) -> None:
    """What was abandoned in one store can be had, unsettled, in another."""
    async with opened(make) as here, opened(make, "there") as there:
        record = upload()
        await add(here, record)
        grant = await hold(there, record.id)
        there.abandon(grant.lease)
        async with patience():
            await here.wait_released(record.id, 3600)
        assert await _hold_of(here, record.id) is Hold.ABANDONED
        grant = await hold(here, record.id)
        assert not grant.settled
        assert grant.boot_id == "there"


async def takes_by_force_from_another(make: MakeStore) -> None:
    """A holder in another store that is overruled is told, and can change nothing any more."""
    async with opened(make) as here, opened(make) as there:
        record = upload()
        await add(here, record)
        old = await hold(there, record.id)
        new = await hold(here, record.id, force=True)
        assert not new.settled
        async with patience():
            await old.wanted.wait()
        with raises(LeaseLostError):
            await there.renew(old.lease)
        with raises(LeaseLostError):
            await there.commit(old.lease, Change(upload=old.upload))
        there.abandon(old.lease)
        await there.release(old.lease)
        await here.renew(new.lease)
        assert await _hold_of(there, record.id) is Hold.HELD


async def outlives_a_holder(make: MakeStore) -> None:
    """What a store held when it was closed can be had at once, unsettled."""
    async with opened(make) as here:
        record = upload(expires_at=NOW)
        await add(here, record)
        async with opened(make, "there") as there:
            grant = await hold(there, record.id)
            assert await here.expired(NOW, 1) == []
        assert await _hold_of(here, record.id) is Hold.ABANDONED
        assert await here.expired(NOW, 1) == [record.id]
        async with patience():
            await here.wait_released(record.id, 3600)
        taken = await hold(here, record.id)
        assert not taken.settled
        assert taken.boot_id == "there"
        assert taken.lease.token > grant.lease.token


async def hands_down_the_boot(make: MakeStore) -> None:
    """A holder that died before it could recover does not hide the boot of the one before it."""
    async with opened(make) as here:
        record = upload()
        await add(here, record)
        async with opened(make, "first") as store:
            await hold(store, record.id)
        async with opened(make, "second") as store:
            assert (await hold(store, record.id)).boot_id == "first"
        async with opened(make, "third") as store:
            grant = await hold(store, record.id)
            assert grant.boot_id == "first"
            await store.commit(grant.lease, Change(upload=grant.upload))
        assert (await hold(here, record.id)).boot_id == "third"


async def lets_one_at_a_time_among_two(make: MakeStore) -> None:
    """The tasks of two stores want one upload: no two hold it at once, and no change is lost."""
    async with opened(make) as here, opened(make) as there:
        await _race([here, there], tasks_each=8)


async def keeps_what_was_closed(make: MakeStore) -> None:
    """A store that is opened again has all that it had, and goes on counting."""
    async with opened(make) as store:
        record = upload()
        first = await store.insert(record, lease=True, events=[event(record)])
        assert first is not None
        await store.release(first.lease)
    async with opened(make) as store:
        grant = await hold(store, record.id)
        assert grant.settled
        assert grant.lease.token > first.lease.token
        assert len(await store.claim_events(NOW, 10, 60)) == 1


CHECKS: list[Check] = [
    grants_one_lease,
    releases_with_a_commit,
    tells_of_abandonment,
    takes_a_lease_by_force,
    asks_for_release,
    waits_for_release,
    waits_no_longer_than_asked,
    misses_no_wake_up,
    lets_one_at_a_time,
    survives_cancellation,
]

SHARED_CHECKS: list[Check] = [
    shares_records,
    asks_another_for_release,
    tells_another_of_abandonment,
    takes_by_force_from_another,
    outlives_a_holder,
    hands_down_the_boot,
    lets_one_at_a_time_among_two,
    keeps_what_was_closed,
]
"""For stores that several processes may share, and that so outlive a process."""
