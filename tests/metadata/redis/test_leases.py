"""Leases in the Redis store, between processes that may not hear of each other."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from msgspec.structs import replace
from tests.metadata.redis.stage import at, loaded
from tests.support.lossy import LossyLine
from tests.support.valkey import Valkey, command

from tidegate.metadata.redis.store import RedisMetadataStore
from tidegate.ports import Change, Held, Hold, LeaseLostError
from tidegate.testing.metadata.support import NOW, add, hold, patience, until, upload

if TYPE_CHECKING:
    import redis

    from tidegate.ports import MetadataStore
    from tidegate.protocol.model import UploadId

pytestmark = pytest.mark.anyio


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
