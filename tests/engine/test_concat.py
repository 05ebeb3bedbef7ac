"""Joining parts: a final is whole, or says that it is not, whatever becomes of its parts."""

from __future__ import annotations

import anyio
import pytest
from tests.engine.stage import Stage, beside, reached, refused, until
from tests.support.bodies import Pause

from tidegate.engine import concat
from tidegate.ports import (
    BytesMissingError,
    DataError,
    Hold,
    LeaseLostError,
    NoSpaceError,
    SyncFailedError,
    UnavailableError,
    UnknownUploadError,
)
from tidegate.protocol.errors import Code
from tidegate.protocol.model import Kind, Segment, State, Upload, UploadId

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(concat, "RETRY_AFTER", 0.01)


async def _part(s: Stage, length: int | None = 3) -> Upload:
    return await s.create(length, kind=Kind.PARTIAL)


async def test_a_final_over_whole_parts_is_there_at_once() -> None:
    async with Stage(copy_step=2).open() as s:
        a, empty, b = await s.partial(b"abc"), await s.partial(b""), await s.partial(b"defgh")
        final = await s.final(a, empty, b, a)
        assert (final.complete, final.length) == (True, 11)
        assert await s.download(final.id) == b"abcdefghabc"
        await s.delete(a)
        assert await s.download(final.id) == b"abcdefghabc"
        assert (await s.final(empty, empty)).complete


async def test_a_final_over_unfinished_parts_waits() -> None:
    async with Stage().open() as s:
        a, b = await _part(s), await _part(s, None)
        final = await s.final(a.id, b.id)
        assert (final.length, final.state) == (None, State.RECEIVING)
        assert (await s.head(final.id)).length is None
        await s.append(a.id, 0, b"abc")
        await s.append(b.id, 0, b"d", length=2)
        # As soon as it can be computed.
        assert (await s.head(final.id)).length == 5
        await s.append(b.id, 1, b"e")
        await s.became(final.id, State.COMPLETE)
        assert await s.download(final.id) == b"abcde"


async def test_two_finals_over_the_same_part() -> None:
    async with Stage().open() as s:
        a = await _part(s)
        finals = [await s.final(a.id), await s.final(a.id, a.id)]
        await s.append(a.id, 0, b"abc")
        for number, final in enumerate(finals, 1):
            await s.became(final.id, State.COMPLETE)
            assert await s.download(final.id) == b"abc" * number


async def test_a_large_final_goes_on_behind_the_request() -> None:
    async with Stage(copy_step=1, assemble_within=0.05).open() as s:
        a = await s.partial(b"abc")
        gate = s.data.faults.hold("copy", skip=1)
        final = await s.final(a)
        assert final.state is State.RECEIVING
        assert gate.reached.is_set()
        await s.became(final.id, State.COMPLETE)
        assert await s.download(final.id) == b"abc"


async def test_progress_is_kept_step_by_step() -> None:
    async with Stage(copy_step=1, assemble_within=0.05).open() as s:
        a = await s.partial(b"abcd")
        s.data.pieces = (Segment(1, 0, 1),)
        s.data.storage = {"part": 1}
        s.data.faults.hold("copy", skip=2)
        s.data.faults.fail("writer", DataError("bad"), skip=1)
        final = await s.final(a)
        await s.became(final.id, State.COMPLETE)
        # What was copied before it was broken off is not copied again.
        assert s.data.faults.calls.count("copy") == 5
        assert await s.metadata.segments(final.id) == [Segment(1, 0, 1)]
        assert s.record(final.id).storage == {"part": 1}


async def test_what_the_last_step_says_is_kept() -> None:
    async with Stage().open() as s:
        a = await s.partial(b"abcd")
        s.data.pieces = (Segment(1, 0, 4),)
        s.data.storage = {"part": 1}
        final = await s.final(a)
        assert final.complete
        assert s.record(final.id).storage == {"part": 1}
        assert await s.metadata.segments(final.id) == [Segment(1, 0, 4)]


async def test_after_a_restart_it_goes_on() -> None:
    stage = Stage(copy_step=1)
    async with stage.open() as s, beside() as start:
        a = await s.partial(b"abc")
        gate = s.data.faults.hold("copy", skip=1)
        start(s.final, a)
        await reached(gate.reached)
        final = next(u for u in s.records._records if u != a)
        assert s.record(final).offset == 1
        s.die()
    async with stage.again().open() as s:
        await s.became(final, State.COMPLETE)
        assert await s.download(final) == b"abc"


async def test_after_a_loss_of_power_it_begins_again() -> None:
    stage = Stage(copy_step=1)
    async with stage.open() as s, beside() as start:
        a = await s.partial(b"abc")
        gate = s.data.faults.hold("copy", skip=1)
        start(s.final, a)
        await reached(gate.reached)
        final = next(u for u in s.records._records if u != a)
        s.die()
    async with stage.again(boot_id="boot-2").open() as s:
        await s.became(final, State.COMPLETE)
        # None of the bytes that were copied before is believed.
        assert s.data.copied == 3
        assert await s.download(final) == b"abc"


@pytest.mark.parametrize(
    "error", [DataError("bad"), NoSpaceError("full"), SyncFailedError("no"), UnavailableError("-")]
)
@pytest.mark.parametrize("call", ["writer", "copy", "flush", "finish"])
async def test_a_store_that_fails_is_tried_again(call: str, error: Exception) -> None:
    async with Stage(copy_step=2).open() as s:
        a = await s.partial(b"abc")
        s.data.faults.fail(call, error, times=2)
        final = await s.final(a)
        assert final.state is State.RECEIVING
        await s.became(final.id, State.COMPLETE)
        assert await s.download(final.id) == b"abc"


@pytest.mark.parametrize("call", ["commit", "acquire", "load"])
@pytest.mark.parametrize("error", [UnavailableError("away"), LeaseLostError("lost")])
async def test_records_that_fail_are_tried_again(call: str, error: Exception) -> None:
    async with Stage(copy_step=2).open() as s:
        a = await s.partial(b"abc")
        # The first load is that of the creation.
        s.metadata.faults.fail(call, error, skip=1 if call == "load" else 0, times=2)
        final = await s.final(a)
        await s.became(final.id, State.COMPLETE)
        assert await s.download(final.id) == b"abc"


@pytest.mark.parametrize("call", ["copy", "finish"])
async def test_bytes_of_a_part_that_are_missing_fail_it(call: str) -> None:
    async with Stage().open() as s:
        a = await s.partial(b"abc")
        s.data.faults.fail(call, BytesMissingError("gone"))
        final = await s.final(a)
        assert final.state is State.FAILED
        async with refused(Code.GONE):
            await s.head(final.id)
        assert s.stored(final.id) == b""


async def test_a_final_fails_when_a_part_is_deleted_unfinished() -> None:
    async with Stage().open() as s:
        a, b = await _part(s), await s.partial(b"abc")
        final = await s.final(a.id, b)
        await s.delete(b)
        assert s.stored(b) == b"abc"
        await s.delete(a.id)
        await s.became(final.id, State.FAILED)
        # And what only it needed is free.
        await until(lambda: s.stored(b) == b"")


async def test_a_part_deleted_while_it_is_needed_is_kept_until_then() -> None:
    async with Stage().open() as s:
        a, b = await s.partial(b"abc"), await _part(s)
        first, second = await s.final(a, b.id), await s.final(a, b.id)
        await s.delete(a)
        async with refused(Code.GONE):
            await s.head(a)
        assert s.stored(a) == b"abc"
        await s.append(b.id, 0, b"def")
        await s.became(first.id, State.COMPLETE)
        await s.became(second.id, State.COMPLETE)
        assert await s.download(first.id) == b"abcdef"
        await until(lambda: s.stored(a) == b"")
        assert s.stored(b.id) == b"def"


@pytest.mark.parametrize("how", ["deleted", "expired"])
async def test_a_final_that_ends_frees_the_parts_that_only_it_needed(how: str) -> None:
    async with Stage().open() as s:
        a, b = await s.partial(b"abc"), await _part(s)
        final = await s.final(a, b.id)
        await s.delete(a)
        assert s.stored(a) == b"abc"
        if how == "deleted":
            await s.delete(final.id)
        else:
            await anyio.wait_all_tasks_blocked()  # the look that the deletion caused
            s.clock.advance(101)
            await s.engine.sweep()
            assert s.record(final.id).state is State.EXPIRED
        assert s.stored(a) == b""


async def test_freeing_parts_may_fail() -> None:
    """The final is whole all the same; the sweep deletes them with their tombstones."""
    async with Stage().open() as s:
        a, b = await s.partial(b"abc"), await _part(s)
        final = await s.final(a, b.id)
        await s.delete(a)
        s.data.faults.fail("delete", DataError("bad"))
        await s.append(b.id, 0, b"def")
        await s.became(final.id, State.COMPLETE)
        await until(lambda: s.hold(final.id) is Hold.FREE)
        assert s.stored(a) == b"abc"
        s.clock.advance(8 * 86_400)
        await s.engine.sweep()
        assert s.stored(a) == b""


async def test_parts_that_turn_out_too_large_fail_it() -> None:
    async with Stage(options={"max_size": 5}).open() as s:
        a, b = await _part(s, None), await _part(s, None)
        final = await s.final(a.id, b.id)
        await s.append(a.id, 0, b"abc", length=3)
        await s.append(b.id, 0, b"def", length=3)
        await s.became(final.id, State.FAILED)
        async with refused(Code.GONE):
            await s.head(final.id)


async def test_delete_during_the_assembly() -> None:
    async with Stage(copy_step=1, terminate_wait=20).open() as s, beside() as start:
        a = await s.partial(b"abc")
        gate = s.data.faults.hold("copy", skip=1)
        request = start(s.final, a)
        await reached(gate.reached)
        final = next(u for u in s.records._records if u != a)
        delete = start(s.delete, final)
        await anyio.wait_all_tasks_blocked()
        gate.go.set()
        await delete.answer()
        await request.answer()
        assert s.data.copied == 2  # it let go at the next step
        async with refused(Code.GONE):
            await s.head(final)
        assert s.stored(final) == b""


async def test_delete_takes_a_final_from_an_assembly_that_does_not_let_go() -> None:
    async with Stage(copy_step=1, terminate_wait=0.02).open() as s, beside() as start:
        a = await s.partial(b"abc")
        gate = s.data.faults.hold("copy", skip=1)
        request = start(s.final, a)
        await reached(gate.reached)
        final = next(u for u in s.records._records if u != a)
        await s.delete(final)
        gate.go.set()
        await request.answer()
        async with refused(Code.GONE):
            await s.head(final)
        assert s.stored(final) == b""


async def test_an_append_to_a_final_is_refused() -> None:
    async with Stage().open() as s:
        a = await _part(s)
        final = await s.final(a.id)
        async with refused(Code.FINAL_UPLOAD):
            await s.append(final.id, 0, b"abc")


# ------------------------------------------------------------------------------ wake-ups


async def test_a_part_that_is_whole_while_the_final_is_looked_at_is_not_missed() -> None:
    """The assembly has read the parts' records, and only then the last one is whole."""
    async with Stage().open() as s:
        a = await _part(s)
        final = await s.final(a.id)
        gate = s.metadata.faults.hold("load", after=True)
        s.engine._assembler.wake(final.id)
        await reached(gate.reached)
        await s.append(a.id, 0, b"abc")
        await until(lambda: "wait_released" in s.metadata.faults.calls)
        gate.go.set()
        await s.became(final.id, State.COMPLETE)
        assert await s.download(final.id) == b"abc"


async def test_a_final_that_someone_else_holds_is_looked_at_again() -> None:
    async with Stage().open() as s:
        a = await _part(s)
        final = await s.final(a.id)
        held = await s.records.acquire(final.id)
        s.metadata.faults.fail("wait_released", UnavailableError("away"))
        await s.append(a.id, 0, b"abc")
        await until(lambda: s.metadata.faults.calls.count("wait_released") >= 2)
        assert s.record(final.id).state is State.RECEIVING
        await s.records.release(held.lease)  # type: ignore[union-attr]
        await s.became(final.id, State.COMPLETE)


async def test_one_look_at_a_time_waits_for_another() -> None:
    """Woken while it waits to try again, a final is not tried twice over."""
    async with Stage().open() as s:
        a = await _part(s)
        final = await s.final(a.id)
        held = await s.records.acquire(final.id)
        gate = s.metadata.faults.hold("wait_released")
        await s.append(a.id, 0, b"abc")
        await reached(gate.reached)
        for _ in range(3):
            s.engine._assembler.wake(final.id)
        await anyio.wait_all_tasks_blocked()
        assert s.metadata.faults.calls.count("wait_released") == 1
        await s.records.release(held.lease)  # type: ignore[union-attr]
        gate.go.set()
        await s.became(final.id, State.COMPLETE)


async def test_a_final_woken_while_it_is_tried_is_left_to_the_second_look() -> None:
    async with Stage().open() as s:
        a = await _part(s)
        final = await s.final(a.id)
        gate = s.metadata.faults.hold("load")
        s.metadata.faults.fail("load", UnavailableError("away"))
        s.engine._assembler.wake(final.id)
        await reached(gate.reached)
        # The first look is going to fail; this is the second.
        s.engine._assembler.wake(final.id)
        gate.go.set()
        await until(lambda: not s.engine._assembler._queued)
        await s.append(a.id, 0, b"abc")
        await s.became(final.id, State.COMPLETE)


async def test_a_final_that_is_forgotten_is_not_looked_at_for_ever() -> None:
    async with Stage().open() as s:
        s.engine._assembler.wake(UploadId("nothing"))
        await until(lambda: "acquire" in s.metadata.faults.calls)
        await anyio.wait_all_tasks_blocked()
        assert s.metadata.faults.calls.count("acquire") == 1
        assert not s.engine._assembler._queued


async def test_a_wake_that_fails_is_made_up_for() -> None:
    async with Stage(sweep_every=0.02).open() as s:
        a = await _part(s)
        final = await s.final(a.id)
        s.metadata.faults.fail("pending_finals", UnavailableError("away"))
        s.metadata.faults.fail("acquire", UnknownUploadError("?"), skip=1)
        await s.append(a.id, 0, b"abc")
        await s.became(final.id, State.COMPLETE)


async def test_an_engine_can_be_used_again_after_a_stop_in_the_middle() -> None:
    stage = Stage(copy_step=1, assemble_within=0.01)
    async with stage.open() as s:
        a = await s.partial(b"abc")
        gate = s.data.faults.hold("copy", skip=1)
        again = s.data.faults.hold("copy", skip=1)
        final = await s.final(a)
        await reached(gate.reached)
        del again
    assert not stage.engine._assembler._queued
    stage.data.faults.clear()
    async with stage.engine:
        await stage.became(final.id, State.COMPLETE)
        assert await stage.download(final.id) == b"abc"


async def test_many_finals_wait_their_turn() -> None:
    async with Stage(assemble_within=0.01).open() as s:
        a = await s.partial(b"abc")
        gates = [s.data.faults.hold("copy", skip=0) for _ in range(1)]
        s.data.faults.fail("copy", NoSpaceError("full"), times=6)
        finals = [await s.final(a) for _ in range(4)]
        gates[0].go.set()
        for final in finals:
            await s.became(final.id, State.COMPLETE)
            assert await s.download(final.id) == b"abc"


async def test_head_of_a_final_that_is_being_looked_at() -> None:
    async with Stage().open() as s, beside() as start:
        a, pause = await _part(s), Pause()
        start(s.append, a.id, 0, b"a", pause, size=3)
        await reached(pause.reached)
        final = await s.final(a.id)
        held = await s.records.acquire(final.id)
        assert (await s.head(final.id)).state is State.RECEIVING
        await s.records.release(held.lease)  # type: ignore[union-attr]
        await s.delete(a.id)
        await s.became(final.id, State.FAILED)
        assert await s.engine._assembler.length_of(final) == 3
