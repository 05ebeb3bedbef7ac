"""More than a page of everything that S3 lists by the thousand: nothing beyond the first is missed."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from anyio import to_thread
from tests.stores.s3.conftest import Kept
from tests.support.moto_here import MotoHere, moto_here
from tests.support.s3_server import BUCKET, S3Server
from tests.support.swift import note_multiparts

from tidegate.engine.core import Settings
from tidegate.engine.engine import Engine
from tidegate.metadata.memory import MemoryMetadataStore
from tidegate.ports import Flushed
from tidegate.protocol.model import UploadId
from tidegate.stores.s3.pieces import Piece
from tidegate.stores.s3.store import S3Store
from tidegate.testing import FakeClock

pytestmark = pytest.mark.anyio

MANY = 1005
PART = 8
PARTS = [b"%08d" % number for number in range(MANY)]
DAY = 86_400.0


@pytest.fixture(scope="module")
def here(s3_credentials: None) -> Iterator[MotoHere]:
    with moto_here(least_part=PART) as server:
        yield server


@pytest.fixture
async def store(here: MotoHere) -> AsyncIterator[S3Store]:
    here.empty()
    store = make_store(here)
    await store.open()
    yield store
    await store.close()


def make_store(here: MotoHere, **options: Any) -> S3Store:
    return here.store(part_size=PART, least_part=PART, memory=8 * PART, **options)


async def test_an_upload_of_many_parts(store: S3Store, here: MotoHere) -> None:
    """It is told how large it is before it is whole, it is read, joined to others, and deleted."""
    kept = Kept(store, MANY * PART + 3)
    multipart = await store.start_multipart(kept.record)
    storage = {"key": kept.record.storage["key"], "multipart": multipart, "next_part": MANY + 1}
    etags = here.put_parts(multipart, PARTS)
    pieces = [Piece(PART, part=number, etag=etag) for number, etag in enumerate(etags, 1)]
    segments = [piece.segment(index, index * PART) for index, piece in enumerate(pieces)]
    kept.commit(Flushed(MANY * PART, tuple(segments), storage))
    await kept.append(b"end")
    data = b"".join(PARTS) + b"end"
    [found] = [stored async for stored in store.stored()]
    assert found.size == len(data)
    await kept.finish()
    assert await kept.read() == data
    final = Kept(store, 2 * len(data), "final")
    async with final.writing() as writer:
        for _ in range(2):
            await writer.copy(kept.record, 0, len(data))
        final.commit(await writer.flush())
    await final.finish()
    assert await final.read() == data + data
    for upload in kept, final:
        await store.delete(upload.record)
    assert here.left("") == []


async def test_an_upload_of_many_tails_is_deleted(store: S3Store, here: MotoHere) -> None:
    kept = Kept(store, 100)
    for number in range(MANY):
        here.put(f"{store.layout.tails_of(kept.record.id)}{number}", b"t")
    assert await store.measure(kept.record) == 0
    await store.delete(kept.record)
    assert here.left("") == []


async def test_a_sweep_of_much_that_is_left_over(here: MotoHere) -> None:
    """Tails by the thousand, and a multipart upload of as many parts. To delete them one by one
    would take seconds, and show no more."""
    here.empty()
    store = make_store(here)
    for number in range(MANY):
        here.put(f"{store.layout.tails_of(UploadId(f'upload-{number}'))}tail", b"tail")
    kept = Kept(store, 100)
    clock = FakeClock(time.time() + 8 * DAY)
    settings = Settings(sweep_every=1e6, orphans_every=1e6)
    engine = Engine(store, MemoryMetadataStore(), settings=settings, clock=clock, tending=False)
    async with engine:
        here.put_parts(await store.start_multipart(kept.record), PARTS)
        swept = await engine.sweep(dry_run=True)
        assert swept is not None
        assert swept.failed == []
        assert len(swept.orphans) == MANY + 1
        assert swept.freed == MANY * (len(b"tail") + PART)


async def test_many_multipart_uploads(swift_server: S3Server, swift_root: Path) -> None:
    """moto tells of all at once; Swift does as S3 does. Begun behind its back: a thousand of them
    would take it a minute."""
    store = swift_server.store("many")
    await store.open()
    try:
        begun = await store.client.start_multipart("many/first")
        names = [f"many/{number:04}/{begun}" for number in range(MANY)]
        await to_thread.run_sync(note_multiparts, swift_root, BUCKET, names)
        found = [f"{f['Key']}/{f['UploadId']}" async for f in store.client.multiparts("many/")]
        assert found == [*names, f"many/first/{begun}"]
    finally:
        await store.close()
