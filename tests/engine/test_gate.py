"""Who may come in: asked once, before anything; and whatever goes wrong lets nobody in."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from tests.engine.stage import PATIENCE, Stage, asking, by_token, refused
from tests.support.bodies import NOTHING, ScriptedBody

from tidegate.hooks import Action, Denied, Headers, Principal, UploadRequest
from tidegate.ports import DataError
from tidegate.protocol.commands import (
    Append,
    Command,
    Create,
    Discover,
    Download,
    Inspect,
    Payload,
    Terminate,
)
from tidegate.protocol.dialects.http import Request
from tidegate.protocol.errors import Code, Refusal
from tidegate.protocol.model import NOWHERE, Kind, State, Upload, UploadId

pytestmark = pytest.mark.anyio


def stage(authorize: Any = by_token, *, stores: Stage | None = None, **options: Any) -> Stage:
    settings = {k: options.pop(k) for k in ("authorize_within", "assemble_within") if k in options}
    given = {"authorize": authorize, **options}
    return stores.again(options=given, **settings) if stores else Stage(options=given, **settings)


def commands(upload_id: UploadId) -> list[Command]:
    return [
        Create(length=5, payload=Payload(length=5)),
        Append(id=upload_id, offset=0, payload=Payload(length=5)),
        Inspect(id=upload_id),
        Terminate(id=upload_id),
        Download(id=upload_id),
    ]


async def test_who_is_asked_sees_the_request_and_the_upload() -> None:
    seen: list[tuple[UploadRequest, Upload | None]] = []

    def authorize(request: UploadRequest, upload: Upload | None) -> Principal:
        seen.append((request, upload))
        return Principal(id="alice")

    async with stage(authorize).open() as s:
        made = await s.create(5)
        assert made.principal == "alice"
        await s.append(made.id, 0, b"hello")
        await s.head(made.id)
        assert await s.download(made.id) == b"hello"
        await s.delete(made.id)
        for command in (Inspect(id=UploadId("none")), Inspect(id=NOWHERE)):
            async with refused(Code.NOT_FOUND):
                await s.handle(command, NOTHING)
    assert [request.action for request, _ in seen] == [
        Action.CREATE,
        Action.APPEND,
        Action.INSPECT,
        Action.DOWNLOAD,
        Action.TERMINATE,
        Action.INSPECT,
        Action.INSPECT,
    ]
    uploads = [upload for _, upload in seen]
    assert [upload and upload.offset for upload in uploads] == [None, 0, 5, 5, 5, None, None]
    assert all(request.principal is None for request, _ in seen)
    request = seen[0][0]
    assert (request.path, request.client) == ("/files/a", "192.0.2.1")
    assert "Bearer" not in repr(request)
    assert "Bearer" not in repr(request.headers)


async def test_nobody_is_asked_what_the_server_can_do() -> None:
    def authorize(_request: UploadRequest, _upload: Upload | None) -> Principal:
        raise AssertionError

    async with stage(authorize, downloads=False).open() as s:
        await s.engine.handle(Discover(), NOTHING)
        async with refused(Code.METHOD_NOT_ALLOWED):
            await s.handle(Download(id=NOWHERE), NOTHING)


async def _raises(_request: UploadRequest, _upload: Upload | None) -> Principal:
    raise RuntimeError("the database is away")


async def _hangs(_request: UploadRequest, _upload: Upload | None) -> Principal:
    await anyio.sleep_forever()
    raise AssertionError


async def _denies(_request: UploadRequest, _upload: Upload | None) -> Principal:
    raise Denied(402)


async def _returns_nothing(_request: UploadRequest, _upload: Upload | None) -> None:
    pass


def _raises_at_once(_request: UploadRequest, _upload: Upload | None) -> Principal:
    raise DataError("a store's own exception is nothing special here")


WRONG: list[tuple[Callable[..., Any], Code]] = [
    (_raises, Code.INTERNAL),
    (_raises_at_once, Code.INTERNAL),
    (_returns_nothing, Code.INTERNAL),
    (lambda _request, _upload: "alice", Code.INTERNAL),
    (lambda _request: None, Code.INTERNAL),
    (_hangs, Code.UNAVAILABLE),
    (_denies, Code.DENIED),
]


@pytest.mark.parametrize(("authorize", "code"), WRONG)
async def test_who_is_not_let_in_leaves_no_trace(
    authorize: Callable[..., Any], code: Code, logged: list[logging.LogRecord]
) -> None:
    """No body is read, no writer disturbed, nothing changed: also of what is not there."""
    async with stage().open() as s:
        made = await s.create(5)
    async with stage(authorize, stores=s, authorize_within=0.01).open() as again:
        before = again.record(made.id)
        for upload_id in (made.id, UploadId("none"), NOWHERE):
            for command in commands(upload_id):
                body = ScriptedBody(b"hello")
                async with refused(code) as caught:
                    await again.handle(command, body)
                assert not body.read
                assert caught[0].retry_after == (5 if code is Code.UNAVAILABLE else None)
        assert again.record(made.id) == before
        assert len(again.records._records) == 1
        assert not {"acquire", "insert", "commit"} & set(again.metadata.faults.calls)
    assert bool(logged) == (code is not Code.DENIED)


async def test_a_command_without_a_request_is_nobodys() -> None:
    async with stage().open() as s:
        for command in commands(NOWHERE):
            async with refused(Code.INTERNAL):
                await s.engine.handle(command, NOTHING)


async def test_what_it_needs_is_there_while_the_engine_runs() -> None:
    class Authorizer:
        open = False

        def __call__(self, request: UploadRequest, upload: Upload | None) -> Principal:
            assert self.open
            return Principal(id="alice")

        async def __aenter__(self) -> None:
            self.open = True

        async def __aexit__(self, *_: object) -> None:
            self.open = False

    authorizer = Authorizer()
    async with stage(authorizer).open() as s:
        await s.create(5)
    assert not authorizer.open


async def test_an_upload_is_there_for_its_owner_alone() -> None:
    async with stage().open() as s:
        made = await s.create(5)
        part = await s.partial(b"hello")
        s.who = "bob"
        for upload_id in (made.id, part):
            for command in commands(upload_id)[1:]:
                body = ScriptedBody(b"hello")
                async with refused(Code.NOT_FOUND):
                    await s.handle(command, body)
                assert not body.read
        async with refused(Code.NOT_FOUND):
            await s.final(part)
        s.who = "alice"
        await s.append(made.id, 0, b"hello")
        assert (await s.final(part)).complete
        await s.delete(made.id)
        async with refused(Code.GONE):
            await s.head(made.id)
        s.who = "bob"
        async with refused(Code.NOT_FOUND):
            await s.head(made.id)


async def test_who_forgets_to_ask_has_no_ones_uploads() -> None:
    async with stage().open() as s:
        made = await s.create(5, b"hello")
    async with s.again().open() as bare:
        assert not bare.engine.asks
        for command in commands(made.id)[1:]:
            async with refused(Code.NOT_FOUND):
                await bare.handle(command, NOTHING)
        unowned = await bare.create(5, b"world")
    async with s.again(options={"owners": False}).open() as shared:
        assert await shared.download(made.id) == b"hello"
    async with stage(stores=s).open() as asking_again:
        assert await asking_again.download(unowned.id) == b"world"


async def test_to_let_someone_at_anothers_upload() -> None:
    """Say that they are that one."""

    def authorize(request: UploadRequest, upload: Upload | None) -> Principal:
        if upload is not None and upload.principal and request.action is Action.DOWNLOAD:
            return Principal(id=upload.principal)
        return Principal(id=request.headers["authorization"])

    async with stage(authorize).open() as s:
        made = await s.create(5, b"hello")
        s.who = "bob"
        assert await s.download(made.id) == b"hello"
        async with refused(Code.NOT_FOUND):
            await s.delete(made.id)


@asynccontextmanager
async def _capped(max_size: int, **options: Any) -> AsyncIterator[Stage]:
    def authorize(_request: UploadRequest, _upload: Upload | None) -> Principal:
        return Principal(id="alice", max_size=max_size)

    async with stage(authorize, **options).open() as s:
        yield s


async def test_a_principals_largest_upload() -> None:
    async with _capped(5) as s:
        async with refused(Code.TOO_LARGE):
            await s.create(6)
        growing = await s.create(None, b"abc")
        assert growing.max_size is None
        async with refused(Code.TOO_LARGE):
            await s.append(growing.id, 3, b"def", chunked=True)
        async with refused(Code.TOO_LARGE):
            await s.append(growing.id, 3, length=6)
        assert (await s.append(growing.id, 3, b"de", length=5)).complete


async def test_a_final_that_grows_past_its_makers_limit_fails() -> None:
    """Nobody asks when its parts are whole: what its maker may was written down."""
    async with _capped(5) as s:
        part = await s.create(None, kind=Kind.PARTIAL)
        other = await s.partial(b"abc")
        final = await s.final(part.id, other)
        assert final.max_size == 5
        await s.append(part.id, 0, b"def", length=3)
        await s.became(final.id, State.FAILED)


@pytest.mark.parametrize("request_", [None, "alice"])
async def test_without_anyone_to_ask_all_may_come_in(request_: str | None) -> None:
    async with Stage().open() as s:
        command = Create(length=0)
        asked = asking(command, request_) if request_ else None
        result = await s.engine.handle(command, NOTHING, asked)
        assert result.upload.complete  # type: ignore[union-attr]


def test_headers_are_found_in_any_case() -> None:
    sent = [(b"x-a", b" 1 "), (b"x-b", b"2"), (b"x-a", b"\xe9")]
    headers = Headers(Request(method="HEAD", path="a", headers=sent))
    assert headers["X-A"] == "1, é"
    assert headers.get("x-c") is None
    assert headers.all("X-a") == ["1", "é"]
    assert (list(headers), len(headers)) == (["x-a", "x-b"], 2)
    assert "x-B" in headers
    assert repr(headers) == "Headers(x-a, x-b)"
    assert headers.get("→") is None


def test_nobody_asks_about_a_discover() -> None:
    with pytest.raises(AssertionError):
        Action.of(Discover())


async def test_a_slow_answer_is_waited_for() -> None:
    async def authorize(request: UploadRequest, upload: Upload | None) -> Principal:
        await anyio.sleep(0.01)
        return await by_token(request, upload)

    async with stage(authorize).open() as s:
        with anyio.fail_after(PATIENCE):
            assert (await s.create(0)).principal == "alice"


async def test_a_refusal_of_the_servers_own_kind_passes() -> None:
    def authorize(_request: UploadRequest, _upload: Upload | None) -> Principal:
        raise Refusal(Code.TOO_MANY, "slowly", retry_after=3)

    async with stage(authorize).open() as s, refused(Code.TOO_MANY):
        await s.create(0)
