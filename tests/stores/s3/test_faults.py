"""What goes wrong on the way to a bucket: every byte that was acknowledged is there, and no other."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import anyio
import pytest
from msgspec.structs import replace
from tests.stores.s3.conftest import PART, Kept, MakeStore
from tests.support.s3_faults import Asked, Faults, refusal
from tests.support.s3_server import BUCKET, S3Server, free_ports

from tidegate.ports import BytesMissingError, DataError, Flushed, LeaseLostError
from tidegate.stores.s3.store import S3Store
from tidegate.stores.s3.writer import S3Writer
from tidegate.testing.data import Journal

pytestmark = pytest.mark.anyio


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
    finally:
        writer.close()


async def send(writer: S3Writer, data: bytes) -> None:
    await writer.write([data])
    await writer.flush()


DATA = random.Random(7).randbytes(6 * PART + 1000)


async def test_many_parts(store: S3Store, faults: Faults) -> None:
    """No more requests than parts, and two."""
    kept = Kept(store, len(DATA))
    await kept.append(DATA)
    await kept.finish()
    assert await kept.read() == DATA
    asked = [name for name in faults.operations() if name not in {"HeadBucket", "GetObject"}]
    assert asked == ["CreateMultipartUpload", *["UploadPart"] * 7, "CompleteMultipartUpload"]
    assert sorted(faults.parts()) == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("operation", ["UploadPart", "CreateMultipartUpload", "PutTail"])
@pytest.mark.parametrize("code", ["SlowDown", "InternalError"])
async def test_what_passes_is_tried_again(
    operation: str, code: str, store: S3Store, faults: Faults
) -> None:
    faults.refuse(operation, 503, code, times=3)
    kept = Kept(store, len(DATA) + 1)
    await kept.append(DATA)
    assert faults.pending == 0
    await kept.append(b"x")
    await kept.finish()
    assert await kept.read() == DATA + b"x"


async def test_a_service_that_nobody_reaches_for_a_moment(swift_server: S3Server) -> None:
    """Connections are refused: as a broken one, that passes."""
    [port] = free_ports(1)
    target = urlsplit(swift_server.endpoint)
    reach = S3Server(f"http://127.0.0.1:{port}").store("refused")

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, upstream = await asyncio.open_connection(target.hostname, target.port)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_pump, reader, upstream)
            tasks.start_soon(_pump, answers, writer)

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(reach.open)
            while reach.client.requests < 2:
                await anyio.sleep(0.01)
            listener = await asyncio.start_server(pass_on, "127.0.0.1", port)
        await reach.close()
        listener.close()
        await listener.wait_closed()


class Overtaken(Journal):
    """The lease was lost after the pieces were read."""

    async def hold(self) -> None:
        raise LeaseLostError("one")


async def test_a_tail_that_is_gone_since_another_took_over_is_no_loss(store: S3Store) -> None:
    kept = Kept(store, len(DATA))
    await kept.append(DATA[:10])
    late = Overtaken()
    late.commit(kept.record, Flushed(10, tuple(await kept.pieces())))
    upload = kept.journal.record(kept.record)
    await store.client.delete([kept_piece.storage["tail"] for kept_piece in await kept.pieces()])
    with pytest.raises(LeaseLostError):
        await store.writer(upload, late)
    with pytest.raises(BytesMissingError, match="was deleted"):
        await store.writer(upload, kept.journal)


@pytest.mark.parametrize("status", [0, 500])
async def test_a_part_that_was_stored_though_nobody_was_told(
    status: int, store: S3Store, faults: Faults
) -> None:
    """It is sent again, under the same number, since it is the same."""
    faults.lose("UploadPart", status=status, times=2)
    kept = Kept(store, len(DATA))
    await kept.append(DATA)
    await kept.finish()
    assert await kept.read() == DATA
    assert faults.pending == 0


async def test_a_part_that_fails_for_good_ends_the_session_and_nothing_else(
    store: S3Store, faults: Faults
) -> None:
    """What was stored before it counts; what came behind it, and was stored, does not."""

    async def refuse(_asked: Asked, _go: Callable[[], Awaitable[bytes]]) -> bytes:
        return refusal(403, "AccessDenied")

    kept = Kept(store, len(DATA))
    await kept.append(DATA[: PART + 10])
    assert kept.record.offset == PART + 10
    faults.add("UploadPart", refuse, part=2)
    async with kept.writing() as writer:
        with pytest.raises(DataError, match="not allowed"):
            await send(writer, DATA[PART + 10 :])
        with pytest.raises(DataError):
            await writer.progress()
    async with kept.writing() as writer:
        assert writer.offset == PART + 10
        await writer.write([DATA[PART + 10 :]])
        kept.commit(await writer.flush())
    await kept.finish()
    assert await kept.read() == DATA


async def test_progress_tells_of_parts_in_order_only(store: S3Store, faults: Faults) -> None:
    """Of three parts the second is late: the third does not count yet, though it is stored."""
    late = anyio.Event()

    async def wait(_asked: Asked, go: Callable[[], Awaitable[bytes]]) -> bytes:
        await late.wait()
        return await go()

    faults.add("UploadPart", wait, part=2)
    kept = Kept(store, len(DATA))
    async with kept.writing() as writer:
        await writer.write([DATA[: 3 * PART]])
        with anyio.fail_after(10):
            while (flushed := await writer.progress()).offset < PART or len(
                set(faults.parts())
            ) < 3:
                kept.commit(flushed)
                await anyio.sleep(0.01)
        kept.commit(flushed)
        assert kept.record.offset == PART
        assert [piece.storage["part"] for piece in await kept.pieces()] == [1]
        late.set()
        await writer.write([DATA[3 * PART :]])
        kept.commit(await writer.flush())
    await kept.finish()
    assert await kept.read() == DATA


@pytest.mark.parametrize("status", [0, 500, 503])
async def test_a_completion_whose_answer_is_lost(
    status: int, store: S3Store, faults: Faults
) -> None:
    kept = Kept(store, len(DATA))
    await kept.append(DATA)
    faults.lose("CompleteMultipartUpload", status=status)
    await kept.finish()
    assert faults.operations().count("CompleteMultipartUpload") == 1
    assert await kept.read() == DATA


async def test_a_completion_that_says_200_and_failed(store: S3Store, faults: Faults) -> None:
    """S3 begins to answer before it knows how it ends."""

    async def fail(_asked: Asked, _go: Callable[[], Awaitable[bytes]]) -> bytes:
        return refusal(503, "InternalError").replace(b"503 No", b"200 OK")

    kept = Kept(store, len(DATA))
    await kept.append(DATA)
    faults.add("CompleteMultipartUpload", fail)
    await kept.finish()
    assert await kept.read() == DATA


async def test_a_completion_by_someone_who_died(store: S3Store, faults: Faults) -> None:
    """With the record as it was, also where there was a tail to make a part of."""
    for length in (len(DATA), None):
        kept = Kept(store, length, f"length-{length}")
        await kept.append(DATA)
        record = kept.record = replace(kept.record, length=len(DATA))
        await kept.finish()
        kept.record = record
        await kept.finish()
        assert await kept.read() == DATA


async def test_an_outage_is_told_within_bounds(make_store: MakeStore, faults: Faults) -> None:
    async with make_store(patience=0.3) as store:
        kept = Kept(store, len(DATA))
        faults.refuse("UploadPart", 503, "SlowDown", times=1000)
        with anyio.fail_after(10):
            async with kept.writing() as writer:
                with pytest.raises(DataError, match="SlowDown"):
                    await send(writer, DATA)


async def test_whether_the_bucket_is_reached_is_told_soon(store: S3Store, faults: Faults) -> None:
    """One refusal says nothing; more of them are not waited for as a request is."""
    faults.refuse("HeadBucket", 503, "SlowDown")
    await store.probe()
    faults.refuse("HeadBucket", 503, "SlowDown", times=1000)
    with anyio.fail_after(3), pytest.raises(DataError):
        await store.probe()


async def test_a_tail_that_cannot_be_read(make_store: MakeStore, faults: Faults) -> None:
    """What it holds is not made up for; it counts again as soon as it can."""
    async with make_store(patience=0.2) as store:
        kept = Kept(store, 2 * PART)
        await kept.append(DATA[:1000])
        faults.refuse("GetTail", 500, "InternalError", times=1000)
        async with kept.writing() as writer:
            with pytest.raises(DataError, match="InternalError"):
                await writer.write([DATA[1000 : 2 * PART]])
        faults.clear()
        await kept.append(DATA[1000 : 2 * PART])
        await kept.finish()
        assert await kept.read() == DATA[: 2 * PART]


async def test_a_tail_that_is_gone(store: S3Store, moto_server: S3Server) -> None:
    kept = Kept(store, 2 * PART)
    await kept.append(DATA[:1000])
    [tail] = await kept.pieces()
    async with moto_server.client() as client:
        await client.delete_object(Bucket=BUCKET, Key=tail.storage["tail"])
    with pytest.raises(BytesMissingError):
        await store.writer(kept.record, kept.journal)


async def test_a_stale_writers_parts_are_not_in_the_list(store: S3Store) -> None:
    """It was paused, lost its lease, and goes on: under numbers that nobody else was given."""
    kept = Kept(store, len(DATA))
    await kept.append(DATA[: 2 * PART])
    async with kept.writing() as stale:
        await stale.write([b"x" * PART])
        await stale._parts.wait()
        await kept.append(DATA[2 * PART :])
        await stale.write([b"y" * PART + b"z"])
        await stale.flush()  # which nobody commits
    numbers = [piece.storage["part"] for piece in await kept.pieces()]
    assert len(set(numbers)) == len(numbers)
    await kept.finish()
    assert await kept.read() == DATA


async def test_a_slow_and_broken_download_goes_on(store: S3Store, faults: Faults) -> None:
    async def cut(_asked: Asked, go: Callable[[], Awaitable[bytes]]) -> bytes:
        answer = await go()
        return answer[: len(answer) // 2]

    kept = Kept(store, len(DATA))
    await kept.append(DATA)
    await kept.finish()
    faults.add("GetObject", cut, times=3)
    assert await kept.read() == DATA
    assert faults.pending == 0


async def test_what_a_bucket_refuses_is_told_at_once(make_store: MakeStore, faults: Faults) -> None:
    for status, code, words in (
        (403, "AccessDenied", "not allowed"),
        (404, "NoSuchBucket", "no such"),
    ):
        faults.refuse("HeadBucket", status, code, times=100)
        with pytest.raises(DataError, match=words):
            async with make_store():
                pass
        faults.clear()
