"""Holding records against bytes: what is found, what is mended, what is left alone."""

from __future__ import annotations

import pytest
from tests.engine.stage import Stage, beside, reached
from tests.support.bodies import Pause

from tidegate.engine.check import Checked, Finding
from tidegate.ports import (
    DataError,
    Grant,
    Hold,
    LeaseLostError,
    Stored,
    UnavailableError,
    UnknownUploadError,
)
from tidegate.protocol.model import Kind, Upload, UploadId
from tidegate.testing.data import ALONE

pytestmark = pytest.mark.anyio


async def _found(s: Stage, *, repair: bool = False) -> list[Finding]:
    return [finding async for finding in s.engine.check(Checked(), repair=repair)]


async def test_what_agrees_is_not_mentioned() -> None:
    async with Stage().open() as s:
        await s.create(10, b"abc")
        gone, part = await s.create(10, b"abc"), await s.partial(b"abc")
        await s.delete(gone.id)
        await s.final(part)
        for repair in (False, True):
            checked = Checked()
            assert [f async for f in s.engine.check(checked, repair=repair)] == []
            assert (checked.uploads, checked.in_use) == (4, 0)
        assert all(record.hold is Hold.FREE for record in s.records._records.values())


@pytest.mark.parametrize("repair", [False, True])
async def test_what_is_in_use_is_left_alone(*, repair: bool) -> None:
    async with Stage().open() as s, beside() as start:
        upload, pause = await s.create(10), Pause()
        request = start(s.append, upload.id, 0, b"abc", pause, size=3)
        await reached(pause.reached)
        checked = Checked()
        assert [f async for f in s.engine.check(checked, repair=repair)] == []
        assert checked.in_use == 1
        pause.go.set()
        assert (await request.answer()).offset == 3


async def test_what_a_crash_left_is_recovered() -> None:
    stage = Stage()
    async with stage.open() as s, beside() as start:
        upload, pause = await s.create(5), Pause()
        start(s.append, upload.id, 0, b"abcde", pause)
        await reached(pause.reached)
        s.die()
    async with stage.again().open() as s:
        (finding,) = await _found(s)
        assert (finding.subject, finding.mended, finding.lost) == (upload.id, False, False)
        assert not s.record(upload.id).complete
        (finding,) = await _found(s, repair=True)
        assert finding.mended
        assert s.record(upload.id).complete
        assert await _found(s) == []


async def test_lost_bytes_of_an_unfinished_upload() -> None:
    """It goes back to what is there, so that the client can send the rest again."""
    async with Stage().open() as s:
        upload = await s.create(10, b"abc")
        del s.bytes._uploads[upload.id].data[1:]
        (finding,) = await _found(s)
        assert (finding.lost, finding.mended) == (True, False)
        (finding,) = await _found(s, repair=True)
        assert (finding.lost, finding.mended) == (True, True)
        assert (await s.head(upload.id)).offset == 1


@pytest.mark.parametrize("size", [1, 5])
async def test_a_complete_upload_is_never_touched(size: int) -> None:
    async with Stage().open() as s:
        upload = await s.create(3, b"abc")
        data = s.bytes._uploads[upload.id].data
        data[:] = b"abcde"[:size]
        for repair in (False, True):
            (finding,) = await _found(s, repair=repair)
            assert (finding.lost, finding.mended) == (size < 3, False)
        assert (s.record(upload.id), bytes(data)) == (upload, b"abcde"[:size])


async def test_bytes_that_never_counted_do_not_count() -> None:
    async with Stage().open() as s:
        upload = await s.create(10, b"abc")
        s.bytes._uploads[upload.id].data += b"xyz"
        assert not (await _found(s))[0].mended
        assert (await _found(s, repair=True))[0].mended
        assert s.stored(upload.id) == b"abc"
        assert (await s.head(upload.id)).offset == 3


async def test_bytes_of_what_ended() -> None:
    async with Stage().open() as s:
        upload = await s.create(10, b"abc")
        s.data.faults.fail("delete", DataError("bad"))
        await s.delete(upload.id)
        assert not (await _found(s))[0].mended
        assert s.stored(upload.id) == b"abc"
        assert (await _found(s, repair=True))[0].mended
        assert s.stored(upload.id) == b""
        part, other = await s.partial(b"abc"), await s.create(3, kind=Kind.PARTIAL)
        await s.final(part, other.id)
        await s.delete(part)
        (finding,) = await _found(s, repair=True)
        assert not finding.mended
        assert s.stored(part) == b"abc"


@pytest.mark.parametrize("repair", [False, True])
@pytest.mark.parametrize("whole", [False, True])
async def test_bytes_without_a_record_are_told(
    monkeypatch: pytest.MonkeyPatch, *, repair: bool, whole: bool
) -> None:
    async with Stage().open() as s:
        await s.create(10, b"abc")
        writer = await s.bytes.writer(
            Upload(id=UploadId("orphan"), created_at=0, active_at=0), ALONE
        )
        await writer.write([b"abc"])
        await writer.close()
        real = s.bytes.stored

        async def stored():  # type: ignore[no-untyped-def]
            async for found in real():
                yield Stored(found.upload_id, found.size, 0, found.upload_id, whole=whole)

        monkeypatch.setattr(s.bytes, "stored", stored)
        (finding,) = await _found(s, repair=repair)
        assert (finding.subject, finding.mended) == ("orphan", False)
        assert s.stored(UploadId("orphan")) == b"abc"


@pytest.mark.parametrize("repair", [False, True])
async def test_one_that_cannot_be_checked_does_not_stop_the_rest(*, repair: bool) -> None:
    async with Stage().open() as s:
        for _ in range(2):
            await s.create(10, b"abc")
        s.data.faults.fail("measure", DataError("bad"))
        (finding,) = await _found(s, repair=repair)
        assert "cannot be checked" in finding.problem
        s.metadata.faults.fail("acquire" if repair else "load", UnavailableError("away"))
        assert len(await _found(s, repair=repair)) == 1
        assert await _found(s, repair=repair) == []


@pytest.mark.parametrize("error", [UnknownUploadError("gone"), LeaseLostError("lost")])
async def test_what_went_away_meanwhile(error: Exception) -> None:
    async with Stage().open() as s:
        upload = await s.create(10, b"abc")
        s.metadata.faults.fail("acquire", error)
        assert await _found(s, repair=True) == []
        gate = s.metadata.faults.hold("load")
        async with beside() as start:
            request = start(_found, s)
            await reached(gate.reached)
            del s.records._records[upload.id]
            s.bytes._uploads.clear()
            gate.go.set()
            assert await request.answer() == []


async def test_a_complete_upload_that_was_left_behind() -> None:
    async with Stage().open() as s:
        upload = await s.create(3, b"abc")
        grant = await s.records.acquire(upload.id)
        assert isinstance(grant, Grant)
        s.records.abandon(grant.lease)
        for mended in (False, True):
            (finding,) = await _found(s, repair=mended)
            left = "was left in the middle by a server that died"
            assert finding == Finding(upload.id, left, mended=mended)
        assert await _found(s) == []
        assert (await s.append(upload.id, 3)).complete
