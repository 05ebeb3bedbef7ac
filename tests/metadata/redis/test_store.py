"""What only the Redis store has to show: lost answers, scripts, exact sums, and what is left over."""

from __future__ import annotations

import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from msgspec.structs import replace
from tests.metadata.redis.stage import at, impatient, loaded, told
from tests.support.lossy import LossyLine
from tests.support.valkey import running

from tidegate.metadata.redis import scripts
from tidegate.metadata.redis.store import RedisMetadataStore
from tidegate.ports import (
    Change,
    Grant,
    Held,
    Hold,
    Line,
    MetadataError,
    NoRoomError,
    OverLimitError,
    Retry,
    Room,
    UnavailableError,
)
from tidegate.protocol.model import MAX_LENGTH, EventType, Segment, State
from tidegate.testing.metadata.support import (
    NOW,
    add,
    change,
    end_claim,
    event,
    hold,
    until,
    upload,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import redis
    from tests.support.lossy import Loss

    from tidegate.metadata.redis.scripts import Script
    from tidegate.protocol.model import UploadId

pytestmark = pytest.mark.anyio


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
@pytest.mark.parametrize("what", ["claim", "tell", "keep", "give up", "replay"])
async def test_what_is_done_to_a_line_and_lost_is_done_once(
    line: LossyLine, url: str, loss: Loss, what: str
) -> None:
    """A claim gives out the same, its end counts once, a replay says that it replayed."""
    script = {"claim": scripts.CLAIM, "replay": scripts.REPLAY}.get(what, scripts.END_CLAIMS)
    async with losing(line, url, script, loss) as (store, lose):
        # Once without a loss: Redis must know the script by its name.
        await store.claim_events(NOW, 1, 60)
        await end_claim(store, Line(upload().id, NOW, ()))
        await store.replay(99)
        record = upload()
        await store.insert(record, events=[event(record), event(record, EventType.COMPLETED)])
        if what == "claim":
            lose()
        (told,) = await store.claim_events(NOW, 10, 60)
        first, second = told.deliveries
        failed = first.after(["mail"], [Retry("queue", 1, NOW)])
        if what == "tell":
            lose()
            await end_claim(store, told, kept=[second])
        elif what == "keep":
            lose()
            await end_claim(store, told, kept=[failed, second], due_at=NOW)
            (again,) = await store.claim_events(NOW, 10, 60)
            assert again.deliveries == (failed, second)
        elif what == "give up":
            lose()
            await end_claim(store, told, given_up=[failed], kept=[second])
        elif what == "replay":
            await end_claim(store, told, given_up=[failed], kept=[second])
            lose()
            assert await store.replay(first.sequence)
        counted = await store.counts()
        given_up = int(what == "give up")
        assert counted.given_up_events == given_up
        assert counted.pending_events == 2 - given_up - (what == "tell")


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


# --------------------------------------------------------------------------------- scripts, and room


async def test_scripts_that_were_forgotten_are_sent_again(
    store: RedisMetadataStore, client: redis.Redis
) -> None:
    record = upload()
    await add(store, record)
    for _ in range(3):
        client.script_flush()
        await change(store, record.id, active_at=NOW + 1)
    assert (await loaded(store, record.id)).upload.version == 4


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
            (line,) = await store.claim_events(NOW, 10, 60)
            await end_claim(store, line)
            gone = replace(held.upload, state=State.TERMINATED, ended_at=NOW)
            after = await store.commit(held.lease, Change(upload=gone, events=(event(gone),)))
            await store.commit(held.lease, Change(upload=after, forget=True))
            assert [one async for one in store.uploads()] == []


@pytest.mark.parametrize("index", ["lines", "claims", "ids", "in:receiving", "pending"])
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
        (line,) = await store.claim_events(NOW, 10, 60)
        await end_claim(store, line)
        change_ = Change(upload=grant.upload, segments=(Segment(0, 0, 1),))
        after = await store.commit(grant.lease, change_)
        await store.commit(grant.lease, Change(upload=after, forget=True))
    left = {str(key).split(":")[1] for key in client.keys(store._open.key("*"))}
    assert left == {"schema", "token", "sequence", "sums", "holder", "did"}
