"""What is particular to the SQLite store: processes, transactions, errors."""

from __future__ import annotations

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

from tidegate.metadata.sqlite import SQLiteMetadataStore
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
    (delivery,) = await store.claim_events(NOW, 10, 1)
    assert delivery.event.upload.id == one.id
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


# ------------------------------------------------------------------------------ opening, closing


async def test_closing_finishes_what_was_begun(path: Path) -> None:
    store = SQLiteMetadataStore(path)
    await store.open()
    records = [upload() for _ in range(50)]
    async with anyio.create_task_group() as tasks:
        for record in records:
            tasks.start_soon(store.insert, record)
        await anyio.lowlevel.checkpoint()
        await store.close()
    await store.close()
    assert holders(path) == []
    assert not path.with_name(f"{path.name}-wal").exists()
    async with opened(lambda: SQLiteMetadataStore(path)) as again:
        assert len([one async for one in again.uploads()]) == 50


async def test_a_closed_store_says_so(path: Path) -> None:
    store = SQLiteMetadataStore(path)
    await store.open()
    record = upload()
    grant = await store.insert(record, lease=True)
    assert grant is not None
    await store.close()
    for call in (
        store.load(record.id),
        store.segments(record.id),
        store.acquire(record.id),
        store.insert(upload()),
        store.commit(grant.lease, Change(upload=grant.upload)),
    ):
        with pytest.raises(UnavailableError, match="closed"):
            await call
    store.abandon(grant.lease)
    # And it can be opened again.
    await store.open()
    assert not (await hold(store, record.id)).settled
    await store.close()


async def test_clears_away_what_dead_holders_left(store: SQLiteMetadataStore, path: Path) -> None:
    folder = path.with_name(f"{path.name}-live")
    (alive,) = holders(path)
    (folder / "holder-dead").touch()
    async with opened(lambda: SQLiteMetadataStore(path)):
        assert len(holders(path)) == 2
    assert holders(path) == [alive]
    assert await still_works(store)


async def still_works(store: MetadataStore) -> bool:
    record = upload()
    await add(store, record)
    return await hold_of(store, record.id) is Hold.FREE


def make(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


async def refusal(path: Path, **options: Any) -> str:
    """Why it can't be opened. Nothing is left open, or lying about, by that."""
    store = SQLiteMetadataStore(path, busy_timeout=0.05, **options)
    with pytest.raises(MetadataError) as caught:
        await store.open()
    await store.close()
    message = str(caught.value)
    assert "\n" not in message
    assert str(path.parent) in message
    return message


async def test_says_why_it_cannot_open(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    assert "does not exist" in await refusal(tmp_path / "missing" / "x.db")
    (tmp_path / "folder.db").mkdir()
    assert "is a directory" in await refusal(tmp_path / "folder.db")
    path.write_bytes(b"not a database, but long enough to look like one" * 100)
    assert "not a SQLite database" in await refusal(path)
    assert path.read_bytes().startswith(b"not a database")


async def test_says_that_it_may_not_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.db"
    make(path)
    path.touch()
    monkeypatch.setattr(os, "access", lambda place, _: place != path)
    assert f"{path}: the database is not writable" in await refusal(path)
    monkeypatch.setattr(os, "access", lambda place, _: place != tmp_path)
    assert "the directory of the database is not writable" in await refusal(path)


async def test_says_that_a_network_file_system_will_not_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tidegate.metadata.liveness.network_filesystem", lambda _: "nfs4")
    assert "network file system (nfs4)" in await refusal(tmp_path / "x.db")
    assert os.listdir(tmp_path) == []


async def test_refuses_another_applications_database(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    make(path, "CREATE TABLE theirs (x)")
    assert "of another application" in await refusal(path)
    make(path, "DROP TABLE theirs", "PRAGMA application_id = 7")
    assert "of another application" in await refusal(path)
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)  # left as it was
    connection.close()


async def test_says_that_the_database_is_locked(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    assert "locked by another program" in await refusal(path)
    other.close()


async def test_says_that_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", str(tmp_path / "x.db-live"))

    monkeypatch.setattr(os, "mkdir", full)
    assert "the disk is full" in await refusal(tmp_path / "x.db")


# ----------------------------------------------------------------------------------- migrations

FIRST = ("CREATE TABLE first (x)", "INSERT INTO first VALUES (1)")
SECOND = ("ALTER TABLE first ADD COLUMN y", "UPDATE first SET y = x + 1")


async def test_migrates_forward(path: Path) -> None:
    """An older database gets the steps that it lacks, once, and keeps what it has."""
    from tidegate.metadata.sqlite_schema import MIGRATIONS

    record = upload()
    async with opened(lambda: SQLiteMetadataStore(path)) as store:
        await add(store, record)
    newer = (*MIGRATIONS, FIRST, SECOND)
    for _ in range(2):
        async with opened(lambda: SQLiteMetadataStore(path, migrations=newer)) as store:
            assert await store.load(record.id)
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT * FROM first").fetchall() == [(1, 2)]
    assert connection.execute("PRAGMA user_version").fetchone() == (len(newer),)
    connection.close()
    assert "written by a newer tidegate" in await refusal(path)
    assert f"schema {len(newer)}, this one knows {len(MIGRATIONS)}" in await refusal(path)


async def test_a_failed_migration_changes_nothing(path: Path) -> None:
    from tidegate.metadata.sqlite_schema import MIGRATIONS

    async with opened(lambda: SQLiteMetadataStore(path)):
        pass
    broken = (*MIGRATIONS, FIRST, ("UPDATE missing SET x = 1",))
    assert "no such table: missing" in await refusal(path, migrations=broken)
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
    connection.close()
    async with opened(lambda: SQLiteMetadataStore(path)) as store:
        assert await still_works(store)


async def test_two_open_a_new_database_at_once(path: Path) -> None:
    stores = [SQLiteMetadataStore(path) for _ in range(4)]
    await together(*[store.open() for store in stores])
    record = upload()
    await add(stores[0], record)
    for store in stores:
        assert await store.load(record.id)
    for store in stores:
        await store.close()
