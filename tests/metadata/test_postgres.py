"""The PostgreSQL store among others: what only several servers on one database can show."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import anyio
import pytest
from msgspec.structs import replace
from tests.metadata.conftest import started
from tests.support import postgres
from tests.support.logs import logs_kept
from tests.support.postgres_wire import CuttingLine, Pooler, executed

from tidegate.metadata.postgres.store import PostgresMetadataStore
from tidegate.ports import (
    Change,
    Hold,
    LeaseLostError,
    OverLimitError,
    PartUnavailableError,
    PinnedError,
    Retry,
    Room,
)
from tidegate.protocol.model import EventType, State
from tidegate.testing.metadata.support import (
    NOW,
    add,
    end_claim,
    event,
    final,
    hold,
    opened,
    partial,
    patience,
    until,
    upload,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from tests.metadata.conftest import Child

    from tidegate.ports import Delivery, Lease, MetadataStore
    from tidegate.protocol.model import Upload, UploadId

    Sibling = Callable[..., AbstractContextManager[Child]]

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _logged() -> Iterator[None]:
    with logs_kept():
        yield


IN_TIME = 0.2
"""Seconds in which the port wants a request to reach the holder."""


async def hold_of(store: MetadataStore, upload_id: UploadId) -> Hold:
    loaded = await store.load(upload_id)
    assert loaded is not None
    return loaded.hold


async def listening(*stores: MetadataStore) -> None:
    async def all_are() -> bool:
        return all(
            isinstance(store, PostgresMetadataStore) and store._presence.listening
            for store in stores
        )

    await until(all_are)


def schema_of(url: str) -> str:
    return PostgresMetadataStore(url).address.schema


async def says(child: Child) -> str:
    return await anyio.to_thread.run_sync(child.says)


# -------------------------------------------------------------------------------- letting go


async def asked(here: MetadataStore, there: MetadataStore) -> float:
    """How long a request takes from `here` to a holder `there`; the best of some, for the machine
    may be busy.
    """
    best = 1e9
    for _ in range(5):
        record = upload()
        grant = await there.insert(record, lease=True)
        assert grant is not None
        began = time.monotonic()
        async with patience():
            await here.request_release(record.id)
            await grant.wanted.wait()
        best = min(best, time.monotonic() - began)
        await there.release(grant.lease)
    return best


async def test_a_request_travels_by_notification() -> None:
    """No heartbeat comes in time for it."""
    url = postgres.server().url(heartbeat=30, ttl=90, listen="yes")
    make = lambda: PostgresMetadataStore(url)  # noqa: E731
    async with opened(make) as here, opened(make) as there:
        await listening(here, there)
        assert await asked(here, there) < IN_TIME / 2


async def test_a_request_is_polled_where_nothing_can_be_heard() -> None:
    url = postgres.server().url(heartbeat=30, ttl=90, listen="no")
    make = lambda: PostgresMetadataStore(url)  # noqa: E731
    async with opened(make) as here, opened(make) as there:
        assert await asked(here, there) < IN_TIME


async def test_a_pooler_is_recognized() -> None:
    """Nothing listens, nothing is prepared, and requests arrive in time all the same."""
    server = postgres.server()
    async with Pooler(server.port) as pooler, CuttingLine(pooler.port) as line:
        url = server.url(port=line.port, heartbeat=30, ttl=90)
        make = lambda: PostgresMetadataStore(url)  # noqa: E731
        async with opened(make) as here, opened(make) as there:
            assert await asked(here, there) < IN_TIME
        assert line.parsed == {b""}
        assert executed(line, ["LISTEN"]) == []
        assert executed(line, ["pg_try_advisory_lock"]) == []


async def test_a_pooler_in_disguise_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A statement that is not in the session any more is not prepared again."""
    monkeypatch.setattr("random.choice", lambda sessions: sessions[-1])
    server = postgres.server()
    async with Pooler(server.port) as pooler:
        url = server.url(port=pooler.port, listen="no")
        async with opened(lambda: PostgresMetadataStore(url)) as store:
            assert isinstance(store, PostgresMetadataStore)
            pool = store._opened_pool()
            for link in pool._idle:
                link._prepares = True
                link._statements.clear()
            record = upload()
            await add(store, record)
            for _ in range(3):
                assert await hold_of(store, record.id) is Hold.FREE
            assert not pool._prepares


async def test_a_session_that_hears_nothing_is_given_up() -> None:
    """`listen=yes` behind a pooler: it is found out, and polls."""
    server = postgres.server()
    async with Pooler(server.port) as pooler:
        url = server.url(port=pooler.port, heartbeat=0.2, ttl=5, listen="yes")
        make = lambda: PostgresMetadataStore(url)  # noqa: E731
        async with opened(make) as here, opened(make) as there:
            await listening(there)
            assert isinstance(there, PostgresMetadataStore)

            async def given_up() -> bool:
                return not there._presence.listening

            await until(given_up)
            assert await asked(here, there) < 1


async def test_a_release_wakes_who_waits_elsewhere() -> None:
    url = postgres.server().url(heartbeat=30, ttl=90)
    make = lambda: PostgresMetadataStore(url)  # noqa: E731
    async with opened(make) as here, opened(make) as there:
        await listening(here, there)
        record = upload("x" * 3000)  # longer than what a notification may say
        await add(here, record)

        async def waits() -> bool:
            assert isinstance(here, PostgresMetadataStore)
            return bool(here._leases._waiting)

        best = 1e9
        for _ in range(5):
            grant = await hold(there, record.id)
            await here.request_release(record.id)
            async with patience(), anyio.create_task_group() as tasks:
                tasks.start_soon(here.wait_released, record.id, 3600)
                await until(waits)
                began = time.monotonic()
                await there.release(grant.lease)
            best = min(best, time.monotonic() - began)
        assert best < 0.3  # it looks by itself every half of a second


# ------------------------------------------------------------------------------- being alive


LONG = 4.0
"""Seconds until the time of a holder is over, in which something else is to be seen."""


@pytest.fixture
async def settled_server() -> postgres.Postgres:
    """It has run for so long that nobody takes its sessions for lost by its start."""
    server = postgres.server()

    async def has_run() -> bool:
        age = f"SELECT pg_postmaster_start_time() < now() - interval '{LONG} s'"
        return await anyio.to_thread.run_sync(server.sql, age) == "t"

    await until(has_run)
    return server


async def test_a_dead_process_is_seen_before_its_time_is_over(
    settled_server: postgres.Postgres,
) -> None:
    """Its session went with it, and a heartbeat is missing."""
    url = settled_server.url(heartbeat=0.3, ttl=LONG)
    async with opened(lambda: PostgresMetadataStore(url)) as here:
        record = upload()
        await add(here, record)
        with started(url, "hold", record.id) as child:
            assert await says(child) == "held"
            await until(lambda: has_session(url))
            child.signal(signal.SIGKILL)
            began = time.monotonic()
            async with patience():
                await here.wait_released(record.id, 3600)
        assert time.monotonic() - began < LONG / 2
        assert await hold_of(here, record.id) is Hold.ABANDONED
        grant = await hold(here, record.id)
        assert not grant.settled
        assert grant.boot_id == "child"


async def has_session(url: str) -> bool:
    count = f"SELECT count(*) FROM {schema_of(url)}.holder WHERE session IS NOT NULL"
    return await anyio.to_thread.run_sync(postgres.server().sql, count) == "2"


async def test_a_lost_session_is_not_death(settled_server: postgres.Postgres) -> None:
    """The holder says at once that it lives, and keeps its leases."""
    async with CuttingLine(settled_server.port) as line:
        url = settled_server.url(heartbeat=0.3, ttl=LONG)
        cut = url.replace(f":{settled_server.port}/", f":{line.port}/")
        async with (
            opened(lambda: PostgresMetadataStore(url)) as here,
            opened(lambda: PostgresMetadataStore(cut)) as there,
        ):
            await until(lambda: has_session(url))
            grant = await there.insert(upload(), lease=True)
            assert grant is not None
            for _ in range(3):
                line.cut()
                await here.wait_released(grant.upload.id, 0.4)
                assert await hold_of(here, grant.upload.id) is Hold.HELD
            await there.renew(grant.lease)
            assert not grant.wanted.is_set()


async def test_a_paused_holder_is_overtaken_and_changes_nothing(url: str, sibling: Sibling) -> None:
    """It comes back, is told, and its late commit is refused."""
    async with opened(lambda: PostgresMetadataStore(url)) as here:
        record = upload(expires_at=NOW)
        await add(here, record)
        with sibling("hold", record.id, "commit") as child:
            assert await says(child) == "held"
            child.signal(signal.SIGSTOP)
            assert await hold_of(here, record.id) is Hold.HELD
            async with patience():
                await here.wait_released(record.id, 3600)
            assert await hold_of(here, record.id) is Hold.ABANDONED
            assert await here.expired(NOW, 1) == [record.id]
            grant = await hold(here, record.id)
            assert not grant.settled
            after = await here.commit(grant.lease, Change(upload=grant.upload))
            child.signal(signal.SIGCONT)
            assert [await says(child), await says(child)] == ["wanted", "refused"]
        loaded = await here.load(record.id)
        assert loaded is not None
        assert loaded.upload == after
        await here.renew(grant.lease)


async def test_a_dead_process_does_not_keep_its_turn(url: str, sibling: Sibling) -> None:
    async with opened(lambda: PostgresMetadataStore(url)) as here:
        with sibling("turn", "sweep") as child:
            assert await says(child) == "True"
            assert not await here.take_turn("sweep", 0, 10)
            child.signal(signal.SIGKILL)

            async def has_the_turn() -> bool:
                return await here.take_turn("sweep", 0, 10)

            await until(has_the_turn)


async def test_two_processes_add_without_losing_any(url: str, sibling: Sibling) -> None:
    async with opened(lambda: PostgresMetadataStore(url)) as here:
        record = upload()
        await add(here, record)
        with sibling("add", record.id, "30") as one, sibling("add", record.id, "30") as two:
            for child in (one, two):
                assert await anyio.to_thread.run_sync(child.process.wait) == 0
        loaded = await here.load(record.id)
        assert loaded is not None
        assert loaded.upload.offset == 60


async def test_a_holder_that_is_about_to_run_out_does_not_renew(url: str) -> None:
    """Whatever the database says later: nobody can know whether it was taken over meanwhile."""
    async with opened(lambda: PostgresMetadataStore(url)) as store:
        assert isinstance(store, PostgresMetadataStore)
        grant = await store.insert(upload(), lease=True)
        assert grant is not None
        await store.renew(grant.lease)
        store._presence._tasks[0].cancel()  # the heartbeat
        schema = store.address.schema
        await anyio.to_thread.run_sync(
            postgres.server().sql,
            f"UPDATE {schema}.holder SET expires_at = clock_timestamp() + interval '0.1 s'",
        )
        with pytest.raises(LeaseLostError):
            await store.renew(grant.lease)
        assert grant.wanted.is_set()
        assert await hold_of(store, grant.upload.id) is Hold.ABANDONED


# ---------------------------------------------------------------------- together, or not at all


async def test_the_room_is_kept_by_all_together(url: str) -> None:
    """Two servers that create at once never promise more than there is."""
    make = lambda: PostgresMetadataStore(url)  # noqa: E731
    async with opened(make) as here, opened(make) as there:
        refused = 0

        async def create(store: MetadataStore) -> None:
            nonlocal refused
            try:
                await store.insert(upload(length=10), room=Room(unfinished=100))
            except OverLimitError:
                refused += 1

        async with anyio.create_task_group() as tasks:
            for _ in range(15):
                tasks.start_soon(create, here)
                tasks.start_soon(create, there)
        assert refused == 20
        assert len([one async for one in here.uploads()]) == 10


async def test_no_part_ends_while_a_final_is_created(url: str) -> None:
    """Either the final has its part, or it is refused: never a pending final without one."""
    make = lambda: PostgresMetadataStore(url)  # noqa: E731
    async with opened(make) as here, opened(make) as there:
        outcomes = set()
        for _ in range(30):
            one, two = partial(), partial()
            await add(here, one, two)
            grant = await hold(there, two.id)
            gone = replace(grant.upload, state=State.TERMINATED, ended_at=NOW)
            seen = set[str]()

            async def create(needs: Upload, seen: set[str]) -> None:
                try:
                    await here.insert(needs)
                except PartUnavailableError:
                    seen.add("refused")

            async def end(lease: Lease, gone: Upload, seen: set[str]) -> None:
                try:
                    await there.commit(lease, Change(upload=gone, unless_pinned=True))
                except PinnedError:
                    seen.add("pinned")

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(create, final(two, one), seen)
                tasks.start_soon(end, grant.lease, gone, seen)
            assert len(seen) == 1
            outcomes |= seen
        assert outcomes  # of which there are both, mostly; it is not for us to say


async def test_finals_that_share_parts_do_not_wait_for_each_other(url: str) -> None:
    """In whatever order they name them."""
    make = lambda: PostgresMetadataStore(url)  # noqa: E731
    async with opened(make) as here, opened(make) as there:
        parts = [partial() for _ in range(6)]
        await add(here, *parts)
        async with patience(), anyio.create_task_group() as tasks:
            for turn in range(20):
                store, order = (here, parts) if turn % 2 else (there, parts[::-1])
                tasks.start_soon(store.insert, final(*order))
        assert len(await here.pending_finals(parts[3].id)) == 20


async def test_events_come_in_order_whatever_runs_at_once(url: str) -> None:
    """One writes them while others deliver: none is told early, twice, or never."""
    make = lambda: PostgresMetadataStore(url)  # noqa: E731
    async with opened(make) as here, opened(make) as there:
        records = [upload() for _ in range(5)]
        await add(here, *records)
        kinds = [EventType.CREATED, EventType.COMPLETED, EventType.TERMINATED, EventType.EXPIRED]
        told: list[Delivery] = []

        async def write(upload_id: UploadId) -> None:
            grant = await hold(here, upload_id)
            record = grant.upload
            for kind in kinds * 10:
                change = Change(upload=record, events=(event(record, kind),))
                record = await here.commit(grant.lease, change)

        async def deliver() -> None:
            while len(told) < len(records) * len(kinds) * 10:
                for number, line in enumerate(await there.claim_events(NOW, 2, 60)):
                    # Some fail for the first time, with all that comes after them.
                    takes = next(
                        (
                            at
                            for at, each in enumerate(line.deliveries)
                            if (each.sequence + number) % 5 == 0 and not each.attempts
                        ),
                        len(line.deliveries),
                    )
                    kept = [each.after([], [Retry("x", 1, 0)]) for each in line.deliveries[takes:]]
                    told.extend(line.deliveries[:takes])
                    assert await end_claim(there, line, kept=kept)

        async with patience(), anyio.create_task_group() as tasks:
            for record in records:
                tasks.start_soon(write, record.id)
            for _ in range(3):
                tasks.start_soon(deliver)
        for record in records:
            own = [d for d in told if d.event.upload.id == record.id]
            assert [d.event.type for d in own] == kinds * 10
            assert [d.sequence for d in own] == sorted(d.sequence for d in own)
        assert [one async for one in here.events()] == []
