"""Records, leases, segments and events in one SQLite file, which several processes may share.

Writes go through one thread per process (`writer`), one process at a time. Reads of one row
run on the event loop: they cost less than the hop to a thread would. All other reads have threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import sqlite3
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import anyio.to_thread
from msgspec.structs import replace

from tidegate.metadata.encoding import decode_upload, encode
from tidegate.metadata.paging import paged
from tidegate.metadata.sqlite import events as sqlite_events
from tidegate.metadata.sqlite import handed as sqlite_handed
from tidegate.metadata.sqlite import rows, schema
from tidegate.metadata.sqlite.handing import Handing, Marks, Place
from tidegate.metadata.sqlite.leases import Leases
from tidegate.metadata.sqlite.liveness import Liveness, Turn
from tidegate.metadata.sqlite.readers import Readers
from tidegate.metadata.sqlite.writer import Operation, Writer
from tidegate.ports import (
    HANDED,
    Delivery,
    Grant,
    Held,
    Hold,
    Lease,
    LeaseLostError,
    Line,
    Loaded,
    MetadataError,
    UnavailableError,
)
from tidegate.protocol.capabilities import Capability
from tidegate.protocol.model import Kind

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from pathlib import Path

    from tidegate.ports import (
        Change,
        Counts,
        Ended,
        HandingStore,
        MetadataStore,
        Outlet,
        Room,
        Undelivered,
    )
    from tidegate.protocol.model import Event, Segment, State, Upload, UploadId

T = TypeVar("T")

# Seconds between two looks at a lease that another process holds.
_WATCH = 0.025
# And between two at whether those live on that events were handed to.
_LOOK_AT_OUTLETS = 1.0
_PAGE = 256

_LOAD = (
    "SELECT u.record, l.holder, l.token FROM upload u LEFT JOIN lease l ON l.upload_id = u.id"
    " WHERE u.id = ?"
)
_HOLDER = "SELECT holder, token FROM lease WHERE upload_id = ?"
_RENEW = "SELECT 1 FROM lease WHERE token = ? AND holder = ?"


class SQLiteMetadataStore:
    """Implements `tidegate.ports.MetadataStore`, and HandingStore, in the file `path`.

    Beside it stand SQLite's own `-wal` and `-shm`, and a directory `-live` of lock files. The
    directory of `path` has to exist, on a local disk. `busy_timeout` is how many seconds to wait
    for someone else who has the database locked, before UnavailableError is raised.
    """

    capabilities = Capability.EXPIRY | Capability.PENDING
    shared = True
    leases_expire = False

    def __init__(
        self,
        path: Path,
        *,
        busy_timeout: float = 5.0,
        migrations: Sequence[schema.Migration] = schema.MIGRATIONS,
    ) -> None:
        self._path = path
        self._busy_timeout = busy_timeout
        self._migrations = migrations
        self.newest_schema = len(migrations)
        self._open = False
        self._outlet: Outlet | None = None
        self._look_at = 0.0

    # ------------------------------------------------------------------------ opening, closing

    async def open(self, boot_id: str = "") -> None:
        """Acquire what is needed, create or migrate the schema. Raises MetadataError."""
        await anyio.to_thread.run_sync(self._acquire)
        loop = asyncio.get_running_loop()
        self._leases = Leases(loop, self._liveness, self._writer, self._readers)
        self._holder = rows.Holder(self._liveness.holder, boot_id)
        self._writer.start(loop)
        self._open = True

    def _acquire(self) -> None:
        with contextlib.ExitStack() as stack:
            try:
                schema.check_place(self._path)
                folder = self._path.with_name(f"{self._path.name}-live")
                folder.mkdir(mode=0o700, exist_ok=True)
                turn = Turn(folder)
                stack.callback(turn.close)
                self._liveness = Liveness(folder)
                stack.callback(self._liveness.close)
                with turn.held_within(self._busy_timeout):
                    schema.prepare(
                        self._path, busy_timeout=self._busy_timeout, migrations=self._migrations
                    )
                    self._reader = schema.connect(
                        self._path, busy_timeout=self._busy_timeout, readonly=True
                    )
                    stack.callback(self._reader.close)
                    self._liveness.open(needed=sqlite_handed.holders(self._reader))
                self._handing = Handing(self._liveness.holder)
                stack.callback(self._handing.close)
                self._hands = self._handing.open(self._liveness.descriptor)
                self._writer = Writer(
                    self._path, turn, self._handing, busy_timeout=self._busy_timeout
                )
                self._writer.connect()
                stack.callback(self._writer.disconnect)
                # Reads the schema and opens the log, which another process that starts now may be
                # recovering after a crash, or one that ends may be closing.
                self._reader.execute(_LOAD, ("",)).fetchone()
                # From now on it is used on the event loop, and never waits.
                self._reader.execute("PRAGMA busy_timeout = 0")
                stack.callback(self._die)
                self._readers = Readers(self._path, busy_timeout=self._busy_timeout)
                stack.callback(self._readers.close)
            except TimeoutError as error:
                raise UnavailableError(f"{self._path}: locked by another process") from error
            except (OSError, sqlite3.Error) as error:
                raise schema.open_error(self._path, error) from error
            self._acquired = stack.pop_all()

    def _die(self) -> None:
        """Be found dead; if something is left that was handed over, with what is marked as told."""
        try:
            needed = self._liveness.holder in sqlite_handed.holders(self._reader)
        except sqlite3.Error:
            needed = True
        self._liveness.close(needed=needed)

    async def close(self) -> None:
        """Finish what was begun, and let go of all that `open` acquired. May be called twice."""
        if not self._open:
            return
        self._open = False
        self._leases.close()
        self._writer.stop()
        with anyio.CancelScope(shield=True):
            # Not when another process sleeps in the middle of a transaction, and so our writer's
            # thread can't end: it still needs what was acquired.
            if await anyio.to_thread.run_sync(self._writer.join):
                await anyio.to_thread.run_sync(self._acquired.close)
        self._writer.give_up()

    async def schema_version(self) -> int:
        """The version of the schema, 0 when there is none; opens nothing. Raises MetadataError."""
        return await anyio.to_thread.run_sync(
            lambda: schema.version(self._path, self._busy_timeout)
        )

    # ------------------------------------------------------------------------------- records

    async def insert(
        self,
        upload: Upload,
        *,
        lease: bool = False,
        events: Sequence[Event] = (),
        durable: bool = False,
        room: Room | None = None,
    ) -> Grant | None:
        """Write a new record, and take its lease when asked to. See the port."""
        upload = replace(upload, version=upload.version + 1)
        record = encode(upload)
        outlet = self._outlet if events and self._outlet and self._outlet.has_room() else None
        told = () if outlet else [(event, encode(event)) for event in events]
        handed = encode(events) if outlet else b""
        granting = self._leases.granting(upload.id) if lease else None
        place: Place | None = None

        def run(db: sqlite3.Connection) -> Grant | None:
            nonlocal place
            place = self._handing.reserve(db, len(events)) if handed else None
            rows.insert(db, upload, record, told, room, place and place.batch.first)
            granted = None
            if granting is not None:
                token = rows.grant(db, upload.id, self._holder)
                granted = granting.grant(rows.Taken(token, upload))
            if place is not None:
                self._handing.add(place, handed)
            return granted

        def undo() -> None:
            if handed:
                self._handing.refused()
            if granting is not None:
                granting.undo()

        def settle(granted: Grant | None) -> None:
            if granting is not None:
                granting.settle(granted)
            if outlet is not None and place is not None:
                first = place.first
                deliveries = [Delivery(first + n, event, 0) for n, event in enumerate(events)]
                line = Line(upload.id, HANDED, tuple(deliveries))
                self._handing.committed(place.batch, line)
                outlet.take(line)

        return await self._writer.submit(
            Operation(
                run,
                durable=durable,
                # Of what is done after the record was inserted, nothing is refused.
                single=granting is None and room is None and upload.kind is not Kind.FINAL,
                settle=settle,
                undo=undo,
                unwanted=None if granting is None else granting.unwanted,
            )
        )

    async def load(self, upload_id: UploadId) -> Loaded | None:
        """The record and its hold, or None."""
        row = await self._read(_LOAD, upload_id)
        if row is None:
            return None
        record, holder, token = row
        return Loaded(decode_upload(record), await self._hold(holder, token))

    async def _hold(self, holder: str | None, token: int) -> Hold:
        if holder is None:
            return Hold.FREE
        if self._leases.is_foreign(holder):
            alive = await self._in_thread(lambda _: self._leases.is_alive(holder, token))
        else:
            alive = self._leases.is_alive(holder, token)
        return Hold.HELD if alive else Hold.ABANDONED

    async def segments(self, upload_id: UploadId) -> list[Segment]:
        """By index."""
        return await self._in_thread(lambda db: rows.segments(db, upload_id))

    # -------------------------------------------------------------------------------- leases

    async def acquire(self, upload_id: UploadId, *, force: bool = False) -> Grant | Held:
        """Take the upload's lease if it is free, or its holder is dead. See the port."""
        granting = self._leases.granting(upload_id)

        def run(db: sqlite3.Connection) -> Grant | Held:
            taken = rows.acquire(
                db, upload_id, self._holder, force=force, is_alive=self._leases.is_alive
            )
            return granting.grant(taken) if isinstance(taken, rows.Taken) else Held(taken)

        return await self._writer.submit(
            Operation(run, undo=granting.undo, settle=granting.settle, unwanted=granting.unwanted)
        )

    async def request_release(self, upload_id: UploadId) -> None:
        """Ask the holder to let go."""
        row = await self._read(_HOLDER, upload_id)
        if row is None or row[0] == rows.ABANDONED:
            return
        holder, token = row
        if self._leases.is_foreign(holder):
            await self._writer.submit(Operation(lambda db: rows.want_release(db, upload_id)))
        else:
            self._leases.want(token)

    async def wait_released(self, upload_id: UploadId, timeout: float) -> None:
        """Return when the lease may be free, or after `timeout` seconds."""
        with anyio.move_on_after(timeout):
            while self._open:
                # Entered before the look, so that what happens after the look is not missed.
                with self._leases.waiter(upload_id) as released:
                    row = await self._read(_HOLDER, upload_id)
                    if row is None or await self._hold(*row) is not Hold.HELD:
                        return
                    with anyio.move_on_after(_WATCH if self._leases.is_foreign(row[0]) else 1):
                        await released.wait()

    async def renew(self, lease: Lease) -> None:
        """Look whether the lease is still held: here it never expires while we live."""
        if self._leases.holds(lease):
            if await self._read(_RENEW, lease.token, lease.holder):
                return
            self._leases.lose(lease)
        raise LeaseLostError(lease.upload_id)

    async def commit(self, lease: Lease, change: Change) -> Upload:
        """Carry out `change`, fenced by `lease`. See the port."""
        upload = replace(change.upload, version=change.upload.version + 1)
        record = encode(upload)
        segments = [(segment.index, encode(segment)) for segment in change.segments]
        events = [(event, encode(event)) for event in change.events]

        def run(db: sqlite3.Connection) -> Upload:
            if not self._leases.holds(lease):
                raise LeaseLostError(upload.id)
            rows.commit(db, lease, self._holder.boot_id, change, upload, record, segments, events)
            return upload

        def settle(_: Upload) -> None:
            if change.release or change.forget:
                self._leases.drop(lease)

        try:
            return await self._writer.submit(Operation(run, durable=change.durable, settle=settle))
        except LeaseLostError:
            self._leases.lose(lease)
            raise

    async def release(self, lease: Lease) -> None:
        """Let go, settled. When that cannot be written down, the lease is abandoned."""
        if not self._leases.holds(lease):
            return
        try:
            await self._leases.release(lease)
        except MetadataError:
            self._leases.abandon(lease)
            raise

    def abandon(self, lease: Lease) -> None:
        """Let go without a word: whoever comes next must recover."""
        self._leases.abandon(lease)

    # --------------------------------------------------------------------------------- lists

    async def pending_finals(self, part: UploadId | None = None) -> list[UploadId]:
        """Final uploads that are still receiving: all, or those that need `part`."""
        return await self._in_thread(lambda db: rows.pending_finals(db, part))

    def uploads(
        self, *, state: State | None = None, kind: Kind | None = None
    ) -> AsyncIterator[Upload]:
        """All records (of a state, of a kind) by id. What changes meanwhile may be missed."""

        def page(after: str) -> Awaitable[list[Upload]]:
            return self._in_thread(lambda db: rows.uploads_after(db, after, state, kind, _PAGE))

        return paged("", page, lambda upload: upload.id)

    def undone(self) -> AsyncIterator[Upload]:
        """All records that are `undone`, by id. What changes meanwhile may be missed."""

        def page(after: str) -> Awaitable[list[Upload]]:
            return self._in_thread(lambda db: rows.undone_after(db, after, _PAGE))

        return paged("", page, lambda upload: upload.id)

    async def expired(self, now: float, limit: int) -> list[UploadId]:
        """Uploads whose time is up, that nobody holds alive; oldest first. See the port."""
        return await self._in_thread(lambda db: rows.expired(db, now, limit, self._leases.is_alive))

    async def tombstones(self, ended_before: float, limit: int) -> list[UploadId]:
        """Expired, terminated and failed uploads that ended before a time, oldest first."""
        return await self._in_thread(lambda db: rows.tombstones(db, ended_before, limit))

    async def take_turn(self, name: str, now: float, ttl: float) -> bool:
        """Be the one who does `name` for `ttl` seconds, unless someone else who is alive is."""
        holder, is_alive = self._holder.id, self._liveness.is_alive
        return await self._writer.submit(
            Operation(lambda db: rows.take_turn(db, name, holder, now, ttl, is_alive))
        )

    async def end_turn(self, name: str) -> None:
        """Let someone else have the turn, if it is ours."""
        holder = self._holder.id
        await self._writer.submit(Operation(lambda db: rows.end_turn(db, name, holder)))

    # -------------------------------------------------------------------------------- events

    def hand_over(self, outlet: Outlet | None) -> None:
        """Hand the first events of uploads to it. See ports.HandingStore."""
        self._outlet = outlet if self._hands else None

    def told(self, line: Line, sequence: int) -> bool:
        """Note that all who want it took an event. See ports.HandingStore."""
        return self._handing.told(line, sequence)

    async def claim_events(self, now: float, limit: int, ttl: float) -> list[Line]:
        """Take what uploads have to tell for delivery, for `ttl` seconds. See the port."""
        await self._take_back()
        # Asked every moment, mostly in vain: that must not cost a turn at writing.
        if await self._read(sqlite_events.ANY_DUE, now) is None:
            return []
        return await self._writer.submit(
            Operation(lambda db: sqlite_events.claim(db, now, limit, ttl))
        )

    async def _take_back(self) -> None:
        """Have what was handed to those that died since delivered by anyone."""
        if anyio.current_time() < self._look_at:
            return
        self._look_at = anyio.current_time() + _LOOK_AT_OUTLETS

        def dead(db: sqlite3.Connection) -> list[str]:
            others = [one for one in sqlite_handed.holders(db) if one != self._holder.id]
            return [one for one in others if not self._liveness.is_alive(one)]

        for holder in await self._in_thread(dead):
            await self._writer.submit(Operation(functools.partial(self._take_back_of, holder)))
            await self._in_thread(functools.partial(self._clear, holder))

    def _take_back_of(self, holder: str, db: sqlite3.Connection) -> None:
        sqlite_handed.take_back(db, holder, self._told_by(holder))

    def _clear(self, holder: str, _: sqlite3.Connection) -> None:
        self._liveness.clear(holder)

    def _told_by(self, holder: str) -> frozenset[int]:
        return Marks.read(self._liveness.file(holder))

    async def end_claims(self, ended: Sequence[Ended]) -> list[UploadId]:
        """Note what became of lines, and let go of them. See the port."""
        outcome = self._handing.outcome(ended)

        def run(db: sqlite3.Connection) -> list[UploadId]:
            for first, out in outcome.out.items():
                sqlite_handed.take_out(db, first, out)
            lost = sqlite_events.end_claims(db, outcome.lines)
            if outcome.over:
                sqlite_handed.forget(
                    db,
                    [batch.first for batch in outcome.over],
                    [upload_id for batch in outcome.over for upload_id in batch.uploads],
                )
            return lost

        def settle(_: object) -> None:
            self._handing.noted(ended, outcome)

        return await self._writer.submit(Operation(run, settle=settle))

    def events(self) -> AsyncIterator[Undelivered]:
        """All events that are kept, by sequence."""

        def page(after: int) -> Awaitable[list[Undelivered]]:
            return self._in_thread(lambda db: sqlite_events.events(db, after, _PAGE, self._told_by))

        return paged(0, page, lambda undelivered: undelivered.delivery.sequence)

    async def replay(self, sequence: int) -> bool:
        """Have an event that was given up delivered after all. See the port."""
        return await self._writer.submit(Operation(lambda db: sqlite_events.replay(db, sequence)))

    def queued(self) -> int:
        """How many writes wait. See ports.QueuedStore."""
        return self._writer.waiting if self._open else 0

    async def counts(self) -> Counts:
        """How much there is; reads an entry of an index for each upload."""
        return await self._in_thread(lambda db: sqlite_events.counts(db, self._told_by))

    # --------------------------------------------------------------------------------- reads

    async def _read(self, sql: str, *values: str | float) -> Any:
        """One row, on the event loop; in a thread when somebody has the database locked."""
        if not self._open:
            raise UnavailableError("the metadata database is closed")
        try:
            return self._reader.execute(sql, values).fetchone()
        except sqlite3.Error:
            return await self._in_thread(lambda db: db.execute(sql, values).fetchone())

    async def _in_thread(self, read: Callable[[sqlite3.Connection], T]) -> T:
        if not self._open:
            raise UnavailableError("the metadata database is closed")
        try:
            return await self._readers.submit(read)
        except (sqlite3.Error, OSError) as error:
            raise schema.translate(error) from error


if TYPE_CHECKING:
    _: type[MetadataStore] = SQLiteMetadataStore
    _hands: type[HandingStore] = SQLiteMetadataStore
