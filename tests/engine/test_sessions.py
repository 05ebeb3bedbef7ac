"""Holding an upload; what counts of what a crash left."""

from __future__ import annotations

import logging

import anyio
import pytest
from tests.engine.stage import Stage, beside, reached, refused, sha1, until
from tests.support.bodies import Pause
from tests.support.faulty import FaultyPieceStore

from tidegate.engine import sessions
from tidegate.engine.tending import complete_all, sync_all
from tidegate.hooks import Hooks
from tidegate.ports import (
    BytesBusyError,
    DataError,
    Durability,
    Grant,
    Hold,
    SyncFailedError,
    UnavailableError,
)
from tidegate.protocol.commands import Checksum
from tidegate.protocol.errors import Code
from tidegate.protocol.model import UploadId

pytestmark = pytest.mark.anyio


async def _crashed(
    stage: Stage,
    *,
    length: int | None = 10,
    sent: bytes = b"cd",
    checksum: Checksum | None = None,
    deferred: int | None = None,
    synced: bool = True,
) -> UploadId:
    """Leave an upload of "ab" whose next bytes were stored, but not acknowledged."""
    async with stage.open() as s, beside() as start:
        upload, pause = await s.create(length, b"ab"), Pause()
        if synced:  # else the next engine sees to it at once
            await sync_all(s.engine._core)
        start(
            s.append,
            upload.id,
            2,
            sent,
            pause,
            length=deferred,
            chunked=True,
            checksum=checksum,
        )
        await reached(pause.reached)
        s.die()
        return upload.id


# -------------------------------------------------------------------------------- recovery


async def test_plain_bytes_count_after_a_crash() -> None:
    stage = Stage()
    upload_id = await _crashed(stage)
    async with stage.again().open() as s:
        assert s.hold(upload_id) is Hold.ABANDONED
        after = await s.head(upload_id)
        assert (after.offset, after.boot_id) == (4, "boot-1")
        assert s.hold(upload_id) is Hold.FREE
        assert (await s.append(upload_id, 4, b"efghij")).complete
        assert await s.download(upload_id) == b"abcdefghij"


async def test_a_client_may_go_on_without_asking() -> None:
    """An offset that the crash left behind is right, though it was never acknowledged."""
    stage = Stage()
    upload_id = await _crashed(stage)
    async with stage.again().open() as s:
        async with refused(Code.OFFSET_MISMATCH) as refusals:
            await s.append(upload_id, 2, b"cdefghij")
        assert refusals[0].offset == 4
        assert (await s.append(upload_id, 4, b"efghij")).complete


async def test_a_wrong_offset_recovers_nothing() -> None:
    stage = Stage()
    upload_id = await _crashed(stage)
    async with stage.again().open() as s:
        async with refused(Code.OFFSET_MISMATCH):
            await s.append(upload_id, 1, b"x")
        assert s.hold(upload_id) is Hold.ABANDONED


async def test_unverified_bytes_do_not_count() -> None:
    stage = Stage()
    upload_id = await _crashed(stage, checksum=sha1(b"cd"))
    async with stage.again().open() as s:
        assert s.stored(upload_id) == b"abcd"
        after = await s.head(upload_id)
        assert (after.offset, after.unverified) == (2, False)
        assert s.stored(upload_id) == b"ab"


async def test_what_recovery_makes_whole_is_complete_before_the_answer() -> None:
    stage = Stage()
    upload_id = await _crashed(stage, sent=b"cdefghij")
    async with stage.again().open() as s:
        assert not s.record(upload_id).whole
        assert (await s.head(upload_id)).complete
        assert "finish" in s.data.faults.calls


async def test_a_completion_that_fails_is_not_shown() -> None:
    stage = Stage()
    upload_id = await _crashed(stage, sent=b"cdefghij")
    async with stage.again().open() as s:
        s.data.faults.fail("finish", DataError("bad"))
        async with refused(Code.UNAVAILABLE):
            await s.head(upload_id)
        assert s.hold(upload_id) is Hold.ABANDONED
        assert (await s.head(upload_id)).complete


async def test_a_sync_that_fails_in_the_recovery() -> None:
    stage = Stage()
    upload_id = await _crashed(stage, sent=b"cdefghij")
    async with stage.again().open() as s:
        s.data.faults.fail("finish", SyncFailedError("bad"))
        async with refused(Code.UNAVAILABLE):
            await s.head(upload_id)
        assert (await s.head(upload_id)).offset == 2
        assert s.stored(upload_id) == b"ab"


async def test_a_length_that_was_not_committed_is_not_known() -> None:
    stage = Stage()
    upload_id = await _crashed(stage, length=None, deferred=10)
    async with stage.again().open() as s:
        after = await s.head(upload_id)
        assert (after.offset, after.length) == (4, None)


async def test_after_a_loss_of_power_only_what_was_synced_counts() -> None:
    stage = Stage()
    upload_id = await _crashed(stage, synced=False)
    async with stage.again(boot_id="boot-2").open() as s:
        assert (await s.head(upload_id)).offset == 0
        assert s.stored(upload_id) == b""
        assert s.hold(upload_id) is Hold.FREE


@pytest.mark.parametrize("ask", ["head", "append"])
async def test_a_settled_upload_goes_back_after_a_loss_of_power(ask: str) -> None:
    stage = Stage()
    async with stage.open() as s:
        upload = await s.create(10, b"ab")
        s.die()
    async with stage.again(boot_id="boot-2").open() as s:
        assert s.record(upload.id).offset == 2
        if ask == "append":
            async with refused(Code.OFFSET_MISMATCH) as refusals:
                await s.append(upload.id, 2, b"c")
            assert refusals[0].offset == 0
        assert (await s.head(upload.id)).offset == 0


async def test_bytes_that_are_gone_are_not_shown(logged: list[logging.LogRecord]) -> None:
    """Nothing may be behind an offset but bytes."""
    stage = Stage()
    upload_id = await _crashed(stage)
    del stage.bytes._uploads[upload_id].data[1:]
    async with stage.again().open() as s:
        assert (await s.head(upload_id)).offset == 1
        messages = [record.getMessage() for record in logged]
        assert any("acknowledged 2 bytes, found 1" in message for message in messages)


async def test_recovery_syncs_when_every_acknowledgement_is_durable() -> None:
    stage = Stage(durability=Durability.ACK)
    upload_id = await _crashed(stage)
    async with stage.again(durability=Durability.ACK).open() as s:
        after = await s.head(upload_id)
        assert (after.offset, after.synced_offset, after.boot_id) == (4, 4, "")
        assert "sync" in s.data.faults.calls
        assert all(writer.closed for writer in s.data.writers)


@pytest.mark.parametrize("call", ["measure", "truncate"])
async def test_a_recovery_that_fails_is_tried_again(call: str) -> None:
    stage = Stage()
    upload_id = await _crashed(stage, checksum=sha1(b"cd"))
    async with stage.again().open() as s:
        s.data.faults.fail(call, DataError("bad"))
        async with refused(Code.UNAVAILABLE):
            await s.head(upload_id)
        assert s.hold(upload_id) is Hold.ABANDONED
        assert (await s.head(upload_id)).offset == 2


async def test_what_was_recovered_is_synced_by_a_graceful_stop() -> None:
    stage = Stage()
    upload_id = await _crashed(stage)
    async with stage.again().open() as s:
        await s.head(upload_id)
    assert s.record(upload_id).synced_offset == 4
    async with stage.again(boot_id="boot-2").open() as s:
        assert (await s.head(upload_id)).offset == 4


async def test_what_a_dead_server_did_not_sync_is_synced_at_once() -> None:
    stage = Stage()
    upload_id = await _crashed(stage, synced=False)
    async with stage.again().open() as s:
        await until(lambda: s.record(upload_id).synced_offset == 4)
        assert (await s.head(upload_id)).offset == 4


async def test_what_ended_needs_no_recovery() -> None:
    async with Stage().open() as s:
        upload = await s.create(10, b"ab")
        s.data.faults.hold("delete")
        async with beside() as start:
            request = start(s.delete, upload.id)
            await until(lambda: s.record(upload.id).gone)
            request.scope.cancel()
            await request.answer()
        s.records.abandon((await s.records.acquire(upload.id)).lease)  # type: ignore[union-attr]
        held = await s.metadata.acquire(upload.id)
        s.records.abandon(held.lease)  # type: ignore[union-attr]
        async with refused(Code.GONE):
            await s.head(upload.id)


async def test_a_complete_upload_left_behind_is_settled() -> None:
    """A holder that changed nothing died: there is nothing to recover."""
    async with Stage().open() as s:
        upload = await s.create(2, b"ab")
        s.records.abandon((await s.records.acquire(upload.id)).lease)  # type: ignore[union-attr]
        assert (await s.append(upload.id, 2)).complete
        assert s.hold(upload.id) is Hold.FREE


# ------------------------------------------------------------------------------ the lease


@pytest.mark.parametrize("ask", ["head", "append"])
async def test_a_writer_that_does_not_let_go(ask: str) -> None:
    async with Stage(lease_wait=0.02).open() as s, beside() as start:
        upload, pause = await s.create(10), Pause()
        request = start(s.append, upload.id, 0, b"a", pause, b"b", size=2, deaf=True)
        await reached(pause.reached)
        async with refused(Code.LOCKED) as refusals:
            await (s.head(upload.id) if ask == "head" else s.append(upload.id, 1, b"x"))
        assert refusals[0].retry_after
        pause.go.set()
        assert (await request.answer()).offset == 2


async def test_who_was_quicker_is_asked_to_let_go_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """As among servers that share the records: somebody else got what we had asked for."""

    async def wait_in_vain(_: UploadId, timeout: float) -> None:
        await anyio.sleep(timeout)

    monkeypatch.setattr(sessions, "ASK_AGAIN", 0.01)
    async with Stage(lease_wait=20.0).open() as s, beside() as start:
        upload = await s.create(2, b"a")
        monkeypatch.setattr(s.metadata, "wait_released", wait_in_vain)
        holders = [await s.records.acquire(upload.id)]
        request = start(s.append, upload.id, 1, b"b")
        for _ in range(2):
            holder = holders[-1]
            assert isinstance(holder, Grant)
            await reached(holder.wanted)
            await s.records.release(holder.lease)
            if len(holders) == 1:
                holders.append(await s.records.acquire(upload.id))
        assert (await request.answer()).complete


@pytest.mark.parametrize("error", [None, UnavailableError("away")])
async def test_a_writer_far_from_its_pieces_is_given_up(error: Exception | None) -> None:
    """What it has stored counts if that can be said; whoever asked gets the upload in any case."""
    async with (
        Stage(store=FaultyPieceStore, let_go_within=0.01).open() as s,
        beside() as start,
    ):
        upload, pause = await s.create(10), Pause()
        request = start(s.append, upload.id, 0, b"ab", pause, size=9, deaf=True)
        await reached(pause.reached)
        if error is not None:
            # The first is the writer's, of the piece that it reserved.
            s.metadata.faults.fail("commit", error)
        assert (await s.head(upload.id)).offset == 2
        assert await request.answer() is Code.LOCKED


async def test_a_hook_that_is_asked_about_pieces_is_waited_for() -> None:
    asked, answer = anyio.Event(), anyio.Event()

    async def before_complete(*_: object) -> None:
        asked.set()
        await answer.wait()

    hooks = {"hooks": Hooks(before_complete=before_complete)}
    async with (
        Stage(store=FaultyPieceStore, let_go_within=0.0, options=hooks).open() as s,
        beside() as start,
    ):
        upload = await s.create(2)
        request = start(s.append, upload.id, 0, b"ab")
        await reached(asked)
        other = start(s.head, upload.id)
        await until(lambda: "request_release" in s.metadata.faults.calls)
        # It was given its time, and was left alone.
        for _ in range(50):
            await anyio.sleep(0)
        assert not request.done.is_set()
        answer.set()
        assert (await request.answer()).complete
        assert (await other.answer()).complete


async def test_a_hook_that_is_asked_behind_the_requests_is_waited_for() -> None:
    """Also while the pieces can't be reached, which may be over when it has answered."""
    probes, asks, answer = 0, 0, anyio.Event()

    class CutOff(FaultyPieceStore):
        async def probe(self) -> None:
            nonlocal probes
            if asks == 2:
                probes += 1
                raise DataError("away")

    async def before_complete(*_: object) -> None:
        nonlocal asks
        asks += 1
        if asks == 1:
            raise RuntimeError("ask again")
        await answer.wait()

    hooks = {"hooks": Hooks(before_complete=before_complete)}
    async with (
        Stage(store=CutOff, let_go_within=0.0, options=hooks).open() as s,
        beside() as start,
    ):
        upload = await s.create(2)
        async with refused(Code.UNAVAILABLE):
            await s.append(upload.id, 0, b"ab")
        behind = start(complete_all, s.engine._core)
        await until(lambda: asks == 2 and probes > 2)
        assert not behind.done.is_set()
        answer.set()
        await behind.answer()
        assert s.record(upload.id).complete


async def test_what_cannot_be_accepted_does_not_disturb_the_writer() -> None:
    async with Stage().open() as s, beside() as start:
        upload, pause = await s.create(10, b"ab"), Pause()
        request = start(s.append, upload.id, 2, b"c", pause, b"d", size=2)
        await reached(pause.reached)
        for offset, data, code in (
            (1, b"x", Code.OFFSET_MISMATCH),
            (2, bytes(9), Code.TOO_LARGE),
        ):
            async with refused(code):
                await s.append(upload.id, offset, data)
        async with refused(Code.BAD_LENGTH):
            await s.append(upload.id, 2, b"x", length=11)
        async with refused(Code.UNKNOWN_ALGORITHM):
            await s.append(upload.id, 2, b"x", checksum=Checksum("md4", b""))
        pause.go.set()
        assert (await request.answer()).offset == 4


async def test_a_lease_that_cannot_be_released_is_abandoned() -> None:
    async with Stage().open() as s, beside() as start:
        upload, pause = await s.create(10, b"ab"), Pause()
        request = start(s.append, upload.id, 2, b"c", pause, size=8)
        await reached(pause.reached)
        s.metadata.faults.fail("release", UnavailableError("away"))
        # The writer lets go in its commit; this one has nothing to commit, and lets go after.
        assert (await s.head(upload.id)).offset == 3
        assert await request.answer() is Code.LOCKED
        assert s.hold(upload.id) is Hold.ABANDONED
        assert (await s.head(upload.id)).offset == 3
        assert s.hold(upload.id) is Hold.FREE


async def test_bytes_held_by_another_process() -> None:
    async with Stage().open() as s:
        upload = await s.create(3)
        s.data.faults.fail("writer", BytesBusyError("locked"))
        async with refused(Code.LOCKED):
            await s.append(upload.id, 0, b"abc")
        assert (await s.append(upload.id, 0, b"abc")).complete


async def test_many_want_the_upload_at_once() -> None:
    """One after the other, and each gets an answer that is true."""
    async with Stage().open() as s, beside() as start:
        upload, pause = await s.create(100), Pause()
        first = start(s.append, upload.id, 0, b"a", pause, size=100)
        await reached(pause.reached)
        rivals = [start(s.append, upload.id, 1, b"b") for _ in range(5)]
        heads = [start(s.head, upload.id) for _ in range(5)]
        assert await first.answer() is Code.LOCKED
        answers = [await rival.answer() for rival in rivals]
        won = [answer.offset for answer in answers if not isinstance(answer, Code)]
        lost = {answer for answer in answers if isinstance(answer, Code)}
        assert won == [2]
        assert lost <= {Code.OFFSET_MISMATCH, Code.LOCKED}
        assert {(await head.answer()).offset for head in heads} <= {1, 2}
        assert s.stored(upload.id) == b"ab"


async def test_waiting_for_the_lease_can_be_cancelled() -> None:
    async with Stage().open() as s, beside() as start:
        upload, pause = await s.create(10), Pause()
        start(s.append, upload.id, 0, b"a", pause, size=2, deaf=True)
        await reached(pause.reached)
        waiting = start(s.head, upload.id)
        await anyio.wait_all_tasks_blocked()
        waiting.scope.cancel()
        assert await waiting.answer() is None
        pause.go.set()
