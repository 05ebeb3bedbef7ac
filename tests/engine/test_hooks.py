"""Hooks that decide: what they may change and refuse, and that they are asked until they answer."""

from __future__ import annotations

import logging
from typing import Any

import anyio
import pytest
from tests.engine.stage import Stage, beside, by_token, reached, refused, sha1, until

from tidegate.engine.check import Checked
from tidegate.engine.core import DAY
from tidegate.engine.tending import complete_all
from tidegate.hooks import (
    Bytes,
    Changes,
    Denied,
    Hooks,
    Principal,
    UploadRequest,
    read_metadata,
)
from tidegate.ports import Delivery, Hold, LeaseLostError, SyncFailedError, UnavailableError
from tidegate.protocol.capabilities import Capability
from tidegate.protocol.commands import Create, Download
from tidegate.protocol.errors import Code, Refusal
from tidegate.protocol.model import EventType, Kind, State, Upload, UploadId

pytestmark = pytest.mark.anyio


def stage(
    *, stores: Stage | None = None, options: dict[str, Any] | None = None, **hooks: Any
) -> Stage:
    settings = {
        name: hooks.pop(name)
        for name in ("hook_within", "sweep_every", "assemble_within", "sink")
        if name in hooks
    }
    given = {"hooks": Hooks(**hooks), **(options or {})}
    return (stores.again if stores else Stage)(options=given, **settings)


# ------------------------------------------------------------------------------ before a creation


async def test_what_a_hook_may_set() -> None:
    seen: list[tuple[UploadRequest, Upload]] = []

    async def before_create(request: UploadRequest, upload: Upload) -> Changes:
        seen.append((request, upload))
        return Changes(
            id="report.2026",
            metadata={"filename": b"report.pdf", "owner": b"alice"},
            name="alice/report.pdf",
            expire_after=7.0,
            max_size=10,
        )

    async with stage(before_create=before_create, options={"authorize": by_token}).open() as s:
        made = await s.create(None, b"abc")
        (request, proposed) = seen[0]
        assert request.principal == Principal(id="alice")
        assert (proposed.principal, proposed.offset, len(proposed.id)) == ("alice", 0, 22)
        assert (made.id, made.name, made.max_size) == ("report.2026", "alice/report.pdf", 10)
        assert read_metadata(made) == {"filename": b"report.pdf", "owner": b"alice"}
        assert made.expires_at == s.clock.now() + 7
        s.clock.advance(5)
        grown = await s.append(made.id, 3, b"def")
        assert grown.expires_at == s.clock.now() + 7
        async with refused(Code.TOO_LARGE):
            await s.append(made.id, 6, b"ghijk")
        async with refused(Code.EXISTS):
            await s.create(5)
        s.clock.advance(7)
        async with refused(Code.GONE):
            await s.head(made.id)


@pytest.mark.parametrize("answer", [None, Changes()])
async def test_a_hook_that_lets_it_be(answer: Changes | None) -> None:
    async def before_create(_request: UploadRequest, _upload: Upload) -> Changes | None:
        return answer

    async with stage(before_create=before_create).open() as s:
        made = await s.create(3, b"abc")
        assert made.complete
        assert (made.name, made.max_size, made.principal) == (None, None, None)


async def test_a_final_whose_parts_are_to_last() -> None:
    """A part's own time counts for the final that waits for it."""

    async def before_create(_request: UploadRequest, upload: Upload) -> Changes:
        return Changes(expire_after=DAY if upload.kind is Kind.PARTIAL else None, max_size=5)

    async with stage(before_create=before_create).open() as s:
        part = await s.create(3, kind=Kind.PARTIAL)
        final = await s.final(part.id)
        assert final.max_size == 5
        s.clock.advance(1000)
        assert (await s.head(final.id)).length == 3


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (Denied(402), Code.DENIED),
        (RuntimeError("away"), Code.UNAVAILABLE),
        (None, Code.UNAVAILABLE),
    ],
)
async def test_a_creation_that_a_hook_refuses(raised: Exception | None, code: Code) -> None:
    async def before_create(_request: UploadRequest, _upload: Upload) -> Changes:
        if raised is not None:
            raise raised
        await anyio.sleep_forever()
        raise AssertionError

    async with stage(before_create=before_create, hook_within=0.01).open() as s:
        async with refused(code):
            await s.create(3, b"abc")
        assert not s.records._records
        assert not s.bytes._uploads


async def test_less_than_was_allowed_so_far() -> None:
    async def before_create(_request: UploadRequest, _upload: Upload) -> Changes:
        return Changes(max_size=5)

    async with stage(before_create=before_create).open() as s:
        async with refused(Code.TOO_LARGE):
            await s.create(6)
        async with refused(Code.TOO_LARGE):
            await s.create(None, b"abcdef", chunked=True)
        assert not s.records._records
        assert (await s.create(5, b"abcde")).complete


@pytest.mark.parametrize(
    "changes",
    [
        {"id": ""},
        {"id": ".."},
        {"id": "a/b"},
        {"id": "a b"},
        {"id": "é"},
        {"id": "a" * 129},
        {"name": ""},
        {"name": "/etc/passwd"},
        {"name": "../up"},
        {"name": "a/./b"},
        {"name": "a//b"},
        {"name": ".hidden"},
        {"name": "a\\b"},
        {"name": "a\nb"},
        {"name": "a\0b"},
        {"name": "\ud800"},
        {"name": "a" * 256},
        {"name": "a/" * 8 + "a"},
        {"expire_after": 0},
        {"expire_after": float("nan")},
        {"max_size": -1},
        {"metadata": {"a b": b""}},
    ],
)
def test_changes_that_are_none(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected|can't be a key"):
        Changes(**changes)


def test_changes_that_are_fine() -> None:
    Changes(id="a" * 128, name="a/b.c/" + "d" * 255, expire_after=0.5, max_size=0, metadata={})


# --------------------------------------------------------------------------- before a completion


class Judge:
    """A before_complete that says what `verdicts` hold, in turn, and then agrees."""

    def __init__(self, *verdicts: Exception | None) -> None:
        self.verdicts = list(verdicts)
        self.seen: list[tuple[Upload, UploadRequest | None]] = []
        self.content: list[bytes] = []
        self.held = anyio.Event()
        self.go = anyio.Event()
        self.go.set()

    async def __call__(self, upload: Upload, content: Bytes, request: UploadRequest | None) -> None:
        self.seen.append((upload, request))
        self.content.append(await content.first(100))
        self.held.set()
        await self.go.wait()
        verdict = self.verdicts.pop(0) if self.verdicts else None
        if verdict is not None:
            raise verdict


BAD = Denied(422, "this is no picture", headers={"X-Type": "text"})


async def test_a_hook_sees_a_whole_upload_before_anyone_is_told() -> None:
    judge = Judge()
    async with stage(before_complete=judge, options={"authorize": by_token}).open() as s:
        made = await s.create(5)
        assert made.guarded
        await s.append(made.id, 0, b"he")
        assert not judge.seen
        judge.go = anyio.Event()
        async with beside() as start:
            last = start(s.append, made.id, 2, b"llo")
            await reached(judge.held)
            ((upload, request),) = judge.seen
            assert judge.content == [b"hello"]
            assert (upload.whole, upload.complete, upload.id) == (True, False, made.id)
            # All that it looks at survives a loss of power.
            assert (upload.synced_offset, upload.boot_id) == (5, "")
            assert request is not None
            assert request.principal == Principal(id="alice")
            assert s.hold(made.id) is Hold.HELD
            async with refused(Code.UNFINISHED):
                await s.download(made.id)
            judge.go.set()
            assert (await last.answer()).complete
        assert await s.download(made.id) == b"hello"
        assert len(judge.seen) == 1


async def test_a_hook_reads_what_it_likes() -> None:
    found: list[bytes] = []

    async def before_complete(_upload: Upload, content: Bytes, _request: object) -> None:
        found.extend([chunk async for chunk in content.read(6, 1000)])
        found.extend([chunk async for chunk in content.read(20)])
        found.append(await content.first(5))
        # Not to its end: that is closed when the hook returns.
        found.append(await anext(content.read(1)))

    async with stage(before_complete=before_complete).open() as s:
        assert (await s.create(11, b"hello world")).complete
    assert found == [b"world", b"hello", b"ello world"]


async def _refuse(s: Stage, how: str) -> UploadId | None:
    """Bring an upload to its end in one of several ways."""
    if how == "nothing":
        await s.create(0)
    elif how == "created":
        await s.create(3, b"abc")
    elif how == "checksum":
        upload = await s.create(3)
        await s.append(upload.id, 0, b"abc", checksum=sha1(b"abc"))
    elif how == "length":
        upload = await s.create(None, b"abc")
        await s.append(upload.id, 3, length=3)
    elif how == "final":
        part = await s.partial(b"abc")
        await s.final(part, part)
    else:
        upload = await s.create(3)
        await s.append(upload.id, 0, b"abc")
    return None


WAYS = ["nothing", "created", "checksum", "length", "final", "appended"]


@pytest.mark.parametrize("how", WAYS)
async def test_a_refusal_ends_the_upload(how: str) -> None:
    judge = Judge(BAD)
    events: list[EventType] = []

    async def sink(delivery: Delivery) -> None:
        if delivery.event.upload.kind is not Kind.PARTIAL:
            events.append(delivery.event.type)

    async with stage(before_complete=judge, sink=sink).open() as s:
        async with refused(Code.DENIED) as caught:
            await _refuse(s, how)
        assert caught == [BAD]
        ((upload, request),) = judge.seen
        assert request is not None
        assert s.record(upload.id).state is State.TERMINATED
        assert s.stored(upload.id) == b""
        async with refused(Code.GONE):
            await s.head(upload.id)
        async with refused(Code.GONE):
            await s.handle(Download(id=upload.id), s.body()[0])
        await until(lambda: len(events) == 2)
        assert events == [EventType.CREATED, EventType.TERMINATED]
        assert not s.engine._core.put_off


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (RuntimeError("the scanner is away"), Code.UNAVAILABLE),
        (UnavailableError("so are our own records"), Code.UNAVAILABLE),
        (Refusal(Code.TOO_MANY, "not one of ours to raise"), Code.UNAVAILABLE),
        (Denied(503, "come back"), Code.DENIED),
    ],
)
@pytest.mark.parametrize("how", ["checksum", "length", "appended"])
async def test_no_answer_is_asked_for_again(how: str, failure: Exception, code: Code) -> None:
    """By the next request, which has not to send the bytes again; without the first one's request."""
    judge = Judge(failure, failure)
    async with stage(before_complete=judge).open() as s:
        async with refused(code) as caught:
            await _refuse(s, how)
        assert code is Code.DENIED or caught[0].retry_after == 5
        ((upload, request),) = judge.seen
        assert request is not None
        async with refused(code):
            await s.head(upload.id)
        async with refused(Code.UNFINISHED):
            await s.download(upload.id)
        assert (await s.head(upload.id)).complete
        assert await s.download(upload.id) == b"abc"
        assert [request for _, request in judge.seen][1:] == [None, None]


@pytest.mark.parametrize("how", ["created", "nothing"])
async def test_a_creation_without_an_answer_leaves_nothing(how: str) -> None:
    """Nobody was told its URL."""
    judge = Judge(RuntimeError("away"))
    async with stage(before_complete=judge).open() as s:
        async with refused(Code.UNAVAILABLE):
            await _refuse(s, how)
        assert not s.records._records
        assert not s.bytes._uploads
        await complete_all(s.engine._core)
        assert not s.engine._core.put_off


async def test_a_refusal_at_the_second_try() -> None:
    judge = Judge(RuntimeError("away"), BAD)
    async with stage(before_complete=judge).open() as s:
        async with refused(Code.UNAVAILABLE):
            await _refuse(s, "appended")
        upload_id = judge.seen[0][0].id
        async with refused(Code.DENIED):
            await s.head(upload_id)
        async with refused(Code.GONE):
            await s.head(upload_id)


async def test_an_answer_that_takes_too_long() -> None:
    judge = Judge()
    judge.go = anyio.Event()
    async with stage(before_complete=judge, hook_within=0.01).open() as s:
        async with refused(Code.UNAVAILABLE):
            await _refuse(s, "appended")
        judge.go.set()
        assert (await s.head(judge.seen[0][0].id)).complete


async def test_it_is_asked_again_in_a_while_without_a_request() -> None:
    judge = Judge(RuntimeError("away"), RuntimeError("still"), Denied(503))
    async with stage(before_complete=judge, sweep_every=0.001).open() as s:
        async with refused(Code.UNAVAILABLE):
            await _refuse(s, "appended")
        await s.became(judge.seen[0][0].id, State.COMPLETE)
        assert len(judge.seen) == 4


async def test_who_holds_it_is_left_alone_meanwhile() -> None:
    judge = Judge()
    judge.go = anyio.Event()
    async with stage(before_complete=judge).open() as s, beside() as start:
        made = await s.create(3)
        request = start(s.append, made.id, 0, b"abc")
        await reached(judge.held)
        await complete_all(s.engine._core)
        assert s.engine._core.put_off == {made.id}
        judge.go.set()
        assert (await request.answer()).complete
        assert not s.engine._core.put_off


async def test_a_process_that_dies_in_the_middle_of_it() -> None:
    """The next one asks, whether a request comes or not."""
    judge, other = Judge(), Judge(BAD)
    judge.go = anyio.Event()
    first = stage(before_complete=judge)
    async with first.open() as s, beside() as start:
        made = await s.create(3)
        start(s.append, made.id, 0, b"abc")
        await reached(judge.held)
        s.die()
    assert first.record(made.id).state is State.RECEIVING
    async with stage(stores=first, before_complete=other).open() as s:
        await s.became(made.id, State.TERMINATED)
        assert other.content == [b"abc"]
        assert other.seen[0][1] is None


async def test_a_client_that_goes_away_in_the_middle_of_it() -> None:
    judge = Judge()
    judge.go = anyio.Event()
    async with stage(before_complete=judge).open() as s:
        made = await s.create(3)
        async with beside() as start:
            request = start(s.append, made.id, 0, b"abc")
            await reached(judge.held)
            request.scope.cancel()
            await request.answer()
        judge.go.set()
        assert (await s.head(made.id)).complete
        assert len(judge.seen) == 2


async def test_an_upload_that_is_taken_away_meanwhile() -> None:
    judge = Judge()
    judge.go = anyio.Event()
    async with stage(before_complete=judge).open() as s, beside() as start:
        made = await s.create(3)
        request = start(s.append, made.id, 0, b"abc")
        await reached(judge.held)
        s.engine._core.settings = type(s.engine._core.settings)(terminate_wait=0.001)
        await s.delete(made.id)
        judge.go.set()
        assert await request.answer() is Code.LOCKED
        async with refused(Code.GONE):
            await s.head(made.id)
        assert "finish" not in s.data.faults.calls


async def test_partials_are_pieces_of_something() -> None:
    judge = Judge()
    async with stage(before_complete=judge).open() as s:
        part = await s.create(3, b"abc", kind=Kind.PARTIAL)
        assert part.complete
        assert not part.guarded
        assert not judge.seen
        assert (await s.final(part.id, part.id)).complete
        assert judge.content == [b"abcabc"]


@pytest.mark.parametrize("failure", [RuntimeError("away"), Denied(503)])
async def test_a_final_without_an_answer_is_tried_again_behind_the_request(
    failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tidegate.engine.concat.RETRY_AFTER", 0.01)
    judge = Judge(failure, failure, failure)
    async with stage(before_complete=judge).open() as s:
        part = await s.partial(b"abc")
        final = await s.final(part)
        assert not final.complete
        await s.became(final.id, State.COMPLETE)
        assert len(judge.seen) == 4


async def test_a_final_that_is_refused_behind_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidegate.engine.concat.RETRY_AFTER", 0.01)
    judge = Judge(BAD)
    async with stage(before_complete=judge).open() as s:
        part = await s.create(3, kind=Kind.PARTIAL)
        final = await s.final(part.id)
        await s.append(part.id, 0, b"abc")
        await s.became(final.id, State.TERMINATED)
        assert judge.seen[0][1] is None


async def test_a_final_that_takes_its_time_is_answered_before_the_hook_is() -> None:
    judge = Judge()
    judge.go = anyio.Event()
    async with stage(before_complete=judge, assemble_within=0.05).open() as s:
        final = await s.final(await s.partial(b"abc"))
        assert not final.complete
        judge.go.set()
        await s.became(final.id, State.COMPLETE)


async def test_who_has_no_hook_completes_nothing_that_has_to_be_looked_at(
    logged: list[logging.LogRecord],
) -> None:
    """A check by the operator, say, or a server with half a configuration."""
    judge = Judge(RuntimeError("away"))
    async with stage(before_complete=judge).open() as s:
        async with refused(Code.UNAVAILABLE):
            await _refuse(s, "appended")
        upload_id = judge.seen[0][0].id
    async with s.again().open() as bare:
        async with refused(Code.UNAVAILABLE):
            await bare.head(upload_id)
        (finding,) = [f async for f in bare.engine.check(Checked(), repair=True)]
        assert (finding.subject, finding.mended, finding.lost) == (upload_id, False, False)
        assert "waits for a hook" in finding.problem
        assert bare.stored(upload_id) == b"abc"
    assert any("there is none here" in record.getMessage() for record in logged)
    async with stage(stores=s, before_complete=judge).open() as again:
        await again.became(upload_id, State.COMPLETE)


async def test_what_was_made_before_there_was_a_hook_is_looked_at_too() -> None:
    async with Stage().open() as s:
        made = await s.create(3)
    judge = Judge(BAD)
    async with stage(stores=s, before_complete=judge).open() as again, refused(Code.DENIED):
        await again.append(made.id, 0, b"abc")


async def test_a_store_that_can_read_only_what_is_finished() -> None:
    judge = Judge(RuntimeError("away"), BAD)
    async with stage(before_complete=judge).open() as s:
        s.data.capabilities &= ~Capability.PEEK
        made = await s.create(3)
        async with refused(Code.UNAVAILABLE):
            await s.append(made.id, 0, b"abc")
        assert "finish" in s.data.faults.calls
        async with refused(Code.DENIED):
            await s.head(made.id)
        assert judge.content == [b"abc", b"abc"]
        assert s.stored(made.id) == b""


@pytest.mark.parametrize("call", ["sync", "finish"])
async def test_bytes_that_cannot_be_synced_are_not_looked_at(call: str) -> None:
    judge = Judge()
    async with stage(before_complete=judge).open() as s:
        made = await s.create(3)
        s.data.faults.fail(call, SyncFailedError("no"))
        async with refused(Code.UNAVAILABLE):
            await s.append(made.id, 0, b"abc")
        assert len(judge.seen) == (call == "finish")
        assert (await s.head(made.id)).offset == 0
        assert (await s.append(made.id, 0, b"abc")).complete


async def test_a_lease_that_was_lost_while_the_hook_refused() -> None:
    judge = Judge(BAD)
    async with stage(before_complete=judge).open() as s:
        made = await s.create(3)
        s.metadata.faults.fail("commit", LeaseLostError("taken"), skip=2)
        async with refused(Code.LOCKED):
            await s.append(made.id, 0, b"abc")
        judge.verdicts = [BAD]
        async with refused(Code.DENIED):
            await s.head(made.id)


# --------------------------------------------------------------------------- before a termination


@pytest.mark.parametrize(
    ("raised", "code"),
    [(Denied(409), Code.DENIED), (RuntimeError("away"), Code.UNAVAILABLE), (None, None)],
)
async def test_a_termination_that_a_hook_refuses(
    raised: Exception | None, code: Code | None
) -> None:
    seen: list[Upload] = []

    async def before_terminate(request: UploadRequest, upload: Upload) -> None:
        seen.append(upload)
        assert request.principal is not None
        if raised is not None:
            raise raised

    async with stage(
        before_terminate=before_terminate, options={"authorize": by_token}
    ).open() as s:
        made = await s.create(3, b"abc")
        if code is None:
            await s.delete(made.id)
            assert s.record(made.id).gone
        else:
            async with refused(code):
                await s.delete(made.id)
            assert await s.download(made.id) == b"abc"
            assert "acquire" not in s.metadata.faults.calls
        assert [upload.id for upload in seen] == [made.id]
        s.who = "bob"
        async with refused(Code.NOT_FOUND):
            await s.delete(made.id)
        assert len(seen) == 1


async def test_a_command_without_a_request_has_nothing_to_show() -> None:
    async def never(*_: object) -> None:
        raise AssertionError

    async with stage(before_create=never, before_terminate=never).open() as s:
        result = await s.engine.handle(Create(length=3), s.body()[0])
        s.engine._core.gate._hooks = Hooks(before_terminate=never)
        upload: Any = result
        assert not upload.upload.guarded
