"""Sweeping: what expired goes, and nothing else, whatever time it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.engine.stage import Stage, beside, reached, refused
from tests.support.bodies import Pause
from tests.support.faulty import FaultyPieceStore

from tidegate.engine import sweep as engine_sweep
from tidegate.engine.core import Settings
from tidegate.engine.sessions import Session
from tidegate.engine.sweep import Swept
from tidegate.ports import DataError, Delivery, Grant, Hold, Stored, UnavailableError
from tidegate.protocol.capabilities import Capability
from tidegate.protocol.errors import Code
from tidegate.protocol.model import EventType, Kind, State, Upload, UploadId
from tidegate.testing.data import ALONE

pytestmark = pytest.mark.anyio

DAY = 86_400.0
ORPHAN_AGE = Settings().orphan_age


async def _swept(s: Stage, *, dry_run: bool = False) -> Swept:
    swept = await s.engine.sweep(dry_run=dry_run)
    assert swept is not None
    return swept


async def test_what_expired_is_given_up() -> None:
    told: list[Delivery] = []

    async def sink(delivery: Delivery) -> None:
        told.append(delivery)

    async with Stage(sink=sink).open() as s:
        old = await s.create(10, b"abc")
        s.clock.advance(60)
        young = await s.create(10, b"abc")
        s.clock.advance(40)
        dry = await _swept(s, dry_run=True)
        assert s.record(old.id).state is State.RECEIVING
        async with refused(Code.GONE):
            await s.head(old.id)
        swept = await _swept(s)
        assert dry.expired == swept.expired == [old.id]
        assert dry.freed == swept.freed == 3
        assert s.record(old.id).state is State.EXPIRED
        assert s.stored(old.id) == b""
        assert (await s.head(young.id)).offset == 3
        async with refused(Code.GONE):
            await s.append(old.id, 3, b"d")
        assert (await _swept(s)).expired == []
        while await s.engine._outbox.deliver_due():
            pass
    assert EventType.EXPIRED in [d.event.type for d in told if d.event.upload.id == old.id]


async def test_tombstones_are_forgotten() -> None:
    async with Stage(tombstone_age=DAY).open() as s:
        gone = await s.create(10, b"abc")
        await s.delete(gone.id)
        s.clock.advance(DAY)
        assert (await _swept(s)).forgotten == []
        async with refused(Code.GONE):
            await s.head(gone.id)
        s.clock.advance(1)
        dry = await _swept(s, dry_run=True)
        async with refused(Code.GONE):
            await s.head(gone.id)
        assert dry.forgotten == (await _swept(s)).forgotten == [gone.id]
        async with refused(Code.NOT_FOUND):
            await s.head(gone.id)


async def test_a_tombstone_of_bytes_that_a_final_needs_stays() -> None:
    async with Stage(tombstone_age=10, options={"expire_after": 1e9}).open() as s:
        a, b = await s.partial(b"abc"), await s.create(3, kind=Kind.PARTIAL)
        final = await s.final(a, b.id)
        await s.delete(a)
        s.clock.advance(11)
        assert (await _swept(s)).forgotten == []
        await s.append(b.id, 0, b"def")
        await s.became(final.id, State.COMPLETE)
        assert await s.download(final.id) == b"abcdef"
        assert (await _swept(s)).forgotten == [a]


async def test_what_became_alive_again_is_not_forgotten() -> None:
    """Listed as a tombstone by a list that is old."""
    async with Stage().open() as s:
        upload = await s.create(10, b"abc")
        swept = Swept()

        async def forget(held: Session) -> None:
            await engine_sweep._forget(s.engine._core, swept, held, dry_run=False)

        await engine_sweep._hold(s.engine._core, swept, upload.id, forget)
        assert swept == Swept()
        assert (await s.head(upload.id)).offset == 3


@given(
    kinds=st.lists(st.sampled_from(["regular", "partial", "final"]), min_size=1, max_size=4),
    leaps=st.lists(st.floats(0, 1e10), min_size=1, max_size=4),
)
async def test_a_completed_upload_is_never_deleted(kinds: list[str], leaps: list[float]) -> None:
    """However much time goes by. A partial may go; regular and final uploads stay for ever."""
    async with Stage().open() as s:
        kept: list[UploadId] = []
        for kind in kinds:
            part = await s.partial(b"abc")
            if kind == "regular":
                kept.append((await s.create(3, b"abc")).id)
            elif kind == "final":
                kept.append((await s.final(part)).id)
        for leap in leaps:
            s.clock.advance(leap)
            assert not set((await _swept(s)).expired) & set(kept)
            for upload_id in kept:
                assert await s.download(upload_id) == b"abc"


async def test_a_complete_upload_is_left_alone_even_if_listed() -> None:
    async with Stage().open() as s:
        upload = await s.create(3, b"abc")
        swept = Swept()

        async def expire(held: Session) -> None:
            await engine_sweep._expire(s.engine._core, swept, held, dry_run=False)

        # A record that no engine writes: complete, with a time to expire.
        s.records._records[upload.id].upload = Upload(
            id=upload.id,
            state=State.COMPLETE,
            length=3,
            offset=3,
            created_at=0,
            active_at=0,
            expires_at=1.0,
            version=upload.version,
        )
        await engine_sweep._hold(s.engine._core, swept, upload.id, expire)
        assert swept == Swept()
        assert s.stored(upload.id) == b"abc"


async def test_an_append_at_work_is_left_alone() -> None:
    async with Stage().open() as s, beside() as start:
        upload, pause = await s.create(10), Pause()
        request = start(s.append, upload.id, 0, b"abc", pause, size=10)
        await reached(pause.reached)
        s.clock.advance(1000)
        assert (await _swept(s)).expired == []
        # And it is not expired for those who ask, who have it let go.
        assert (await s.head(upload.id)).offset == 3
        assert await request.answer() is Code.LOCKED
        assert s.record(upload.id).expires_at == s.clock.now() + 100


@pytest.mark.parametrize("what", ["append", "head", "delete"])
async def test_an_upload_that_was_being_written_has_not_expired(what: str) -> None:
    """Its writer kept nothing, so its time is still up; but who asked meanwhile was let in."""
    async with Stage().open() as s, beside() as start:
        upload, pause = await s.create(10), Pause()
        start(s.append, upload.id, 0, pause, size=10)
        await reached(pause.reached)
        s.clock.advance(1000)
        if what == "head":
            assert (await s.head(upload.id)).offset == 0
        elif what == "append":
            assert (await s.append(upload.id, 0, b"abc")).offset == 3
        else:
            await s.delete(upload.id)
            assert s.record(upload.id).state is State.TERMINATED


async def test_what_moved_on_since_it_was_listed_is_left_alone() -> None:
    async with Stage().open() as s, beside() as start:
        upload = await s.create(10, b"abc")
        s.clock.advance(99)
        gate = s.metadata.faults.hold("expired", after=True)
        sweeping = start(s.engine.sweep)
        s.clock.advance(1)
        await reached(gate.reached)
        s.records._records[upload.id].upload = s.engine._core.touched(s.record(upload.id))
        gate.go.set()
        assert (await sweeping.answer()).expired == []
        assert (await s.head(upload.id)).offset == 3


async def test_an_upload_in_use_since_it_was_listed_is_left_alone() -> None:
    async with Stage().open() as s, beside() as start:
        upload = await s.create(10, b"abc")
        s.clock.advance(100)
        gate = s.metadata.faults.hold("expired", after=True)
        sweeping = start(s.engine.sweep)
        await reached(gate.reached)
        held = await s.records.acquire(upload.id)
        gate.go.set()
        swept = await sweeping.answer()
        assert (swept.expired, swept.failed) == ([], [])
        await s.records.release(held.lease)  # type: ignore[union-attr]


async def test_an_upload_forgotten_since_it_was_listed() -> None:
    async with Stage().open() as s, beside() as start:
        upload = await s.create(10, b"abc")
        s.clock.advance(100)
        gate = s.metadata.faults.hold("expired", after=True)
        sweeping = start(s.engine.sweep)
        await reached(gate.reached)
        del s.records._records[upload.id]
        gate.go.set()
        swept = await sweeping.answer()
        assert (swept.expired, swept.failed) == ([], [])


async def test_an_abandoned_upload_expires() -> None:
    async with Stage().open() as s:
        upload = await s.create(10, b"abc")
        s.records.abandon((await s.records.acquire(upload.id)).lease)  # type: ignore[union-attr]
        s.clock.advance(99)
        assert (await _swept(s)).expired == []
        assert s.hold(upload.id) is Hold.ABANDONED
        s.clock.advance(1)
        assert (await _swept(s)).expired == [upload.id]


# ---------------------------------------------------------------------- finals and parts


async def test_parts_of_a_pending_final_stay() -> None:
    async with Stage().open() as s:
        a, b = await s.partial(b"abc"), await s.create(3, kind=Kind.PARTIAL)
        final = await s.final(a, b.id)
        s.clock.advance(60)
        await s.append(b.id, 0, b"d")
        s.clock.advance(60)
        # The first part's time is up, and the final's; but the second is being uploaded.
        dry = await _swept(s, dry_run=True)
        assert (dry.expired, (await _swept(s)).expired) == ([], [])
        assert s.record(final.id).expires_at == s.record(b.id).active_at + 100
        assert (await s.head(final.id)).length == 6
        assert (await s.head(a)).expires_at is None
        await s.append(b.id, 1, b"ef")
        await s.became(final.id, State.COMPLETE)
        # Now nobody needs them.
        assert (await _swept(s)).expired == [a]
        s.clock.advance(100)
        assert (await _swept(s)).expired == [b.id]
        assert await s.download(final.id) == b"abcdef"


async def test_a_final_that_is_not_swept_yet_lives_by_its_parts() -> None:
    async with Stage().open() as s:
        b = await s.create(3, kind=Kind.PARTIAL)
        final = await s.final(b.id)
        s.clock.advance(60)
        await s.append(b.id, 0, b"d")
        s.clock.advance(60)
        after = await s.head(final.id)
        assert after.expires_at == s.record(b.id).active_at + 100
        await s.delete(final.id)
        assert s.record(final.id).state is State.TERMINATED


async def test_a_part_whose_time_is_up_can_be_deleted_while_a_final_needs_it() -> None:
    async with Stage().open() as s:
        b = await s.create(3, kind=Kind.PARTIAL)
        await s.final(b.id)
        s.clock.advance(1000)
        await s.delete(b.id)
        assert s.record(b.id).state is State.TERMINATED


async def test_a_final_that_never_comes_expires_with_its_parts() -> None:
    async with Stage().open() as s:
        a, b = await s.partial(b"abc"), await s.create(3, kind=Kind.PARTIAL)
        final = await s.final(a, b.id)
        s.clock.advance(100)
        dry = await _swept(s, dry_run=True)
        assert dry.expired == [final.id]
        assert set((await _swept(s)).expired) == {final.id, a, b.id}
        assert s.stored(a) == b""


async def test_a_part_pinned_since_it_was_listed_stays() -> None:
    async with Stage().open() as s, beside() as start:
        part = await s.partial(b"abc")
        s.clock.advance(100)
        gate = s.metadata.faults.hold("commit")
        sweeping = start(s.engine.sweep)
        await reached(gate.reached)
        await _pin(s, part)
        gate.go.set()
        swept = await sweeping.answer()
        assert (swept.expired, swept.failed) == ([], [])
        assert s.stored(part) == b"abc"
        assert (await s.head(part)).complete


async def test_a_dry_run_leaves_out_what_a_final_needs() -> None:
    async with Stage().open() as s:
        a = await s.create(3, kind=Kind.PARTIAL)
        s.clock.advance(100)
        swept = Swept()

        async def expire(held: Session) -> None:
            await engine_sweep._expire(s.engine._core, swept, held, dry_run=True)

        s.metadata.faults.do("acquire", lambda: _pin(s, a.id), after=True)
        await engine_sweep._hold(s.engine._core, swept, a.id, expire)
        assert swept == Swept()


async def _pin(s: Stage, part: UploadId) -> None:
    await s.records.insert(
        Upload(id=UploadId("final"), kind=Kind.FINAL, parts=(part,), created_at=0, active_at=0)
    )


# ------------------------------------------------------------------------------- orphans


async def _orphan(s: Stage) -> Stored:
    writer = await s.bytes.writer(
        Upload(id=UploadId("orphan"), created_at=0, active_at=s.clock.now()), ALONE
    )
    await writer.write([b"abc"])
    await writer.close()
    return Stored(UploadId("orphan"), 3, s.clock.now(), "memory")


async def test_orphans_are_deleted_when_they_are_old() -> None:
    async with Stage().open() as s:
        await _orphan(s)
        s.clock.advance(ORPHAN_AGE - 1)
        assert (await _swept(s)).orphans == []
        s.clock.advance(1)
        dry = await _swept(s, dry_run=True)
        assert s.stored(UploadId("orphan")) == b"abc"
        assert dry == await _swept(s)
        assert (dry.orphans, dry.freed) == (["memory"], 3)
        assert s.stored(UploadId("orphan")) == b""


async def test_bytes_with_a_record_are_nobodys_orphans() -> None:
    async with Stage(options={"expire_after": None}).open() as s:
        upload = await s.create(10, b"abc")
        s.clock.advance(1000 * DAY)
        assert (await _swept(s)).orphans == []
        assert (await s.head(upload.id)).offset == 3


async def test_pieces_that_no_record_needs_are_deleted() -> None:
    """What a writer left behind that died, or lost its lease; under the lease, when it is old."""
    async with Stage(store=FaultyPieceStore, options={"expire_after": None}).open() as s:
        assert isinstance(s.data, FaultyPieceStore)
        upload = await s.create(10, b"abc")
        assert s.record(upload.id).storage["next"] == 1
        upload = await s.append(upload.id, 3, b"defghij")
        assert upload.complete
        assert [piece.index for piece in await s.records.segments(upload.id)] == [0, 1]
        gone = await s.create(1)
        await s.delete(gone.id)
        now = s.clock.now()
        needed, left = (Stored(upload.id, 5, now, f"piece {at}") for at in (1, 2))
        of_gone = Stored(gone.id, 5, now, "piece 0")
        s.data.left_over = [needed, left, of_gone]
        assert (await _swept(s)).orphans == []
        s.clock.advance(ORPHAN_AGE)
        assert (await _swept(s, dry_run=True)).orphans == ["piece 2"]
        assert s.data.left_over == [needed, left, of_gone]
        held = await s.records.acquire(upload.id)
        assert isinstance(held, Grant)
        assert (await _swept(s)).orphans == []
        await s.records.release(held.lease)
        s.data.faults.fail("discard", DataError("away"))
        swept = await _swept(s)
        assert (swept.orphans, len(swept.failed)) == ([], 1)
        assert (await _swept(s)).orphans == ["piece 2"]
        assert s.data.left_over == [needed, of_gone]


async def test_a_piece_that_came_into_the_record_meanwhile_stays() -> None:
    async with Stage(store=FaultyPieceStore, options={"expire_after": None}).open() as s:
        assert isinstance(s.data, FaultyPieceStore)
        upload = await s.create(10, b"abc")
        left = Stored(upload.id, 5, s.clock.now(), "piece 1")
        s.data.left_over = [left]
        s.clock.advance(ORPHAN_AGE)

        async def append() -> None:
            await s.append(upload.id, 3, b"def")

        s.metadata.faults.do("acquire", append)
        assert (await _swept(s)).orphans == []
        assert s.data.left_over == [left]


async def test_whole_uploads_without_a_record_are_not_deleted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Should the records be lost, these are the files."""
    async with Stage().open() as s:
        await _orphan(s)
        s.clock.advance(2 * ORPHAN_AGE)
        real = s.bytes.stored

        async def stored():  # type: ignore[no-untyped-def]
            async for found in real():
                yield Stored(found.upload_id, found.size, found.modified_at, "x", whole=True)

        monkeypatch.setattr(s.bytes, "stored", stored)
        assert (await _swept(s)).orphans == []
        assert s.stored(UploadId("orphan")) == b"abc"


# ------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("call", ["commit", "delete", "acquire"])
async def test_one_failure_does_not_stop_the_rest(call: str) -> None:
    async with Stage().open() as s:
        uploads = [await s.create(10, b"abc") for _ in range(3)]
        s.clock.advance(100)
        error = DataError("bad") if call == "delete" else UnavailableError("away")
        (s.data.faults if call == "delete" else s.metadata.faults).fail(call, error)
        swept = await _swept(s)
        assert len(swept.failed) == 1
        assert len(swept.expired) == 2
        again = await _swept(s)
        assert not again.failed
        if call == "delete":
            # Expired all the same: its bytes go with its tombstone.
            s.clock.advance(8 * DAY)
            assert len((await _swept(s)).forgotten) == 3
        assert not any(s.stored(upload.id) for upload in uploads)


@pytest.mark.parametrize("call", ["load", "discard"])
async def test_an_orphan_that_cannot_be_deleted(call: str) -> None:
    async with Stage().open() as s:
        await _orphan(s)
        s.clock.advance(ORPHAN_AGE)
        if call == "load":
            s.metadata.faults.fail("load", UnavailableError("away"))
        else:
            s.data.faults.fail("discard", DataError("bad"))
        swept = await _swept(s)
        assert (swept.orphans, len(swept.failed)) == ([], 1)
        assert (await _swept(s)).orphans == ["memory"]


async def test_a_sweep_that_cannot_even_begin() -> None:
    async with Stage().open() as s:
        s.metadata.faults.fail("expired", UnavailableError("away"))
        with pytest.raises(UnavailableError):
            await s.engine.sweep()
        s.data.faults.fail("stored", DataError("bad"))
        with pytest.raises(DataError):
            await s.engine.sweep()
        assert (await _swept(s)) == Swept()


async def test_one_server_sweeps_at_a_time() -> None:
    async with Stage().open() as s:
        upload = await s.create(10, b"abc")
        s.clock.advance(100)
        s.metadata.turn_is_free = False
        assert await s.engine.sweep() is None
        assert (await _swept(s, dry_run=True)).expired == [upload.id]
        s.metadata.turn_is_free = True
        assert (await _swept(s)).expired == [upload.id]


async def test_a_store_that_knows_no_expiry() -> None:
    stage = Stage()
    stage.metadata.capabilities &= ~Capability.EXPIRY
    async with stage.open() as s:
        assert (await _swept(s)) == Swept()
        assert "expired" not in s.metadata.faults.calls


async def test_long_lists_are_swept_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_sweep, "BATCH", 2)
    async with Stage().open() as s:
        uploads = [(await s.create(10, b"abc")).id for _ in range(7)]
        s.clock.advance(100)
        s.data.faults.fail("delete", DataError("bad"))
        s.metadata.faults.fail("commit", UnavailableError("away"), skip=3)
        swept = await _swept(s)
        assert len(swept.expired) == 5
        assert len(swept.failed) == 2
        assert set(swept.expired) <= set(uploads)
