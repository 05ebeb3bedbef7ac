"""How the PostgreSQL store opens, migrates and closes, and why it sometimes will not open."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import anyio
import pytest
from tests.metadata.conftest import ALL_SORTS, UNDONE, started
from tests.support import postgres
from tests.support.logs import logs_kept
from tests.support.postgres_wire import CuttingLine

from tidegate.metadata.encoding import encode
from tidegate.metadata.postgres import address as postgres_address
from tidegate.metadata.postgres import lists
from tidegate.metadata.postgres.address import AddressError
from tidegate.metadata.postgres.schema import MIGRATIONS
from tidegate.metadata.postgres.store import PostgresMetadataStore
from tidegate.ports import Change, Hold, MetadataError, UnavailableError
from tidegate.testing.metadata.support import NOW, add, event, hold, opened, upload

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.ports import MetadataStore

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _logged() -> Iterator[None]:
    with logs_kept():
        yield


async def sql(*statements: str) -> str:
    return await anyio.to_thread.run_sync(postgres.server().sql, *statements)


async def still_works(store: MetadataStore) -> bool:
    record = upload()
    await add(store, record)
    loaded = await store.load(record.id)
    return loaded is not None and loaded.hold is Hold.FREE


# ------------------------------------------------------------------------------------ migration


async def test_many_that_open_at_once_make_the_schema_once(url: str) -> None:
    """In one process and in others: none fails, and none does it twice."""
    stores = [PostgresMetadataStore(url) for _ in range(6)]
    record = upload()
    async with anyio.create_task_group() as tasks:
        for store in stores:
            tasks.start_soon(store.open)
        with started(url, "turn", "x") as one, started(url, "turn", "y") as two:
            for child in (one, two):
                assert await anyio.to_thread.run_sync(child.says) == "True"
    await add(stores[0], record)
    for store in stores:
        assert await store.schema_version() == len(MIGRATIONS)
        assert await store.load(record.id) is not None
        await store.close()
    schema = stores[0].address.schema
    assert await sql(f"SELECT count(*) FROM {schema}.schema_version") == "1"


async def test_a_newer_schema_is_refused_and_left_alone(url: str) -> None:
    newer = PostgresMetadataStore(
        url, migrations=[*MIGRATIONS, "CREATE TABLE tidegate.tomorrow (x int)"]
    )
    await newer.open()
    await newer.close()
    older = PostgresMetadataStore(url)
    with pytest.raises(MetadataError, match=r"newer tidegate \(version 4, this one knows 3\)"):
        await older.open()
    assert await older.schema_version() == 4
    await newer.open()
    assert await still_works(newer)
    await newer.close()


async def test_an_older_schema_is_migrated_under_a_store_that_is_open(url: str) -> None:
    """A cluster is upgraded one server after another."""
    async with opened(lambda: PostgresMetadataStore(url)) as old:
        record = upload()
        await add(old, record)
        for _ in range(8):  # until the server has a plan for it
            await old.load(record.id)
        step = "ALTER TABLE tidegate.upload ALTER COLUMN record TYPE bytea, ADD COLUMN more int"
        new = PostgresMetadataStore(url, migrations=[*MIGRATIONS, step])
        await new.open()
        assert await still_works(new)
        assert await still_works(old)
        assert await old.load(record.id) is not None
        await new.close()


async def test_what_was_to_be_delivered_still_is(url: str) -> None:
    """Of tables from when an event was told to all sinks before the next: version 1."""
    old = PostgresMetadataStore(url, migrations=MIGRATIONS[:1])
    await old.open()
    await old.close()
    schema = old.address.schema
    for name, due_at, given_up in (
        ("one", f"{NOW + 50}", "false"),
        ("one", "NULL", "false"),
        ("two", "NULL", "true"),
        ("three", "0", "false"),
    ):
        record = encode(event(upload(name))).hex()
        await sql(
            f"INSERT INTO {schema}.event (upload_id, type, at, record, due_at, given_up, done)"
            f" VALUES ('{name}', 'created', 1, decode('{record}', 'hex'), {due_at}, {given_up},"
            " 'mail')"
        )
    async with opened(lambda: PostgresMetadataStore(url)) as store:
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
        assert second.upload_id == "two"


@pytest.mark.parametrize("encoding", ["UTF8", "LATIN1"])
async def test_what_was_undone_still_is(url: str, encoding: str) -> None:
    """Of tables from when that was not written down: version 2. Whatever the database can't spell."""
    await sql(
        f"DROP DATABASE IF EXISTS {encoding}",
        f"CREATE DATABASE {encoding} TEMPLATE template0 LOCALE 'C' ENCODING '{encoding}'",
    )
    there = url.replace("/postgres?", f"/{encoding.lower()}?")
    async with opened(lambda: PostgresMetadataStore(there)) as old:
        assert isinstance(old, PostgresMetadataStore)
        await add(old, *ALL_SORTS)
        await old._run(
            lambda link: link.script(
                "ALTER TABLE tidegate.upload DROP COLUMN undone;"
                "UPDATE tidegate.schema_version SET version = 2"
            )
        )
    async with opened(lambda: PostgresMetadataStore(there)) as store:
        assert [one.id async for one in store.undone()] == UNDONE


async def test_what_is_undone_is_read_out_of_an_index_of_its_own(url: str) -> None:
    """In the order of the ids: what is stored besides is not looked at."""
    async with opened(lambda: PostgresMetadataStore(url)) as store:
        assert isinstance(store, PostgresMetadataStore)
        schema = store.address.schema
        await sql(
            f"INSERT INTO {schema}.upload (id, version, state, kind, promised, stored, written_by,"
            " record, undone) SELECT 'u' || n, 1, 'receiving', 'regular', 100, 0, 0,"
            " '', n % 1000 = 0 FROM generate_series(1, 20000) n",
        )
        query = lists.UNDONE.replace("tidegate.", f"{schema}.")
        for statistics in ("SELECT 1", f"ANALYZE {schema}.upload"):
            plan = await sql(
                statistics,
                f"PREPARE undone (text, bigint) AS {query}",
                "SET plan_cache_mode = force_generic_plan",
                "EXPLAIN (COSTS OFF) EXECUTE undone ('', 256)",
            )
            assert "Index Scan using upload_undone" in plan
            assert "Sort" not in plan


async def test_a_migration_that_fails_leaves_nothing(url: str) -> None:
    broken = PostgresMetadataStore(url, migrations=[*MIGRATIONS, "SELECT 1 / 0"])
    with pytest.raises(MetadataError, match="division by zero"):
        await broken.open()
    whole = PostgresMetadataStore(url)
    assert await whole.schema_version() == 0
    await whole.open()
    assert await still_works(whole)
    await whole.close()


async def test_a_schema_that_an_operator_made_is_used(url: str) -> None:
    """By a role that may not make any."""
    schema = PostgresMetadataStore(url).address.schema
    await sql(
        f"CREATE ROLE r{schema} LOGIN",
        f"CREATE SCHEMA {schema} AUTHORIZATION r{schema}",
        "REVOKE CREATE ON DATABASE postgres FROM PUBLIC",
    )
    own = url.replace("//postgres@", f"//r{schema}@")
    async with opened(lambda: PostgresMetadataStore(own)) as store:
        assert await still_works(store)
    elsewhere = own.replace(f"schema={schema}", f"schema=x{schema}")
    with pytest.raises(MetadataError, match="permission denied for database postgres"):
        await PostgresMetadataStore(elsewhere).open()


# ------------------------------------------------------------------------------ opening, closing


async def test_a_closed_store_says_so_and_can_be_opened_again(url: str) -> None:
    store = PostgresMetadataStore(url)
    await store.close()
    await store.open()
    record = upload()
    grant = await store.insert(record, lease=True)
    assert grant is not None
    await store.close()
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
    await store.open()
    assert not (await hold(store, record.id)).settled
    schema = store.address.schema
    assert await sql(f"SELECT count(*) FROM {schema}.holder") == "1"
    await store.close()
    assert await sql(f"SELECT count(*) FROM {schema}.holder") == "0"


async def test_closing_finishes_what_was_begun(url: str) -> None:
    store = PostgresMetadataStore(url)
    await store.open()
    records = [upload() for _ in range(50)]
    async with anyio.create_task_group() as tasks:
        for record in records:
            tasks.start_soon(store.insert, record)
        await anyio.lowlevel.checkpoint()
        await store.close()
    async with opened(lambda: PostgresMetadataStore(url)) as again:
        assert len([one async for one in again.uploads()]) == 50


async def test_a_store_closes_when_its_database_is_gone() -> None:
    """In a bounded time, and whatever it holds."""
    server = postgres.server()
    async with CuttingLine(server.port) as line:
        url = server.url(port=line.port, patience=1, heartbeat=0.5, ttl=3)
        store = PostgresMetadataStore(url)
        await store.open()
        grant = await store.insert(upload(), lease=True)
        assert grant is not None
        line.down = True
        line.cut()
        store.abandon(grant.lease)
        with anyio.fail_after(20):
            await store.close()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("//postgres@", "//locked:wrong@"), "password authentication failed"),
        (("/postgres?", "/nowhere?"), '"nowhere" does not exist'),
        (("//postgres@", "//nobody@"), '"nobody" does not exist'),
        (("?", "?sslmode=require&"), "SSL"),
        (("?", "?sslmode=nonsense&"), "sslmode"),
        (("?", "?password=s3cret&application_name=a%00b&"), ""),
    ],
)
async def test_says_why_it_cannot_open(url: str, change: tuple[str, str], said: str) -> None:
    """In one line, without any password; nothing is left open by that."""
    store = PostgresMetadataStore(url.replace(*change) + "&patience=2")
    with pytest.raises(MetadataError) as caught:
        await store.open()
    await store.close()
    message = str(caught.value)
    assert said in message
    assert "\n" not in message
    assert "wrong" not in message
    assert "s3cret" not in message


async def test_a_password_with_all_sorts_of_characters(url: str) -> None:
    """Is taken from the URL, and shown nowhere."""
    await sql(
        "DROP ROLE IF EXISTS locked",
        f"CREATE ROLE locked LOGIN SUPERUSER PASSWORD '{postgres.PASSWORD}'",
    )
    own = url.replace("//postgres@", "//locked:s3cr%3Aet%2Fpw@")
    async with opened(lambda: PostgresMetadataStore(own)) as store:
        assert await still_works(store)
        assert isinstance(store, PostgresMetadataStore)
        assert "s3cr" not in repr(store.address)


# ----------------------------------------------------------------------------------------- URLs


def test_a_url_says_how_the_store_is_used() -> None:
    url = "postgresql://u:p%40w@h:1,g:2/db?schema=a_1&pool=3&ttl=6.5&heartbeat=1&patience=2"
    address = postgres_address.parse(f"{url}&listen=no&sslmode=verify-full&sslrootcert=/a%20b")
    assert address == postgres_address.Address(
        dsn="postgresql://u:p%40w@h:1,g:2/db?sslmode=verify-full&sslrootcert=%2Fa+b",
        schema="a_1",
        pool=3,
        ttl=6.5,
        heartbeat=1.0,
        patience=2.0,
        listen=False,
    )
    assert postgres_address.parse("postgres:///db?pool=1").dsn == "postgresql:///db"
    assert postgres_address.parse("postgresql://").dsn == "postgresql://"


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("schema=Up", "schema=Up"),
        ("schema=a%22b", "schema=a"),
        ("schema=pg_x", "pg_"),
        ("schema=" + "x" * 41, "40"),
        ("pool=0", "1 to 1000"),
        ("pool=x", "1 to 1000"),
        ("listen=maybe", "yes, no or auto"),
        ("ttl=-1", "seconds"),
        ("heartbeat=nan", "seconds"),
        ("ttl=3&heartbeat=2", "two heartbeats"),
    ],
)
def test_a_url_that_makes_no_sense(query: str, said: str) -> None:
    with pytest.raises(AddressError, match=re.escape(said)):
        postgres_address.parse(f"postgresql://h/db?{query}")
    with pytest.raises(AddressError, match="slashes"):
        postgres_address.parse("postgresql:h/db")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:pw@h/db", "postgresql://u:***@h/db"),
        ("postgresql://u:p:w@h/db", "postgresql://u:***@h/db"),
        ("postgresql://h/db?password=pw&x=1", "postgresql://h/db?password=***&x=1"),
        ("postgresql://u@h/db", "postgresql://u@h/db"),
        ("sqlite:x.db", "sqlite:x.db"),
    ],
)
def test_a_password_is_hidden(url: str, shown: str) -> None:
    assert postgres_address.hide_password(url) == shown
