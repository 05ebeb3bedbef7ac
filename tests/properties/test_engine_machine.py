"""The whole engine against a small model: every answer and every byte, after every step.

TIDEGATE_MACHINE_EXAMPLES=100 runs a hundred times as many examples as CI does.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import logging
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import anyio
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from msgspec.structs import replace
from tests.support import memory, postgres
from tests.support.bodies import NOTHING, Pause, ScriptedBody
from tests.support.faulty import FaultyBucket, FaultyMetadata, FaultyStore
from tests.support.moto_here import MotoHere, moto_here

from tidegate.engine.core import Settings
from tidegate.engine.engine import Engine
from tidegate.events.callable import as_sinks
from tidegate.metadata.memory import MemoryMetadataStore
from tidegate.metadata.postgres.store import PostgresMetadataStore
from tidegate.metadata.redis.store import RedisMetadataStore
from tidegate.metadata.sqlite.store import SQLiteMetadataStore
from tidegate.ports import BodyEnd, DataStore, Delivery, Hold, MetadataStore
from tidegate.protocol import decide
from tidegate.protocol.commands import (
    Append,
    Checksum,
    Create,
    Download,
    Inspect,
    Payload,
    Terminate,
)
from tidegate.protocol.errors import Code, Refusal
from tidegate.protocol.model import EventType, Kind, State, Upload, UploadId
from tidegate.protocol.results import Appended, Created, Inspected, Readable, Result, Terminated
from tidegate.stores.local import LocalStore
from tidegate.stores.memory import MemoryStore
from tidegate.stores.s3.client import Client
from tidegate.testing import FakeClock

T = TypeVar("T")

EXPIRE_AFTER = 100.0
TOMBSTONE_AGE = 250.0
CHECKPOINT = 8
MAX_UPLOADS = 9
PART = 6
LEAST_PART = 4
PATIENCE = 20.0
"""Seconds for what has to come: far more than it takes, on a busy machine."""

chunks = st.binary(min_size=1, max_size=12)
lengths = st.integers(0, 24)
pick = st.integers(0, MAX_UPLOADS)


class Model:
    """What an upload must be."""

    def __init__(self, record: Upload) -> None:
        self.record = record
        """As it was last acknowledged; `offset` bytes of `data` count."""
        self.data = b""
        self.left: bytes | None = None
        """What a crash left beside the record, and counts once somebody looks."""
        self.abandoned = False
        """Its writer died; whether it left bytes is not known before somebody looks."""
        self.powerless: str | None = None
        """The boot after a loss of power: only what was synced before is sure to be there."""
        self.most = b""
        """And no more than this."""
        self.synced = 0
        """At least so much is."""
        self.to_sync = False
        """The engine at work syncs it when it stops."""
        self.events = [EventType.CREATED]
        self.forgotten = False

    def __repr__(self) -> str:
        return f"<{self.record.id} {self.record.kind} {self.record.state} {self.data!r}>"


class Flight:
    """A request whose body is on its way."""

    def __init__(self, model: Model, command: Create | Append, body: ScriptedBody) -> None:
        self.model = model
        self.command = command
        self.body = body
        self.base = model.data
        self.written = b""
        self.checkpoint_at = len(model.data) + CHECKPOINT
        self.length = model.record.length
        if self.length is None:
            self.length = command.length
        self.task: asyncio.Task[Result]

    @property
    def payload(self) -> Payload:
        assert self.command.payload is not None
        return self.command.payload

    @property
    def checked(self) -> bool:
        return self.payload.checksum is not None

    @property
    def creates(self) -> bool:
        return isinstance(self.command, Create)


def code_of(decision: Callable[[Any], Any], case: decide.Case[Any]) -> Code | None:
    try:
        decision(case)
    except Refusal as refusal:
        return refusal.code
    return None


class EngineMachine(RuleBasedStateMachine):
    """Drives an engine; subclasses say on which stores."""

    boot_ids = itertools.count(1)
    forgets_boots = False
    """The records don't say under which boot a writer wrote that never committed."""
    keeps_pieces = False
    """The bytes are kept far away, in pieces: those count that are stored and were committed."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.clock = FakeClock()
        self.uploads: list[Model] = []
        self.flights: dict[UploadId, Flight] = {}
        self.ids = itertools.count(1)
        self.told: dict[int, Delivery] = {}
        self.boot_id = f"boot-{next(self.boot_ids)}"
        self.next_id = ""

    # ------------------------------------------------------------------- the engine at work

    def data_store(self) -> DataStore:
        raise NotImplementedError

    def metadata_store(self) -> MetadataStore:
        raise NotImplementedError

    def around(self, data: DataStore) -> FaultyStore:
        """The store as the engine sees it."""
        return FaultyStore(data, boot_id=self.boot_id)

    def raw(self, upload: Upload) -> bytes:
        """What is stored of an upload, complete or not."""
        raise NotImplementedError

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        async def within() -> T:
            try:
                async with asyncio.timeout(PATIENCE):
                    return await work
            except TimeoutError:
                for task in asyncio.all_tasks():
                    task.print_stack()
                raise

        return self.runner.run(within())

    async def until(self, holds: Callable[[], Awaitable[bool]]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not await holds():
                await asyncio.sleep(0.001)

    @initialize(
        kinds=st.lists(st.sampled_from([Kind.REGULAR, Kind.PARTIAL]), min_size=2, max_size=4),
        length=st.none() | st.integers(4, 24),
    )
    def begin(self, kinds: list[Kind], length: int | None) -> None:
        self.run(self.start())
        for kind in kinds:
            self.run(self.do_create(kind, length, None))

    async def start(self) -> None:
        self.data = self.around(self.data_store())
        self.metadata = FaultyMetadata(self.metadata_store())

        async def sink(delivery: Delivery) -> None:
            self.told[delivery.sequence] = delivery

        self.engine = Engine(
            self.data,
            self.metadata,
            settings=Settings(
                checkpoint_bytes=CHECKPOINT,
                checkpoint_seconds=1e9,
                copy_step=5,
                tombstone_age=TOMBSTONE_AGE,
                sweep_every=1e6,
                new_id=lambda _: self.next_id,
            ),
            expire_after=EXPIRE_AFTER,
            clock=self.clock,
            sinks=as_sinks([sink]),
        )
        self.stop = asyncio.Event()
        started = asyncio.Event()

        async def serve() -> None:
            async with self.engine:
                started.set()
                await self.stop.wait()

        self.serving = asyncio.create_task(serve())
        await self.until_or_failed(started)
        # What every start does: sweep, and sync what the last engine could not.
        await self.until(self.has_swept)
        self.model_sweep()
        await self.until(self.is_swept)
        await self.until(self.is_synced)
        for model in self.uploads:
            if not model.forgotten and (model.abandoned or self.unfinished(model)):
                loaded = await self.metadata.inner.load(model.record.id)
                assert loaded is not None
                recovered = model.abandoned and loaded.hold is Hold.FREE
                if recovered or loaded.upload.complete:
                    await self.touch(model)

    async def until_or_failed(self, started: asyncio.Event) -> None:
        waiting = asyncio.create_task(started.wait())
        await asyncio.wait({waiting, self.serving}, return_when=asyncio.FIRST_COMPLETED)
        if self.serving.done():
            waiting.cancel()
            await self.serving
        await waiting

    async def has_swept(self) -> bool:
        return "end_turn" in self.metadata.faults.calls

    async def is_synced(self) -> bool:
        return all(
            [
                upload.offset == upload.synced_offset
                or upload.kind is Kind.FINAL
                or upload.boot_id not in {"", self.boot_id}
                async for upload in self.metadata.inner.uploads(state=State.RECEIVING)
            ]
        )

    def teardown(self) -> None:
        try:
            if hasattr(self, "serving"):
                self.run(self.finish())
        finally:
            self.runner.close()
            self.discard()

    async def finish(self) -> None:
        for flight in list(self.flights.values()):
            await self.cancel(flight)
        for model in self.uploads:
            await self.look(model)
        await self.settle()
        await self.until(self.is_all_told)
        await self.end()

    async def is_all_told(self) -> bool:
        told = [self.told[sequence].event for sequence in sorted(self.told)]
        if len(told) < sum(len(model.events) for model in self.uploads):
            # What an engine that died had claimed is told again.
            self.clock.advance(1)
            self.engine._outbox.wake()
            return False
        for model in self.uploads:
            events = [event.type for event in told if event.upload.id == model.record.id]
            assert events == model.events, (model, events)
        return True

    async def end(self) -> None:
        self.stop.set()
        await self.serving

    def discard(self) -> None:
        """Clean up."""

    # ------------------------------------------------------------------------- the model

    def create_model(self, command: Create) -> Model:
        now = self.clock.now()
        model = Model(
            Upload(
                id=UploadId(self.next_id),
                kind=command.kind,
                length=command.length,
                parts=command.parts,
                created_at=now,
                active_at=now,
                expires_at=now + EXPIRE_AFTER,
            )
        )
        self.uploads.append(model)
        return model

    def find(self, upload_id: UploadId) -> Model:
        return next(m for m in self.uploads if m.record.id == upload_id)

    def pinned(self, model: Model) -> bool:
        return any(
            other.record.kind is Kind.FINAL
            and other.record.state is State.RECEIVING
            and not other.forgotten
            and model.record.id in other.record.parts
            for other in self.uploads
        )

    def parts_active_until(self, model: Model) -> float:
        parts = [self.find(part).record for part in model.record.parts]
        return max(
            (p.active_at + EXPIRE_AFTER for p in parts if p.state is State.RECEIVING), default=0.0
        )

    def seen(self, model: Model) -> Upload | None:
        """The record as the rules of expiry see it."""
        if model.forgotten:
            return None
        record = model.record
        if record.expires_at is None or record.expires_at > self.clock.now():
            return record
        later = self.parts_active_until(model)
        if later > self.clock.now():
            return replace(record, expires_at=later)
        kept = record.id in self.flights or (record.kind is Kind.PARTIAL and self.pinned(model))
        return replace(record, expires_at=None) if kept else record

    def case(self, model: Model, command: Any, *, leased: bool = True) -> decide.Case[Any]:
        return decide.Case(
            command=command,
            upload=self.seen(model),
            offer=self.engine.offer,
            now=self.clock.now(),
            leased=leased,
        )

    def keep(self, model: Model, data: bytes, length: int | None) -> None:
        """Bytes were acknowledged."""
        now = self.clock.now()
        model.data = data
        model.to_sync = True
        model.record = replace(
            model.record,
            offset=len(data),
            length=length,
            active_at=now,
            expires_at=now + EXPIRE_AFTER,
        )
        self.complete_if_whole(model)

    def complete_if_whole(self, model: Model) -> None:
        record = model.record
        if record.whole and record.state is State.RECEIVING:
            model.record = replace(
                record,
                state=State.COMPLETE,
                ended_at=self.clock.now(),
                expires_at=record.expires_at if record.kind is Kind.PARTIAL else None,
            )
            model.synced = len(model.data)
            model.events.append(EventType.COMPLETED)

    def end_model(self, model: Model, state: State) -> None:
        model.record = replace(
            model.record, state=state, ended_at=self.clock.now(), expires_at=None
        )
        model.left = model.powerless = None
        if state is not State.FAILED:
            model.events.append(
                EventType.TERMINATED if state is State.TERMINATED else EventType.EXPIRED
            )

    def undo(self, model: Model) -> None:
        """A creation was refused."""
        model.forgotten = True
        model.data = b""
        model.events.append(EventType.TERMINATED)

    async def checkpoint(self, flight: Flight) -> None:
        data = flight.base + flight.written
        due = not flight.checked and len(data) >= flight.checkpoint_at
        if due and len(data) != flight.length:
            offset = await self.stored_of(flight) if self.keeps_pieces else len(data)
            self.keep(flight.model, data[:offset], flight.length)
            flight.checkpoint_at = len(data) + CHECKPOINT

    async def stored_of(self, flight: Flight) -> int:
        """How much of a body counts that is on its way in pieces: that depends on the service."""
        loaded = await self.metadata.inner.load(flight.model.record.id)
        assert loaded is not None
        offset = loaded.upload.offset
        assert len(flight.model.data) <= offset <= len(flight.base + flight.written), flight.model
        return offset

    def land(self, flight: Flight, end: BodyEnd | None) -> Code | None:
        """The request's body ended; None: it was cancelled. What the answer must be."""
        del self.flights[flight.model.record.id]
        model, payload = flight.model, flight.payload
        if payload.length is not None and end is not None:
            whole = len(flight.written) == payload.length
            end = BodyEnd.WHOLE if whole else BodyEnd.DROPPED if end is BodyEnd.WHOLE else end
        if end is BodyEnd.WHOLE:
            if payload.checksum is not None:
                digest = hashlib.sha1(flight.written).digest()
                if payload.checksum.digest != digest:
                    if flight.creates:
                        self.undo(model)
                    return Code.CHECKSUM_MISMATCH
            self.keep(model, flight.base + flight.written, flight.length)
            return None
        if flight.written and not flight.checked:
            self.keep(model, flight.base + flight.written, flight.length)
        if end is BodyEnd.STOPPED and not model.record.complete:
            assert not flight.creates
            return Code.LOCKED
        if end is BodyEnd.STALLED and not model.record.complete:
            if flight.creates:
                self.undo(model)
            return Code.STALLED
        return None

    async def touch(self, model: Model) -> None:
        """Somebody holds the upload: what a crash left counts now."""
        assert model.record.id not in self.flights
        model.abandoned = False
        if model.record.state is not State.RECEIVING or model.record.kind is Kind.FINAL:
            return
        if model.left is not None:
            model.data = model.left
            if model.record.length is not None:
                model.data = model.data[: model.record.length]
            model.record = replace(model.record, offset=len(model.data))
            model.left = None
            model.to_sync = True
        self.complete_if_whole(model)

    async def adopt(self, model: Model) -> None:
        """Find out how far a loss of power took an upload back."""
        if model.powerless is not None and model.record.state is State.RECEIVING:
            loaded = await self.metadata.inner.load(model.record.id)
            assert loaded is not None
            offset = loaded.upload.offset
            assert model.synced <= offset <= len(model.most), (model, model.synced, offset)
            model.data = model.most[:offset]
            model.record = replace(model.record, offset=offset)
        model.powerless = None

    def model_sweep(self) -> None:
        now = self.clock.now()
        seen: set[UploadId] = set()
        while True:
            due = [
                m
                for m in self.uploads
                if not m.forgotten
                and m.record.id not in seen | self.flights.keys()
                and m.record.expires_at is not None
                and m.record.expires_at <= now
                and not self.pinned(m)
            ]
            if not due:
                break
            for model in due:
                seen.add(model.record.id)
                later = self.parts_active_until(model)
                if later > now:
                    model.record = replace(model.record, expires_at=later)
                else:
                    self.end_model(model, State.EXPIRED)
        for model in self.uploads:
            ended = model.record.ended_at
            if model.record.gone and ended is not None and ended < now - TOMBSTONE_AGE:
                model.forgotten = model.forgotten or not self.pinned(model)

    def model_finals(self) -> None:
        """Finals whose parts are whole are assembled; those that lack one fail."""
        for model in self.uploads:
            if model.record.kind is not Kind.FINAL or model.record.state is not State.RECEIVING:
                continue
            parts = [self.find(part) for part in model.record.parts]
            if any(p.forgotten or (p.record.gone and not p.record.whole) for p in parts):
                self.end_model(model, State.FAILED)
                continue
            known = [p.record.length for p in parts]
            length = None if None in known else sum(n for n in known if n is not None)
            model.record = replace(model.record, length=length)
            if all(p.record.whole and p.record.state is not State.RECEIVING for p in parts):
                model.data = b"".join(p.data for p in parts)
                model.record = replace(model.record, offset=len(model.data))
                self.complete_if_whole(model)

    async def settle(self) -> None:
        """Let what goes on behind the requests come to rest where the model is."""
        self.model_finals()
        for model in self.uploads:
            if model.record.kind is Kind.FINAL and not model.forgotten:

                async def is_there(m: Model = model) -> bool:
                    loaded = await self.metadata.inner.load(m.record.id)
                    assert loaded is not None
                    free = loaded.hold is Hold.FREE
                    return free and loaded.upload.state is m.record.state

                await self.until(is_there)

    # --------------------------------------------------------------------------- requests

    async def request(self, command: Any, body: ScriptedBody = NOTHING) -> Result | Code:
        try:
            return await self.engine.handle(command, body)
        except Refusal as refusal:
            return refusal.code

    @staticmethod
    async def outcome(flight: Flight) -> Result | Code:
        try:
            return await flight.task
        except Refusal as refusal:
            return refusal.code

    async def landed(self, flight: Flight, expected: Code | None) -> None:
        """Compare a flight's answer with what it must be."""
        result = await self.outcome(flight)
        if expected is not None:
            assert result is expected, (result, expected)
            return
        assert isinstance(result, Created if flight.creates else Appended)
        self.compare(result.upload, flight.model)

    def compare(self, upload: Upload, model: Model) -> None:
        record = model.record
        assert upload.offset == record.offset == len(model.data), (upload, model)
        for name in ("id", "kind", "state", "length", "parts"):
            assert getattr(upload, name) == getattr(record, name), (name, upload, record)
        seen = self.seen(model)
        assert seen is not None
        assert upload.expires_at in {seen.expires_at, record.expires_at}, (upload, record)
        assert not upload.unverified

    async def launch(self, flight: Flight) -> None:
        waiting = flight.body._steps[0]
        assert isinstance(waiting, Pause)
        flight.task = asyncio.create_task(self.engine.handle(flight.command, flight.body))
        self.flights[flight.model.record.id] = flight
        await self.reached(flight, waiting)

    async def reached(self, flight: Flight, pause: Pause) -> bool:
        """Whether the body came to its next pause; False: it was refused before."""
        waiting = asyncio.create_task(pause.reached.wait())
        await asyncio.wait({waiting, flight.task}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        return not flight.task.done()

    async def interrupt(self, model: Model) -> None:
        """Another request, that is now at work, made the writer let go."""
        flight = self.flights.get(model.record.id)
        if flight is not None:
            await self.landed(flight, self.land(flight, BodyEnd.STOPPED))

    async def feed(self, flight: Flight, chunk: bytes) -> None:
        pause = flight.body.feed(chunk)
        room = None if flight.length is None else flight.length - len(flight.base)
        if room is not None and len(flight.written) + len(chunk) > room:
            # Longer than it may be: what was acknowledged stays, the rest goes.
            del self.flights[flight.model.record.id]
            await self.landed(flight, Code.TOO_LARGE)
            if flight.creates:
                self.undo(flight.model)
            return
        assert await self.reached(flight, pause), flight.task
        flight.written += chunk
        await self.checkpoint(flight)

    async def conclude(self, flight: Flight, end: BodyEnd) -> None:
        if flight.model.record.id in self.flights:
            flight.body.finish(end)
            await self.landed(flight, self.land(flight, end))

    async def cancel(self, flight: Flight) -> None:
        flight.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await flight.task
        self.land(flight, None)

    def payload(
        self, sent: list[bytes], *, chunked: bool, checksum: bool | None, over: int
    ) -> Payload:
        data = b"".join(sent)
        digest = hashlib.sha1(data).digest() if checksum else bytes(20)
        return Payload(
            length=None if chunked else len(data) + over,
            checksum=None if checksum is None else Checksum("sha1", digest),
        )

    async def send(self, flight: Flight, sent: list[bytes], end: BodyEnd | None) -> None:
        """Send a body; with no `end` leave it in the middle."""
        await self.launch(flight)
        for chunk in sent:
            if flight.model.record.id in self.flights:
                await self.feed(flight, chunk)
        if end is not None:
            await self.conclude(flight, end)

    def chosen(self, number: int) -> Model | None:
        return self.uploads[number % len(self.uploads)] if self.uploads else None

    # ------------------------------------------------------------------------------ rules

    bodies = st.fixed_dictionaries(
        {
            "sent": st.lists(chunks, min_size=1, max_size=3) | st.just([]),
            "chunked": st.booleans(),
            "checksum": st.sampled_from([None, None, True, False]),
            "over": st.sampled_from([0, 0, 0, 3]),
            "end": st.sampled_from(
                [BodyEnd.WHOLE, BodyEnd.WHOLE, BodyEnd.DROPPED, BodyEnd.STALLED, None, None]
            ),
        }
    )

    @precondition(lambda self: len(self.uploads) < MAX_UPLOADS)
    @rule(
        kind=st.sampled_from([Kind.REGULAR, Kind.PARTIAL, Kind.PARTIAL]),
        length=st.none() | lengths,
        body=st.none() | bodies,
    )
    def create_with(self, kind: Kind, length: int | None, body: dict[str, Any] | None) -> None:
        self.run(self.do_create(kind, length, body))

    async def do_create(self, kind: Kind, length: int | None, body: dict[str, Any] | None) -> None:
        body = dict(body) if body else None
        end = body.pop("end") if body else None
        payload = self.payload(**body) if body else None
        command = Create(kind=kind, length=length, deferred=length is None, payload=payload)
        self.next_id = f"upload-{next(self.ids):03}"
        refused = code_of(
            decide.create,
            decide.Case(command=command, offer=self.engine.offer, now=self.clock.now()),
        )
        if refused is not None:
            assert await self.request(command) is refused
            return
        model = self.create_model(command)
        if payload is None:
            result = await self.request(command)
            self.complete_if_whole(model)
            assert isinstance(result, Created)
            self.compare(result.upload, model)
        elif payload.length == 0:
            flight = Flight(model, command, ScriptedBody())
            flight.task = asyncio.create_task(self.engine.handle(command, flight.body))
            self.flights[model.record.id] = flight
            await self.landed(flight, self.land(flight, BodyEnd.WHOLE))
        else:
            assert body is not None
            await self.send(Flight(model, command, ScriptedBody(Pause())), body["sent"], end)
        await self.settle()

    @precondition(lambda self: len(self.uploads) < MAX_UPLOADS)
    @rule(numbers=st.lists(pick, min_size=1, max_size=3))
    def concatenate(self, numbers: list[int]) -> None:
        self.run(self.do_concatenate(numbers))

    async def do_concatenate(self, numbers: list[int]) -> None:
        partials = [m for m in self.uploads if m.record.kind is Kind.PARTIAL] or self.uploads
        if not partials:
            return
        parts = tuple(partials[number % len(partials)].record.id for number in numbers)
        command = Create(kind=Kind.FINAL, parts=parts)
        self.next_id = f"upload-{next(self.ids):03}"
        known = {part: self.seen(self.find(part)) for part in parts}
        refused = code_of(
            decide.create,
            decide.Case(
                command=command,
                parts={part: record for part, record in known.items() if record is not None},
                offer=self.engine.offer,
                now=self.clock.now(),
            ),
        )
        result = await self.request(command)
        if refused is not None:
            assert result is refused
            return
        model = self.create_model(command)
        self.model_finals()
        assert isinstance(result, Created)
        self.compare(result.upload, model)
        await self.settle()

    @rule(
        number=pick,
        wrong=st.sampled_from([0, 0, 0, 0, 1, -1]),
        grow=st.none() | st.integers(-2, 12),
        body=bodies,
    )
    def append(self, number: int, wrong: int, grow: int | None, body: dict[str, Any]) -> None:
        self.run(self.do_append(number, wrong, grow, dict(body)))

    async def do_append(
        self, number: int, wrong: int, grow: int | None, body: dict[str, Any]
    ) -> None:
        model = self.chosen(number)
        if model is None:
            return
        rival = self.flights.get(model.record.id)
        if rival is not None and rival.creates:
            return
        if model.powerless is not None:
            await self.look(model)
        # Where a client would go on: what it sent before came, mostly.
        data = model.left if model.left is not None else model.data
        if rival is not None and not rival.checked:
            data = rival.base + rival.written
        end = body.pop("end")
        payload = self.payload(**body)
        sent: list[bytes] = body["sent"]
        length = None if grow is None else max(0, len(data) + sum(map(len, sent)) + grow)
        command = Append(
            id=model.record.id,
            offset=max(0, len(data) + wrong),
            length=length,
            payload=payload,
        )
        free = rival is None and not model.abandoned and not self.unfinished(model)
        refused = code_of(decide.append, self.case(model, command, leased=free))
        if refused is not None:
            assert await self.request(command) is refused
            return
        # From here on the writer at work lets go, whatever becomes of us.
        kept = self.seen(model)
        assert kept is not None
        if rival is not None:
            expected = self.land(rival, BodyEnd.STOPPED)
        await self.touch(model)
        flight = Flight(model, command, ScriptedBody(Pause()))
        case = self.case(model, command)
        if kept.expires_at is None and case.upload is not None:
            case = replace(case, upload=replace(case.upload, expires_at=None))
        refused = code_of(decide.append, case)
        before = model.record
        if refused is not None:
            assert await self.request(command, flight.body) is refused
            assert not flight.body.read
        elif before.complete:
            await self.append_to_complete(flight, sent, end)
        elif payload.length == 0:
            flight.task = asyncio.create_task(self.engine.handle(command, ScriptedBody()))
            self.flights[model.record.id] = flight
            await self.landed(flight, self.land(flight, BodyEnd.WHOLE))
        else:
            await self.send(flight, sent, end)
        if rival is not None:
            await self.rival_landed(rival, expected)
        await self.settle()

    async def append_to_complete(
        self, flight: Flight, sent: list[bytes], end: BodyEnd | None
    ) -> None:
        """There is nothing to add, and nothing is."""
        body = ScriptedBody(*sent, end=end or BodyEnd.WHOLE)
        result = await self.request(flight.command, body)
        checksum = flight.payload.checksum
        if sent:
            assert result is Code.TOO_LARGE
        elif body._end is BodyEnd.WHOLE or flight.payload.length == 0:
            if checksum is not None and checksum.digest != hashlib.sha1().digest():
                assert result is Code.CHECKSUM_MISMATCH
            else:
                assert isinstance(result, Appended)
                if flight.model.record.kind is Kind.PARTIAL:
                    now = self.clock.now()
                    flight.model.record = replace(
                        flight.model.record, active_at=now, expires_at=now + EXPIRE_AFTER
                    )
                self.compare(result.upload, flight.model)

    async def rival_landed(self, rival: Flight, expected: Code | None) -> None:
        """Compare the answer of a writer that let go, whose upload has changed since."""
        result = await self.outcome(rival)
        assert result is expected if expected is not None else isinstance(result, Appended)

    def unfinished(self, model: Model) -> bool:
        return model.record.whole and model.record.state is State.RECEIVING

    @rule(number=pick, data=st.binary(min_size=24, max_size=24), checksum=st.booleans())
    def complete(self, number: int, data: bytes, checksum: bool) -> None:
        """Send all that is missing."""
        model = self.chosen(number)
        if model is not None:
            known = model.record.length
            rest = data[:4] if known is None else data[: max(0, known - len(model.data))]
            body: dict[str, Any] = {
                "sent": [rest] if rest else [],
                "chunked": False,
                "checksum": True if checksum else None,
                "over": 0,
                "end": BodyEnd.WHOLE,
            }
            self.run(self.do_append(number, 0, 0 if known is None else None, body))

    @rule(
        number=pick,
        sent=st.lists(chunks, min_size=1, max_size=2),
        checksum=st.sampled_from([None, True]),
        then=st.sampled_from(["crash", "power", "restart", "head", "delete", "append", "sweep"]),
    )
    def amid(self, number: int, sent: list[bytes], checksum: bool | None, then: str) -> None:
        """Something happens while a body is on its way."""
        model = self.chosen(number)
        if model is None:
            return
        body: dict[str, Any] = {
            "sent": sent,
            "chunked": True,
            "checksum": checksum,
            "over": 0,
            "end": None,
        }
        self.run(self.do_append(number, 0, None, dict(body)))
        match then:
            case "crash" | "power":
                self.run(self.do_crash(power=then == "power"))
            case "restart":
                self.restart()
            case "head":
                self.run(self.look(model))
            case "delete":
                self.run(self.do_delete(model))
            case "append":
                body["end"] = BodyEnd.WHOLE
                self.run(self.do_append(number, 0, None, body))
            case _:
                self.clock.advance(EXPIRE_AFTER)
                self.sweep()

    @precondition(lambda self: self.flights)
    @rule(number=pick, sent=st.lists(chunks, min_size=1, max_size=2))
    def send_more(self, number: int, sent: list[bytes]) -> None:
        flight = list(self.flights.values())[number % len(self.flights)]

        async def work() -> None:
            for chunk in sent:
                length = flight.payload.length
                announced = length is None or len(flight.written) + len(chunk) <= length
                if flight.model.record.id in self.flights and announced:
                    await self.feed(flight, chunk)
            # Too much takes a creation back, and a final that was to have this part fails.
            await self.settle()

        self.run(work())

    @precondition(lambda self: self.flights)
    @rule(
        number=pick,
        end=st.sampled_from([BodyEnd.WHOLE, BodyEnd.DROPPED, BodyEnd.STALLED, None]),
    )
    def end_body(self, number: int, end: BodyEnd | None) -> None:
        flight = list(self.flights.values())[number % len(self.flights)]

        async def work() -> None:
            if end is None:
                await self.cancel(flight)
            else:
                await self.conclude(flight, end)
            await self.settle()

        self.run(work())

    @rule(number=pick)
    def head(self, number: int) -> None:
        model = self.chosen(number)
        if model is not None:
            self.run(self.look(model))

    async def look(self, model: Model) -> None:
        flight = self.flights.get(model.record.id)
        if flight is not None and flight.creates:
            return
        command = Inspect(id=model.record.id)
        refused = code_of(decide.inspect, self.case(model, command))
        result = await self.request(command)
        if refused is not None:
            assert result is refused, (result, refused)
            return
        assert isinstance(result, Inspected), result
        if flight is None:
            await self.adopt(model)
            await self.touch(model)
        elif flight.checked:
            # Not interrupted: it shows what is acknowledged.
            assert not flight.task.done()
            assert result.upload.offset == len(model.data)
            return
        else:
            await self.interrupt(model)
        await self.settle()
        if model.record.kind is not Kind.FINAL or result.upload.complete:
            self.compare(result.upload, model)

    @rule(number=pick)
    def delete(self, number: int) -> None:
        model = self.chosen(number)
        if model is not None:
            self.run(self.do_delete(model))

    async def do_delete(self, model: Model) -> None:
        flight = self.flights.get(model.record.id)
        if flight is not None and flight.creates:
            return
        command = Terminate(id=model.record.id)
        refused = code_of(decide.terminate, self.case(model, command))
        result = await self.request(command)
        if refused is not None:
            assert result is refused
            return
        assert isinstance(result, Terminated), result
        if flight is not None:
            await self.rival_landed(flight, self.land(flight, BodyEnd.STOPPED))
        if model.powerless is not None:
            model.powerless = None
        self.end_model(model, State.TERMINATED)
        await self.settle()

    @rule(number=pick)
    def download(self, number: int) -> None:
        model = self.chosen(number)
        if model is not None:
            self.run(self.do_download(model))

    async def do_download(self, model: Model) -> None:
        command = Download(id=model.record.id)
        refused = code_of(decide.download, self.case(model, command))
        result = await self.request(command)
        if refused is not None:
            assert result is refused
            return
        assert isinstance(result, Readable)
        self.compare(result.upload, model)
        read = [c async for c in self.engine.read(result.upload, 0, len(model.data))]
        assert b"".join(read) == model.data

    @rule(seconds=st.integers(1, 130))
    def wait(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @rule()
    def sweep(self) -> None:
        async def work() -> None:
            self.model_sweep()
            await self.until(self.is_swept)
            await self.settle()

        self.run(work())

    async def is_swept(self) -> bool:
        """Finals that are looked at behind the requests are left to the next sweep."""
        swept = await self.engine.sweep()
        assert swept is not None
        assert not swept.failed
        assert not swept.orphans
        for model in self.uploads:
            loaded = await self.metadata.inner.load(model.record.id)
            if model.record.kind is Kind.FINAL and not model.forgotten:
                assert loaded is not None
                if loaded.upload.gone != model.record.gone:
                    return False
        return True

    @rule()
    def restart(self) -> None:
        async def work() -> None:
            for flight in list(self.flights.values()):
                await self.cancel(flight)
            await self.settle()
            await self.end()
            for model in self.uploads:
                if model.to_sync and model.record.state is State.RECEIVING:
                    model.synced = len(model.data)
                model.to_sync = False
            await self.start()
            await self.settle()

        self.run(work())

    @rule(power=st.booleans())
    def crash(self, power: bool) -> None:
        self.run(self.do_crash(power=power))

    async def do_crash(self, *, power: bool) -> None:
        self.data.die()
        self.metadata.die()
        for flight in list(self.flights.values()):
            flight.task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Refusal):
                await flight.task
            del self.flights[flight.model.record.id]
            flight.model.abandoned = True
            if not flight.checked and flight.written and not self.keeps_pieces:
                flight.model.left = flight.base + flight.written
        await self.end()
        # That of the machines where pieces are kept is theirs to survive.
        power = power and not self.keeps_pieces
        if power:
            self.boot_id = f"boot-{next(self.boot_ids)}"
        for model in self.uploads:
            model.to_sync = False
            if power and model.record.state is State.RECEIVING:
                if not (model.powerless and self.forgets_boots):
                    model.most = model.left if model.left and self.forgets_boots else model.data
                model.powerless = self.boot_id
                model.left = None
        await self.start()
        await self.settle()

    # -------------------------------------------------------------------------- invariants

    @invariant()
    def every_byte(self) -> None:
        """What the records say, and what is stored, is what the model has."""
        if hasattr(self, "serving"):
            self.run(self.check_all())

    async def check_all(self) -> None:
        assert not self.serving.done()
        for model in self.uploads:
            loaded = await self.metadata.inner.load(model.record.id)
            if model.forgotten:
                assert loaded is None, model
                continue
            assert loaded is not None, model
            upload = loaded.upload
            if loaded.hold is Hold.ABANDONED or model.powerless or model.left is not None:
                # Nothing is shown before it is recovered.
                continue
            if self.unfinished(model):
                continue
            flying = model.record.id in self.flights
            if model.record.kind is not Kind.FINAL:  # these are looked at behind the requests

                async def is_held_or_not(m: Model = model, flying: bool = flying) -> bool:
                    # What a start does behind the requests may just be letting go.
                    found = await self.metadata.inner.load(m.record.id)
                    return found is not None and (found.hold is Hold.HELD) == flying

                await self.until(is_held_or_not)
            if model.record.gone:
                assert upload.state is model.record.state
                if not self.pinned(model):

                    async def is_deleted(upload: Upload = upload) -> bool:
                        # Of a part, by the final that needed it, once that is whole.
                        return await self.look_into_store(upload) == b""

                    await self.until(is_deleted)
                continue
            if not flying and model.record.kind is not Kind.FINAL:
                self.compare(upload, model)
            if upload.kind is Kind.FINAL and not upload.complete:
                continue
            assert upload.offset == len(model.data), (upload, model)
            stored = await self.look_into_store(upload)
            assert stored[: upload.offset] == model.data, (stored, model)
            if not flying:
                assert stored == model.data

    async def look_into_store(self, upload: Upload) -> bytes:
        return await anyio.to_thread.run_sync(self.raw, upload)


class OnMemory(EngineMachine):
    forgets_boots = True

    def __init__(self) -> None:
        super().__init__()
        self.bytes = MemoryStore()
        self.records = MemoryMetadataStore()

    def data_store(self) -> DataStore:
        return self.bytes

    def metadata_store(self) -> MetadataStore:
        return self.records

    def raw(self, upload: Upload) -> bytes:
        stored = self.bytes._uploads.get(upload.id)
        return bytes(stored.data) if stored else b""


class OnDisk(EngineMachine):
    def __init__(self) -> None:
        super().__init__()
        # In memory where there is such a place: what a disk takes to sync is not asked here.
        self.folder = Path(tempfile.mkdtemp(prefix="tidegate-", dir=memory.PLACE))

    def data_store(self) -> DataStore:
        return LocalStore(self.folder / "data")

    def metadata_store(self) -> MetadataStore:
        return SQLiteMetadataStore(self.folder / "records.db")

    def raw(self, upload: Upload) -> bytes:
        for place in upload.storage.values():
            with contextlib.suppress(FileNotFoundError):
                return (self.folder / "data" / str(place)).read_bytes()
        return b""

    def discard(self) -> None:
        shutil.rmtree(self.folder)


class OnRedis(OnDisk):
    url = ""
    """Of the server; every example has a prefix of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.prefix = self.folder.name

    def metadata_store(self) -> MetadataStore:
        return RedisMetadataStore(f"{self.url}?prefix={self.prefix}")


class OnPostgres(OnDisk):
    def __init__(self) -> None:
        super().__init__()
        self.url = postgres.server().url()

    def metadata_store(self) -> MetadataStore:
        return PostgresMetadataStore(self.url)


class KeptOpen(Client):
    """Made once for all the engines of an example: half of what a start takes."""

    async def open(self) -> None:
        if self._context is None:
            await super().open()

    async def close(self) -> None:
        """Not yet."""

    async def close_now(self) -> None:
        await super().close()


class InBucket(OnDisk):
    """The bytes in a bucket; the records as in what it is mixed with.

    A process that dies leaves requests to the service behind, which may be carried out or not.
    Storing a small upload at once is left out, as it is on disk: it is not there before its body is.
    """

    keeps_pieces = True
    server: MotoHere

    def __init__(self) -> None:
        super().__init__()
        self.server.empty()
        self.client: KeptOpen | None = None

    def data_store(self) -> DataStore:
        # A part for every few bytes; and too little memory for all uploads, which evict each other.
        store = self.server.store(
            part_size=PART, least_part=LEAST_PART, memory=4 * PART, concurrency=2
        )
        store.budget.tenure = 0.01
        self.client = self.client or KeptOpen(store.client.bucket, store.options)
        store.client = self.client
        return store

    async def finish(self) -> None:
        try:
            await super().finish()
        finally:
            assert self.client is not None
            await self.client.close_now()

    def around(self, data: DataStore) -> FaultyStore:
        return FaultyBucket(data)

    async def look_into_store(self, upload: Upload) -> bytes:
        server, key = self.server, str(upload.storage["key"])
        if upload.gone:
            return " ".join(server.left(key, f".tidegate/tails/{upload.id}/")).encode()
        if upload.complete:
            return server.object(key)
        told = [
            (segment.length, segment.storage)
            for segment in await self.metadata.inner.segments(upload.id)
            if segment.length
        ]
        pieces = [
            server.part(upload.storage["multipart"], piece["part"])
            if "part" in piece
            else server.object(piece["tail"])
            for _, piece in told
        ]
        assert [len(piece) for piece in pieces] == [length for length, _ in told], (told, pieces)
        return b"".join(pieces)


class InBucketOnRedis(InBucket, OnRedis):
    pass


class InBucketOnPostgres(InBucket, OnPostgres):
    pass


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """What is logged on purpose goes nowhere: pytest's handlers write to files, on the loop."""
    logger = logging.getLogger("tidegate")
    nowhere = logging.NullHandler()
    logger.addHandler(nowhere)
    logger.propagate = False
    yield
    logger.propagate = True
    logger.removeHandler(nowhere)


EXAMPLES = int(os.environ.get("TIDEGATE_MACHINE_EXAMPLES", "1"))


MACHINES: dict[str, tuple[type[EngineMachine], int]] = {
    "memory": (OnMemory, 400),
    "local+sqlite": (OnDisk, 100),
    "local+redis": (OnRedis, 50),
    "local+postgresql": (OnPostgres, 30),
    "s3+sqlite": (InBucket, 16),
    "s3+redis": (InBucketOnRedis, 8),
    "s3+postgresql": (InBucketOnPostgres, 8),
}
"""What there is, and how many examples of it are enough in CI."""


@pytest.fixture(scope="module")
def bucket(s3_credentials: None) -> Iterator[MotoHere]:
    with moto_here(least_part=LEAST_PART) as server:
        yield server


@pytest.fixture(scope="module", params=MACHINES)
def machine(request: pytest.FixtureRequest) -> tuple[type[EngineMachine], int]:
    """With the servers that it needs."""
    kind, examples = MACHINES[request.param]
    if issubclass(kind, OnRedis):
        OnRedis.url = request.getfixturevalue("valkey").url().partition("?")[0]
    if issubclass(kind, InBucket):
        InBucket.server = request.getfixturevalue("bucket")
    return kind, examples


@pytest.mark.timeout(240 * EXAMPLES)
@pytest.mark.usefixtures("events_at_once")
def test_the_engine_does_what_the_model_says(machine: tuple[type[EngineMachine], int]) -> None:
    kind, examples = machine
    run_state_machine_as_test(
        kind,
        settings=settings(
            max_examples=examples * EXAMPLES,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
