"""An engine on stores that fail when told to, and requests to it in few words."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
from tests.support.bodies import NOTHING, ScriptedBody
from tests.support.faulty import FaultyMetadata, FaultyStore

from tidegate.engine.core import Settings
from tidegate.engine.engine import Engine
from tidegate.events.callable import as_sinks
from tidegate.hooks import Principal, UploadRequest
from tidegate.metadata.memory import MemoryMetadataStore
from tidegate.protocol.commands import (
    Append,
    Checksum,
    Command,
    Create,
    Discover,
    Download,
    Inspect,
    Payload,
    Terminate,
)
from tidegate.protocol.dialects import http
from tidegate.protocol.errors import Code, Refusal
from tidegate.protocol.model import Kind, State, Upload, UploadId
from tidegate.protocol.results import Appended, Created, Inspected, Readable, Terminated
from tidegate.stores.memory import MemoryStore
from tidegate.testing import FakeClock

if TYPE_CHECKING:
    from tidegate.ports import Body, Delivery, EventSink, Hold

PATIENCE = 20.0
"""Seconds for what has to come: far more than it takes, on a busy machine."""


async def until(holds: Callable[[], bool | Awaitable[bool]]) -> None:
    """Wait for what has to come."""
    with anyio.fail_after(PATIENCE):
        while True:
            held = holds()
            if held if isinstance(held, bool) else await held:
                return
            await anyio.sleep(0.001)


def asking(command: Command, who: str) -> UploadRequest:
    """A request with `who` as its bearer token."""
    sent = http.Request(
        method="POST",
        path="a",
        headers=[(b"authorization", f"Bearer {who}".encode())],
        url="https://tus.test/files/a?b",
        client="192.0.2.1",
    )
    return UploadRequest(command, "POST", sent)


async def by_token(request: UploadRequest, _upload: Upload | None) -> Principal:
    """Whoever says who they are, is."""
    return Principal(id=request.headers["Authorization"].removeprefix("Bearer "))


def sha1(data: bytes) -> Checksum:
    return Checksum("sha1", hashlib.sha1(data).digest())


class Stage:
    """An engine on memory stores that both outlive it."""

    def __init__(
        self,
        *,
        bytes_: MemoryStore | None = None,
        records: MemoryMetadataStore | None = None,
        clock: FakeClock | None = None,
        boot_id: str = "boot-1",
        sink: Callable[[Delivery], Awaitable[None]] | None = None,
        sinks: Sequence[EventSink] = (),
        options: dict[str, Any] | None = None,
        store: type[FaultyStore] = FaultyStore,
        **settings: Any,
    ) -> None:
        self.who = "alice"
        self.bytes = bytes_ or MemoryStore()
        self.records = records or MemoryMetadataStore()
        self.clock = clock or FakeClock()
        self.data = store(self.bytes, boot_id=boot_id)
        self.metadata = FaultyMetadata(self.records)
        settings.setdefault("sweep_every", 1e6)
        settings.setdefault("lease_wait", PATIENCE)
        self.engine = Engine(
            self.data,
            self.metadata,
            settings=Settings(**settings),
            sinks=as_sinks([sink] if sink else []) + list(sinks),
            clock=self.clock,
            **{"expire_after": 100.0, **(options or {})},
        )

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Stage]:
        async with self.engine:
            # The look around that every start takes.
            await until(lambda: "end_turn" in self.metadata.faults.calls)
            self.data.faults.calls.clear()
            self.metadata.faults.calls.clear()
            yield self

    def again(self, **options: Any) -> Stage:
        """The next process on the same stores."""
        return Stage(bytes_=self.bytes, records=self.records, clock=self.clock, **options)

    def die(self) -> None:
        """End as a process does that is killed."""
        self.data.die()
        self.metadata.die()

    # --------------------------------------------------------------------------- requests

    async def handle(self, command: Command, body: Body) -> Any:
        """Carry out a command, for `who`, with a request where somebody wants to see one."""
        request = None
        if self.engine.asks and not isinstance(command, Discover):
            request = asking(command, self.who)
        return await self.engine.handle(command, body, request)

    def body(self, *steps: Any, **options: Any) -> tuple[ScriptedBody, int]:
        return ScriptedBody(*steps, **options), sum(len(s) for s in steps if isinstance(s, bytes))

    async def create(
        self,
        length: int | None = None,
        *steps: Any,
        kind: Kind = Kind.REGULAR,
        parts: tuple[UploadId, ...] = (),
        chunked: bool = False,
        checksum: Checksum | None = None,
        **options: Any,
    ) -> Upload:
        body, size = self.body(*steps, **options)
        payload = None
        if steps or chunked:
            payload = Payload(length=None if chunked else size, checksum=checksum)
        final = kind is Kind.FINAL
        command = Create(
            kind=kind,
            length=length,
            deferred=length is None and not final,
            parts=parts,
            payload=payload,
        )
        result = await self.handle(command, body)
        assert isinstance(result, Created)
        return result.upload

    async def partial(self, data: bytes) -> UploadId:
        """A partial upload that is whole."""
        created = await self.create(len(data), data, kind=Kind.PARTIAL)
        assert created.complete
        return created.id

    async def final(self, *parts: UploadId) -> Upload:
        return await self.create(kind=Kind.FINAL, parts=parts)

    async def append(
        self,
        upload_id: UploadId,
        offset: int,
        *steps: Any,
        length: int | None = None,
        size: int | None = None,
        chunked: bool = False,
        checksum: Checksum | None = None,
        trailing: bool = False,
        **options: Any,
    ) -> Upload:
        body, sent = self.body(*steps, **options)
        payload = Payload(
            length=None if chunked else sent if size is None else size,
            checksum=checksum,
            trailing_checksum=trailing,
        )
        command = Append(id=upload_id, offset=offset, length=length, payload=payload)
        result = await self.handle(command, body)
        assert isinstance(result, Appended)
        return result.upload

    async def head(self, upload_id: UploadId) -> Upload:
        result = await self.handle(Inspect(id=upload_id), NOTHING)
        assert isinstance(result, Inspected)
        return result.upload

    async def delete(self, upload_id: UploadId) -> None:
        result = await self.handle(Terminate(id=upload_id), NOTHING)
        assert isinstance(result, Terminated)

    async def download(self, upload_id: UploadId) -> bytes:
        result = await self.handle(Download(id=upload_id), NOTHING)
        assert isinstance(result, Readable)
        upload = result.upload
        return b"".join([c async for c in self.engine.read(upload, 0, upload.offset)])

    # ---------------------------------------------------------------------- what is there

    def stored(self, upload_id: UploadId) -> bytes:
        found = self.bytes._uploads.get(upload_id)
        return bytes(found.data) if found else b""

    def record(self, upload_id: UploadId) -> Upload:
        return self.records._records[upload_id].upload

    def hold(self, upload_id: UploadId) -> Hold:
        return self.records._records[upload_id].hold

    async def became(self, upload_id: UploadId, state: State) -> None:
        await until(lambda: self.record(upload_id).state is state)


@asynccontextmanager
async def refused(code: Code) -> AsyncIterator[list[Refusal]]:
    """Expect a refusal with this code; it is put into the list."""
    caught: list[Refusal] = []
    try:
        yield caught
    except Refusal as refusal:
        caught.append(refusal)
    assert [refusal.code for refusal in caught] == [code], caught


class Request:
    """A request that runs beside the test."""

    def __init__(self) -> None:
        self.result: Any = None
        self.error: BaseException | None = None
        self.done = anyio.Event()
        self.scope = anyio.CancelScope()

    async def run(self, work: Callable[..., Awaitable[Any]], args: Any, options: Any) -> None:
        try:
            with self.scope:
                self.result = await work(*args, **options)
        except Exception as error:  # noqa: BLE001 - told by `answer`
            self.error = error
        finally:
            self.done.set()

    async def answer(self) -> Any:
        """Its result, or the code with which it was refused; None when it was cancelled."""
        with anyio.fail_after(PATIENCE):
            await self.done.wait()
        if isinstance(self.error, Refusal):
            return self.error.code
        if self.error is not None:
            raise self.error
        return self.result


@asynccontextmanager
async def beside() -> AsyncIterator[Callable[..., Request]]:
    """Start requests that run beside the test."""
    async with anyio.create_task_group() as tasks:

        def start(work: Callable[..., Awaitable[Any]], *args: Any, **options: Any) -> Request:
            request = Request()
            tasks.start_soon(request.run, work, args, options)
            return request

        yield start
        tasks.cancel_scope.cancel()


async def reached(event: anyio.Event) -> None:
    with anyio.fail_after(PATIENCE):
        await event.wait()
