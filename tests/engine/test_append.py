"""Receiving bytes: what counts, what is cut off, whatever goes wrong on the way."""

from __future__ import annotations

import anyio
import pytest
from tests.engine.stage import Stage, beside, reached, refused, sha1, until
from tests.support.bodies import Pause

from tidegate.engine import append as engine_append
from tidegate.engine.tending import sync_all
from tidegate.ports import (
    BodyEnd,
    DataError,
    Durability,
    Hold,
    LeaseLostError,
    NoRoomError,
    NoSpaceError,
    SyncFailedError,
    UnavailableError,
)
from tidegate.protocol.capabilities import Capability
from tidegate.protocol.commands import Checksum
from tidegate.protocol.errors import Code
from tidegate.protocol.model import Kind, Segment, State

pytestmark = pytest.mark.anyio


# ------------------------------------------------------------------------ what came counts


@pytest.mark.parametrize("end", [BodyEnd.DROPPED, BodyEnd.WHOLE])
async def test_a_body_cut_short_is_kept(end: BodyEnd) -> None:
    """Also when the transport takes it for whole: it announced more."""
    async with Stage().open() as s:
        upload = await s.create(10)
        assert (await s.append(upload.id, 0, b"abc", size=10, end=end)).offset == 3
        assert (await s.append(upload.id, 3, b"defghij")).complete
        assert await s.download(upload.id) == b"abcdefghij"


async def test_a_stalled_body_is_kept_and_told() -> None:
    async with Stage().open() as s:
        upload = await s.create(10)
        async with refused(Code.STALLED):
            await s.append(upload.id, 0, b"abc", size=10, end=BodyEnd.STALLED)
        assert (await s.head(upload.id)).offset == 3


async def test_a_body_that_never_came_changes_nothing() -> None:
    async with Stage().open() as s:
        upload = s.record((await s.create(10)).id)
        s.clock.advance(5)
        after = await s.append(upload.id, 0, size=10, end=BodyEnd.DROPPED)
        assert after == s.record(upload.id) == upload


async def test_empty_chunks_are_nothing() -> None:
    async with Stage().open() as s:
        upload = await s.create(3)
        assert (await s.append(upload.id, 0, b"", b"abc", b"")).complete
        assert len(s.data.writers) == 1


async def test_an_empty_append_slides_the_expiry_and_sets_the_length() -> None:
    async with Stage().open() as s:
        upload = await s.create(None, b"abc")
        s.clock.advance(50)
        after = await s.append(upload.id, 3, length=5)
        assert (after.length, after.offset) == (5, 3)
        assert after.expires_at == s.clock.now() + 100
        assert (await s.append(upload.id, 3, length=5)).offset == 3
        async with refused(Code.BAD_LENGTH):
            await s.append(upload.id, 3, length=6)


async def test_an_empty_append_that_sets_the_length_completes() -> None:
    async with Stage().open() as s:
        upload = await s.create(None, b"abc")
        assert (await s.append(upload.id, 3, length=3)).complete


@pytest.mark.parametrize("kind", [Kind.REGULAR, Kind.PARTIAL])
@pytest.mark.parametrize("chunked", [True, False])
async def test_an_empty_append_to_a_complete_upload_is_fine(kind: Kind, *, chunked: bool) -> None:
    """And only a partial's expiry slides."""
    async with Stage().open() as s:
        upload = await s.create(3, b"abc", kind=kind)
        s.clock.advance(50)
        after = await s.append(upload.id, 3, chunked=chunked)
        assert after.complete
        assert s.hold(upload.id) is Hold.FREE
        slid = s.clock.now() + 100
        assert after.expires_at == (slid if kind is Kind.PARTIAL else None)
        await s.append(upload.id, 3, chunked=True, checksum=sha1(b""))
        async with refused(Code.CHECKSUM_MISMATCH):
            await s.append(upload.id, 3, chunked=True, checksum=sha1(b"no"))
        async with refused(Code.TOO_LARGE):
            await s.append(upload.id, 3, b"d", chunked=True)
        await s.append(upload.id, 3, chunked=True, end=BodyEnd.DROPPED)
        assert s.record(upload.id).complete
        assert await s.download(upload.id) == b"abc"


async def test_a_body_that_is_too_long_never_completes() -> None:
    """Nothing of it stays but what a checkpoint acknowledged."""
    async with Stage(checkpoint_bytes=4).open() as s:
        upload = await s.create(10)
        async with refused(Code.TOO_LARGE):
            await s.append(upload.id, 0, b"abc", b"defghijk", chunked=True)
        assert (await s.head(upload.id)).offset == 0
        async with refused(Code.TOO_LARGE):
            await s.append(upload.id, 0, b"abcd", b"ef", b"ghij", b"k", chunked=True)
        after = await s.head(upload.id)
        assert (after.offset, after.state) == (4, State.RECEIVING)
        assert s.stored(upload.id) == b"abcd"


async def test_too_long_at_once_opens_nothing() -> None:
    async with Stage().open() as s:
        upload = await s.create(3)
        async with refused(Code.TOO_LARGE):
            await s.append(upload.id, 0, b"abcd", chunked=True)
        assert not s.data.writers


async def test_a_deferred_length_has_the_room_that_there_is() -> None:
    async with Stage(options={"max_size": 5}).open() as s:
        upload = await s.create(None)
        async with refused(Code.TOO_LARGE):
            await s.append(upload.id, 0, b"abcdef", chunked=True)
        assert (await s.append(upload.id, 0, b"abcde", chunked=True)).offset == 5


# ------------------------------------------------------------------------------- checksums


@pytest.mark.parametrize(
    ("end", "code"),
    [(BodyEnd.DROPPED, None), (BodyEnd.STALLED, Code.STALLED), (BodyEnd.WHOLE, None)],
)
async def test_a_checksum_needs_the_whole_body(end: BodyEnd, code: Code | None) -> None:
    async with Stage().open() as s, beside() as start:
        upload = await s.create(10)
        answer = await start(
            s.append, upload.id, 0, b"abc", size=10, end=end, checksum=sha1(b"abc")
        ).answer()
        assert answer is code if code else answer.offset == 0
        assert s.stored(upload.id) == b""
        record = s.record(upload.id)
        assert (record.offset, record.unverified) == (0, False)
        assert s.hold(upload.id) is Hold.FREE


async def test_a_checksummed_body_that_never_came_leaves_no_mark() -> None:
    async with Stage().open() as s:
        upload = await s.create(10)
        await s.append(upload.id, 0, size=10, end=BodyEnd.DROPPED, checksum=sha1(b"abc"))
        assert not s.record(upload.id).unverified
        assert s.hold(upload.id) is Hold.FREE


async def test_no_checkpoint_acknowledges_what_is_not_verified() -> None:
    async with Stage(checkpoint_bytes=1).open() as s, beside() as start:
        upload, pause = await s.create(10), Pause()
        request = start(s.append, upload.id, 0, b"abc", pause, b"d", size=4, checksum=sha1(b"abcd"))
        await reached(pause.reached)
        assert s.record(upload.id).offset == 0
        assert s.record(upload.id).unverified
        assert (await s.head(upload.id)).offset == 0  # and it is not interrupted
        pause.go.set()
        assert (await request.answer()).offset == 4
        assert not s.record(upload.id).unverified


async def test_a_checksummed_body_is_not_interrupted_before_its_first_byte() -> None:
    async with Stage().open() as s, beside() as start:
        upload, pause = await s.create(10), Pause()
        request = start(s.append, upload.id, 0, pause, b"abc", size=3, checksum=sha1(b"abc"))
        await reached(pause.reached)
        assert (await s.head(upload.id)).offset == 0
        pause.go.set()
        assert (await request.answer()).offset == 3


@pytest.mark.parametrize("name", ["sha1", "md5"])
async def test_a_trailing_checksum(name: str) -> None:
    """Its algorithm is known at the end only."""
    async with Stage(options={"transport": Capability.TRAILERS}).open() as s:
        upload = await s.create(10)
        digest = s.engine.offer.algorithms[name].start()
        digest.update(b"abc")
        right = Checksum(name, digest.digest())
        for wrong, code in (
            (Checksum(name, bytes(len(right.digest))), Code.CHECKSUM_MISMATCH),
            (Checksum("sha3", b"x"), Code.UNKNOWN_ALGORITHM),
            (Checksum(name, b"short"), Code.BAD_CHECKSUM),
            (None, Code.BAD_CHECKSUM),
        ):
            async with refused(code):
                await s.append(upload.id, 0, b"abc", chunked=True, trailing=True, trailer=wrong)
            assert s.stored(upload.id) == b""
        after = await s.append(upload.id, 0, b"abc", chunked=True, trailing=True, trailer=right)
        assert after.offset == 3


# ------------------------------------------------------------------------------ the writers


async def test_a_newer_request_has_the_writer_let_go() -> None:
    async with Stage().open() as s, beside() as start:
        upload, pause = await s.create(10), Pause()
        request = start(s.append, upload.id, 0, b"abc", pause, size=10)
        await reached(pause.reached)
        assert (await s.head(upload.id)).offset == 3
        assert await request.answer() is Code.LOCKED
        assert (await s.append(upload.id, 3, b"defghij")).complete


async def test_a_body_that_ends_just_as_it_is_stopped_is_whole() -> None:
    async with Stage().open() as s, beside() as start:
        upload, pause = await s.create(3), Pause()
        request = start(s.append, upload.id, 0, b"abc", pause, checksum=sha1(b"abc"))
        await reached(pause.reached)
        await s.metadata.request_release(upload.id)
        assert (await request.answer()).complete


async def test_what_arrived_may_complete_although_it_was_stopped() -> None:
    async with Stage().open() as s, beside() as start:
        upload, pause = await s.create(3), Pause()
        request = start(s.append, upload.id, 0, b"abc", pause, chunked=True)
        await reached(pause.reached)
        assert (await s.head(upload.id)).complete
        assert (await request.answer()).complete


async def test_a_writer_that_lost_its_lease_ends_with_an_error() -> None:
    async with Stage().open() as s, beside() as start:
        upload, pause = await s.create(10), Pause()
        request = start(s.append, upload.id, 0, b"abc", pause, b"d", size=4, deaf=True)
        await reached(pause.reached)
        await s.records.acquire(upload.id, force=True)
        pause.go.set()
        assert await request.answer() is Code.LOCKED
        assert s.record(upload.id).offset == 0


async def test_draining_stops_bodies_and_refuses_new_ones() -> None:
    async with Stage().open() as s, beside() as start:
        upload, pause = await s.create(10), Pause()
        request = start(s.append, upload.id, 0, b"abc", pause, size=10)
        await reached(pause.reached)
        s.engine.drain()
        assert await request.answer() is Code.STOPPING
        assert (await s.head(upload.id)).offset == 3
        async with refused(Code.STOPPING):
            await s.append(upload.id, 3, b"def")
        async with refused(Code.STOPPING):
            await s.append(upload.id, 3, b"def", checksum=sha1(b"def"))
        assert s.hold(upload.id) is Hold.FREE
        assert (await s.append(upload.id, 3)).offset == 3


# ------------------------------------------------------------------------------ cancellation


async def test_a_cancelled_request_keeps_what_came() -> None:
    async with Stage().open() as s, beside() as start:
        upload, pause = await s.create(10), Pause()
        request = start(s.append, upload.id, 0, b"abc", pause, size=10)
        await reached(pause.reached)
        request.scope.cancel()
        assert await request.answer() is None
        assert (s.record(upload.id).offset, s.hold(upload.id)) == (3, Hold.FREE)


async def test_a_cancelled_checksummed_request_keeps_nothing() -> None:
    async with Stage().open() as s, beside() as start:
        upload, pause = await s.create(10), Pause()
        request = start(s.append, upload.id, 0, b"abc", pause, size=10, checksum=sha1(b""))
        await reached(pause.reached)
        request.scope.cancel()
        await request.answer()
        assert s.stored(upload.id) == b""
        assert (s.record(upload.id).unverified, s.hold(upload.id)) == (False, Hold.FREE)


@pytest.mark.parametrize("checksum", [None, sha1(b"abc")])
async def test_cancelled_with_its_commit_in_doubt_nothing_is_cut_off(
    checksum: Checksum | None,
) -> None:
    """The commit was done, and nobody was told: its bytes are acknowledged."""
    async with Stage().open() as s, beside() as start:
        upload = await s.create(10)
        gate = s.metadata.faults.hold("commit", skip=1 if checksum else 0, after=True)
        request = start(s.append, upload.id, 0, b"abc", checksum=checksum)
        await reached(gate.reached)
        request.scope.cancel()
        await request.answer()
        assert (await s.head(upload.id)).offset == 3
        assert s.stored(upload.id) == b"abc"


@pytest.mark.parametrize("checksum", [None, sha1(b"abc")])
async def test_cancelled_with_its_commit_not_done_it_is_recovered(
    checksum: Checksum | None,
) -> None:
    async with Stage().open() as s, beside() as start:
        upload = await s.create(10)
        gate = s.metadata.faults.hold("commit", skip=1 if checksum else 0)
        request = start(s.append, upload.id, 0, b"abc", checksum=checksum)
        await reached(gate.reached)
        request.scope.cancel()
        await request.answer()
        assert s.hold(upload.id) is Hold.ABANDONED
        after = await s.head(upload.id)
        assert after.offset == (0 if checksum else 3)
        assert s.stored(upload.id) == (b"" if checksum else b"abc")
        assert not after.unverified


@pytest.mark.parametrize("call", ["finish", "commit"])
async def test_cancelled_while_it_completes_the_next_request_completes(call: str) -> None:
    async with Stage().open() as s, beside() as start:
        upload = await s.create(3)
        faults = s.data.faults if call == "finish" else s.metadata.faults
        gate = faults.hold(call)
        request = start(s.append, upload.id, 0, b"abc")
        await reached(gate.reached)
        request.scope.cancel()
        await request.answer()
        assert not s.record(upload.id).whole
        assert (await s.head(upload.id)).complete


@pytest.mark.parametrize("error", [DataError("bad"), UnavailableError("gone")])
async def test_cancelled_and_it_cannot_be_kept_it_is_recovered(error: Exception) -> None:
    async with Stage().open() as s, beside() as start:
        upload, pause = await s.create(10), Pause()
        request = start(s.append, upload.id, 0, b"abc", pause, size=10)
        await reached(pause.reached)
        s.data.faults.fail("flush", error)
        request.scope.cancel()
        assert await request.answer() is None
        assert (await s.head(upload.id)).offset == 3


async def test_cancelled_and_the_sync_fails_it_goes_back() -> None:
    async with Stage(durability=Durability.ACK).open() as s, beside() as start:
        upload, pause = await s.create(10, b"ab"), Pause()
        request = start(s.append, upload.id, 2, b"c", pause, size=8)
        await reached(pause.reached)
        s.data.faults.fail("sync", SyncFailedError("bad"))
        request.scope.cancel()
        await request.answer()
        assert s.stored(upload.id) == b"ab"
        assert (s.record(upload.id).offset, s.hold(upload.id)) == (2, Hold.FREE)


async def test_keeping_what_came_has_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A supervisor does not wait for ever."""
    monkeypatch.setattr(engine_append, "KEEP_WITHIN", 0.01)
    async with Stage().open() as s, beside() as start:
        upload, pause = await s.create(10), Pause()
        request = start(s.append, upload.id, 0, b"abc", pause, size=10)
        await reached(pause.reached)
        s.data.faults.hold("flush")
        request.scope.cancel()
        await request.answer()
        assert s.hold(upload.id) is Hold.ABANDONED
        assert (await s.head(upload.id)).offset == 3


# -------------------------------------------------------------------------- what goes wrong


async def test_a_full_disk_keeps_what_fitted() -> None:
    stage = Stage()
    stage.bytes.capacity = 5
    async with stage.open() as s:
        upload = await s.create(5)
        s.bytes.capacity = 3
        async with refused(Code.NO_SPACE):
            await s.append(upload.id, 0, b"abcde")
        assert (await s.head(upload.id)).offset == 3
        s.bytes.capacity = 5
        assert (await s.append(upload.id, 3, b"de")).complete


async def test_a_full_disk_keeps_nothing_unverified() -> None:
    async with Stage().open() as s:
        upload = await s.create(5)
        s.bytes.capacity = 3
        async with refused(Code.NO_SPACE):
            await s.append(upload.id, 0, b"abcde", checksum=sha1(b"abcde"))
        assert s.stored(upload.id) == b""
        assert (await s.head(upload.id)).offset == 0


WRITING = ["writer", "write", "flush", "finish"]


@pytest.mark.parametrize("call", WRITING)
@pytest.mark.parametrize("error", [DataError("bad"), NoSpaceError("full")])
@pytest.mark.parametrize("checksum", [None, sha1(b"abc")])
async def test_a_data_store_that_fails(
    call: str, error: Exception, checksum: Checksum | None
) -> None:
    """No success, and the client can go on where HEAD says."""
    async with Stage().open() as s, beside() as start:
        upload = await s.create(3)
        s.data.faults.fail(call, error)
        code = Code.NO_SPACE if isinstance(error, NoSpaceError) else Code.UNAVAILABLE
        request = start(s.append, upload.id, 0, b"abc", checksum=checksum)
        assert await request.answer() is code
        await _resumes(s, upload.id, b"abc")


@pytest.mark.parametrize("skip", [0, 1])
@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("checksum", [None, sha1(b"abc")])
@pytest.mark.parametrize(
    "error", [UnavailableError("away"), NoRoomError("full"), LeaseLostError("lost")]
)
async def test_a_metadata_store_that_fails(
    error: Exception, checksum: Checksum | None, *, after: bool, skip: int
) -> None:
    """Also when the commit was done, and the answer got lost."""
    async with Stage(checkpoint_bytes=1).open() as s, beside() as start:
        upload = await s.create(3)
        s.metadata.faults.fail("commit", error, skip=skip, after=after)
        request = start(s.append, upload.id, 0, b"a", b"bc", checksum=checksum)
        codes: dict[type[Exception], Code] = {
            UnavailableError: Code.UNAVAILABLE,
            NoRoomError: Code.NO_SPACE,
            LeaseLostError: Code.LOCKED,
        }
        assert await request.answer() is codes[type(error)]
        await _resumes(s, upload.id, b"abc")


@pytest.mark.parametrize("call", ["load", "acquire"])
async def test_records_that_cannot_be_reached(call: str) -> None:
    async with Stage().open() as s:
        upload = await s.create(3)
        s.metadata.faults.fail(call, UnavailableError("away"))
        async with refused(Code.UNAVAILABLE):
            await s.append(upload.id, 0, b"abc")
        await _resumes(s, upload.id, b"abc")


async def test_a_transport_that_breaks_is_recovered() -> None:
    async with Stage().open() as s:
        upload = await s.create(3)
        with pytest.raises(RuntimeError):
            await s.append(upload.id, 0, b"a", RuntimeError("a bug"), size=3)
        assert (await s.head(upload.id)).offset == 1


async def _resumes(s: Stage, upload_id: object, data: bytes) -> None:
    upload = await s.head(upload_id)  # type: ignore[arg-type]
    assert s.stored(upload.id) == data[: upload.offset]
    if not upload.complete:
        assert (await s.append(upload.id, upload.offset, data[upload.offset :])).complete
    assert await s.download(upload.id) == data


# ---------------------------------------------------------------------- checkpoints, syncs


async def test_progress_is_committed_by_bytes() -> None:
    async with Stage(checkpoint_bytes=4).open() as s, beside() as start:
        upload, pause = await s.create(20), Pause()
        request = start(s.append, upload.id, 0, b"abc", b"d", b"e", pause, size=20)
        await reached(pause.reached)
        assert s.record(upload.id).offset == 4
        await until(lambda: "sync" in s.data.faults.calls)
        request.scope.cancel()
        await request.answer()
        assert s.record(upload.id).offset == 5


async def test_progress_is_committed_by_time() -> None:
    async with Stage(checkpoint_seconds=3).open() as s, beside() as start:
        upload, first, second = await s.create(20), Pause(), Pause()
        start(s.append, upload.id, 0, b"abc", first, b"d", second, size=20)
        await reached(first.reached)
        assert s.record(upload.id).offset == 0
        s.clock.advance(3)
        first.go.set()
        await reached(second.reached)
        assert s.record(upload.id).offset == 4
        assert s.record(upload.id).expires_at == s.clock.now() + 100


async def test_no_checkpoint_says_that_it_is_whole() -> None:
    async with Stage(checkpoint_bytes=1).open() as s, beside() as start:
        upload, pause = await s.create(3), Pause()
        start(s.append, upload.id, 0, b"abc", pause)
        await reached(pause.reached)
        assert s.record(upload.id).offset == 0


async def test_checkpoints_are_synced_behind_the_writer() -> None:
    """One at a time, while more comes in."""
    async with Stage(checkpoint_bytes=1).open() as s, beside() as start:
        upload, pause, last = await s.create(20), Pause(), Pause()
        gate = s.data.faults.hold("sync")
        request = start(s.append, upload.id, 0, b"a", b"b", pause, b"c", last, size=20)
        await reached(gate.reached)
        await reached(pause.reached)
        assert s.record(upload.id).offset == 2
        assert s.record(upload.id).synced_offset == 0
        assert s.data.faults.calls.count("sync") == 1
        gate.go.set()
        await until(lambda: s.bytes._uploads[upload.id].writer is not None)
        await anyio.wait_all_tasks_blocked()
        pause.go.set()
        await reached(last.reached)
        record = s.record(upload.id)
        assert (record.offset, record.synced_offset, record.boot_id) == (3, 2, "boot-1")
        request.scope.cancel()
        await request.answer()


@pytest.mark.parametrize("error", [SyncFailedError("bad"), DataError("worse")])
@pytest.mark.parametrize("noticed", ["by the next chunk", "at the end", "by a refusal"])
async def test_a_sync_that_fails_behind_the_writer(error: DataError, noticed: str) -> None:
    """The upload goes back to what was synced before, and is never complete for it."""
    async with Stage(checkpoint_bytes=1).open() as s, beside() as start:
        upload, pause, go = await s.create(None, b"ab"), Pause(), Pause()
        # What came with the creation is not synced yet: make it so.
        await sync_all(s.engine._core)
        assert s.record(upload.id).synced_offset == 2
        s.data.faults.fail("sync", error)
        steps = {"by the next chunk": [b"d", b"e"], "at the end": [], "by a refusal": [b"defghij"]}
        request = start(
            s.append, upload.id, 2, b"c", pause, *steps[noticed], go, length=8, chunked=True
        )
        await reached(pause.reached)
        assert s.record(upload.id).offset == 3
        await anyio.wait_all_tasks_blocked()
        go.go.set()
        pause.go.set()
        assert await request.answer() is Code.UNAVAILABLE
        after = await s.head(upload.id)
        assert (after.offset, s.stored(upload.id)) == (2, b"ab")
        await s.append(upload.id, 2, b"cdefgh", length=8)
        assert await s.download(upload.id) == b"abcdefgh"


async def test_a_sync_that_fails_at_the_completion() -> None:
    async with Stage().open() as s:
        upload = await s.create(3, b"a")
        s.data.faults.fail("finish", SyncFailedError("bad"))
        async with refused(Code.UNAVAILABLE):
            await s.append(upload.id, 1, b"bc")
        assert (await s.head(upload.id)).offset == 0
        assert s.stored(upload.id) == b""
        assert (await s.append(upload.id, 0, b"abc")).complete


async def test_a_writer_waits_for_the_sync_behind_it() -> None:
    async with Stage(checkpoint_bytes=1).open() as s, beside() as start:
        upload = await s.create(20)
        gate = s.data.faults.hold("sync")
        request = start(s.append, upload.id, 0, b"a", b"b")
        await reached(gate.reached)
        await anyio.wait_all_tasks_blocked()
        assert not s.data.writers[0].closed
        assert not request.done.is_set()
        gate.go.set()
        assert (await request.answer()).synced_offset == 2


async def test_a_cancelled_writer_is_closed_after_its_sync() -> None:
    async with Stage(checkpoint_bytes=1).open() as s, beside() as start:
        upload, pause = await s.create(20), Pause()
        gate = s.data.faults.hold("sync")
        request = start(s.append, upload.id, 0, b"a", pause, RuntimeError("a bug"), size=20)
        await reached(gate.reached)
        await reached(pause.reached)
        pause.go.set()
        await anyio.wait_all_tasks_blocked()
        assert not s.data.writers[0].closed
        gate.go.set()
        with pytest.raises(RuntimeError):
            await request.answer()
        assert s.data.writers[0].closed


async def test_every_acknowledgement_is_durable_when_asked() -> None:
    async with Stage(durability=Durability.ACK, checkpoint_bytes=1).open() as s, beside() as start:
        upload, pause = await s.create(20), Pause()
        start(s.append, upload.id, 0, b"a", pause, size=20)
        await reached(pause.reached)
        record = s.record(upload.id)
        assert (record.offset, record.synced_offset, record.boot_id) == (1, 1, "")
        after = await s.head(upload.id)
        assert after.synced_offset == 1


async def test_nothing_is_synced_when_nothing_is_to_be() -> None:
    async with Stage(durability=Durability.NONE, checkpoint_bytes=1).open() as s:
        upload = await s.create(3, b"a")
        await s.append(upload.id, 1, b"b", b"c")
        record = s.record(upload.id)
        assert (record.complete, record.synced_offset, record.boot_id) == (True, 0, "boot-1")
        assert "sync" not in s.data.faults.calls


async def test_what_the_writer_says_of_its_pieces_is_committed() -> None:
    async with Stage(checkpoint_bytes=1).open() as s, beside() as start:
        upload, pause = await s.create(3), Pause()
        s.data.pieces = (Segment(1, 0, 1),)
        s.data.storage = {"part": 2}
        request = start(s.append, upload.id, 0, b"a", pause, b"bc")
        await reached(pause.reached)
        assert await s.metadata.segments(upload.id) == [Segment(1, 0, 1)]
        assert s.record(upload.id).storage == {"part": 2}
        s.data.pieces = (Segment(2, 1, 2),)
        pause.go.set()
        assert (await request.answer()).storage == {"part": 2}
        assert await s.metadata.segments(upload.id) == [Segment(1, 0, 1), Segment(2, 1, 2)]
