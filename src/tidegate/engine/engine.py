"""The engine: one door to every use case."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Self, assert_never

import anyio
import msgspec
from msgspec.structs import replace

from tidegate.clock import SystemClock
from tidegate.engine.append import receive
from tidegate.engine.check import Checked, Finding, check
from tidegate.engine.concat import Assembler
from tidegate.engine.core import Core, Settings, locked, log, refusing
from tidegate.engine.create import create
from tidegate.engine.ending import end
from tidegate.engine.gate import Gate
from tidegate.engine.measured import measured_data, measured_metadata
from tidegate.engine.outbox import Outbox
from tidegate.engine.progress import Progress
from tidegate.engine.sessions import Session, acquire, session
from tidegate.engine.sweep import Swept, sweep, sweep_in_turn
from tidegate.engine.tending import complete_all, sync_all, take_over
from tidegate.measures import TAKEOVERS, Measures
from tidegate.ports import (
    DataError,
    FileStore,
    Held,
    Hold,
    Loaded,
    MetadataError,
    ProbedStore,
    QueuedStore,
)
from tidegate.protocol import decide
from tidegate.protocol.capabilities import Capability, Offer, extensions
from tidegate.protocol.checksums import algorithms
from tidegate.protocol.commands import (
    Append,
    Command,
    Create,
    Discover,
    Download,
    Inspect,
    Terminate,
)
from tidegate.protocol.model import (
    STORED_EVENTS,
    EventType,
    Kind,
    Segment,
    Upload,
    UploadId,
)
from tidegate.protocol.results import (
    Appended,
    Discovered,
    Inspected,
    Readable,
    Result,
    Terminated,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Sequence
    from types import TracebackType

    from tidegate.hooks import Authorize, Hooks, UploadRequest
    from tidegate.ports import (
        Body,
        Clock,
        Counts,
        DataStore,
        EventSink,
        MetadataStore,
        OpenFile,
        Shown,
    )

WEEK = 7 * 86_400.0
"""How long an unfinished upload waits for its client: what the large public tus services keep."""


class Described(msgspec.Struct, frozen=True, kw_only=True):
    """An upload, for those who run the server."""

    upload: Upload
    hold: Hold
    segments: list[Segment]
    stored: int
    """Bytes that the data store holds of it."""


class Engine:
    """Carries out commands on a data store and a metadata store.

    `async with engine:` opens the stores, finishes what a crash left pending, and runs what goes on
    behind the requests; leaving it stops that, syncs and closes. Commands run concurrently, in that
    time, on one event loop.
    """

    def __init__(
        self,
        data: DataStore,
        metadata: MetadataStore,
        *,
        settings: Settings | None = None,
        max_size: int | None = None,
        expire_after: float | None = WEEK,
        disabled: Sequence[str] = (),
        downloads: bool = True,
        transport: Capability = Capability.NONE,
        sinks: Sequence[EventSink] = (),
        tells: Collection[EventType] = (),
        authorize: Authorize | None = None,
        hooks: Hooks | None = None,
        owners: bool = True,
        clock: Clock | None = None,
        tending: bool = True,
        measures: Measures | None = None,
    ) -> None:
        """Do nothing but check. Raises ValueError for an unknown name in `disabled`, and for
        sinks whose names are not right, or not different.

        `max_size` is in bytes, `expire_after` in seconds; None: no limit, never. Events of the
        types in `tells` are written for the sinks of other servers, beside those that `sinks` want.
        Without `owners` whoever may come in may use every upload. Without `tending` nothing goes on
        behind the requests, and no events are delivered: for a command that does one thing and
        ends. `measures` are those that somebody reads: with them the stores are measured, too.
        """
        if measures is not None:
            data = measured_data(data, measures)
            metadata = measured_metadata(metadata, measures)
        capabilities = data.capabilities | metadata.capabilities | transport
        offered = [
            name
            for name in extensions(capabilities, disabled)
            if name != "expiration" or expire_after is not None
        ]
        limits = [limit for limit in (max_size, data.max_size) if limit is not None]
        offer = Offer(
            extensions=tuple(offered),
            algorithms=algorithms() if "checksum" in offered else {},
            max_size=min(limits, default=None),
            expire_after=expire_after if "expiration" in offered else None,
            downloads=downloads and Capability.READ in capabilities,
            owners=owners,
        )
        settings = settings or Settings()
        gate = Gate(
            authorize,
            hooks,
            authorize_within=settings.authorize_within,
            hook_within=settings.hook_within,
        )
        self._core = Core(
            data,
            metadata,
            settings=settings,
            offer=offer,
            clock=clock or SystemClock(),
            tells=(STORED_EVENTS & frozenset(tells)).union(
                *(STORED_EVENTS & sink.types for sink in sinks)
            ),
            gate=gate,
            measures=measures,
        )
        self._assembler = Assembler(self._core)
        self._outbox = Outbox(self._core, sinks)
        self._core.events_written = self._outbox.wake
        self._progress = Progress(self._core, sinks)
        self._sinks = sinks
        self._tending = tending
        self._stack = AsyncExitStack()

    @property
    def offer(self) -> Offer:
        """What this server offers."""
        return self._core.offer

    @property
    def asks(self) -> bool:
        """Whether someone decides about requests, so that `handle` needs to be given them."""
        return self._core.gate.asks

    async def __aenter__(self) -> Self:
        """Open the stores. Raises DataError, MetadataError, in words for the operator."""
        core = self._core
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(core.gate.open())
            stack.push_async_callback(core.data.close)
            await core.data.open()
            stack.push_async_callback(core.metadata.close)
            await core.metadata.open(core.data.boot_id)
            for sink in self._sinks:
                stack.push_async_callback(sink.close)
                await sink.open()
            stack.push_async_callback(self._sync_at_stop)
            # Nobody is left to look at finals then: the next start does.
            stack.callback(setattr, core, "part_changed", lambda _: None)
            stack.callback(setattr, core, "at_rest", True)
            core.background = await stack.enter_async_context(anyio.create_task_group())
            stack.callback(core.background.cancel_scope.cancel)
            core.at_rest = False
            core.part_changed = self._assembler.part_changed
            if self._tending:
                core.spawn(self._tend)
            if self._tending and self._sinks:
                core.spawn(self._outbox.run)
                self._progress.start()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop what goes on behind the requests, sync what was acknowledged, close the stores."""
        await self._stack.aclose()

    async def handle(
        self, command: Command, body: Body, request: UploadRequest | None = None
    ) -> Result:
        """Carry out a command. Raises Refusal, and nothing else that is a client's business.

        `request` is what those see who decide: see `asks`.
        """
        with refusing:
            if isinstance(command, Discover):
                return Discovered(self._core.offer)
            decide.offered(command, self._core.offer)
            if isinstance(command, Create):
                request = await self._core.gate.admit(request, None)
                return await create(self._core, self._assembler, command, body, request)
            loaded = await self._core.load(command.id)
            request = await self._core.gate.admit(
                request, None if loaded is None else loaded.upload
            )
            match command:
                case Append():
                    return await self._append(command, loaded, body, request)
                case Inspect():
                    return await self._inspect(command, loaded, request)
                case Terminate():
                    return await self._terminate(command, loaded, request)
                case Download():
                    return Readable(
                        decide.download(self._core.case(command, _seen(loaded)[0], request))
                    )
                case _:
                    assert_never(command)

    def read(self, upload: Upload, start: int, stop: int) -> AsyncIterator[bytes]:
        """Bytes [start, stop) of an upload that a Download found readable. Raises DataError."""
        return self._core.data.read(upload, start, stop)

    async def link(self, upload: Upload, shown: Shown) -> str | None:
        """Where else a complete upload can be read; None: nowhere. Raises Refusal."""
        store = self._core.link_store
        if store is None:
            return None
        with refusing:
            return await store.link(upload, shown)

    async def open_file(self, upload: Upload, stop: int) -> OpenFile | None:
        """The file of such an upload, where it is one; None elsewhere. Raises DataError."""
        data = self._core.data
        return await data.open_file(upload, stop) if isinstance(data, FileStore) else None

    def drain(self) -> None:
        """The server is about to stop: ask every body that is being received to end.

        What arrived is kept, and such requests are refused with Retry-After, as are new bodies.
        """
        self._core.drain()

    @property
    def draining(self) -> bool:
        """Whether the server is about to stop."""
        return self._core.draining

    async def counts(self) -> Counts:
        """How much there is. Raises MetadataError."""
        return await self._core.metadata.counts()

    async def describe(self, upload_id: UploadId) -> Described | None:
        """All that is known of an upload; None: there is none. Raises MetadataError, DataError."""
        core = self._core
        loaded = await core.metadata.load(upload_id)
        if loaded is None:
            return None
        return Described(
            upload=loaded.upload,
            hold=loaded.hold,
            segments=await core.metadata.segments(upload_id),
            stored=await core.data.measure(loaded.upload),
        )

    async def probe_data(self) -> None:
        """See, quickly, whether the data store can be reached. Raises DataError."""
        data = self._core.data
        await (data.probe() if isinstance(data, ProbedStore) else data.free_space())

    async def probe_metadata(self) -> None:
        """See, quickly, whether the metadata store can be reached. Raises MetadataError."""
        metadata = self._core.metadata
        if isinstance(metadata, ProbedStore):
            await metadata.probe()
        else:
            await metadata.load(UploadId("probe"))

    def queued(self) -> dict[str, int]:
        """How many calls wait in the stores, or are at work, of those that queue them."""
        stores = {"data": self._core.data, "metadata": self._core.metadata}
        return {
            name: store.queued() for name, store in stores.items() if isinstance(store, QueuedStore)
        }

    async def sweep(self, *, dry_run: bool = False) -> Swept | None:
        """Give up what expired, forget old tombstones, delete orphans; or only say what would be.

        None: another server is sweeping (a dry run doesn't mind). Raises MetadataError, DataError.
        """
        if dry_run:
            return await sweep(self._core, dry_run=True)
        return await sweep_in_turn(self._core, orphans=True)

    def check(self, checked: Checked, *, repair: bool = False) -> AsyncIterator[Finding]:
        """What does not agree between records and bytes; see `tidegate.engine.check`."""
        return check(self._core, checked, repair=repair)

    # ------------------------------------------------------------------------------- commands

    async def _append(
        self, command: Append, loaded: Loaded | None, body: Body, request: UploadRequest | None
    ) -> Result:
        core = self._core
        # Only a request that would be accepted but for the writer at work may interrupt it.
        found, free = _seen(loaded)
        plan = decide.append(
            core.case(
                command,
                found,
                request,
                leased=free and not (found is not None and core.doubtful(found)),
            )
        )
        async with session(core, command.id) as held:
            held.request = request
            upload = self._unexpired(held.upload, found)
            plan = decide.append(core.case(command, upload, request))
            await receive(core, held, body, plan.payload, length=plan.length, room=plan.room)
            return Appended(held.upload)

    async def _inspect(
        self, command: Inspect, loaded: Loaded | None, request: UploadRequest | None
    ) -> Result:
        core = self._core
        found, free = _seen(loaded)
        upload = decide.inspect(core.case(command, found, request))
        if upload.kind is Kind.FINAL and not upload.complete:
            if loaded is not None and loaded.hold is not Hold.HELD:
                self._assembler.wake(upload.id)
            return Inspected(replace(upload, length=await self._assembler.length_of(upload)))
        # An append with a checksum is not interrupted: someone who polls would prevent it for ever.
        checking = upload.unverified and loaded is not None and loaded.hold is Hold.HELD
        if upload.complete or checking or (free and not core.doubtful(upload)):
            return Inspected(upload)
        async with session(core, command.id) as held:
            upload = self._unexpired(held.upload, found)
            return Inspected(decide.inspect(core.case(command, upload, request)))

    def _unexpired(self, upload: Upload, found: Upload | None) -> Upload:
        """What kept an upload from expiring when it was found still does now that it is held."""
        due = upload.expires_at is not None and upload.expires_at <= self._core.clock.now()
        return replace(upload, expires_at=found.expires_at) if due and found is not None else upload

    async def _terminate(
        self, command: Terminate, loaded: Loaded | None, request: UploadRequest | None
    ) -> Result:
        core = self._core
        found, _ = _seen(loaded)
        await core.gate.before_terminate(
            request, decide.terminate(core.case(command, found, request))
        )
        grant = await acquire(core, command.id, core.settings.terminate_wait)
        if grant is None:
            # Its holder is alive and does not answer. The bytes need no lock to be deleted.
            forced = await core.metadata.acquire(command.id, force=True)
            if isinstance(forced, Held):
                raise locked()
            core.measures.add(TAKEOVERS.start)
            grant = forced
        held = Session(core, grant)
        try:
            upload = self._unexpired(held.upload, found)
            await end(core, held, decide.terminate(core.case(command, upload, request)))
        finally:
            await held.end()
        return Terminated()

    # ---------------------------------------------------------------------- behind the requests

    async def _tend(self) -> None:
        """Finish pending finals, and sweep, from time to time."""
        core = self._core
        look = core.clock.monotonic()
        await take_over(core)
        while True:
            try:
                await self._assembler.wake_all()
            except MetadataError as error:
                log.error("pending finals: %s", error)
            orphans = core.clock.monotonic() >= look
            if orphans:
                look = core.clock.monotonic() + core.settings.orphans_every
            try:
                await sweep_in_turn(core, orphans=orphans)
            except (DataError, MetadataError) as error:
                log.error("sweep: %s", error)
            await sync_all(core)
            await complete_all(core)
            await anyio.sleep(core.settings.sweep_every)

    async def _sync_at_stop(self) -> None:
        if self._core.durable:
            await take_over(self._core)
            await sync_all(self._core)


def _seen(loaded: Loaded | None) -> tuple[Upload | None, bool]:
    """A record as `decide` takes it, and whether its offset is final."""
    if loaded is None:
        return None, True
    return loaded.upload, loaded.hold is Hold.FREE
