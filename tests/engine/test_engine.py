"""The door: opening and closing, terminating, reading, and what goes on behind the requests."""

from __future__ import annotations

import anyio
import pytest
from msgspec.structs import replace
from tests.engine.stage import Stage, beside, reached, refused, sha1, until
from tests.support.bodies import NOTHING, Pause
from tests.support.faulty import FaultyMetadata, FaultyStore

from tidegate.engine.core import Settings
from tidegate.engine.engine import Engine
from tidegate.engine.tending import sync_all
from tidegate.metadata.memory import MemoryMetadataStore
from tidegate.ports import (
    DataError,
    Durability,
    Hold,
    MetadataError,
    SyncFailedError,
    UnavailableError,
)
from tidegate.protocol.capabilities import Capability
from tidegate.protocol.commands import Discover
from tidegate.protocol.errors import Code
from tidegate.protocol.model import Kind, State, UploadId
from tidegate.protocol.results import Discovered
from tidegate.stores.memory import MemoryStore, MemoryWriter

pytestmark = pytest.mark.anyio


# ------------------------------------------------------------------------------- the offer


def test_what_is_offered_follows_from_the_parts() -> None:
    engine = Engine(MemoryStore(50), MemoryMetadataStore(), max_size=100)
    assert engine.offer.max_size == 50
    assert "checksum-trailer" not in engine.offer.extensions
    engine = Engine(
        MemoryStore(),
        MemoryMetadataStore(),
        max_size=100,
        expire_after=None,
        disabled=["checksum"],
        transport=Capability.TRAILERS,
        downloads=False,
    )
    assert engine.offer.max_size == 100
    assert not {"expiration", "checksum", "checksum-trailer"} & set(engine.offer.extensions)
    assert not engine.offer.algorithms
    assert engine.offer.expire_after is None
    assert not engine.offer.downloads
    with pytest.raises(ValueError, match="levitation"):
        Engine(MemoryStore(), MemoryMetadataStore(), disabled=["levitation"])


async def test_discover() -> None:
    async with Stage().open() as s:
        assert await s.engine.handle(Discover(), NOTHING) == Discovered(s.engine.offer)


# -------------------------------------------------------------------------- opening, closing


@pytest.mark.parametrize("which", ["data", "metadata"])
async def test_a_store_that_cannot_be_opened(which: str) -> None:
    """What was opened before it is closed again."""
    data, metadata = FaultyStore(MemoryStore()), FaultyMetadata(MemoryMetadataStore())
    if which == "data":
        data.faults.fail("open", DataError("no such folder"))
    else:
        metadata.faults.fail("open", MetadataError("newer schema"))
    engine = Engine(data, metadata)
    with pytest.raises((DataError, MetadataError)):
        async with engine:
            raise AssertionError
    async with engine:
        pass


async def test_an_engine_for_a_command_does_nothing_behind_it() -> None:
    stage = Stage(options={"tending": False})
    async with stage.engine:
        assert (await stage.create(3, b"abc")).complete
        await anyio.wait_all_tasks_blocked()
        assert "take_turn" not in stage.metadata.faults.calls


async def test_an_error_inside_closes_it() -> None:
    stage = Stage(new_id=lambda _: "mine")

    async def fail() -> None:
        async with stage.open() as s:
            await s.create(10, b"abc")
            raise ZeroDivisionError

    with pytest.raises((ZeroDivisionError, ExceptionGroup)):
        await fail()
    assert stage.record(UploadId("mine")).synced_offset == 3


async def test_a_graceful_stop_syncs_what_was_acknowledged() -> None:
    stage = Stage()
    async with stage.open() as s:
        upload, other = await s.create(10, b"abc"), await s.create(10, b"abc")
        gone, done = await s.create(10, b"abc"), await s.create(10, b"abc")
        await s.delete(gone.id)
        await s.append(done.id, 3, bytes(7))
        await s.append(other.id, 3, b"d")
    assert s.data.faults.calls.count("sync") == 2
    record = s.record(upload.id)
    assert (record.synced_offset, record.boot_id) == (3, "")
    async with stage.again(boot_id="boot-2").open() as s:
        assert (await s.head(upload.id)).offset == 3
        assert (await s.head(other.id)).offset == 4


@pytest.mark.parametrize("call", ["writer", "sync"])
async def test_a_stop_that_cannot_sync_says_so_and_stops(call: str) -> None:
    stage = Stage()
    async with stage.open() as s:
        upload, other = await s.create(10, b"abc"), await s.create(10, b"abc")
        s.data.faults.fail(call, DataError("bad"))
    synced = {s.record(u.id).synced_offset for u in (upload, other)}
    assert synced == {0, 3}
    async with stage.again().open() as s:
        assert (await s.head(upload.id)).offset == 3


async def test_a_sync_that_fails_at_the_stop_takes_the_upload_back() -> None:
    """Another sync would succeed, and mean nothing."""
    stage = Stage()
    async with stage.open() as s:
        upload = await s.create(10, b"abc")
        await sync_all(s.engine._core)
        await s.append(upload.id, 3, b"def")
        s.data.faults.fail("sync", SyncFailedError("bad"))
    record = s.record(upload.id)
    assert (record.offset, record.synced_offset) == (3, 3)
    assert s.stored(upload.id) == b"abc"
    assert all(writer.closed for writer in s.data.writers)


async def test_a_sync_of_less_than_all(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage()

    async def less(_: MemoryWriter) -> int:
        return 2

    monkeypatch.setattr(MemoryWriter, "sync", less)
    async with stage.open() as s:
        upload = await s.create(10, b"abc")
    record = s.record(upload.id)
    assert (record.synced_offset, record.boot_id) == (2, "boot-1")


async def test_what_is_to_be_synced_may_be_gone_or_in_use() -> None:
    async with Stage().open() as s:
        upload, other = await s.create(10, b"abc"), await s.create(10, b"abc")
        done = await s.create(3, b"abc")
        core = s.engine._core
        core.unsynced |= {done.id, upload.id}
        del s.records._records[upload.id]
        held = await s.records.acquire(other.id)
        await sync_all(s.engine._core)
        assert core.unsynced == {other.id}
        await s.records.release(held.lease)  # type: ignore[union-attr]
        await sync_all(s.engine._core)
        assert s.record(other.id).synced_offset == 3
        assert not core.unsynced


async def test_a_part_completed_by_the_stop_waits_for_the_next_start() -> None:
    """Its final is looked at then: nobody is left who could."""
    stage = Stage()
    async with stage.open() as s:
        part = await s.create(3, b"a", kind=Kind.PARTIAL)
        final = await s.final(part.id)
        s.metadata.faults.fail("commit", UnavailableError("away"))
        async with refused(Code.UNAVAILABLE):
            await s.append(part.id, 1, b"bc")
        assert s.hold(part.id) is Hold.ABANDONED
        s.engine._core.unsynced.add(part.id)
    assert s.record(part.id).complete
    async with stage.again().open() as s:
        await s.became(final.id, State.COMPLETE)


async def test_scratch_data_is_never_synced() -> None:
    async with Stage(durability=Durability.NONE).open() as s:
        await s.create(10, b"abc")
    async with s.again(durability=Durability.NONE).open() as s:
        pass
    assert "sync" not in s.data.faults.calls


async def test_what_goes_on_behind_goes_on_after_a_failure() -> None:
    stage = Stage(sweep_every=0.005, orphans_every=0)
    async with stage.open() as s:
        upload = await s.create(10, b"abc")
        faults = s.metadata.faults
        faults.fail("pending_finals", UnavailableError("away"))
        faults.fail("expired", UnavailableError("away"))
        s.data.faults.fail("stored", DataError("bad"))
        s.clock.advance(100_000)
        await s.became(upload.id, State.EXPIRED)
        await until(lambda: "stored" in s.data.faults.calls)


async def test_orphans_are_looked_for_less_often() -> None:
    async with Stage(sweep_every=0.001, orphans_every=1000).open() as s:
        await until(lambda: s.metadata.faults.calls.count("end_turn") > 5)
        assert "stored" not in s.data.faults.calls
        s.clock.advance(1000)
        await until(lambda: "stored" in s.data.faults.calls)


async def test_records_that_cannot_be_listed_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage()

    def undone() -> None:
        raise UnavailableError("away")

    monkeypatch.setattr(stage.metadata, "undone", undone)
    async with stage.open() as s:
        assert (await s.create(3, b"abc")).complete


async def test_a_start_and_a_stop_look_at_what_is_undone_and_at_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However many uploads there are: what a server left that was killed is synced, or completed."""
    stage = Stage()
    async with stage.open() as s:
        await s.create(10)
        unsynced, synced = await s.create(10, b"abc"), await s.create(10, b"abc")
        s.engine._core.unsynced.discard(unsynced.id)
        await sync_all(s.engine._core)
        whole = await s.create(3, b"ab")
        s.data.faults.fail("finish", DataError("bad"))
        async with refused(Code.UNAVAILABLE):
            await s.append(whole.id, 2, b"c")
        s.die()
    # As where that was committed before it was finished.
    record = s.records._records[whole.id]
    record.upload = replace(record.upload, offset=3, synced_offset=3)
    assert [s.record(upload.id).synced_offset for upload in (unsynced, synced)] == [0, 3]
    again = stage.again()
    listed: list[object] = []
    monkeypatch.setattr(again.metadata, "uploads", lambda **which: listed.append(which))
    async with again.open() as s:
        await until(lambda: s.record(unsynced.id).synced_offset == 3)
        await s.became(whole.id, State.COMPLETE)
        assert s.metadata.faults.calls.count("acquire") <= 2
    assert not listed


async def test_a_bug_behind_the_requests_stops_nothing_else(
    logged: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Stage().open() as s:

        async def broken() -> None:
            raise ZeroDivisionError

        s.engine._core.spawn(broken)
        await until(lambda: bool(logged))
        assert (await s.create(3, b"abc")).complete


# ------------------------------------------------------------------------------- terminating


@pytest.mark.parametrize("data", [b"", b"abc", b"abcdefghij"])
async def test_terminate(data: bytes) -> None:
    async with Stage().open() as s:
        upload = await s.create(10, *([data] if data else []))
        await s.delete(upload.id)
        assert s.stored(upload.id) == b""
        for ask in (s.head, s.delete, s.download):
            async with refused(Code.GONE):
                await ask(upload.id)
        async with refused(Code.GONE):
            await s.append(upload.id, 0, b"x")


async def test_terminate_has_the_writer_let_go() -> None:
    async with Stage().open() as s, beside() as start:
        upload, pause = await s.create(10), Pause()
        request = start(s.append, upload.id, 0, b"abc", pause, size=10, checksum=sha1(b""))
        await reached(pause.reached)
        await s.delete(upload.id)
        assert await request.answer() is Code.LOCKED
        assert s.stored(upload.id) == b""


async def test_terminate_takes_the_upload_from_a_writer_that_does_not_let_go() -> None:
    async with Stage(terminate_wait=0.02).open() as s, beside() as start:
        upload, pause = await s.create(10), Pause()
        request = start(s.append, upload.id, 0, b"abc", pause, b"d", size=4, deaf=True)
        await reached(pause.reached)
        await s.delete(upload.id)
        async with refused(Code.GONE):
            await s.head(upload.id)
        pause.go.set()
        assert await request.answer() in {Code.LOCKED, Code.UNAVAILABLE}
        assert s.stored(upload.id) == b""
        assert s.record(upload.id).state is State.TERMINATED


async def test_terminate_while_it_completes() -> None:
    async with Stage(terminate_wait=0.02).open() as s, beside() as start:
        upload = await s.create(3)
        gate = s.data.faults.hold("finish", after=True)
        request = start(s.append, upload.id, 0, b"abc")
        await reached(gate.reached)
        await s.delete(upload.id)
        gate.go.set()
        assert await request.answer() is Code.LOCKED
        assert s.stored(upload.id) == b""
        async with refused(Code.GONE):
            await s.head(upload.id)


async def test_an_upload_that_cannot_be_taken_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store may not be able to fence a holder that is alive."""
    async with Stage(terminate_wait=0.02).open() as s, beside() as start:
        upload, pause = await s.create(10), Pause()
        request = start(s.append, upload.id, 0, b"abc", pause, size=3, deaf=True)
        await reached(pause.reached)
        real = s.records.acquire

        async def acquire(upload_id: object, *, force: bool = False) -> object:
            return await real(upload_id)  # type: ignore[arg-type]

        monkeypatch.setattr(s.records, "acquire", acquire)
        async with refused(Code.LOCKED):
            await s.delete(upload.id)
        pause.go.set()
        assert (await request.answer()).offset == 3


@pytest.mark.parametrize("call", ["delete", "pending_finals"])
async def test_bytes_that_cannot_be_deleted_go_with_the_tombstone(call: str) -> None:
    async with Stage().open() as s:
        part = await s.partial(b"abc")
        if call == "delete":
            s.data.faults.fail("delete", DataError("bad"))
        else:
            # The one that looks for finals behind the request comes first, or second.
            s.metadata.faults.fail("pending_finals", UnavailableError("away"), times=2)
        await s.delete(part)
        async with refused(Code.GONE):
            await s.head(part)
        assert s.stored(part) == b"abc"
        await anyio.wait_all_tasks_blocked()
        s.metadata.faults.clear()
        s.clock.advance(8 * 86_400)
        await s.engine.sweep()
        assert s.stored(part) == b""


async def test_a_termination_that_cannot_be_written() -> None:
    async with Stage().open() as s:
        upload = await s.create(10, b"abc")
        s.metadata.faults.fail("commit", UnavailableError("away"))
        async with refused(Code.UNAVAILABLE):
            await s.delete(upload.id)
        assert (await s.head(upload.id)).offset == 3


async def test_two_terminations_at_once() -> None:
    async with Stage().open() as s, beside() as start:
        upload = await s.create(10, b"abc")
        gate = s.metadata.faults.hold("commit")
        first = start(s.delete, upload.id)
        await reached(gate.reached)
        second = start(s.delete, upload.id)
        await until(lambda: "wait_released" in s.metadata.faults.calls)
        gate.go.set()
        assert await first.answer() is None
        assert await second.answer() is Code.GONE


async def test_head_that_waited_for_a_termination() -> None:
    async with Stage().open() as s, beside() as start:
        upload = await s.create(10, b"abc")
        gate = s.metadata.faults.hold("commit")
        first = start(s.delete, upload.id)
        await reached(gate.reached)
        heads = [start(s.head, upload.id), start(s.append, upload.id, 3, b"d")]
        await until(lambda: s.metadata.faults.calls.count("wait_released") == 2)
        gate.go.set()
        assert await first.answer() is None
        assert [await head.answer() for head in heads] == [Code.GONE, Code.GONE]


async def test_what_is_unknown() -> None:
    async with Stage().open() as s:
        upload = await s.create(3)
        del s.records._records[upload.id]
        for ask in (s.head, s.delete, s.download):
            async with refused(Code.NOT_FOUND):
                await ask(upload.id)
        async with refused(Code.NOT_FOUND):
            await s.append(upload.id, 0, b"abc")


async def test_what_is_forgotten_while_it_is_asked_for() -> None:
    async with Stage().open() as s, beside() as start:
        upload = await s.create(3)
        gate = s.metadata.faults.hold("acquire")
        request = start(s.append, upload.id, 0, b"abc")
        await reached(gate.reached)
        del s.records._records[upload.id]
        gate.go.set()
        assert await request.answer() is Code.NOT_FOUND


# --------------------------------------------------------------------------- looking, reading


async def test_head_while_it_completes_never_shows_it_whole() -> None:
    async with Stage(lease_wait=0.02).open() as s, beside() as start:
        upload = await s.create(3)
        finishing, committing = s.data.faults.hold("finish"), s.metadata.faults.hold("commit")
        request = start(s.append, upload.id, 0, b"abc")
        for gate in (finishing, committing):
            await reached(gate.reached)
            async with refused(Code.LOCKED):
                await s.head(upload.id)
            gate.go.set()
        assert (await request.answer()).complete
        assert (await s.head(upload.id)).complete


async def test_unfinished_uploads_are_not_read() -> None:
    async with Stage().open() as s:
        upload = await s.create(10, b"abc")
        async with refused(Code.UNFINISHED):
            await s.download(upload.id)


async def test_settings_have_defaults() -> None:
    assert Settings().durability is Durability.COMPLETE
