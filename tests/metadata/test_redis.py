"""What only the Redis store has to show: outages, lost answers, exact sums, and a server's death."""

from __future__ import annotations

import random
import time
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from msgspec.structs import replace
from tests.support.lossy import LossyLine, lossy
from tests.support.valkey import Valkey, command, running

from tidegate.metadata.redis import scripts
from tidegate.metadata.redis.store import RedisMetadataStore
from tidegate.ports import (
    Change,
    Grant,
    Held,
    Hold,
    LeaseLostError,
    MetadataError,
    NoRoomError,
    OverLimitError,
    Room,
    UnavailableError,
)
from tidegate.protocol.model import MAX_LENGTH, EventType, Segment, State
from tidegate.testing.metadata.support import (
    NOW,
    add,
    change,
    event,
    hold,
    opened,
    patience,
    until,
    upload,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    import redis
    from tests.support.lossy import Loss

    from tidegate.metadata.redis.scripts import Script
    from tidegate.ports import MetadataStore
    from tidegate.protocol.model import UploadId

pytestmark = pytest.mark.anyio


@pytest.fixture
def url(valkey: Valkey) -> str:
    return valkey.url()


@pytest.fixture
async def store(url: str) -> AsyncIterator[RedisMetadataStore]:
    async with at(url, boot_id="boot") as store:
        yield store


@pytest.fixture
def client(valkey: Valkey) -> Iterator[redis.Redis]:
    with valkey.client() as client:
        yield client


@pytest.fixture
async def line(valkey: Valkey) -> AsyncIterator[LossyLine]:
    async with lossy("127.0.0.1", valkey.port) as line:
        yield line


def through(line: LossyLine, url: str) -> RedisMetadataStore:
    """A store that talks over a line."""
    _, _, rest = url.partition("/0?")
    return RedisMetadataStore(f"redis://127.0.0.1:{line.port}/0?{rest}")


@asynccontextmanager
async def at(
    url: str, line: LossyLine | None = None, boot_id: str = ""
) -> AsyncIterator[RedisMetadataStore]:
    """A store that is open, over a line if there is one."""
    store = RedisMetadataStore(url) if line is None else through(line, url)
    async with opened(lambda: store, boot_id):
        yield store


@contextmanager
def impatient(store: RedisMetadataStore) -> Iterator[None]:
    """What can't be had is not waited for. Not for what must succeed: the machine may be busy."""
    link = store._open
    kept = link._patience, link._attempt
    link._patience, link._attempt = 0.3, 0.15
    yield
    link._patience, link._attempt = kept


async def loaded(store: MetadataStore, upload_id: UploadId) -> Any:
    found = await store.load(upload_id)
    assert found is not None
    return found


# -------------------------------------------------------------------------- answers that are lost

LOSSES = ["request", "answer"]


@asynccontextmanager
async def losing(line: LossyLine, url: str, script: Script, loss: Loss) -> AsyncIterator[Any]:
    """A store that has run what `script` needs, and is about to lose one request of it."""
    async with at(url, line, "boot") as store:
        yield store, lambda: line.lose(script.sha.encode(), loss)
    assert line.lost == 1


@pytest.mark.parametrize("loss", LOSSES)
async def test_an_insert_that_was_lost_is_done_once(line: LossyLine, url: str, loss: Loss) -> None:
    """Its lease is good, its event is told once, its room is taken once."""
    async with losing(line, url, scripts.INSERT, loss) as (store, lose):
        await add(store, upload())
        record = upload()
        lose()
        grant = await store.insert(
            record, lease=True, events=[event(record)], room=Room(unfinished=200)
        )
        assert grant.settled
        await store.commit(grant.lease, Change(upload=grant.upload, release=True))
        assert len(await store.claim_events(NOW, 10, 60)) == 1
        await store.insert(upload(), room=Room(unfinished=300))
        with pytest.raises(OverLimitError):
            await store.insert(upload(), room=Room(unfinished=399))


@pytest.mark.parametrize("loss", LOSSES)
async def test_an_acquisition_that_was_lost_is_done_once(
    line: LossyLine, url: str, loss: Loss
) -> None:
    """It is granted, with what its predecessor left to know."""
    async with losing(line, url, scripts.ACQUIRE, loss) as (store, lose):
        record = upload()
        await add(store, record)
        store.abandon((await hold(store, record.id)).lease)
        lose()
        grant = await hold(store, record.id)
        assert not grant.settled
        assert grant.boot_id == "boot"
        assert isinstance(await store.acquire(record.id), Held)
        await store.renew(grant.lease)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("forget", [False, True])
async def test_a_commit_that_was_lost_is_done_once(
    line: LossyLine, url: str, loss: Loss, forget: bool
) -> None:
    """Also when with it the lease, or the record itself, goes."""
    script = scripts.COMMIT_END if forget else scripts.COMMIT
    async with losing(line, url, script, loss) as (store, lose):
        record, other = upload(), upload()
        await add(store, record, other)
        grant = await hold(store, other.id)
        await store.commit(grant.lease, Change(upload=grant.upload, forget=forget))
        grant = await hold(store, record.id)
        lose()
        after = await store.commit(
            grant.lease,
            Change(
                upload=replace(grant.upload, offset=5),
                events=(event(record),),
                segments=(Segment(0, 0, 5),),
                release=True,
                forget=forget,
            ),
        )
        assert (after.offset, after.version) == (5, 2)
        assert len(await store.claim_events(NOW, 10, 60)) == 1
        if forget:
            assert await store.load(record.id) is None
        else:
            found = await loaded(store, record.id)
            assert (found.upload, found.hold) == (after, Hold.FREE)
            assert (await hold(store, record.id)).settled


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("what", ["claim", "postpone", "give up", "replay", "acknowledge"])
async def test_what_is_done_to_an_event_and_lost_is_done_once(
    line: LossyLine, url: str, loss: Loss, what: str
) -> None:
    """A claim gives out the same, a failure counts once, a replay says that it replayed."""
    script = {
        "claim": scripts.CLAIM,
        "replay": scripts.REPLAY,
        "acknowledge": scripts.ACKNOWLEDGE,
    }.get(what, scripts.POSTPONE)
    async with losing(line, url, script, loss) as (store, lose):
        # Once without a loss: Redis must know the script by its name.
        await store.claim_events(NOW, 1, 60)
        await store.postpone(99, None)
        await store.replay(99)
        await store.acknowledge(99)
        record = upload()
        await store.insert(record, events=[event(record), event(record, EventType.COMPLETED)])
        if what == "claim":
            lose()
        (first,) = await store.claim_events(NOW, 10, 60)
        if what == "acknowledge":
            lose()
            await store.acknowledge(first.sequence)
        elif what == "postpone":
            lose()
            await store.postpone(first.sequence, NOW, done=["mail"])
            (again,) = await store.claim_events(NOW, 10, 60)
            assert (again.sequence, again.attempts, again.done) == (first.sequence, 1, ("mail",))
        elif what == "give up":
            lose()
            await store.postpone(first.sequence, None)
        elif what == "replay":
            await store.postpone(first.sequence, None)
            lose()
            assert await store.replay(first.sequence)
        counted = await store.counts()
        given_up = int(what == "give up")
        assert counted.given_up_events == given_up
        assert counted.pending_events == 2 - given_up - (what == "acknowledge")


@pytest.mark.parametrize("loss", ["request", "answer", "late"])
async def test_a_lease_that_nobody_hears_of_is_let_go(
    line: LossyLine, url: str, loss: Loss
) -> None:
    """Whoever asked gave up waiting: whether it was taken, or is taken yet, nobody holds it."""
    async with (
        at(url) as other,
        at(url, line) as store,
    ):
        record, known = upload(), upload()
        await add(other, record, known)
        await store.release((await hold(store, known.id)).lease)
        line.lose(scripts.ACQUIRE.sha.encode(), loss, times=30)
        with impatient(store), pytest.raises(UnavailableError):
            await store.acquire(record.id)
        line._losses.clear()
        await until(lambda: told(store))
        await line.deliver()
        assert isinstance(await other.acquire(record.id), Grant)


async def told(store: Any) -> bool:
    """Whether Redis knows what was given up."""
    return not store._leases._unheard and not store._leases._abandoned


async def test_a_late_insert_that_was_given_up_writes_nothing(line: LossyLine, url: str) -> None:
    async with at(url, line) as store:
        await add(store, upload())
        line.lose(scripts.INSERT.sha.encode(), "late", times=30)
        record = upload()
        with impatient(store), pytest.raises(UnavailableError):
            await store.insert(record, lease=True)
        line._losses.clear()
        await until(lambda: told(store))
        await line.deliver()
        assert await store.load(record.id) is None


async def test_remembers_no_answer_that_was_heard(
    store: RedisMetadataStore, client: redis.Redis
) -> None:
    """What was heard is forgotten with the next script, and all of it in time."""
    for _ in range(50):
        await add(store, upload())
    link = store._open
    (key,) = client.keys(link.key("did", link.holder, "*"))
    assert client.hlen(key) == 1
    assert 0 < client.pttl(key) <= 180_000


async def test_what_was_given_up_does_not_look_held(line: LossyLine, url: str) -> None:
    """Though Redis said so just before it was told, and is heard after."""
    async with at(url, line) as store:
        record = upload()
        await add(store, record)
        grant = await hold(store, record.id)
        line.lose(scripts.ABANDON.sha.encode(), "request")
        line.lose(b"HMGET", "slow")
        found = []

        async def load() -> None:
            found.append(await loaded(store, record.id))

        store.abandon(grant.lease)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(load)
            await until(lambda: told(store))
            line.mend_slow()
        assert found[0].hold is Hold.ABANDONED


# ----------------------------------------------------------------------------------------- outages


async def test_an_outage_is_told_of_and_gets_over(line: LossyLine, url: str) -> None:
    """While nothing passes calls fail, in time and in words; then all goes on as it was."""
    async with at(url, line) as store:
        record = upload()
        await add(store, record)
        grant = await hold(store, record.id)
        line.cut()
        for call in (store.load(record.id), store.insert(upload()), store.counts()):
            started = time.monotonic()
            with (
                impatient(store),
                pytest.raises(UnavailableError, match=rf"redis://127.0.0.1:{line.port}/0: "),
            ):
                await call
            assert time.monotonic() - started < 3
        line.mend()
        await store.commit(grant.lease, Change(upload=grant.upload, release=True))


async def test_a_restart_is_waited_for() -> None:
    """What is asked while Redis is down for a moment is done, and leases outlive it."""
    with running() as server:
        url = server.url()
        async with at(url) as store:
            record = upload()
            await add(store, record)
            grant = await hold(store, record.id)
            server.kill()
            after = []

            async def commit() -> None:
                after.append(
                    await store.commit(
                        grant.lease, Change(upload=replace(grant.upload, offset=1), release=True)
                    )
                )

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(commit)
                await anyio.to_thread.run_sync(server.start)
            assert (await loaded(store, record.id)).upload == after[0]


async def test_a_dead_server_loses_nothing_that_it_acknowledged() -> None:
    """Killed in the middle of many inserts and commits, again and again."""
    acknowledged: dict[UploadId, int] = {}

    async def work(store: MetadataStore) -> None:
        with suppress(UnavailableError):
            while True:
                record = upload()
                grant = await store.insert(record, lease=True, events=[event(record)])
                acknowledged[record.id] = 0
                assert grant is not None
                after = replace(grant.upload, offset=7)
                await store.commit(grant.lease, Change(upload=after, release=True))
                acknowledged[record.id] = 7

    with running() as server:
        url = server.url()
        for _ in range(2):
            before = len(acknowledged)
            async with (
                opened(lambda: RedisMetadataStore(url, patience=1.5)) as store,
                anyio.create_task_group() as tasks,
            ):
                for _ in range(8):
                    tasks.start_soon(work, store)
                async with patience():
                    while len(acknowledged) < before + 100:
                        await anyio.sleep(0.001)
                server.kill()
            server.start()
            async with at(url) as store:
                found = {one.id: one.offset async for one in store.uploads()}
                events = {one.delivery.event.upload.id async for one in store.events()}
                counted = await store.counts()
        for upload_id, offset in acknowledged.items():
            assert found[upload_id] >= offset
        assert set(acknowledged) <= events == set(found)
        assert counted.uploads == {State.RECEIVING: len(found)}


async def test_scripts_that_were_forgotten_are_sent_again(
    store: RedisMetadataStore, client: redis.Redis
) -> None:
    record = upload()
    await add(store, record)
    for _ in range(3):
        client.script_flush()
        await change(store, record.id, active_at=NOW + 1)
    assert (await loaded(store, record.id)).upload.version == 4


async def test_a_server_that_became_a_replica_is_unavailable() -> None:
    """And is written to as soon as it is a primary again."""
    with running() as server, server.client() as client:
        url = server.url()
        async with at(url) as store:
            client.replicaof("127.0.0.1", "1")
            with impatient(store), pytest.raises(UnavailableError, match="replica"):
                await store.insert(upload())
            client.replicaof("NO", "ONE")
            await add(store, upload())


async def test_a_full_server_makes_room() -> None:
    """No room is said to be no room, changes nothing, and keeps nobody from tidying up."""
    with running() as server, server.client() as client:
        url = server.url()
        async with at(url) as store:
            record = upload()
            await store.insert(record, events=[event(record)])
            held = await hold(store, record.id)
            client.config_set("maxmemory", "1")
            with pytest.raises(NoRoomError):
                await store.insert(upload())
            with pytest.raises(NoRoomError):
                await store.commit(held.lease, Change(upload=held.upload))
            await store.renew(held.lease)
            (told,) = await store.claim_events(NOW, 10, 60)
            await store.acknowledge(told.sequence)
            gone = replace(held.upload, state=State.TERMINATED, ended_at=NOW)
            after = await store.commit(held.lease, Change(upload=gone, events=(event(gone),)))
            await store.commit(held.lease, Change(upload=after, forget=True))
            assert [one async for one in store.uploads()] == []


@pytest.mark.parametrize("index", ["due", "ids", "in:receiving", "pending"])
async def test_a_script_that_fails_changes_nothing(
    store: RedisMetadataStore, client: redis.Redis, index: str
) -> None:
    """Whatever somebody made of our keys is found before the first write."""
    record = upload()
    await add(store, record)
    grant = await hold(store, record.id)
    link = store._open
    client.set(link.key(index), "not an index")
    before = {key: client.dump(key) for key in client.keys(link.key("[us]*"))}
    second = upload()
    with pytest.raises(MetadataError, match="WRONGTYPE"):
        await store.insert(second, lease=True, events=[event(second)])
    with pytest.raises(MetadataError, match="WRONGTYPE"):
        await store.commit(
            grant.lease, Change(upload=grant.upload, events=(event(record),), release=True)
        )
    assert {key: client.dump(key) for key in client.keys(link.key("[us]*"))} == before


# ------------------------------------------------------------------------------------------ leases


async def test_a_holder_that_is_not_heard_of_is_overruled(line: LossyLine, url: str) -> None:
    """It is told before its lease can be taken, and gets it back by no means."""
    url = f"{url}&lease_ttl=1.5&heartbeat=0.1"
    async with AsyncExitStack() as stack:
        here = await stack.enter_async_context(at(url))
        there = await stack.enter_async_context(at(url, line, "there"))
        record, kept = upload(expires_at=NOW), upload()
        await add(here, record, kept)
        old, keeps = await hold(there, record.id), await hold(there, kept.id)
        line.cut()
        async with patience():
            await here.wait_released(record.id, 3600)
        assert old.wanted.is_set(), "it could not know that it had lost the lease"
        assert (await loaded(here, record.id)).hold is Hold.ABANDONED
        assert await here.expired(NOW, 1) == [record.id]
        new = await hold(here, record.id)
        assert (new.settled, new.boot_id) == (False, "there")
        line.mend()
        # It is alive again, as anyone can see, but not with what was taken.
        await until(lambda: is_held(here, kept.id))
        with pytest.raises(LeaseLostError):
            await there.commit(old.lease, Change(upload=replace(old.upload, offset=9)))
        with pytest.raises(LeaseLostError):
            await there.renew(old.lease)
        await there.release(old.lease)
        assert (await loaded(there, record.id)).hold is Hold.HELD
        await here.commit(new.lease, Change(upload=replace(new.upload, offset=3)))
        # What nobody took is still its own.
        await there.commit(keeps.lease, Change(upload=keeps.upload, release=True))


async def is_held(store: MetadataStore, upload_id: UploadId) -> bool:
    found = await loaded(store, upload_id)
    return found.hold is Hold.HELD


async def test_leases_are_kept_for_as_long_as_needed(valkey: Valkey) -> None:
    """For more than the ttl, with nothing but the heartbeat."""
    url = valkey.url(lease_ttl="1", heartbeat="0.1")
    async with at(url) as store:
        record = upload()
        await add(store, record)
        grant = await hold(store, record.id)
        with anyio.move_on_after(2.5):
            await grant.wanted.wait()
        assert not grant.wanted.is_set()
        assert isinstance(await store.acquire(record.id), Held)


async def test_renewing_keeps_the_holder_alive(
    store: RedisMetadataStore, client: redis.Redis
) -> None:
    record = upload()
    await add(store, record)
    grant = await hold(store, record.id)
    link = store._open
    client.pexpire(link.key("holder", link.holder), 100)
    await store.renew(grant.lease)
    assert client.pttl(link.key("holder", link.holder)) > 7000


@pytest.mark.parametrize("channels", [True, False])
async def test_a_request_for_release_arrives_in_time(
    valkey: Valkey, client: redis.Redis, channels: bool
) -> None:
    """By word at once; where channels are not permitted, by a look within 200 ms."""
    user = f"u{channels}"
    allowed = ["&*"] if channels else ["resetchannels"]
    command(client, "ACL", "SETUSER", user, "on", ">secret", "~*", "+@all", *allowed)
    url = valkey.url().replace("redis://", f"redis://{user}:secret@")
    async with (
        at(url) as here,
        at(url) as there,
    ):
        record = upload()
        await add(here, record)
        await until(lambda: listens(client, here, there, channels))
        times = []
        for _ in range(5):
            grant = await hold(there, record.id)
            started = time.monotonic()
            await here.request_release(record.id)
            async with patience():
                await grant.wanted.wait()
                times.append(time.monotonic() - started)
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(here.wait_released, record.id, 3600)
                    await there.release(grant.lease)
        # The machine may be busy: not every time.
        assert min(times) < (0.05 if channels else 0.2)


async def listens(client: redis.Redis, *stores_and_whether: Any) -> bool:
    *stores, whether = stores_and_whether
    names = [store._open.key("told", store._open.holder) for store in stores]
    return not whether or all(count for _, count in client.pubsub_numsub(*names))


async def test_listens_again_after_its_line_was_cut(
    store: RedisMetadataStore, client: redis.Redis
) -> None:
    await until(lambda: listens(client, store, True))
    client.client_kill_filter(_type="pubsub")
    await until(lambda: listens(client, store, True))


async def test_a_dead_process_leaves_its_turn(valkey: Valkey, line: LossyLine) -> None:
    """The turn of a holder that is not heard of is free before its time."""
    url = valkey.url(lease_ttl="1.5", heartbeat="0.1")
    async with (
        at(url) as here,
        at(url, line) as there,
    ):
        assert await there.take_turn("sweep", NOW, 3600)
        assert not await here.take_turn("sweep", NOW, 3600)
        line.cut()
        await until(lambda: here.take_turn("sweep", NOW, 3600))
        line.mend()


# --------------------------------------------------------------------------------------- numbers


async def test_sums_are_exact(store: RedisMetadataStore, client: redis.Redis) -> None:
    """Past what a double or 64 bits hold, up and down, to the byte."""
    numbers = random.Random(7)
    sizes: dict[UploadId, tuple[int, int]] = {}

    async def check() -> None:
        expected = [str(sum(size[index] for size in sizes.values())) for index in (0, 1)]
        found = client.hmget(store._open.key("sums"), "promised", "stored")
        assert [value or "0" for value in found] == expected

    for turn in range(60):
        length = numbers.choice([0, 1, 10**12 - 1, 10**12, 2**53 + 1, MAX_LENGTH, turn])
        record = upload(length=length)
        await add(store, record)
        sizes[record.id] = (length, 0)
        await check()
        chosen = numbers.choice(list(sizes))
        offset = numbers.randint(0, sizes[chosen][0])
        await change(store, chosen, offset=offset)
        sizes[chosen] = (sizes[chosen][0], offset)
        await check()
        if turn % 3 == 2:
            chosen = numbers.choice(list(sizes))
            await change(store, chosen, state=State.TERMINATED, ended_at=NOW)
            del sizes[chosen]
            await check()
    promised = sum(length for length, _ in sizes.values())
    missing = promised - sum(offset for _, offset in sizes.values())
    with pytest.raises(OverLimitError, match=f"come to {promised + 1} bytes"):
        await store.insert(upload(length=1), room=Room(unfinished=promised))
    with pytest.raises(OverLimitError, match=f"still need {missing + 1} bytes"):
        await store.insert(upload(length=1), room=Room(missing=missing))
    await store.insert(upload(length=1), room=Room(unfinished=promised + 1, missing=missing + 1))


async def test_nothing_is_left_of_what_was_forgotten(
    store: RedisMetadataStore, client: redis.Redis
) -> None:
    """But what belongs to the installation, and to processes at work."""
    for _ in range(3):
        record = upload(expires_at=NOW)
        grant = await store.insert(record, lease=True, events=[event(record)])
        assert grant is not None
        (told,) = await store.claim_events(NOW, 10, 60)
        await store.acknowledge(told.sequence)
        change_ = Change(upload=grant.upload, segments=(Segment(0, 0, 1),))
        after = await store.commit(grant.lease, change_)
        await store.commit(grant.lease, Change(upload=after, forget=True))
    left = {str(key).split(":")[1] for key in client.keys(store._open.key("*"))}
    assert left == {"schema", "token", "sequence", "sums", "holder", "did"}
