"""What the server makes of a state that a loss of power left, and whether that is true."""

from __future__ import annotations

import enum
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final
from unittest import mock

import anyio
from tests.faults.power_client import DATABASE, PATIENCE, BootStore, Moving
from tests.support.disk_states import (
    KEPT,
    LOST,
    Choice,
    Disk,
    State,
    at_random,
    extremes,
    fingerprint,
    folder_prefixes,
    singles,
    write_out,
)
from tests.support.disk_trace import Happening, Make, Note, Sync, Write
from tests.support.memory import folder_in_memory

from tidegate.engine import outbox
from tidegate.engine.core import Settings
from tidegate.engine.engine import Engine
from tidegate.events.callable import as_sinks
from tidegate.hooks import Bytes, Hooks, UploadRequest
from tidegate.metadata.sqlite import events as sqlite_events
from tidegate.metadata.sqlite import handed as sqlite_handed
from tidegate.metadata.sqlite.store import SQLiteMetadataStore
from tidegate.ports import BodyEnd, Delivery, Durability, Sink
from tidegate.protocol.commands import Append, Checksum, Inspect, Payload
from tidegate.protocol.errors import Code, Refusal
from tidegate.protocol.model import Kind, Upload, UploadId
from tidegate.protocol.model import State as UploadState

if TYPE_CHECKING:
    from tests.faults.power import Trace
    from tests.faults.power_client import Content

FRAME_HEAD: Final = 24
"""Bytes: what SQLite writes into its log before each page."""


# -------------------------------------------------------------------------- what became of it


@dataclass
class Found:
    """One upload after the loss of power."""

    status: str = "absent"
    """absent, gone, receiving, complete, or what went wrong."""
    offset: int = 0
    synced: int = 0
    """What the record said was synced, before anything looked at the bytes."""
    wrong: str = ""
    """What is wrong with the bytes below the offset."""
    finally_: str = ""
    """Why the upload could not be made whole, or was not right then."""


@dataclass
class Outcome:
    """All uploads after the loss of power, and what the server told of them."""

    uploads: dict[str, Found] = field(default_factory=dict)
    told: set[tuple[str, str]] = field(default_factory=set)
    """Events: types and uploads."""
    raised: str = ""


@dataclass
class _Rest:
    """A body: what is missing of an upload."""

    data: bytes

    async def copy_to(self, sink: Sink, stop: anyio.Event) -> BodyEnd:
        await sink.write([self.data])
        return BodyEnd.WHOLE

    def trailing_checksum(self) -> Checksum:
        raise NotImplementedError


async def _agree(upload: Upload, content: Bytes, _: UploadRequest | None) -> None:
    """A hook that is asked again: it sees all bytes."""
    read = [chunk async for chunk in content.read()]
    assert sum(map(len, read)) == upload.length


class Recovery:
    """Starts the server on a state, and has every upload's client go on."""

    def __init__(self, trace: Trace, folder: Path) -> None:
        self._trace = trace
        self._root = folder / "root"
        self._known: dict[tuple[bytes, float], Outcome] = {}

    @property
    def states(self) -> int:
        """How many different ones were tried."""
        return len(self._known)

    async def outcome(self, state: State, waited: float) -> Outcome:
        """What becomes of a state, so many seconds after the first: the same for the same."""
        key = fingerprint(state), waited
        if key not in self._known:
            self._root.mkdir()
            try:
                write_out(state, str(self._root))
                self._known[key] = await self._recover(waited)
            finally:
                shutil.rmtree(self._root)
        return self._known[key]

    async def _recover(self, waited: float) -> Outcome:
        outcome = Outcome()
        # SQLite's shared memory is not written back in any order, and may hold anything.
        database = self._root / DATABASE
        database.parent.mkdir(exist_ok=True)
        if database.with_name(f"{database.name}-wal").exists():
            database.with_name(f"{database.name}-shm").write_bytes(b"\xa5" * 32768)
        self._data = BootStore(self._root / "data", "another boot", name=self._trace.template)
        self._metadata = SQLiteMetadataStore(database)

        async def told(delivery: Delivery) -> None:
            outcome.told.add((delivery.event.type.value, delivery.event.upload.id))

        # Two days later nobody's claim to an event holds any more, and what belongs to nothing is
        # old enough to be swept.
        self._clock = Moving(2 * 86_400 + waited)
        self._engine = Engine(
            self._data,
            self._metadata,
            settings=Settings(durability=self._trace.durability, sweep_every=1e9),
            sinks=as_sinks([told]),
            hooks=Hooks(before_complete=_agree if self._trace.hooked else None),
            clock=self._clock,
        )
        # What the server does of itself must not change what a client sees first.
        looked = anyio.Event()
        tend = self._engine._tend

        async def tend_later() -> None:
            await looked.wait()
            await tend()

        try:
            # There is nobody whose events it pays to gather.
            with (
                mock.patch.object(outbox, "GATHER", 0.0),
                mock.patch.object(self._engine, "_tend", tend_later),
            ):
                async with self._engine:
                    await self._clients_go_on(outcome, looked)
        except BaseException as error:  # noqa: BLE001  (whatever it is, it is wrong)
            outcome.raised = repr(error)
        return outcome

    async def _clients_go_on(self, outcome: Outcome, looked: anyio.Event) -> None:
        contents, uploads = self._trace.contents, outcome.uploads
        for key, content in contents.items():
            uploads[key] = await self._look(content)
        looked.set()
        for key, content in contents.items():
            if uploads[key].status in {"receiving", "pending"}:
                uploads[key].finally_ = await self._go_on(content, uploads[key])
        await self._engine.sweep()
        for key, content in contents.items():
            if uploads[key].status == "complete":
                uploads[key].finally_ = await self._compare(content, await self._inspect(key))
        await self._until_told(self._clock.now() + 3600)

    async def _look(self, content: Content) -> Found:
        found = Found()
        loaded = await self._metadata.load(UploadId(content.key))
        if loaded is not None and loaded.upload.state is UploadState.RECEIVING:
            found.synced = loaded.upload.synced_offset
        try:
            upload = await self._inspect(content.key)
        except Refusal as refusal:
            found.status = {Code.NOT_FOUND: "absent", Code.GONE: "gone"}.get(
                refusal.code, f"refused: {refusal}"
            )
            return found
        found.offset = upload.offset
        if upload.complete:
            found.status = "complete"
            found.wrong = await self._compare(content, upload)
        elif content.kind is Kind.FINAL:
            found.status = "pending"
        else:
            found.status = "receiving"
            found.wrong = self._compare_file(content, upload)
        return found

    async def _inspect(self, key: str) -> Upload:
        result = await self._engine.handle(Inspect(id=UploadId(key)), _Rest(b""))
        upload: Upload = result.upload  # type: ignore[union-attr]
        return upload

    async def _compare(self, content: Content, upload: Upload) -> str:
        assert upload.length is not None
        try:
            data = b"".join([c async for c in self._engine.read(upload, 0, upload.length)])
        except Exception as error:  # noqa: BLE001
            return repr(error)
        return _difference(content.data, data, len(content.data))

    def _compare_file(self, content: Content, upload: Upload) -> str:
        for place in ("incoming", "finished"):
            path = self._data.root / upload.storage[place]
            if path.exists():
                return _difference(content.data, path.read_bytes(), upload.offset)
        return _difference(content.data, b"", upload.offset)

    async def _go_on(self, content: Content, found: Found) -> str:
        key = UploadId(content.key)
        try:
            if content.kind is not Kind.FINAL:
                rest = content.data[found.offset :]
                command = Append(
                    id=key,
                    offset=found.offset,
                    length=len(content.data),
                    payload=Payload(length=len(rest)),
                )
                await self._engine.handle(command, _Rest(rest))
            with anyio.fail_after(PATIENCE):
                while not (upload := await self._inspect(content.key)).complete:
                    if content.kind is not Kind.FINAL:
                        return f"is at {upload.offset} after all was sent"
                    await anyio.sleep(0.001)
        except Refusal as refusal:
            return "gone" if refusal.code is Code.GONE else f"stuck: {refusal}"
        except TimeoutError:
            return "stuck"
        return await self._compare(content, upload)

    async def _until_told(self, now: float) -> None:
        def due(db: sqlite3.Connection) -> bool:
            # What was handed to the dead has no line before it is taken back.
            row = db.execute(sqlite_events.ANY_DUE, (now,)).fetchone()
            return row is not None or bool(sqlite_handed.holders(db))

        with anyio.fail_after(PATIENCE):
            while await self._metadata._in_thread(due):
                await anyio.sleep(0.001)


def _difference(expected: bytes, data: bytes, size: int) -> str:
    if len(data) < size:
        return f"{len(data)} bytes where {size} should be"
    if data[:size] != expected[:size]:
        at = next(i for i in range(size) if data[i : i + 1] != expected[i : i + 1])
        return f"byte {at} of {size} is not what was sent"
    return ""


# ------------------------------------------------------------------------------ whether it is true


@dataclass
class Expected:
    """What the clients knew when the power went."""

    durability: Durability
    contents: dict[str, Content]
    asked: set[str] = field(default_factory=set)
    """A hook saw them whole."""
    created: set[str] = field(default_factory=set)
    sent: dict[str, int] = field(default_factory=dict)
    least: dict[str, int] = field(default_factory=dict)
    """The offset that must be there."""
    shown: dict[str, int] = field(default_factory=dict)
    complete: set[str] = field(default_factory=set)
    to_end: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)
    told: set[tuple[str, str]] = field(default_factory=set)
    kept: set[str] = field(default_factory=set)
    """What must be known since a graceful stop."""
    waited: int = 0
    """Seconds that went by."""

    def note(self, note: Note) -> None:
        """Let the clients come to know something."""
        key = note.subject
        match note.what:
            case "created":
                self.created.add(key)
            case "sent":
                self.sent[key] = max(self.sent.get(key, 0), note.number)
            case "offset":
                self.shown[key] = note.number
                if self.durability is Durability.ACK:
                    self.least[key] = note.number
            case "asked":
                # "Gets a whole upload before anyone is told that it is, its bytes, which are synced"
                self.asked.add(key)
                self.least[key] = note.number
            case "complete":
                self.complete.add(key)
            case "to end":
                self.to_end.add(key)
            case "gone":
                self.gone.add(key)
            case "waited":
                self.waited += note.number
            case "stopped":
                # "A graceful stop syncs, so a clean reboot loses nothing."
                self.least |= self.shown
                self.kept = self.created.copy()
            case event if event.startswith("event "):
                self.told.add((event.removeprefix("event "), key))
            case unknown:
                raise AssertionError(unknown)

    def lies(self, outcome: Outcome, *, set_back: bool = False) -> Iterator[str]:
        """What is not as the clients may expect it to be.

        When the clock was set back events are told when it has caught up again.
        """
        if outcome.raised:
            yield outcome.raised
            return
        for key, found in outcome.uploads.items():
            told = None if set_back else outcome.told | self.told
            for lie in self._lies(key, found, told):
                yield f"{key}: {lie} ({found})"

    def _lies(self, key: str, found: Found, told: set[tuple[str, str]] | None) -> Iterator[str]:
        content = self.contents[key]
        ending = key in self.to_end
        match found.status:
            case "absent":
                if key in self.complete and not ending:
                    yield "was complete, and is unknown"
                if key in self.asked and not ending:
                    yield "was decided about, and is unknown"
                if key in self.gone and not ending:
                    yield "was gone, and is unknown"
                if not ending and (
                    key in self.kept or (self.durability is Durability.ACK and key in self.created)
                ):
                    yield "was created, and is unknown"
                return
            case "gone":
                if not ending and not content.doomed:
                    yield "is gone, and nobody ended it"
                return
            case "complete":
                if key in self.gone:
                    yield "was gone, and is complete"
                if found.offset != len(content.data):
                    yield "is complete with another length"
                if content.kind is not Kind.FINAL and self.sent.get(key, 0) < found.offset:
                    yield "is complete, and was not sent"
                if found.wrong or found.finally_:
                    yield f"is complete, and {found.wrong or found.finally_}"
                for event in ("created", "completed"):
                    if told is not None and (event, key) not in told:
                        yield f"is complete, and no event says that it was {event}"
                return
            case "receiving":
                if found.offset > self.sent.get(key, 0):
                    yield "has more than was sent"
                if found.offset < self.least.get(key, 0):
                    yield f"has less than the {self.least[key]} that were sure"
                if found.offset < found.synced:
                    yield "has less than its record said was synced"
                if found.wrong:
                    yield found.wrong
            case "pending":
                pass
            case refused:
                yield refused
        if key in self.complete:
            yield "was complete, and is not"
        if key in self.gone:
            yield "was gone, and is there again"
        if found.finally_ == "gone" and (ending or content.doomed):
            return
        if found.finally_:
            yield f"when it went on: {found.finally_}"


# ------------------------------------------------------------------------------------ the replay


def kinds(trace: Trace) -> Callable[[int], str]:
    """What kind of file a node is: an upload's, or which of SQLite's."""
    names = {
        happening.node: happening.name
        for happening in trace.happened
        if isinstance(happening, Make) and happening.name.startswith(DATABASE.name)
    }

    def kind_of(node: int) -> str:
        return names.get(node, "uploads")

    return kind_of


class Effort(enum.Enum):
    """How much of what could happen is tried."""

    SAMPLE = enum.auto()
    """Every prefix (a frame of SQLite's log counts as one write), with all kept and with all lost;
    and one other way to go at each, by chance."""
    ANSWERS = enum.auto()
    """Much, but only where a client has just been told something."""
    EVERY = enum.auto()
    """All that we can think of, and RANDOMS ways more at each point."""


RANDOMS: Final = 20


def choices(
    trace: Trace, at: int, disk: Disk, kind_of: Callable[[int], str], effort: Effort
) -> Iterator[Choice]:
    """The ways in which it can go at one point of a trace."""
    if not any(disk.pending()):
        yield KEPT
        return
    others = [*extremes(disk, kind_of), *folder_prefixes(disk)]
    if effort is Effort.SAMPLE:
        yield KEPT
        yield LOST
        others.append(at_random(f"{trace} {at}"))
        yield random.Random(f"{trace} {at}").choice(others)
        return
    yield from others
    if effort is Effort.ANSWERS:
        yield from singles(disk, most=4)
    if effort is Effort.EVERY:
        yield from singles(disk)
        for number in range(RANDOMS):
            yield at_random(f"{trace} {at} {number}")


@dataclass
class Verdict:
    """What a replay found."""

    points: int = 0
    """How many times the power was cut off."""
    states: int = 0
    """How many ways it went."""
    different: int = 0
    """How many states of the disk that were."""
    lies: list[str] = field(default_factory=list)


async def replay(
    trace: Trace,
    effort: Effort = Effort.SAMPLE,
    lost: Callable[[Sync], bool] = lambda _: False,
    enough: int = 5,
) -> Verdict:
    """Cut the power at every point of a trace, in many ways, and judge what becomes of it.

    `lost` says which syncs a build lacks. Ends once there are `enough` lies.
    """
    verdict = Verdict()
    kind_of = kinds(trace)
    with folder_in_memory("tidegate-power-") as folder:
        recovery = Recovery(trace, folder)
        for at, disk, expected in _points(trace, lost, effort):
            verdict.points += 1
            for choice in choices(trace, at, disk, kind_of, effort):
                state = disk.after_power_loss(choice)
                lies: list[str] = []
                # A machine may start with the time that it had long ago.
                for waited in {0, expected.waited}:
                    outcome = await recovery.outcome(state, waited)
                    lies += expected.lies(outcome, set_back=waited < expected.waited)
                verdict.states += 1
                verdict.different = recovery.states
                if lies:
                    where_at = f"{trace}, {at} of {len(trace.happened)}, {choice.label}"
                    verdict.lies.append(f"{where_at}: {'; '.join(lies)}")
                    if len(verdict.lies) >= enough:
                        return verdict
    return verdict


def _points(
    trace: Trace, lost: Callable[[Sync], bool], effort: Effort
) -> Iterator[tuple[int, Disk, Expected]]:
    """Every point of a trace at which the power may go: the disk, and what the clients know."""
    expected = Expected(trace.durability, trace.contents)
    disk = Disk(lost)
    lacks, answers = False, effort is Effort.ANSWERS
    if not answers:
        yield 0, disk, expected
    for at, happening in enumerate(trace.happened, 1):
        if isinstance(happening, Note):
            expected.note(happening)
            if happening.what == "sent":
                continue
        else:
            lacks = lacks or (isinstance(happening, Sync) and lost(happening))
            disk.apply(happening)
            if answers or (effort is Effort.SAMPLE and _begins_frame(happening)):
                continue
        if lacks or not answers:
            yield at, disk, expected


def _begins_frame(happening: Happening) -> bool:
    return isinstance(happening, Write) and len(happening.data) == FRAME_HEAD
