"""The Redis store while its server goes and comes back."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

import anyio
import pytest
from msgspec.structs import replace
from tests.metadata.redis.stage import at, impatient, loaded
from tests.support.lossy import LossyLine
from tests.support.valkey import running

from tidegate.metadata.redis.store import RedisMetadataStore
from tidegate.ports import Change, UnavailableError
from tidegate.protocol.model import State
from tidegate.testing.metadata.support import add, event, hold, opened, patience, upload

if TYPE_CHECKING:
    from tidegate.ports import MetadataStore
    from tidegate.protocol.model import UploadId

pytestmark = pytest.mark.anyio


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
