"""A replica takes the primary's place, behind the same address."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from msgspec.structs import replace
from tests.faults.cluster_stage import relaying
from tests.support.valkey import Valkey, running

from tidegate.metadata.redis.store import RedisMetadataStore
from tidegate.ports import Change, Grant, Hold
from tidegate.protocol.model import Upload, UploadId

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis
    from tests.faults.cluster_stage import Streams

pytestmark = pytest.mark.anyio

TTL = 1.5
"""Seconds that a lease lasts."""
PATIENCE = 20.0


@pytest.fixture
def pair() -> Iterator[tuple[Valkey, Valkey]]:
    """A primary, and its replica."""
    at_once = {"repl-diskless-sync-delay": "0"}
    with running(**at_once) as primary, running() as replica:
        with replica.client() as client:
            client.replicaof("127.0.0.1", str(primary.port))
        yield primary, replica


async def test_what_was_replicated_goes_on(pair: tuple[Valkey, Valkey]) -> None:
    """Records, and the leases of a process that lives; it opens nothing again."""
    primary, replica = pair
    in_charge = primary

    async def connect() -> Streams:
        return await asyncio.open_connection("127.0.0.1", in_charge.port)

    async with relaying(connect) as address:
        query = primary.url(lease_ttl=f"{TTL}", heartbeat="0.2").partition("?")[2]
        store = RedisMetadataStore(f"redis://127.0.0.1:{address.port}/0?{query}")
        await store.open()
        try:
            upload = Upload(id=UploadId("held"), length=10, created_at=1.0, active_at=1.0)
            grant = await store.insert(upload, lease=True)
            assert grant is not None
            others = [UploadId(f"other-{number}") for number in range(50)]
            for other in others:
                await store.insert(replace(upload, id=other))
            await anyio.to_thread.run_sync(wait_for, replica, primary)
            primary.kill()
            in_charge = replica
            with replica.client() as client:
                client.replicaof("NO", "ONE")
            address.cut()
            address.mend()
            for other in others:
                assert await store.load(other) is not None
            # For longer than a lease lasts that nobody renews.
            until = anyio.current_time() + 1.5 * TTL
            while anyio.current_time() < until:
                loaded = await store.load(upload.id)
                assert loaded is not None
                assert loaded.hold is Hold.HELD
                await anyio.sleep(0.05)
            moved = replace(grant.upload, offset=5)
            moved = await store.commit(grant.lease, Change(upload=moved, release=True))
            assert moved.offset == 5
            assert isinstance(await store.acquire(moved.id), Grant)
        finally:
            await store.close()


def wait_for(replica: Valkey, primary: Valkey) -> None:
    """Wait until a replica has all that its primary has."""
    deadline = time.monotonic() + PATIENCE
    with primary.client() as client:
        offset = info(client)["master_repl_offset"]
    with replica.client() as client:
        while (found := info(client))["master_link_status"] != "up" or (
            found["slave_repl_offset"] < offset
        ):
            assert time.monotonic() < deadline, found
            time.sleep(0.02)


def info(client: redis.Redis) -> dict[str, Any]:
    found: Any = client.info("replication")
    return dict(found)
