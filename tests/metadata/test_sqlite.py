"""What is particular to the SQLite store: processes, transactions, errors."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import signal
import sqlite3
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

import anyio
import pytest
from msgspec.structs import replace

from tidegate.metadata.sqlite.rows import UNDONE
from tidegate.metadata.sqlite.store import SQLiteMetadataStore
from tidegate.ports import (
    Change,
    Held,
    Hold,
    Lease,
    LeaseLostError,
    MetadataError,
    NoRoomError,
    PartUnavailableError,
    UnavailableError,
    UploadExistsError,
)
from tidegate.protocol.model import Kind, Segment, UploadId
from tidegate.testing.metadata.support import NOW, add, event, hold, opened, until, upload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tidegate.ports import MetadataStore

    StartChild = Callable[..., AbstractContextManager[Any]]

pytestmark = pytest.mark.anyio


def holders(path: Path) -> list[str]:
    folder = path.with_name(f"{path.name}-live")
    return [name for name in os.listdir(folder) if name.startswith("holder-")]


async def hold_of(store: MetadataStore, upload_id: UploadId) -> Hold:
    loaded = await store.load(upload_id)
    assert loaded is not None
    return loaded.hold


@contextmanager
def traced(store: SQLiteMetadataStore) -> Iterator[list[str]]:
    """The statements that the writer carries out meanwhile."""
    statements: list[str] = []
    store._writer._connection.set_trace_callback(statements.append)
    yield statements
    store._writer._connection.set_trace_callback(None)


@contextmanager
def turn_held(path: Path) -> Iterator[None]:
    """Another process that sleeps in its turn to write."""
    descriptor = os.open(path.with_name(f"{path.name}-live") / "turn", os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(descriptor)


class Failing:
    """A connection of which one statement fails."""

    def __init__(self, store: SQLiteMetadataStore, statement: str, code: int) -> None:
        self._writer = store._writer
        self._connection = store._writer._connection
        self._statement = statement
        self._error = sqlite3.OperationalError("injected")
        self._error.sqlite_errorcode = code
        self.reached = threading.Event()

    def __enter__(self) -> Self:
        self._writer._connection = self  # type: ignore[assignment]
        return self

    def __exit__(self, *_: object) -> None:
        if vars(self._writer)["_connection"] is self:
            self._writer._connection = self._connection

    def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
        if sql.startswith(self._statement):
            self.reached.set()
            raise self._error
        return self._connection.execute(sql, *args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


async def together(*calls: Any) -> list[Any]:
    """Run calls at once; what they returned or raised."""
    results: list[Any] = [None] * len(calls)

    async def run(index: int, call: Any) -> None:
        try:
            results[index] = await call
        except MetadataError as error:
            results[index] = error

    async with anyio.create_task_group() as tasks:
        for index, call in enumerate(calls):
            tasks.start_soon(run, index, call)
    return results


async def in_one_batch(store: SQLiteMetadataStore, *calls: Any) -> list[Any]:
    """As `together`, and the writer finds them all at once."""
    results: list[Any] = []

    async def run() -> None:
        results.extend(await together(*calls))

    async def all_wait() -> bool:
        return len(store._writer._waiting) == len(calls)

    async with anyio.create_task_group() as tasks:
        with turn_held(store._path):
            tasks.start_soon(run)
            await until(all_wait)
    return results


# -------------------------------------------------------------------------------- other processes


async def test_a_killed_holder_is_followed_at_once(
    store: SQLiteMetadataStore, child: StartChild
) -> None:
    record = upload(expires_at=NOW)
    await add(store, record)
    with child("hold", record.id) as other:
        assert other.says() == "held"
        assert isinstance(await store.acquire(record.id), Held)
        assert await hold_of(store, record.id) is Hold.HELD
        assert await store.expired(NOW, 1) == []
        other.signal(signal.SIGKILL)
        other.process.wait()
        assert await hold_of(store, record.id) is Hold.ABANDONED
        assert await store.expired(NOW, 1) == [record.id]
        grant = await hold(store, record.id)
        assert not grant.settled
        assert grant.boot_id == "child"


async def test_a_killed_holder_has_no_turn(store: SQLiteMetadataStore, child: StartChild) -> None:
    with child("turn", "sweep") as other:
        assert other.says() == "True"
        assert not await store.take_turn("sweep", 1, 3600)
        other.signal(signal.SIGKILL)
        other.process.wait()
        assert await store.take_turn("sweep", 2, 3600)


async def test_a_killed_holder_wakes_who_waits(
    store: SQLiteMetadataStore, child: StartChild
) -> None:
    record = upload()
    await add(store, record)
    with child("hold", record.id) as other:
        assert other.says() == "held"
        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(store.wait_released, record.id, 3600)
                other.signal(signal.SIGKILL)
        assert (await hold(store, record.id)).settled is False


async def test_a_sleeping_holder_is_alive(store: SQLiteMetadataStore, child: StartChild) -> None:
    record = upload()
    await add(store, record)
    with child("hold", record.id) as other:
        assert other.says() == "held"
        other.signal(signal.SIGSTOP)
        assert isinstance(await store.acquire(record.id), Held)
        await store.request_release(record.id)
        await store.wait_released(record.id, 0.1)
        assert await hold_of(store, record.id) is Hold.HELD
        other.signal(signal.SIGCONT)
        assert other.says() == "wanted"


async def test_processes_take_turns(store: SQLiteMetadataStore, child: StartChild) -> None:
    """No change is lost among four processes that change one upload."""
    record = upload()
    await add(store, record)
    with (
        child("add", record.id, "30") as one,
        child("add", record.id, "30") as two,
        child("add", record.id, "30") as three,
    ):
        for other in (one, two, three):
            assert await anyio.to_thread.run_sync(other.process.wait) == 0
    loaded = await store.load(record.id)
    assert loaded is not None
    assert loaded.upload.offset == 90
    assert loaded.hold is Hold.FREE


async def test_what_was_acknowledged_survives_a_kill(path: Path, child: StartChild) -> None:
    with child("insert") as other:
        acknowledged = [other.says() for _ in range(50)]
        other.signal(signal.SIGKILL)
        while line := other.says():
            acknowledged.append(line)
    assert len(holders(path)) == 1
    async with opened(lambda: SQLiteMetadataStore(path)) as store:
        assert len(holders(path)) == 1  # the killed one's is gone, ours is there
        found = [record.id async for record in store.uploads()]
    assert found[: len(acknowledged)] == acknowledged
    assert len(found) - len(acknowledged) in {0, 1}
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


# ---------------------------------------------------------------------------------- transactions


async def test_groups_writes(store: SQLiteMetadataStore) -> None:
    """Writes that come while another is under way are committed together."""
    with traced(store) as statements:
        await in_one_batch(store, *[store.insert(upload()) for _ in range(100)])
    assert statements.count("COMMIT") == 1
    assert sum(s.startswith("INSERT INTO upload") for s in statements) == 100


async def test_a_refusal_disturbs_no_other(store: SQLiteMetadataStore) -> None:
    """Of a group, what is refused leaves nothing behind, and the rest is committed."""
    known, one, two = upload(), upload(), upload()
    await add(store, known)
    forged = Lease(known.id, "nobody", 1)
    # Written before it is refused: the record, then its part.
    orphan = replace(upload(), kind=Kind.FINAL, parts=(UploadId("missing"),))
    too_large = upload(expires_at="never")  # a value that the table refuses
    with traced(store) as statements:
        results = await in_one_batch(
            store,
            store.insert(one, events=[event(one)]),
            store.insert(known, events=[event(known)]),
            store.insert(orphan, lease=True, events=[event(one)]),
            store.commit(forged, Change(upload=known)),
            store.insert(too_large),
            store.insert(two, lease=True),
        )
    assert statements.count("COMMIT") == 1
    assert results[0] is None
    assert [type(result) for result in results[1:5]] == [
        UploadExistsError,
        PartUnavailableError,
        LeaseLostError,
        UnavailableError,
    ]
    assert results[5].settled
    assert [found.id async for found in store.uploads()] == sorted([known.id, one.id, two.id])
    (line,) = await store.claim_events(NOW, 10, 1)
    assert line.upload_id == one.id
    await store.renew(results[5].lease)


async def test_a_refusal_alone_leaves_nothing(store: SQLiteMetadataStore) -> None:
    orphan = replace(upload(), kind=Kind.FINAL, parts=(UploadId("missing"),))
    with pytest.raises(PartUnavailableError):
        await store.insert(orphan)
    assert await store.load(orphan.id) is None
    await add(store, upload())


async def test_syncs_only_what_must_be_durable(store: SQLiteMetadataStore) -> None:
    """One durable change makes the whole group durable; after it nothing is synced again."""

    def synchronous() -> int:
        (value,) = store._writer._connection.execute("PRAGMA synchronous").fetchone()
        return int(value)

    await store.insert(upload())
    assert synchronous() == 1  # NORMAL
    await store.insert(upload(), durable=True)
    assert synchronous() == 2  # FULL
    with traced(store) as statements:
        await in_one_batch(
            store,
            store.insert(upload()),
            store.insert(upload(), durable=True),
            store.insert(upload()),
        )
        assert synchronous() == 2
        grant = await store.insert(upload(), lease=True)
        assert grant is not None
        assert synchronous() == 1
        await store.commit(grant.lease, Change(upload=grant.upload, durable=True))
        assert synchronous() == 2
    begun = statements.index("BEGIN IMMEDIATE")
    assert "PRAGMA synchronous = NORMAL" not in statements[:begun]


async def test_asking_for_events_costs_no_transaction(store: SQLiteMetadataStore) -> None:
    with traced(store) as statements:
        assert await store.claim_events(NOW, 10, 60) == []
    assert statements == []


async def test_looks_for_requests_only_while_it_holds(
    store: SQLiteMetadataStore,
) -> None:
    async def stopped() -> bool:
        return store._leases._polling is None

    record = upload()
    await add(store, record)
    assert await stopped()
    grant = await hold(store, record.id)
    assert not await stopped()
    await store.release(grant.lease)
    await until(stopped)


# --------------------------------------------------------------------------------- cancellation


@pytest.mark.parametrize("settled", [True, False])
@pytest.mark.parametrize("when", ["queued", "answered"])
async def test_a_lease_that_nobody_waits_for_is_let_go(
    store: SQLiteMetadataStore, settled: bool, when: str
) -> None:
    """Whoever comes next has to recover only if the one that was cancelled would have had to."""
    record = upload()
    await add(store, record)
    if not settled:
        store.abandon((await hold(store, record.id)).lease)
    await _cancel(store, store.acquire(record.id), when)
    assert (await hold(store, record.id)).settled is settled


@pytest.mark.parametrize("when", ["queued", "answered"])
async def test_an_insert_that_nobody_waits_for_holds_nothing(
    store: SQLiteMetadataStore, when: str
) -> None:
    record = upload()
    await _cancel(store, store.insert(record, lease=True), when)
    if when == "queued":
        assert await store.load(record.id) is None
    else:
        assert (await hold(store, record.id)).settled


async def test_a_lease_that_cannot_be_let_go_is_abandoned(store: SQLiteMetadataStore) -> None:
    record = upload()
    await add(store, record)
    with Failing(store, "DELETE", sqlite3.SQLITE_FULL) as failing:
        await _cancel(store, store.acquire(record.id), "answered")
        await until(lambda: anyio.to_thread.run_sync(failing.reached.is_set))
    assert not (await hold(store, record.id)).settled


async def _cancel(store: SQLiteMetadataStore, call: Any, when: str) -> None:
    """Cancel a call while it waits for its turn, or when its answer is there and not yet seen."""
    with turn_held(store._path):
        task = asyncio.ensure_future(call)
        while not store._writer._waiting:
            await anyio.lowlevel.checkpoint()
        if when == "queued":
            task.cancel()
        else:
            (operation,) = store._writer._waiting
            callbacks = operation.future._callbacks  # the task's own wake-up
            assert len(callbacks) == 1
            operation.future.remove_done_callback(callbacks[0][0])
            operation.future.add_done_callback(lambda _: task.cancel())
            operation.future.add_done_callback(callbacks[0][0], context=callbacks[0][1])
    with pytest.raises(asyncio.CancelledError):
        await task


# ------------------------------------------------------------------------------------- no room


async def test_a_full_disk(store: SQLiteMetadataStore) -> None:
    """What doesn't fit is refused, the lease is kept, and all goes on when there is room."""
    record = upload()
    await add(store, record)
    grant = await hold(store, record.id)
    connection = store._writer._connection
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")
    big = replace(grant.upload, metadata="x" * 1_000_000)
    fits = replace(grant.upload, offset=1)
    with pytest.raises(NoRoomError):
        await store.insert(upload(metadata="x" * 1_000_000), lease=True)
    with pytest.raises(NoRoomError):
        await store.commit(grant.lease, Change(upload=big, release=True))
    assert await hold_of(store, record.id) is Hold.HELD
    assert len(store._leases._active) == 1
    after = await store.commit(grant.lease, Change(upload=fits))
    connection.execute("PRAGMA max_page_count = 1000000")
    await store.commit(grant.lease, Change(upload=replace(after, metadata=big.metadata)))


@pytest.mark.parametrize("statement", ["COMMIT", "BEGIN IMMEDIATE", "SAVEPOINT", "UPDATE upload"])
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (sqlite3.SQLITE_FULL, NoRoomError),
        (sqlite3.SQLITE_IOERR_FSYNC, UnavailableError),
        (sqlite3.SQLITE_BUSY, UnavailableError),
    ],
)
async def test_a_failed_transaction_fails_all_of_it(
    store: SQLiteMetadataStore, statement: str, code: int, expected: type[MetadataError]
) -> None:
    """Nothing of it is done or held, and the next one is not disturbed."""
    one, two, new = upload(), upload(), upload()
    await add(store, one, two)
    held = await hold(store, one.id)
    change = Change(upload=held.upload, segments=(Segment(0, 0, 1),), release=True)
    with Failing(store, statement, code):
        results = await in_one_batch(
            store,
            store.acquire(two.id),
            store.insert(new, lease=True),
            store.commit(held.lease, change),
        )
    assert [type(result) for result in results] == [expected] * 3
    assert await hold_of(store, one.id) is Hold.HELD
    assert await hold_of(store, two.id) is Hold.FREE
    assert await store.load(new.id) is None
    assert await store.segments(one.id) == []
    assert list(store._leases._active) == [held.lease.token]
    assert (await hold(store, two.id)).settled
    await store.commit(held.lease, change)
    assert await hold_of(store, one.id) is Hold.FREE


async def test_a_connection_that_cannot_even_roll_back_is_replaced(
    store: SQLiteMetadataStore,
) -> None:
    class Broken(Failing):
        def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
            if sql == "ROLLBACK":
                raise self._error
            return super().execute(sql, *args)

    before = id(store._writer._connection)
    with Broken(store, "COMMIT", sqlite3.SQLITE_IOERR) as broken:
        with pytest.raises(UnavailableError):
            await store.insert(upload())
        assert vars(store._writer)["_connection"] is not broken
    assert id(store._writer._connection) != before
    await store.insert(upload(), durable=True)
    assert len([one async for one in store.uploads()]) == 1


async def test_abandonment_is_told_when_it_can_be(store: SQLiteMetadataStore, path: Path) -> None:
    """Other processes learn of it later when it could not be written down at once."""
    async with opened(lambda: SQLiteMetadataStore(path)) as other:
        record = upload()
        await add(store, record)
        grant = await hold(store, record.id)
        with Failing(store, "UPDATE lease", sqlite3.SQLITE_FULL) as failing:
            store.abandon(grant.lease)
            assert await hold_of(store, record.id) is Hold.ABANDONED
            await until(lambda: anyio.to_thread.run_sync(failing.reached.is_set))
            assert await hold_of(other, record.id) is Hold.HELD
        with anyio.fail_after(10):
            await other.wait_released(record.id, 3600)
        assert not (await hold(other, record.id)).settled


async def test_a_release_that_cannot_be_written_is_an_abandonment(
    store: SQLiteMetadataStore,
) -> None:
    record = upload()
    await add(store, record)
    grant = await hold(store, record.id)
    with Failing(store, "DELETE", sqlite3.SQLITE_FULL), pytest.raises(NoRoomError):
        await store.release(grant.lease)
    assert not (await hold(store, record.id)).settled


async def test_a_record_that_cannot_be_read(store: SQLiteMetadataStore) -> None:
    """It is an error of the store, not of msgspec, and nobody holds it."""
    record = upload()
    await add(store, record)
    store._writer._connection.execute("UPDATE upload SET record = CAST('{' AS BLOB)")
    with pytest.raises(MetadataError, match="cannot be read"):
        await store.load(record.id)
    with pytest.raises(MetadataError, match="cannot be read"):
        await store.acquire(record.id)
    assert store._leases._active == {}


async def test_what_is_undone_is_read_out_of_an_index_of_its_own(
    store: SQLiteMetadataStore, path: Path
) -> None:
    """In the order of the ids: what is stored besides is not looked at."""
    connection = sqlite3.connect(path)
    for analysed in (False, True):
        if analysed:
            await add(store, *(upload() for _ in range(300)), upload(offset=1))
            connection.execute("ANALYZE")
        (step,) = connection.execute(f"EXPLAIN QUERY PLAN {UNDONE}", ("", 256))
        assert "USING INDEX upload_undone (id>?)" in step[3]
    connection.close()


# -------------------------------------------------------------------------------------- locked


async def test_another_program_writes(path: Path) -> None:
    async with opened(lambda: SQLiteMetadataStore(path, busy_timeout=0.05)) as store:
        record = upload()
        await add(store, record)
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(UnavailableError, match="locked by another program"):
            await store.insert(upload())
        assert await store.load(record.id)  # who reads is not disturbed
        other.execute("ROLLBACK")
        other.close()
        await store.insert(upload())


async def test_another_process_sleeps_in_its_turn(path: Path) -> None:
    """What waits for it is given up after a while, and not done later."""
    async with opened(lambda: SQLiteMetadataStore(path, busy_timeout=0.1)) as store:
        with turn_held(path):
            results = await together(*[store.insert(upload()) for _ in range(3)])
            assert [type(result) for result in results] == [UnavailableError] * 3
            with pytest.raises(UnavailableError, match="locked by another process"):
                await SQLiteMetadataStore(path, busy_timeout=0.05).open()
        await store.insert(upload())
        assert len([one async for one in store.uploads()]) == 1


async def test_a_turn_that_cannot_be_had(
    store: SQLiteMetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", flock)
        with pytest.raises(UnavailableError, match="No locks available"):
            await store.insert(upload())
    await store.insert(upload())


async def test_a_reader_that_fails(store: SQLiteMetadataStore) -> None:
    with pytest.raises(UnavailableError, match="no such table"):
        await store._in_thread(lambda db: db.execute("SELECT * FROM missing"))
    with pytest.raises(UnavailableError, match="readonly"):
        await store._in_thread(lambda db: db.execute("DELETE FROM upload"))


async def test_closing_while_another_process_sleeps_in_its_turn(path: Path) -> None:
    """It doesn't wait for ever; what was not done is told."""
    store = SQLiteMetadataStore(path, busy_timeout=0.2)
    await store.open()
    with turn_held(path):
        async with anyio.create_task_group() as tasks:
            results: list[Any] = []

            async def insert() -> None:
                results.extend(await together(store.insert(upload())))

            tasks.start_soon(insert)
            await anyio.lowlevel.checkpoint()
            await store.close()
        assert [type(result) for result in results] == [UnavailableError]
    # For the guard against leaks: now the thread can end.
    await anyio.to_thread.run_sync(store._writer._thread.join)
    store._acquired.close()


async def test_reads_in_a_thread_when_the_loop_would_wait(store: SQLiteMetadataStore) -> None:
    """A reader of the event loop never waits for a lock: a thread does."""
    record = upload()
    await add(store, record)
    reader = store._reader
    (timeout,) = reader.execute("PRAGMA busy_timeout").fetchone()
    assert timeout == 0

    class Locked:
        def execute(self, *_: object) -> sqlite3.Cursor:
            raise sqlite3.OperationalError("database is locked")

    store._reader = Locked()  # type: ignore[assignment]
    loaded = await store.load(record.id)
    store._reader = reader
    assert loaded is not None
    assert loaded.upload.id == record.id
