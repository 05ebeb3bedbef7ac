"""Making uploads: there is one when the answer says so, and none when it was refused."""

from __future__ import annotations

from typing import Any

import pytest
from tests.engine.stage import Stage, beside, reached, refused, sha1, until
from tests.support.bodies import Pause
from tests.support.faulty import FaultyWholeStore

from tidegate.engine.create import AT_ONCE
from tidegate.ports import (
    BodyEnd,
    DataError,
    Delivery,
    Durability,
    Hold,
    LeaseLostError,
    NoRoomError,
    NoSpaceError,
    SyncFailedError,
    UnavailableError,
    UploadExistsError,
)
from tidegate.protocol.commands import Create, Payload
from tidegate.protocol.errors import Code, Refusal
from tidegate.protocol.model import EventType, Kind, State, UploadId

pytestmark = pytest.mark.anyio


def _nothing_is_there(s: Stage) -> bool:
    return not s.records._records and not s.bytes._uploads and s.bytes.used == 0


async def test_an_upload_of_nothing_is_complete() -> None:
    async with Stage().open() as s:
        upload = await s.create(0)
        assert upload.complete
        assert await s.download(upload.id) == b""
        assert (await s.create(0, chunked=True)).complete


async def test_ids_are_random() -> None:
    async with Stage().open() as s:
        made = {(await s.create(1)).id for _ in range(5)}
        assert len(made) == 5
        assert {len(upload_id) for upload_id in made} == {22}


@pytest.mark.parametrize("end", [BodyEnd.DROPPED, BodyEnd.WHOLE])
async def test_a_first_body_cut_short_is_kept(end: BodyEnd) -> None:
    async with Stage().open() as s:
        assert (await s.create(10, b"abc", chunked=True, end=end)).offset == 3


@pytest.mark.parametrize("checksum", [None, sha1(b"abc")])
@pytest.mark.parametrize("call", ["writer", "write", "flush", "finish"])
@pytest.mark.parametrize("error", [DataError("bad"), NoSpaceError("full"), SyncFailedError("no")])
async def test_a_refused_creation_leaves_nothing(
    call: str, error: Exception, checksum: object
) -> None:
    """Nobody was told its URL, so nobody could go on with it."""
    async with Stage().open() as s:
        s.data.faults.fail(call, error)
        with pytest.raises(Refusal):
            await s.create(3, b"abc", checksum=checksum)  # type: ignore[arg-type]
        assert _nothing_is_there(s)


@pytest.mark.parametrize("call", ["insert", "commit"])
@pytest.mark.parametrize("error", [UnavailableError("away"), NoRoomError("full")])
@pytest.mark.parametrize("length", [0, 3])
async def test_records_that_cannot_be_written(call: str, error: Exception, length: int) -> None:
    async with Stage().open() as s:
        s.metadata.faults.fail(call, error)
        with pytest.raises(Refusal):
            await s.create(length, *([b"abc"] if length else []))
        if length or call == "insert":
            assert _nothing_is_there(s)


@pytest.mark.parametrize(
    ("steps", "options", "code"),
    [
        ([b"abcd", b"e"], {"chunked": True}, Code.TOO_LARGE),
        ([b"abc"], {"checksum": sha1(b"no")}, Code.CHECKSUM_MISMATCH),
        ([b"a"], {"chunked": True, "end": BodyEnd.STALLED}, Code.STALLED),
    ],
)
async def test_a_body_that_is_refused(
    steps: list[bytes], options: dict[str, object], code: Code
) -> None:
    told: list[Delivery] = []

    async def sink(delivery: Delivery) -> None:
        told.append(delivery)

    async with Stage(sink=sink, checkpoint_bytes=1).open() as s:
        async with refused(code):
            await s.create(4, *steps, **options)  # type: ignore[arg-type]
        assert _nothing_is_there(s)
        await until(lambda: len(told) == 2)
    assert [d.event.type for d in told] == [EventType.CREATED, EventType.TERMINATED]


async def test_draining_takes_a_new_upload_back() -> None:
    async with Stage().open() as s, beside() as start:
        pause = Pause()
        request = start(s.create, 10, b"abc", pause, chunked=True)
        await reached(pause.reached)
        s.engine.drain()
        assert await request.answer() is Code.STOPPING
        assert _nothing_is_there(s)


async def test_whoever_knows_of_it_all_the_same_is_not_robbed() -> None:
    """The name is the operator's: a second request finds the upload before its first answer."""
    async with Stage(new_id=lambda _: "mine").open() as s, beside() as start:
        pause, upload_id = Pause(), UploadId("mine")
        gate = s.metadata.faults.hold("acquire", skip=2)
        request = start(s.create, 10, b"abc", pause, chunked=True)
        await reached(pause.reached)
        after = start(s.append, upload_id, 3, b"d")
        # The creation wants to take its upload back, but the other one goes on.
        await reached(gate.reached)
        gate.go.set()
        answers = {await request.answer(), type(await after.answer())}
        assert Code.LOCKED in answers


async def test_an_upload_that_went_on_stays() -> None:
    async with Stage(new_id=lambda _: "mine").open() as s, beside() as start:
        pause, upload_id = Pause(), UploadId("mine")
        request = start(s.create, 10, b"abc", pause, chunked=True)
        await reached(pause.reached)
        gate = s.metadata.faults.hold("acquire")  # the one with which it is taken back
        await s.records.request_release(upload_id)
        await reached(gate.reached)
        assert (await s.append(upload_id, 3, b"d")).offset == 4
        gate.go.set()
        assert await request.answer() is Code.LOCKED
        assert (await s.head(upload_id)).offset == 4


async def test_an_upload_that_is_being_written_stays() -> None:
    async with Stage(new_id=lambda _: "mine").open() as s, beside() as start:
        pause, upload_id = Pause(), UploadId("mine")
        request = start(s.create, 10, b"abc", pause, chunked=True)
        await reached(pause.reached)
        gate = s.metadata.faults.hold("acquire")
        await s.records.request_release(upload_id)
        await reached(gate.reached)
        again = Pause()
        rival = start(s.append, upload_id, 3, b"d", again, chunked=True)
        await reached(again.reached)
        gate.go.set()
        assert await request.answer() is Code.LOCKED
        again.go.set()
        assert (await rival.answer()).offset == 4


@pytest.mark.parametrize("call", ["commit", "acquire"])
async def test_what_cannot_be_taken_back_expires(call: str) -> None:
    async with Stage().open() as s:
        skip = 1 if call == "commit" else 0
        s.metadata.faults.fail(call, UnavailableError("away"), skip=skip)
        s.data.faults.fail("write", NoSpaceError("full"))
        async with refused(Code.NO_SPACE):
            await s.create(3, b"abc")
        if call == "commit":
            assert len(s.records._records) == 1
            s.clock.advance(101)
            swept = await s.engine.sweep()
            assert swept is not None
            assert len(swept.expired) == 1
        assert not s.bytes._uploads or s.bytes.used == 0


async def test_bytes_that_cannot_be_taken_back_are_orphans() -> None:
    async with Stage().open() as s:
        s.data.faults.fail("delete", DataError("bad"))
        async with refused(Code.CHECKSUM_MISMATCH):
            await s.create(3, b"abc", checksum=sha1(b""))
        assert not s.records._records


async def test_an_upload_that_was_taken_away_is_not_taken_back() -> None:
    async with Stage().open() as s:
        s.metadata.faults.fail("commit", LeaseLostError("lost"))
        async with refused(Code.LOCKED):
            await s.create(3, b"abc")
        assert len(s.records._records) == 1


async def test_a_cancelled_creation_keeps_what_came() -> None:
    async with Stage(new_id=lambda _: "mine").open() as s, beside() as start:
        pause = Pause()
        request = start(s.create, 10, b"abc", pause, chunked=True)
        await reached(pause.reached)
        request.scope.cancel()
        await request.answer()
        assert (await s.head(UploadId("mine"))).offset == 3


@pytest.mark.parametrize("ask", ["head", "append"])
async def test_an_empty_upload_is_not_shown_before_its_completion(ask: str) -> None:
    """Cancelled as it was made: whoever asks first completes it."""
    async with Stage(new_id=lambda _: "mine").open() as s, beside() as start:
        upload_id = UploadId("mine")
        gate = s.data.faults.hold("finish")
        request = start(s.create, 0)
        await reached(gate.reached)
        request.scope.cancel()
        await request.answer()
        # As if the lease had been given back.
        s.records._records[upload_id].lease = None
        assert s.record(upload_id).whole
        if ask == "head":
            assert (await s.head(upload_id)).complete
        else:
            assert (await s.append(upload_id, 0)).complete


async def test_a_name_that_is_taken() -> None:
    async with Stage(new_id=lambda _: "mine").open() as s:
        await s.create(3)
        async with refused(Code.EXISTS):
            await s.create(3)
        s.metadata.faults.fail("insert", UploadExistsError("mine"))
        async with refused(Code.EXISTS):
            await s.create(3, b"abc")


async def test_a_malformed_creation_looks_nothing_up() -> None:
    async with Stage().open() as s:
        part = await s.partial(b"a")
        s.metadata.faults.calls.clear()
        bad = Refusal(Code.BAD_HEADER, "bad")
        command = Create(kind=Kind.FINAL, parts=(part,), malformed=bad)
        async with refused(Code.BAD_HEADER):
            await s.engine.handle(command, s.body()[0])
        assert not s.metadata.faults.calls


async def test_a_part_that_vanishes_meanwhile() -> None:
    async with Stage().open() as s, beside() as start:
        part = await s.partial(b"a")
        gate = s.metadata.faults.hold("insert")
        request = start(s.final, part)
        await reached(gate.reached)
        await s.delete(part)
        gate.go.set()
        assert await request.answer() is Code.GONE
        async with refused(Code.NOT_FOUND):
            await s.final(UploadId("unknown"))


async def test_a_final_that_waits_for_a_part_that_was_taken_back_fails() -> None:
    ids = iter(["part", "final"])
    async with Stage(new_id=lambda _: next(ids)).open() as s, beside() as start:
        pause = Pause()
        request = start(
            s.create, 3, b"abc", pause, kind=Kind.PARTIAL, checksum=sha1(b""), chunked=True
        )
        await reached(pause.reached)
        final = await s.final(UploadId("part"))
        assert final.length == 3
        pause.go.set()
        assert await request.answer() is Code.CHECKSUM_MISMATCH
        await s.became(final.id, State.FAILED)
        async with refused(Code.GONE):
            await s.head(final.id)


# ---------------------------------------------------------------------------------- room


async def test_unfinished_uploads_have_their_limit() -> None:
    async with Stage(max_unfinished=10).open() as s:
        first = await s.create(8)
        async with refused(Code.NO_SPACE):
            await s.create(3)
        await s.append(first.id, 0, bytes(8))
        await s.create(10)


@pytest.mark.parametrize(("free", "fits"), [(100, True), (99, False), (10, False), (None, True)])
async def test_the_disk_has_its_reserve(free: int | None, *, fits: bool) -> None:
    async with Stage(reserve_disk=90).open() as s:
        s.data.free = free
        if fits:
            await s.create(10)
        else:
            async with refused(Code.NO_SPACE):
                await s.create(10)


async def test_a_created_record_is_durable_when_asked() -> None:
    async with Stage(durability=Durability.ACK).open() as s:
        assert (await s.create(3, b"a")).synced_offset == 1


# ------------------------------------------------------------------- small uploads, in one step


async def test_a_small_upload_is_stored_in_one_step() -> None:
    told: list[EventType] = []

    async def sink(delivery: Delivery) -> None:
        told.append(delivery.event.type)

    async with Stage(store=FaultyWholeStore, sink=sink).open() as s:
        upload = await s.create(6, b"abc", b"def")
        assert upload.complete
        assert s.data.faults.calls == ["store_whole"]
        assert s.metadata.faults.calls.count("commit") == 1
        assert s.hold(upload.id) is Hold.FREE
        assert await s.download(upload.id) == b"abcdef"
        await until(lambda: told == [EventType.CREATED, EventType.COMPLETED])
        part = await s.create(3, b"abc", kind=Kind.PARTIAL)
        assert (await s.final(part.id, part.id)).complete


@pytest.mark.parametrize(
    ("length", "body", "options"),
    [
        (4, b"abc", {}),
        (None, b"abc", {}),
        (3, b"abc", {"checksum": sha1(b"abc")}),
        (3, b"abc", {"chunked": True}),
        (AT_ONCE + 1, bytes(AT_ONCE + 1), {}),
    ],
)
async def test_what_is_more_than_that_is_written_in_steps(
    length: int | None, body: bytes, options: dict[str, Any]
) -> None:
    async with Stage(store=FaultyWholeStore).open() as s:
        upload = await s.create(length, body, **options)
        assert s.stored(upload.id) == body
        assert "store_whole" not in s.data.faults.calls


@pytest.mark.parametrize(
    "error", [DataError("bad"), NoSpaceError("full"), SyncFailedError("no"), UnavailableError("x")]
)
async def test_a_small_upload_that_cannot_be_stored_is_none(error: Exception) -> None:
    async with Stage(store=FaultyWholeStore).open() as s:
        s.data.faults.fail("store_whole", error)
        with pytest.raises(Refusal):
            await s.create(3, b"abc")
        assert _nothing_is_there(s)


@pytest.mark.parametrize(
    ("end", "code"),
    [(BodyEnd.DROPPED, Code.BAD_REQUEST), (BodyEnd.STALLED, Code.STALLED)],
)
async def test_a_small_body_cut_short_makes_nothing(end: BodyEnd, code: Code) -> None:
    """Nobody was told its URL, so nobody could go on with it."""
    async with Stage(store=FaultyWholeStore).open() as s:
        body, _ = s.body(b"ab", end=end)
        command = Create(length=3, payload=Payload(length=3))
        async with refused(code):
            await s.engine.handle(command, body)
        assert _nothing_is_there(s)


async def test_a_small_body_when_the_server_stops() -> None:
    async with Stage(store=FaultyWholeStore).open() as s, beside() as start:
        pause = Pause()
        request = start(s.create, 6, b"abc", pause, b"def")
        await reached(pause.reached)
        s.engine.drain()
        assert await request.answer() is Code.STOPPING
        async with refused(Code.STOPPING):
            await s.create(3, b"abc")
        assert _nothing_is_there(s)


@pytest.mark.parametrize(("call", "offset"), [("store_whole", 0), ("commit", 3)])
async def test_a_small_upload_whose_process_dies(call: str, offset: int) -> None:
    """It is whole, or has nothing, for whoever finds it."""
    first = Stage(store=FaultyWholeStore, new_id=lambda _: "mine")
    async with first.open() as s, beside() as start:
        gate = (s.metadata if call == "commit" else s.data).faults.hold(call)
        request = start(s.create, 3, b"abc")
        await reached(gate.reached)
        s.die()
        request.scope.cancel()
        await request.answer()
    async with first.again().open() as s:
        found = await s.head(UploadId("mine"))
        assert (found.offset, found.complete) == (offset, offset == 3)
