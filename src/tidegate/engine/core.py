"""What every use case needs: the ports, the settings, and the few words they share."""

from __future__ import annotations

import base64
import logging
import os
import secrets
from collections.abc import Awaitable, Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVarTuple

import anyio
import msgspec
from msgspec.structs import replace

from tidegate.measures import Measures
from tidegate.ports import (
    AheadStore,
    BytesBusyError,
    DataError,
    Durability,
    HandingStore,
    Hold,
    LeaseLostError,
    LinkStore,
    Loaded,
    MetadataError,
    NoRoomError,
    NoSpaceError,
    OverLimitError,
    PieceStore,
    ProbedStore,
    UnknownUploadError,
    WholeStore,
)
from tidegate.protocol.decide import C, Case
from tidegate.protocol.errors import Code, Refusal
from tidegate.protocol.model import NOWHERE, Event, EventType, Kind, State, Upload, UploadId

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anyio.abc import TaskGroup

    from tidegate.engine.gate import Gate
    from tidegate.hooks import UploadRequest
    from tidegate.ports import Clock, DataStore, MetadataStore
    from tidegate.protocol.capabilities import Offer

log = logging.getLogger("tidegate.engine")

Args = TypeVarTuple("Args")

ID_BYTES = 16
"""128 random bits: a URL that nobody guesses (PROTOCOL: ids)."""

IDS_AT_ONCE = 64
"""Ids' worth of random bytes that are fetched at a time."""

DAY = 86_400.0


class _Randomness:
    """Random bytes for ids, asked of the system for many at once.

    The call lets other threads run, which here it would wait for longer than it takes.
    """

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        # Or both processes would draw the same.
        os.register_at_fork(after_in_child=self._pieces.clear)

    def draw(self) -> bytes:
        """ID_BYTES, each time others."""
        if not self._pieces:
            block = secrets.token_bytes(ID_BYTES * IDS_AT_ONCE)
            self._pieces += [block[at : at + ID_BYTES] for at in range(0, len(block), ID_BYTES)]
        return self._pieces.pop()


_randomness = _Randomness()


def random_id(_: Upload) -> str:
    """An id that nobody guesses: 22 URL-safe characters. On the event loop."""
    return base64.urlsafe_b64encode(_randomness.draw()).rstrip(b"=").decode("ascii")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How the engine works. Sizes are bytes, times are seconds."""

    durability: Durability = Durability.COMPLETE
    checkpoint_bytes: int = 64 * 1024 * 1024
    """A body's progress is committed after so many bytes: a second or less of a fast disk's work is
    what a crash of the machine can cost beyond what was synced."""
    checkpoint_seconds: float = 3.0
    """... or so much time: what a poller sees is never older."""
    lease_wait: float = 5.0
    """How long a request waits for the writer at work to let go before it answers 423. A writer
    that is alive needs milliseconds; one that is paused may need for ever."""
    let_go_within: float = 4.0
    """How long a writer that was asked to let go may take to store what it has, where that is kept
    in pieces far away; then it goes without what is not stored. Less than `lease_wait`, so that who
    asked still gets the upload when the way to there is broken for the writer alone. Behind the
    requests, where nobody asks, it is looked at as often whether the way is."""
    complete_rate: int = 256 * 1024 * 1024
    """... and so many bytes per second a completion is waited for besides: a service takes longer to
    put many parts together, and nothing is won when it has to begin again."""
    terminate_wait: float = 1.0
    """How long a DELETE waits for it before it takes the upload away from it."""
    assemble_within: float = 3.0
    """How long a POST of a final upload waits for its assembly; the rest happens behind it. Well
    under the shortest time-out of common proxies (HAProxy's examples: 10 s)."""
    copy_step: int = 64 * 1024 * 1024
    """How much of a final upload is copied between two looks at whether to stop."""
    tombstone_age: float = 7 * DAY
    """How long an expired or terminated upload answers 410 before it is forgotten, then 404."""
    orphan_age: float = 7 * DAY
    """How old unfinished bytes without a record must be before a sweep deletes them: what an upload
    has by default, should they have lost their record by an operator's mistake."""
    sweep_every: float = 60.0
    """How often the server looks for what expired, and for finals to assemble."""
    orphans_every: float = 6 * 3600.0
    """How often it looks through all that is stored for what belongs to nothing: a walk over every
    file, for what only a crash in a narrow window leaves."""
    progress_every: float = 5.0
    """How often the progress of one upload is told, at most; and no more often than it is
    committed. As often as people look at a bar that moves slowly."""
    max_unfinished: int | None = None
    """What all unfinished uploads may come to; None: any."""
    reserve_disk: int | None = None
    """What must stay free on the data store when all unfinished uploads are whole; None: an upload
    is taken whether it will fit or not."""
    new_id: Callable[[Upload], str] = random_id
    authorize_within: float | None = 5.0
    """How long whoever is asked who may come in has for an answer: people notice, and clients that
    wait for it hold a connection each. None: for ever."""
    hook_within: float | None = 30.0
    """How long a hook has: half of what common proxies wait for an answer (nginx, AWS: 60 s)."""


class Core:
    """The ports and the settings, and what all use cases do with them alike."""

    def __init__(
        self,
        data: DataStore,
        metadata: MetadataStore,
        *,
        settings: Settings,
        offer: Offer,
        clock: Clock,
        tells: frozenset[EventType],
        gate: Gate,
        measures: Measures | None = None,
    ) -> None:
        self.data = data
        self.whole_store = data if isinstance(data, WholeStore) else None
        """The same, if it can take small uploads at once."""
        self.ahead_store = data if isinstance(data, AheadStore) else None
        """The same, if it can do so before there is a record."""
        self.records_first = False
        """Records could not be written lately: no bytes are to be stored ahead of them."""
        self.link_store = data if isinstance(data, LinkStore) else None
        """The same, if clients can read from it by themselves."""
        self.keeps_pieces = isinstance(data, PieceStore)
        self.probed_store = data if isinstance(data, ProbedStore) else None
        """The same, if it can say whether it is reached."""
        self.metadata = metadata
        self.handing_store = metadata if isinstance(metadata, HandingStore) else None
        """The same, if it can hand events to who delivers them."""
        self.measures = measures or Measures()
        """What is counted here; by itself where nobody reads it."""
        self.settings = settings
        self.durable = settings.durability is not Durability.NONE
        """Whether what is shown as complete must survive a loss of power."""
        self.acks_durable = settings.durability is Durability.ACK
        """Whether every acknowledgement must."""
        self.offer = offer
        self.clock = clock
        self.tells = tells
        """The types of events that anyone listens to: no others are written."""
        self.gate = gate
        self.put_off: set[UploadId] = set()
        """Whole uploads whose completion waits for a hook that gave no answer."""
        self.unsynced: set[UploadId] = set()
        """Uploads with acknowledged bytes that a graceful stop has to sync."""
        self.background: TaskGroup
        """Where work goes on behind a request; the engine owns it."""
        self.at_rest = True
        """Nothing goes on there: before the engine is open, and when it closes."""
        self.writing: set[anyio.Event] = set()
        """What makes each body that is being received stop."""
        self.draining = False
        """The server is about to stop: no body is received any more."""
        self.events_written: Callable[[], None] = lambda: None
        self.progressed: Callable[[Upload], None] = lambda _: None
        """To be told of an unfinished upload of which more was acknowledged."""
        self.part_changed: Callable[[UploadId], None] = lambda _: None
        """To be told when a partial upload became complete or went away."""

    @contextmanager
    def receiving(self, wanted: anyio.Event) -> Iterator[None]:
        """Receive a body that `drain` can stop. Raises Refusal when it already has."""
        if self.draining:
            raise stopping()
        self.writing.add(wanted)
        try:
            yield
        finally:
            self.writing.discard(wanted)

    def drain(self) -> None:
        """Ask every body that is being received to stop, and refuse those that come."""
        self.draining = True
        for wanted in self.writing:
            wanted.set()

    def touched(self, upload: Upload) -> Upload:
        """The record after a POST or a PATCH: the time of its expiry slides."""
        now = self.clock.now()
        after = self._expire_after(upload)
        return replace(upload, active_at=now, expires_at=None if after is None else now + after)

    def _expire_after(self, upload: Upload) -> float | None:
        return self.offer.expire_after if upload.expire_after is None else upload.expire_after

    def events(self, event_type: EventType, upload: Upload) -> tuple[Event, ...]:
        """The event to commit with a change, when anyone listens."""
        if event_type not in self.tells:
            return ()
        return (Event(type=event_type, at=self.clock.now(), upload=upload),)

    def spawn(self, work: Callable[[*Args], Awaitable[None]], *args: *Args) -> None:
        """Do `work` behind the requests. Should it fail, that is logged, and nothing else stops."""
        self.background.start_soon(_guarded, work, args)

    def case(
        self,
        command: C,
        upload: Upload | None,
        request: UploadRequest | None,
        *,
        leased: bool = True,
    ) -> Case[C]:
        """All that a decision on `command` depends on, as things stand now."""
        return Case(
            command=command,
            upload=upload,
            principal=None if request is None else request.principal,
            max_size=None if upload is None else upload.max_size,
            offer=self.offer,
            now=self.clock.now(),
            leased=leased,
        )

    async def load(self, upload_id: UploadId) -> Loaded | None:
        """The record as the rules of expiry see it.

        An append at work keeps an upload from expiring, and so does a pending final that needs it;
        a part that is being uploaded keeps the final.
        """
        loaded = None if upload_id == NOWHERE else await self.metadata.load(upload_id)
        if loaded is None:
            return None
        return Loaded(await self._unexpired(loaded.upload, loaded.hold), loaded.hold)

    async def _unexpired(self, upload: Upload, hold: Hold) -> Upload:
        now = self.clock.now()
        if upload.expires_at is None or upload.expires_at > now:
            return upload
        later = await self.parts_active_until(upload)
        if later > now:
            return replace(upload, expires_at=later)
        kept = hold is Hold.HELD or (
            upload.kind is Kind.PARTIAL and await self.metadata.pending_finals(upload.id)
        )
        return replace(upload, expires_at=None) if kept else upload

    async def parts_active_until(self, upload: Upload) -> float:
        """For a final: until when one of its parts is still being uploaded, by its activity."""
        latest = 0.0
        for part in set(upload.parts):
            loaded = await self.metadata.load(part)
            if loaded is not None and loaded.upload.state is State.RECEIVING:
                after = self._expire_after(loaded.upload) or 0.0
                latest = max(latest, loaded.upload.active_at + after)
        return latest

    def lost_power(self, upload: Upload) -> bool:
        """Whether the machine went down since bytes were written that were not synced then."""
        return (
            upload.state is State.RECEIVING
            and upload.offset > upload.synced_offset
            and upload.boot_id not in ("", self.data.boot_id)
        )

    def doubtful(self, upload: Upload) -> bool:
        """Whether the bytes must be looked at before the record is believed.

        After a loss of power; and when it is whole and its completion was not carried out (that of
        an empty upload, which is whole from the start). A final is whole when it says so.
        """
        unfinished = (
            upload.whole and upload.state is State.RECEIVING and upload.kind is not Kind.FINAL
        )
        return unfinished or self.lost_power(upload)


async def _guarded(work: Callable[[*Args], Awaitable[None]], args: tuple[*Args]) -> None:
    try:
        await work(*args)
    except Exception:
        log.exception("behind the requests")


class Refusing:
    """Translates what a store raises inside into the refusal that the client gets.

    What went wrong is logged here and never shown to a client. (A generator would take five times
    as long, of every request.)
    """

    __slots__ = ()

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        """Raise Refusal for what a store raised."""
        if isinstance(error, (DataError, MetadataError)):
            raise _refusal(error) from error


refusing = Refusing()


def _refusal(error: DataError | MetadataError) -> Refusal:
    match error:
        case OverLimitError():
            log.warning("%s", error)
            return Refusal(
                Code.NO_SPACE,
                "the server has no room for another unfinished upload of this size",
                retry_after=60,
            )
        case NoSpaceError() | NoRoomError():
            log.error("no space: %s", error)
            return Refusal(
                Code.NO_SPACE,
                "the server has no room left; what it acknowledged is kept",
                retry_after=60,
            )
        case LeaseLostError() | BytesBusyError():
            log.info("%s", error)
            return locked()
        case UnknownUploadError():
            return Refusal(Code.NOT_FOUND, "there is no upload at this URL")
        case MetadataError():
            log.error("metadata store: %s", error)
            return Refusal(
                Code.UNAVAILABLE, "the server cannot reach its records; try again", retry_after=2
            )
        case _:
            log.error("data store: %s", error)
            return Refusal(
                Code.UNAVAILABLE, "the server cannot reach its storage; try again", retry_after=2
            )


def locked() -> Refusal:
    """The refusal for an upload that someone else is writing to."""
    return Refusal(Code.LOCKED, "another request is writing to this upload", retry_after=1)


def stopping() -> Refusal:
    """The refusal of a server that is about to stop."""
    return Refusal(
        Code.STOPPING, "the server is restarting; what arrived is kept, go on", retry_after=1
    )
