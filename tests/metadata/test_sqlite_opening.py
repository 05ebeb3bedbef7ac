"""How the SQLite store opens, migrates and closes, and why it sometimes will not open."""

from __future__ import annotations

import errno
import os
import sqlite3
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anyio import to_thread
from tests.metadata.conftest import ALL_SORTS, UNDONE

from tidegate.metadata.encoding import encode
from tidegate.metadata.sqlite.schema import MIGRATIONS, prepare
from tidegate.metadata.sqlite.store import SQLiteMetadataStore
from tidegate.ports import Change, Hold, MetadataError, UnavailableError
from tidegate.protocol.model import EventType
from tidegate.testing.metadata.support import NOW, add, event, hold, opened, upload

if TYPE_CHECKING:
    from pathlib import Path

    from tidegate.ports import MetadataStore

pytestmark = pytest.mark.anyio

COMPLETED = EventType.COMPLETED


def holders(path: Path) -> list[str]:
    folder = path.with_name(f"{path.name}-live")
    return [name for name in os.listdir(folder) if name.startswith("holder-")]


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
    loaded = await store.load(record.id)
    return loaded is not None and loaded.hold is Hold.FREE


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
    monkeypatch.setattr("tidegate.metadata.sqlite.liveness.network_filesystem", lambda _: "nfs4")
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
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "x.db-live"))

    monkeypatch.setattr(os, "mkdir", full)
    assert "the disk is full" in await refusal(tmp_path / "x.db")


# ----------------------------------------------------------------------------------- migrations

FIRST = ("CREATE TABLE first (x)", "INSERT INTO first VALUES (1)")
SECOND = ("ALTER TABLE first ADD COLUMN y", "UPDATE first SET y = x + 1")


async def test_migrates_forward(path: Path) -> None:
    """An older database gets the steps that it lacks, once, and keeps what it has."""
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


async def test_what_was_to_be_delivered_still_is(path: Path) -> None:
    """Of a database from when an event was told to all sinks before the next: schema 3."""
    one, two, three = upload("one"), upload("two"), upload("three")
    await to_thread.run_sync(lambda: prepare(path, busy_timeout=5, migrations=MIGRATIONS[:3]))
    connection = sqlite3.connect(path)
    told = [(one, NOW + 50, 3, 0), (one, None, 0, 0), (two, None, 40, 1), (three, 0, 0, 0)]
    for about, due_at, attempts, given_up in told:
        connection.execute(
            "INSERT INTO event (upload_id, type, at, record, due_at, attempts, given_up, done)"
            " VALUES (?, 'created', 1, ?, ?, ?, ?, 'mail')",
            (about.id, encode(event(about)), due_at, attempts, given_up),
        )
    connection.commit()
    connection.close()
    async with opened(lambda: SQLiteMetadataStore(path)) as store:
        assert [u.given_up async for u in store.events()] == [False, False, True, False]
        (third,) = await store.claim_events(NOW + 49, 10, 60)
        assert [d.sequence for d in third.deliveries] == [4]
        (first,) = await store.claim_events(NOW + 50, 10, 60)
        assert [(d.sequence, d.done, d.retries) for d in first.deliveries] == [
            (1, ("mail",), ()),
            (2, ("mail",), ()),
        ]
        assert await store.replay(3)
        (second,) = await store.claim_events(NOW, 10, 60)
        assert second.upload_id == two.id


async def test_what_was_undone_still_is(path: Path) -> None:
    """Of a database from when that was not written down: schema 4."""
    await to_thread.run_sync(lambda: prepare(path, busy_timeout=5, migrations=MIGRATIONS[:4]))
    connection = sqlite3.connect(path)
    for record in ALL_SORTS:
        connection.execute(
            "INSERT INTO upload (id, version, state, kind, record, promised, stored)"
            " VALUES (?, 1, ?, 'regular', ?, ?, ?)",
            (record.id, record.state, encode(record), record.promised, record.offset),
        )
    connection.commit()
    connection.close()
    async with opened(lambda: SQLiteMetadataStore(path)) as store:
        assert [one.id async for one in store.undone()] == UNDONE


async def test_what_was_handed_over_still_is(path: Path) -> None:
    """Of a database from when it was written down one by one: schema 6."""
    await to_thread.run_sync(lambda: prepare(path, busy_timeout=5, migrations=MIGRATIONS[:6]))
    connection = sqlite3.connect(path)
    records = [upload("one"), upload("two")]
    for told, record in enumerate(records):
        connection.execute(
            "INSERT INTO upload (id, version, state, kind, record) VALUES (?, 1, ?, 'regular', ?)",
            (record.id, record.state, encode(record)),
        )
        connection.execute(
            "INSERT INTO handed VALUES (?, ?, 'dead', ?, ?)",
            (2 * told + 2, record.id, told, encode([event(record), event(record, COMPLETED)])),
        )
    connection.commit()
    rows = "SELECT id, handed FROM upload ORDER BY id"
    async with opened(lambda: SQLiteMetadataStore(path)) as store:
        assert connection.execute(rows).fetchall() == [("one", 2), ("two", 4)]
        assert [u.delivery.sequence async for u in store.events()] == [1, 2, 4]
        lines = await store.claim_events(NOW, 10, 60)
        assert [[d.event for d in line.deliveries] for line in lines] == [
            [event(records[0]), event(records[0], COMPLETED)],
            [event(records[1], COMPLETED)],
        ]
    connection.close()


async def test_a_failed_migration_changes_nothing(path: Path) -> None:
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
    async with anyio.create_task_group() as tasks:
        for store in stores:
            tasks.start_soon(store.open)
    record = upload()
    await add(stores[0], record)
    for store in stores:
        assert await store.load(record.id)
    for store in stores:
        await store.close()


async def test_lets_go_of_everything_when_opening_fails(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it was that failed: no descriptor (see the guards), and no sign of life, is left."""
    connect, opening = sqlite3.connect, os.open
    for good in range(3):
        left = [True] * good

        def failing(*args: Any, left: list[bool] = left, **options: Any) -> Any:
            if not left:
                raise sqlite3.OperationalError("injected")
            left.pop()
            return connect(*args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(sqlite3, "connect", failing)
            assert "injected" in await refusal(path)
        assert holders(path) == []

    for name in ("turn", "holder-"):

        def refusing(place: Any, *args: Any, name: str = name) -> int:
            if name in str(place):
                raise OSError(errno.EMFILE, "Too many open files", str(place))
            return opening(place, *args)

        with monkeypatch.context() as patch:
            patch.setattr(os, "open", refusing)
            assert "Too many open files" in await refusal(path)
    async with opened(lambda: SQLiteMetadataStore(path)) as store:
        assert await still_works(store)
