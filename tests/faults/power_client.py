"""A client inside a trace: what it sent, and what it was told, is written down where it happened."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from unittest import mock

import anyio
import msgspec

from tidegate.engine import create
from tidegate.engine.core import Settings, random_id
from tidegate.engine.engine import Engine
from tidegate.events.callable import as_sinks
from tidegate.hooks import Bytes as HookBytes
from tidegate.hooks import Hooks, UploadRequest
from tidegate.metadata.sqlite.store import SQLiteMetadataStore
from tidegate.ports import BodyEnd, Delivery, Durability, Sink
from tidegate.protocol.commands import Append, Checksum, Create, Inspect, Payload, Terminate
from tidegate.protocol.model import Kind, Upload, UploadId
from tidegate.stores.local import LocalStore

if TYPE_CHECKING:
    from tests.support.disk_trace import Tracer

    from tidegate.protocol.results import Appended, Created, Inspected

T = TypeVar("T")

CHUNK = 3000
"""Bytes per chunk of a body: no multiple of a block or a sector."""
DATABASE = Path("records", "tidegate.db")
"""Not beside the data, since what SQLite does for its folder would hide what we don't for ours."""
STEP = 2 * CHUNK
"""Bytes between two checkpoints, and copied at once."""
PATIENCE = 20.0
"""Seconds after which something that should happen will not."""


class Killed(BaseException):
    """Stands for the death of the process that a request is handled by."""


class Content(msgspec.Struct):
    """An upload as its client means it to be."""

    key: str
    data: bytes
    kind: Kind = Kind.REGULAR
    parts: tuple[str, ...] = ()
    doomed: bool = False
    """A final that can't be made, since one of its parts is gone."""


class Moving:
    """The machine's clock, but for what a test adds to it."""

    def __init__(self, ahead: float = 0.0) -> None:
        self.ahead = ahead

    def now(self) -> float:
        return time.time() + self.ahead

    @staticmethod
    def monotonic() -> float:
        return time.monotonic()


class BootStore(LocalStore):
    """A local store of a machine that was booted when the test says so."""

    def __init__(self, root: Path, boot_id: str, *, name: str = "{shard}/{id}") -> None:
        super().__init__(root, name=name, threads=4, sync_threads=2)
        self._boot = boot_id
        self.syncing = 0

    async def open(self) -> None:
        await super().open()
        self.boot_id = self._boot

    async def run_sync(self, function: Callable[[], T]) -> T:
        self.syncing += 1
        try:
            return await super().run_sync(function)
        finally:
            self.syncing -= 1


@dataclass
class Bytes:
    """A request's body, which notes what it gives away."""

    client: Client
    key: str
    data: bytes
    offset: int = 0
    true: bool = True
    """Whether these are the upload's bytes, and not such as a checksum will refuse."""
    ending: BodyEnd | type[BaseException] = BodyEnd.WHOLE

    async def copy_to(self, sink: Sink, stop: anyio.Event) -> BodyEnd:
        for start in range(0, len(self.data), CHUNK):
            if stop.is_set():
                return BodyEnd.STOPPED
            chunk = self.data[start : start + CHUNK]
            if self.true:
                self.client.tracer.note("sent", self.key, self.offset + start + len(chunk))
            await sink.write([chunk])
            await self.client.settle()
        if isinstance(self.ending, BodyEnd):
            return self.ending
        raise self.ending

    def trailing_checksum(self) -> Checksum:
        raise NotImplementedError


@dataclass
class Client:
    """Everybody who uses one server, which may stop and start."""

    tracer: Tracer
    root: Path
    durability: Durability
    boot_id: str = "the first boot"
    clock: Moving = field(default_factory=Moving)
    template: str = "{shard}/{id}"
    names: bool = True
    """Uploads are named: else small ones are stored ahead of their records."""
    decide: Callable[[str], None] | None = None
    """What a hook does about a whole upload, if one is to be asked: it may raise."""
    contents: dict[str, Content] = field(default_factory=dict)
    engine: Engine = field(init=False)
    data: BootStore = field(init=False)
    metadata: SQLiteMetadataStore = field(init=False)

    @asynccontextmanager
    async def server(self, *, dies: bool = False) -> AsyncIterator[None]:
        """Start, and in the end stop gracefully, or without syncing anything."""
        self.data = BootStore(self.root / "data", self.boot_id, name=self.template)
        self.metadata = SQLiteMetadataStore(self.root / DATABASE)

        def new_id(_: Upload) -> str:
            return self._key

        self.engine = Engine(
            self.data,
            self.metadata,
            settings=Settings(
                durability=self.durability,
                checkpoint_bytes=STEP,
                checkpoint_seconds=1e9,
                copy_step=STEP,
                new_id=new_id,
                sweep_every=1e9,
            ),
            sinks=as_sinks([self._told]),
            hooks=Hooks(before_complete=self._asked if self.decide else None),
            clock=self.clock,
        )
        # As good as drawn: nobody else has it.
        drawn = random_id if self.names else new_id
        with mock.patch.object(create, "random_id", drawn):
            async with self.engine:
                yield
                await self.settle()
                if dies:
                    self.engine._core.unsynced.clear()
        if not dies:
            self.tracer.note("stopped")

    async def _told(self, delivery: Delivery) -> None:
        self.tracer.note(f"event {delivery.event.type}", delivery.event.upload.id)

    async def _asked(self, upload: Upload, _: HookBytes, __: UploadRequest | None) -> None:
        self.tracer.note("asked", upload.id, upload.offset)
        await self.settle()
        assert self.decide is not None
        self.decide(upload.id)

    async def settle(self) -> None:
        """Wait until what goes on behind the requests is done, so that traces are alike."""
        with anyio.fail_after(PATIENCE):
            while True:
                for _ in range(8):
                    await anyio.sleep(0)
                if not self.data.syncing and not self.data.queued():
                    return
                await anyio.sleep(0.001)

    def wait(self, seconds: int) -> None:
        """Let time pass."""
        self.clock.ahead += seconds
        self.tracer.note("waited", number=seconds)

    # ---------------------------------------------------------------------------------- requests

    async def create(
        self,
        key: str,
        size: int,
        *,
        kind: Kind = Kind.REGULAR,
        deferred: bool = False,
        sends: int | None = None,
        metadata: str = "",
    ) -> None:
        """Make an upload of random bytes, whose first ones may come along."""
        data = random.Random(key).randbytes(size)
        self.contents[key] = Content(key, data, kind)
        body = Bytes(self, key, data[: sends or 0])
        await self._create(
            Create(
                kind=kind,
                length=None if deferred else size,
                deferred=deferred,
                concat="partial" if kind is Kind.PARTIAL else "",
                metadata=metadata,
                payload=None if sends is None else Payload(length=sends),
            ),
            body,
        )

    async def join(self, key: str, parts: Sequence[str], *, doomed: bool = False) -> None:
        """Make a final of partials."""
        data = b"".join(self.contents[part].data for part in parts)
        self.contents[key] = Content(key, data, Kind.FINAL, tuple(parts), doomed)
        await self._create(
            Create(
                kind=Kind.FINAL,
                concat="final;" + " ".join(parts),
                parts=tuple(UploadId(part) for part in parts),
            ),
            Bytes(self, key, b""),
        )

    async def _create(self, command: Create, body: Bytes) -> None:
        self._key = body.key
        result: Created = await self.engine.handle(command, body)  # type: ignore[assignment]
        self.tracer.note("created", body.key)
        self._shown(result.upload)

    async def append(
        self,
        key: str,
        offset: int,
        stop: int | None = None,
        *,
        ending: BodyEnd | type[BaseException] = BodyEnd.WHOLE,
        checked: bool = False,
        garbled: bool = False,
        length: int | None = None,
        announced: int | None = None,
    ) -> None:
        """Send bytes [offset, stop); with `garbled`, bytes that do not have their checksum."""
        data = self.contents[key].data[offset:stop]
        checksum = Checksum("sha1", hashlib.sha1(data).digest()) if checked else None
        if garbled:
            data = bytes(byte ^ 0x5A for byte in data)
        body = Bytes(self, key, data, offset, not garbled, ending)
        payload = Payload(length=announced or len(data), checksum=checksum)
        command = Append(id=UploadId(key), offset=offset, length=length, payload=payload)
        result: Appended = await self.engine.handle(command, body)  # type: ignore[assignment]
        self._shown(result.upload)

    async def inspect(self, key: str) -> Upload:
        """Ask how far an upload is."""
        result: Inspected = await self.engine.handle(  # type: ignore[assignment]
            Inspect(id=UploadId(key)), Bytes(self, key, b"")
        )
        self._shown(result.upload)
        return result.upload

    async def terminate(self, key: str) -> None:
        """End an upload."""
        self.tracer.note("to end", key)
        await self.engine.handle(Terminate(id=UploadId(key)), Bytes(self, key, b""))
        self.tracer.note("gone", key)

    async def until_complete(self, key: str) -> None:
        """Ask until a final is whole."""
        with anyio.fail_after(PATIENCE):
            while not (await self.inspect(key)).complete:
                await anyio.sleep(0.001)

    def _shown(self, upload: Upload) -> None:
        if upload.complete:
            self.tracer.note("complete", upload.id, upload.offset)
        elif upload.kind is not Kind.FINAL:
            self.tracer.note("offset", upload.id, upload.offset)
