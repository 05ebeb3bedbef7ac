"""The PostgreSQL store while its database goes, comes back, and answers are lost: it never lies."""

from __future__ import annotations

import random
import time
from collections import Counter
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import anyio
import pytest
from msgspec.structs import replace
from tests.support import postgres
from tests.support.logs import logs_kept
from tests.support.postgres_wire import CuttingLine, executed

from tidegate.metadata.postgres.store import PostgresMetadataStore
from tidegate.ports import (
    Change,
    Held,
    Hold,
    LeaseLostError,
    MetadataError,
    NoRoomError,
    Retry,
    UnavailableError,
)
from tidegate.protocol.model import Segment
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
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from tidegate.metadata.postgres.link import Link
    from tidegate.ports import MetadataStore
    from tidegate.protocol.model import UploadId

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _logged() -> Iterator[None]:
    with logs_kept():
        yield


@pytest.fixture
async def line() -> AsyncIterator[CuttingLine]:
    async with CuttingLine(postgres.server().port) as line:
        yield line


@pytest.fixture
def schema() -> str:
    return postgres.server().url().partition("schema=")[2]


@pytest.fixture
async def cut(line: CuttingLine, schema: str) -> AsyncIterator[MetadataStore]:
    """A store behind the line; it does not listen, so that what goes by is what a test did."""
    url = postgres.server().url(schema, port=line.port, listen="no", patience=2)
    async with opened(lambda: PostgresMetadataStore(url), "cut") as store:
        yield store


@pytest.fixture
async def direct(schema: str, cut: MetadataStore) -> AsyncIterator[MetadataStore]:
    """Another one on the same tables."""
    url = postgres.server().url(schema)
    async with opened(lambda: PostgresMetadataStore(url), "direct") as store:
        yield store


async def sql(*statements: str) -> str:
    return await anyio.to_thread.run_sync(postgres.server().sql, *statements)


# ------------------------------------------------------------------------- answers that are lost

COMMIT = "SET version ="
INSERT = "INSERT INTO"


@pytest.mark.parametrize("carried_out", [True, False])
@pytest.mark.parametrize("release", [True, False])
async def test_a_commit_happens_once(
    cut: MetadataStore, line: CuttingLine, *, carried_out: bool, release: bool
) -> None:
    """Its line is cut before the server has it, or before its answer is there."""
    record = upload()
    await add(cut, record)
    grant = await hold(cut, record.id)
    change = Change(
        upload=replace(grant.upload, offset=7),
        events=(event(record),),
        segments=(Segment(0, 0, 7),),
        release=release,
    )
    (line.lose_answer if carried_out else line.lose_request)(COMMIT)
    after = await cut.commit(grant.lease, change)
    await line.lost.wait()
    assert len(executed(line, [COMMIT])) == 2
    assert (after.offset, after.version) == (7, 2)
    loaded = await cut.load(record.id)
    assert loaded is not None
    assert loaded.upload == after
    assert loaded.hold is (Hold.FREE if release else Hold.HELD)
    assert len([one async for one in cut.events()]) == 1
    assert await cut.segments(record.id) == [Segment(0, 0, 7)]


@asynccontextmanager
async def away(
    line: CuttingLine, call: Callable[[], Awaitable[object]]
) -> AsyncIterator[list[MetadataError]]:
    """A call whose line is lost; it gets through again when this is left. What it was told."""
    told: list[MetadataError] = []

    async def work() -> None:
        try:
            await call()
        except MetadataError as error:
            told.append(error)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work)
        await line.lost.wait()
        line.down = True
        line.cut()
        yield told
        line.down = False


async def test_a_commit_that_was_not_carried_out_and_is_late_is_refused(
    cut: MetadataStore, direct: MetadataStore, line: CuttingLine
) -> None:
    """Somebody took the lease meanwhile: that it did not happen is known, and said."""
    record = upload()
    await add(cut, record)
    grant = await hold(cut, record.id)
    change = Change(upload=replace(grant.upload, offset=7))
    line.lose_request(COMMIT)
    async with away(line, lambda: cut.commit(grant.lease, change)) as told:
        await hold(direct, record.id, force=True)
    assert [type(error) for error in told] == [LeaseLostError]
    loaded = await direct.load(record.id)
    assert loaded is not None
    assert loaded.upload.offset == 0


async def test_what_nobody_can_tell_is_not_told(
    cut: MetadataStore, direct: MetadataStore, line: CuttingLine
) -> None:
    """The commit was carried out, its answer lost, and somebody else has committed since."""
    record = upload()
    await add(cut, record)
    grant = await hold(cut, record.id)
    change = Change(upload=replace(grant.upload, offset=7))
    line.lose_answer(COMMIT)
    async with away(line, lambda: cut.commit(grant.lease, change)) as told:
        taken = await hold(direct, record.id, force=True)
        assert taken.upload.offset == 7
        await direct.commit(taken.lease, Change(upload=replace(taken.upload, offset=8)))
    assert [type(error) for error in told] == [UnavailableError]
    assert "nobody knows" in str(told[0])


@pytest.mark.parametrize("carried_out", [True, False])
async def test_forgetting_is_told_only_if_it_is_known(
    cut: MetadataStore, line: CuttingLine, *, carried_out: bool
) -> None:
    record = upload()
    await add(cut, record)
    grant = await hold(cut, record.id)
    change = Change(upload=grant.upload, forget=True)
    if carried_out:
        line.lose_answer("DELETE FROM")
        with pytest.raises(UnavailableError, match="nobody knows"):
            await cut.commit(grant.lease, change)
    else:
        line.lose_request("DELETE FROM")
        await cut.commit(grant.lease, change)
    assert await cut.load(record.id) is None


@pytest.mark.parametrize("carried_out", [True, False])
@pytest.mark.parametrize("lease", [True, False])
async def test_an_insert_happens_once(
    cut: MetadataStore, line: CuttingLine, *, carried_out: bool, lease: bool
) -> None:
    """It is not taken for a second upload with the same id."""
    part = partial()
    await add(cut, part)
    for record in (upload(), final(part)):
        (line.lose_answer if carried_out else line.lose_request)(INSERT)
        grant = await cut.insert(record, lease=lease, events=[event(record)])
        await line.lost.wait()
        assert (grant is not None) == lease
        if grant is not None:
            await cut.commit(grant.lease, Change(upload=grant.upload, release=True))
        loaded = await cut.load(record.id)
        assert loaded is not None
        assert loaded.hold is Hold.FREE
    assert len([one async for one in cut.events()]) == 2


@pytest.mark.parametrize("carried_out", [True, False])
async def test_a_lease_is_not_lost_with_its_answer(
    cut: MetadataStore, direct: MetadataStore, line: CuttingLine, *, carried_out: bool
) -> None:
    record = upload()
    await add(cut, record)
    (line.lose_answer if carried_out else line.lose_request)("WITH seen")
    grant = await hold(cut, record.id)
    await line.lost.wait()
    await cut.renew(grant.lease)
    assert isinstance(await direct.acquire(record.id), Held)
    await cut.commit(grant.lease, Change(upload=grant.upload, release=True))
    assert (await hold(direct, record.id)).settled


async def test_a_lease_that_nobody_knows_of_is_let_go(
    line: CuttingLine, schema: str, direct: MetadataStore
) -> None:
    """The database is away for so long that who asked for the lease is told no."""
    options = {"heartbeat": 0.2, "ttl": 60, "patience": 1, "listen": "no"}
    url = postgres.server().url(schema, port=line.port, **options)
    async with opened(lambda: PostgresMetadataStore(url)) as store:
        record = upload()
        await add(store, record)
        line.lose_answer("WITH seen")
        refused: list[BaseException] = []

        async def acquire() -> None:
            try:
                await store.acquire(record.id)
            except UnavailableError as error:
                refused.append(error)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(acquire)
            await line.lost.wait()
            line.down = True
            line.cut()
        assert refused
        assert isinstance(await direct.acquire(record.id), Held)
        line.down = False
        async with patience():
            await direct.wait_released(record.id, 3600)
        assert not (await hold(direct, record.id)).settled


async def test_the_end_of_a_claim_counts_once(cut: MetadataStore, line: CuttingLine) -> None:
    """And not for who has the line by then."""
    record = upload()
    await cut.insert(record, events=[event(record), event(record)])
    (claimed,) = await cut.claim_events(NOW, 1, 60)
    _, second = claimed.deliveries
    failed = second.after(["queue"], [Retry("mail", 1, NOW + 100)])
    line.lose_answer("held AS")
    # It is sent again, and finds that it was done.
    assert not await end_claim(cut, claimed, kept=[failed], due_at=NOW + 100)
    assert [each.delivery async for each in cut.events()] == [failed]
    assert await cut.claim_events(NOW + 99, 1, 60) == []
    (claimed,) = await cut.claim_events(NOW + 100, 1, 60)
    assert claimed.deliveries == (failed,)
    line.lose_answer("held AS")
    await end_claim(cut, claimed)
    assert [each async for each in cut.events()] == []


# ------------------------------------------------------------------------------------- outages


async def test_an_outage_is_said_and_ends(line: CuttingLine, schema: str) -> None:
    """No call waits for longer than it may, or answers what it does not know."""
    options = {"patience": 1, "heartbeat": 0.5, "ttl": 60}
    url = postgres.server().url(schema, port=line.port, **options)
    async with opened(lambda: PostgresMetadataStore(url)) as store:
        record = upload()
        grant = await store.insert(record, lease=True)
        assert grant is not None
        line.down = True
        line.cut()

        async def fails(call: Callable[[], Awaitable[object]]) -> None:
            began = time.monotonic()
            with pytest.raises(UnavailableError):
                await call()
            assert time.monotonic() - began < 10

        async with anyio.create_task_group() as tasks:
            for call in (
                lambda: store.load(record.id),
                lambda: store.acquire(record.id),
                lambda: store.insert(upload()),
                lambda: store.renew(grant.lease),
                lambda: store.commit(grant.lease, Change(upload=grant.upload)),
                store.counts,
                lambda: store.claim_events(NOW, 1, 1),
            ):
                tasks.start_soon(fails, call)
        line.down = False
        await until(lambda: _works(store))
        after = await store.commit(grant.lease, Change(upload=replace(grant.upload, offset=5)))
        assert after.offset == 5


async def _works(store: MetadataStore) -> bool:
    try:
        await store.counts()
    except UnavailableError:
        return False
    return True


async def test_a_short_outage_costs_nothing(cut: MetadataStore, line: CuttingLine) -> None:
    """Every call waits for its end."""
    record = upload()
    await add(cut, record)
    line.down = True
    line.cut()
    async with anyio.create_task_group() as tasks:
        for _ in range(15):
            tasks.start_soon(cut.load, record.id)

        async def tried() -> bool:
            return line.refused > 20

        await until(tried)
        line.down = False


async def test_a_database_that_says_nothing_is_an_outage(line: CuttingLine, schema: str) -> None:
    """The line is open, and no answer comes."""
    url = postgres.server().url(schema, port=line.port, patience=1, heartbeat=0.5, ttl=60)
    async with opened(lambda: PostgresMetadataStore(url)) as store:
        record = upload()
        await add(store, record)
        line.deaf = True
        with pytest.raises(UnavailableError, match="no answer in time"):
            await store.load(record.id)
        line.deaf = False
        line.cut()
        await until(lambda: _works(store))


async def test_what_used_up_the_time_is_said(schema: str) -> None:
    """And not that it was up, which the last attempt came to know."""
    tries = 0

    async def refused_then_slow(_link: Link) -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise ConnectionRefusedError("nobody listens")
        await anyio.sleep_forever()

    url = postgres.server().url(schema, patience=1)
    async with opened(lambda: PostgresMetadataStore(url)) as store:
        assert isinstance(store, PostgresMetadataStore)
        with pytest.raises(UnavailableError, match="nobody listens"):
            await store._opened_pool().attempt(refused_then_slow)
    assert tries == 2


async def test_leases_that_may_be_lost_are_wanted(line: CuttingLine, schema: str) -> None:
    """Whoever writes stops before another one may begin."""
    url = postgres.server().url(schema, port=line.port, patience=1, heartbeat=1, ttl=4)
    other = postgres.server().url(schema)
    async with (
        opened(lambda: PostgresMetadataStore(url)) as store,
        opened(lambda: PostgresMetadataStore(other)) as direct,
    ):
        grant = await store.insert(upload(), lease=True)
        assert grant is not None
        line.down = True
        line.cut()
        async with patience():
            await grant.wanted.wait()
        loaded = await direct.load(grant.upload.id)
        assert loaded is not None
        assert loaded.hold is Hold.HELD
        async with patience():
            await direct.wait_released(grant.upload.id, 3600)
        taken = await hold(direct, grant.upload.id)
        line.down = False
        await until(lambda: _works(store))
        with pytest.raises(LeaseLostError):
            await store.commit(grant.lease, Change(upload=replace(grant.upload, offset=9)))
        await direct.renew(taken.lease)


async def test_what_was_acknowledged_survives_the_death_of_the_database() -> None:
    """Its processes are killed with commits in flight; it comes back, and the store goes on."""
    server = postgres.Postgres(fsync=True)
    try:
        await anyio.to_thread.run_sync(server.start)
        url = server.url(patience=1, heartbeat=0.5, ttl=60)
        async with opened(lambda: PostgresMetadataStore(url)) as store:
            acknowledged: dict[str, int] = {}

            async def write() -> None:
                grant = await store.insert(upload(length=None), lease=True)
                assert grant is not None
                record = grant.upload
                try:
                    while True:
                        after = replace(record, offset=record.offset + 1)
                        record = await store.commit(grant.lease, Change(upload=after))
                        acknowledged[record.id] = record.offset
                except UnavailableError:
                    return

            async with anyio.create_task_group() as tasks:
                for _ in range(8):
                    tasks.start_soon(write)

                async def begun() -> bool:
                    return len(acknowledged) == 8 and min(acknowledged.values()) > 3

                await until(begun)
                await anyio.to_thread.run_sync(lambda: server.stop(hard=True))
            await anyio.to_thread.run_sync(server.start)
            await until(lambda: _works(store))
            for upload_id, offset in acknowledged.items():
                loaded = await store.load(upload_id)  # type: ignore[arg-type]
                assert loaded is not None
                # One more may have been committed, and not acknowledged.
                assert offset <= loaded.upload.offset <= offset + 1
    finally:
        await anyio.to_thread.run_sync(server.close)


# --------------------------------------------------------------------------- what it may answer


async def _raises_on_update(schema: str, code: str, *, times: int) -> None:
    """Have the server raise an error of its own on so many changes of an upload."""
    await sql(
        f"CREATE SEQUENCE {schema}.trouble",
        f"CREATE FUNCTION {schema}.trouble() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" IF nextval('{schema}.trouble') <= {times} THEN"
        f" RAISE EXCEPTION 'trouble' USING ERRCODE = '{code}'; END IF; RETURN NEW; END $$",
        f"CREATE TRIGGER trouble BEFORE UPDATE ON {schema}.upload"
        f" FOR EACH ROW EXECUTE FUNCTION {schema}.trouble()",
    )


@pytest.mark.parametrize("code", ["40001", "40P01", "55P03", "57014"])
async def test_what_was_rolled_back_is_tried_again(
    cut: MetadataStore, schema: str, code: str
) -> None:
    record = upload()
    grant = await cut.insert(record, lease=True)
    assert grant is not None
    await _raises_on_update(schema, code, times=2)
    after = await cut.commit(grant.lease, Change(upload=replace(grant.upload, offset=1)))
    assert (after.offset, after.version) == (1, 2)


@pytest.mark.parametrize(("code", "error"), [("53100", NoRoomError), ("42501", MetadataError)])
async def test_what_waiting_does_not_help_is_said_at_once(
    cut: MetadataStore, schema: str, code: str, error: type[Exception]
) -> None:
    """And nothing was changed; the lease is still good."""
    record = upload()
    grant = await cut.insert(record, lease=True)
    assert grant is not None
    await _raises_on_update(schema, code, times=1)
    change = Change(upload=replace(grant.upload, offset=1), events=(event(record),))
    with pytest.raises(error) as caught:
        await cut.commit(grant.lease, change)
    assert not isinstance(caught.value, UnavailableError)
    assert [one async for one in cut.events()] == []
    assert (await cut.commit(grant.lease, change)).version == 2


async def test_ids_that_no_upload_has(cut: MetadataStore) -> None:
    """Whatever a URL may say."""
    for text in ("a\0b", "\ud800"):
        assert await cut.load(text) is None  # type: ignore[arg-type]


@pytest.mark.timeout(120)
async def test_no_answer_is_a_lie_whatever_is_cut(line: CuttingLine, schema: str) -> None:
    """Tasks of two stores add to a few uploads, while lines are cut all the time.

    What was acknowledged counts, what was refused does not, and only what nobody knows may be
    either. In the end every upload can be had.
    """
    chance = random.Random(7)
    url = postgres.server().url(schema, port=line.port, heartbeat=0.3, ttl=30, patience=5)
    make = lambda: PostgresMetadataStore(url)  # noqa: E731
    async with opened(make) as here, opened(make) as there:
        records = [upload(length=None) for _ in range(3)]
        await add(here, *records)
        done, unknown = Counter[str](), Counter[str]()

        async def work(store: MetadataStore, upload_id: UploadId) -> None:
            for _ in range(30):
                if chance.random() < 0.1:
                    line.cut()
                elif chance.random() < 0.3:
                    lose = line.lose_answer if chance.random() < 0.5 else line.lose_request
                    lose(chance.choice([COMMIT, "WITH seen", "SET holder = NULL"]))
                with suppress(MetadataError):
                    await add_one(store, upload_id)

        async def add_one(store: MetadataStore, upload_id: UploadId) -> None:
            grant = await store.acquire(upload_id)
            while isinstance(grant, Held):
                await store.request_release(upload_id)
                await store.wait_released(upload_id, 3600)
                grant = await store.acquire(upload_id)
            after = replace(grant.upload, offset=grant.upload.offset + 1)
            change = Change(upload=after, release=chance.random() < 0.5)
            try:
                await store.commit(grant.lease, change)
                done[upload_id] += 1
            except UnavailableError:
                unknown[upload_id] += 1
                store.abandon(grant.lease)
                return
            await store.release(grant.lease)

        # Some hundred cuts, one after another: that is more than one thing to wait for.
        with anyio.fail_after(90):
            async with anyio.create_task_group() as tasks:
                for record in records:
                    for store in (here, here, there):
                        tasks.start_soon(work, store, record.id)
        assert done.total() > 100
        for record in records:
            async with patience():
                await there.wait_released(record.id, 3600)
            offset = (await hold(there, record.id)).upload.offset
            assert done[record.id] <= offset <= done[record.id] + unknown[record.id]
