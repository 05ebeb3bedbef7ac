"""Records, leases, segments and events in the memory of one process: for tests, and for trying."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import TYPE_CHECKING

import anyio
from msgspec.structs import replace

from tidegate.ports import (
    Counts,
    Delivery,
    Grant,
    Held,
    Hold,
    Lease,
    LeaseLostError,
    Line,
    Loaded,
    OverLimitError,
    PartUnavailableError,
    PinnedError,
    Undelivered,
    UnknownUploadError,
    UploadExistsError,
)
from tidegate.protocol.capabilities import Capability
from tidegate.protocol.lifecycle import may_expire
from tidegate.protocol.model import Kind, State

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence

    from tidegate.ports import Change, Ended, MetadataStore, Room
    from tidegate.protocol.model import Event, Segment, Upload, UploadId

_HOLDER = "memory"


class _Record:
    """All there is about one upload."""

    __slots__ = ("abandoned", "lease", "segments", "upload", "wanted")

    def __init__(self, upload: Upload) -> None:
        self.upload = upload
        self.segments: dict[int, Segment] = {}
        self.lease: Lease | None = None
        self.abandoned = False
        self.wanted: anyio.Event | None = None

    @property
    def hold(self) -> Hold:
        if self.lease is None:
            return Hold.FREE
        return Hold.ABANDONED if self.abandoned else Hold.HELD


class _Told:
    """An event that was not delivered yet."""

    __slots__ = ("delivery", "given_up")

    def __init__(self, delivery: Delivery) -> None:
        self.delivery = delivery
        self.given_up = False


class _Line:
    """When what an upload has to tell is delivered."""

    __slots__ = ("claimed", "due_at", "more")

    def __init__(self) -> None:
        self.due_at = 0.0
        """While it is claimed: when the claim ends."""
        self.claimed = False
        self.more = False
        """Something was added since it was claimed."""


class MemoryMetadataStore:
    """Implements `tidegate.ports.MetadataStore`; all is lost when the process ends."""

    capabilities = Capability.EXPIRY | Capability.PENDING
    shared = False
    leases_expire = False

    def __init__(self) -> None:
        self._records: dict[UploadId, _Record] = {}
        self._events: dict[int, _Told] = {}
        self._lines: dict[UploadId, _Line] = {}
        self._sequence = itertools.count(1)
        self._tokens = itertools.count(1)
        self._released: dict[UploadId, set[anyio.Event]] = {}
        self._boot_id = ""

    async def open(self, boot_id: str = "") -> None:
        """Nothing to acquire."""
        self._boot_id = boot_id

    async def close(self) -> None:
        """Nothing to let go of."""

    # ------------------------------------------------------------------------------- records

    async def insert(
        self,
        upload: Upload,
        *,
        lease: bool = False,
        events: Sequence[Event] = (),
        durable: bool = False,  # noqa: ARG002
        room: Room | None = None,
    ) -> Grant | None:
        """Write a new record, and take its lease when asked to. See the port."""
        if upload.id in self._records:
            raise UploadExistsError(upload.id)
        if upload.kind is Kind.FINAL:
            for part in upload.parts:
                found = self._records.get(part)
                if (
                    found is None
                    or found.upload.kind is not Kind.PARTIAL
                    or found.upload.state not in {State.RECEIVING, State.COMPLETE}
                ):
                    raise PartUnavailableError(part)
        if room is not None:
            self._check_room(room, upload)
        record = _Record(replace(upload, version=upload.version + 1))
        self._records[upload.id] = record
        self._tell(events)
        return self._grant(record) if lease else None

    def _check_room(self, room: Room, upload: Upload) -> None:
        receiving = [r.upload for r in self._records.values() if r.upload.state is State.RECEIVING]
        promised = sum(u.promised for u in [*receiving, upload])
        missing = promised - sum(u.offset for u in [*receiving, upload])
        if room.unfinished is not None and promised > room.unfinished:
            raise OverLimitError(f"unfinished uploads would come to {promised} bytes")
        if room.missing is not None and missing > room.missing:
            raise OverLimitError(f"unfinished uploads would still need {missing} bytes")

    async def load(self, upload_id: UploadId) -> Loaded | None:
        """The record and its hold, or None."""
        record = self._records.get(upload_id)
        return None if record is None else Loaded(record.upload, record.hold)

    async def segments(self, upload_id: UploadId) -> list[Segment]:
        """By index."""
        record = self._records.get(upload_id)
        return [] if record is None else [record.segments[i] for i in sorted(record.segments)]

    # -------------------------------------------------------------------------------- leases

    async def acquire(self, upload_id: UploadId, *, force: bool = False) -> Grant | Held:
        """Take the upload's lease if it is free, or was abandoned. See the port."""
        record = self._records.get(upload_id)
        if record is None:
            raise UnknownUploadError(upload_id)
        if record.hold is Hold.HELD and not force:
            return Held(record.upload)
        if record.wanted is not None:
            record.wanted.set()
        return self._grant(record)

    def _grant(self, record: _Record) -> Grant:
        settled = record.lease is None
        record.lease = Lease(record.upload.id, _HOLDER, next(self._tokens))
        record.abandoned = False
        record.wanted = anyio.Event()
        boot_id = "" if settled else self._boot_id
        return Grant(record.lease, record.upload, settled, boot_id, record.wanted)

    def _held(self, lease: Lease) -> _Record | None:
        record = self._records.get(lease.upload_id)
        return None if record is None or record.lease != lease or record.abandoned else record

    async def request_release(self, upload_id: UploadId) -> None:
        """Ask the holder to let go."""
        record = self._records.get(upload_id)
        if record is not None and record.wanted is not None:
            record.wanted.set()

    async def wait_released(self, upload_id: UploadId, timeout: float) -> None:
        """Return when the lease may be free, or after `timeout` seconds."""
        record = self._records.get(upload_id)
        if record is None or record.hold is not Hold.HELD:
            return
        released = anyio.Event()
        self._released.setdefault(upload_id, set()).add(released)
        try:
            with anyio.move_on_after(timeout):
                await released.wait()
        finally:
            waiting = self._released.get(upload_id, set())
            waiting.discard(released)
            if not waiting:
                self._released.pop(upload_id, None)

    async def renew(self, lease: Lease) -> None:
        """Look whether the lease is still held: here it never expires."""
        if self._held(lease) is None:
            raise LeaseLostError(lease.upload_id)

    async def commit(self, lease: Lease, change: Change) -> Upload:
        """Carry out `change`, fenced by `lease`. See the port."""
        record = self._held(lease)
        if record is None or change.upload.id != lease.upload_id:
            raise LeaseLostError(lease.upload_id)
        if record.upload.version != change.upload.version:
            self.abandon(lease)
            raise LeaseLostError(
                f"{lease.upload_id}: version {change.upload.version}, now {record.upload.version}"
            )
        if change.unless_pinned and self._pending(lease.upload_id):
            raise PinnedError(lease.upload_id)
        record.upload = replace(change.upload, version=change.upload.version + 1)
        record.segments.update({segment.index: segment for segment in change.segments})
        self._tell(change.events)
        if change.forget:
            del self._records[lease.upload_id]
        if change.forget or change.release:
            self._let_go(record)
        return record.upload

    async def release(self, lease: Lease) -> None:
        """Let go, settled."""
        if record := self._held(lease):
            self._let_go(record)

    def abandon(self, lease: Lease) -> None:
        """Let go without a word: whoever comes next must recover."""
        if record := self._held(lease):
            record.abandoned = True
            self._wake(lease.upload_id)

    def _let_go(self, record: _Record) -> None:
        record.lease = record.wanted = None
        self._wake(record.upload.id)

    def _wake(self, upload_id: UploadId) -> None:
        for event in self._released.get(upload_id, ()):
            event.set()

    # --------------------------------------------------------------------------------- lists

    async def pending_finals(self, part: UploadId | None = None) -> list[UploadId]:
        """Final uploads that are still receiving: all, or those that need `part`."""
        return self._pending(part)

    def _pending(self, part: UploadId | None) -> list[UploadId]:
        return sorted(
            record.upload.id
            for record in self._records.values()
            if record.upload.kind is Kind.FINAL
            and record.upload.state is State.RECEIVING
            and (part is None or part in record.upload.parts)
        )

    async def uploads(
        self, *, state: State | None = None, kind: Kind | None = None
    ) -> AsyncIterator[Upload]:
        """All records (of a state, of a kind) by id. What changes meanwhile may be missed."""
        for upload_id in sorted(self._records):
            record = self._records.get(upload_id)
            if (
                record is not None
                and state in {None, record.upload.state}
                and kind in {None, record.upload.kind}
            ):
                yield record.upload

    async def undone(self) -> AsyncIterator[Upload]:
        """All records that are `undone`, by id. What changes meanwhile may be missed."""
        async for upload in self.uploads(state=State.RECEIVING):
            if upload.undone:
                yield upload

    async def expired(self, now: float, limit: int) -> list[UploadId]:
        """Uploads whose time is up, that nobody holds alive; oldest first. See the port."""
        found = [
            (record.upload.expires_at, record.upload.id)
            for record in self._records.values()
            if record.upload.expires_at is not None
            and record.upload.expires_at <= now
            and may_expire(record.upload)
            and record.hold is not Hold.HELD
            and not self._pending(record.upload.id)
        ]
        return [upload_id for _, upload_id in sorted(found)[:limit]]

    async def tombstones(self, ended_before: float, limit: int) -> list[UploadId]:
        """Expired, terminated and failed uploads that ended before a time, oldest first."""
        found = [
            (record.upload.ended_at, record.upload.id)
            for record in self._records.values()
            if record.upload.gone
            and record.upload.ended_at is not None
            and record.upload.ended_at < ended_before
        ]
        return [upload_id for _, upload_id in sorted(found)[:limit]]

    async def take_turn(self, name: str, now: float, ttl: float) -> bool:  # noqa: ARG002
        """Always: nobody shares this store."""
        return True

    async def end_turn(self, name: str) -> None:
        """Nobody waits for it."""

    # -------------------------------------------------------------------------------- events

    def _tell(self, events: Iterable[Event]) -> None:
        for event in events:
            delivery = Delivery(next(self._sequence), event, 0)
            self._events[delivery.sequence] = _Told(delivery)
            self._hurry(event.upload.id)

    def _hurry(self, upload_id: UploadId) -> None:
        line = self._lines.setdefault(upload_id, _Line())
        line.more = True
        if not line.claimed:
            line.due_at = 0.0

    async def claim_events(self, now: float, limit: int, ttl: float) -> list[Line]:
        """Take what uploads have to tell for delivery, for `ttl` seconds. See the port."""
        due = [upload_id for upload_id, line in self._lines.items() if line.due_at <= now]
        due.sort(key=lambda upload_id: self._lines[upload_id].due_at)
        claimed: dict[UploadId, list[Delivery]] = {upload_id: [] for upload_id in due[:limit]}
        if not claimed:
            return []
        for told in self._events.values():
            upload_id = told.delivery.event.upload.id
            if upload_id in claimed and not told.given_up:
                claimed[upload_id].append(told.delivery)
        for upload_id in claimed:
            line = self._lines[upload_id]
            line.due_at, line.claimed, line.more = now + ttl, True, False
        return [
            Line(upload_id, now + ttl, tuple(deliveries))
            for upload_id, deliveries in claimed.items()
        ]

    async def end_claims(self, ended: Sequence[Ended]) -> list[UploadId]:
        """Note what became of lines, and let go of them. See the port."""
        return [each.line.upload_id for each in ended if not self._end_claim(each)]

    def _end_claim(self, ended: Ended) -> bool:
        line = ended.line
        held = self._lines.get(line.upload_id)
        if held is None or not held.claimed or held.due_at != line.claim:
            return False
        for sequence in ended.told:
            del self._events[sequence]
        for delivery, given_up in ended.changed:
            told = self._events[delivery.sequence]
            told.delivery, told.given_up = delivery, given_up
        if not ended.goes_on:
            held.due_at = 0.0 if held.more or ended.due_at is None else ended.due_at
            held.claimed = False
            if not ended.kept and not held.more:
                del self._lines[line.upload_id]
        return True

    async def events(self) -> AsyncIterator[Undelivered]:
        """All events that are kept, by sequence."""
        seen: set[UploadId] = set()
        for told in list(self._events.values()):
            upload_id = told.delivery.event.upload.id
            due_at = None
            if not told.given_up and upload_id not in seen:
                seen.add(upload_id)
                due_at = self._lines[upload_id].due_at
            yield Undelivered(told.delivery, due_at, told.given_up)

    async def replay(self, sequence: int) -> bool:
        """Have an event that was given up delivered after all. See the port."""
        told = self._events.get(sequence)
        if told is None or not told.given_up:
            return False
        told.delivery = told.delivery.after((), ())
        told.given_up = False
        self._hurry(told.delivery.event.upload.id)
        return True

    async def counts(self) -> Counts:
        """How much there is."""
        pending = [told for told in self._events.values() if not told.given_up]
        return Counts(
            uploads=dict(Counter(record.upload.state for record in self._records.values())),
            pending_events=len(pending),
            given_up_events=len(self._events) - len(pending),
            oldest_event_at=min((told.delivery.event.at for told in pending), default=None),
        )


if TYPE_CHECKING:
    _: type[MetadataStore] = MemoryMetadataStore
