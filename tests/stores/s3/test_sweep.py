"""What is found in a bucket, page by page, and what of it is somebody's."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from msgspec.structs import replace
from tests.stores.s3.conftest import PART, Kept
from tests.support.moto import moto
from tests.support.s3_server import BUCKET, S3Server

from tidegate.protocol.model import State
from tidegate.stores.s3.store import S3Store

pytestmark = pytest.mark.anyio


async def test_what_a_record_speaks_of(store: S3Store) -> None:
    """Its multipart upload and its tails; not those that nobody committed."""
    kept = Kept(store, 4 * PART)
    await kept.append(b"x" * (PART + 10))
    other = await store.start_multipart(kept.record)
    async with kept.writing() as writer:
        await writer.write([b"y" * 100])
        await writer.flush()
    segments = await kept.journal.segments()
    found = [stored async for stored in store.stored()]
    assert {stored.upload_id for stored in found} == {"one"}
    spoken = {s.place: store.speaks_of(kept.record, segments, s) for s in found}
    assert sorted(spoken.values()) == [False, False, True, True]
    assert not spoken[next(place for place in spoken if other in place)]
    gone = replace(kept.record, state=State.COMPLETE)
    assert not any(store.speaks_of(gone, segments, s) for s in found)
    for stored in found:
        if not spoken[stored.place]:
            await store.discard(stored)
    await kept.append(b"z" * (3 * PART - 10))
    await kept.finish()
    assert await kept.read() == b"x" * (PART + 10) + b"z" * (3 * PART - 10)
    [whole] = [s async for s in store.stored() if s.whole]
    assert store.speaks_of(kept.record, [], whole)


async def test_what_is_not_ours_is_not_found(store: S3Store, moto_server: S3Server) -> None:
    prefix = store.layout.prefix
    async with moto_server.client() as client:
        for key in "README", f"{prefix}README", f"{prefix}.tidegate/tails/x", f"{prefix}aa/bb":
            await client.put_object(Bucket=BUCKET, Key=key, Body=b"ours?")
    assert [stored async for stored in store.stored()] == []


@pytest.fixture
async def paging(
    s3_credentials: None, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[S3Store]:
    with moto(tmp_path_factory.mktemp("paging"), least_part=PART, page=7) as server:
        async with server.client() as client:
            await client.create_bucket(Bucket=BUCKET)
        store = server.store(part_size=PART, least_part=PART, memory=8 * PART)
        await store.open()
        try:
            yield store
        finally:
            await store.close()


async def test_listings_that_come_in_pages(paging: S3Store) -> None:
    """Objects by seven, here."""
    for number in range(20):
        await Kept(paging, 10, f"tail-{number}").append(b"t")
    for number in range(10):
        kept = Kept(paging, 1, f"whole-{number}")
        await kept.append(b"w")
        await kept.finish()
    found = [stored async for stored in paging.stored()]
    assert len(found) == len({stored.place for stored in found}) == 30
    many = Kept(paging, 100, "tail-0")
    many.record = replace(many.record, storage={**many.record.storage})
    await paging.delete(many.record)
    assert len([stored async for stored in paging.stored()]) == 29
