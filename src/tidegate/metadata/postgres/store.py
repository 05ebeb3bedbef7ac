"""Records, leases, segments and events in PostgreSQL, which the servers of a cluster share.

What the tables hold is in `schema`; what is done to them, in `rows`,
`holds`, `lists` and `events`; how a call survives a lost connection, in `pool`.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from typing import TYPE_CHECKING, TypeVar

import anyio
from msgspec.structs import replace

from tidegate.metadata.paging import paged
from tidegate.metadata.postgres import events as postgres_events
from tidegate.metadata.postgres import holds, rows
from tidegate.metadata.postgres import lists as postgres_lists
from tidegate.metadata.postgres import schema as postgres_schema
from tidegate.metadata.postgres.address import parse
from tidegate.metadata.postgres.leases import Leases
from tidegate.metadata.postgres.pool import Pool
from tidegate.metadata.postgres.presence import Presence
from tidegate.ports import (
    Grant,
    Held,
    Lease,
    LeaseLostError,
    Loaded,
    MetadataError,
    UnavailableError,
    UnknownUploadError,
)
from tidegate.protocol.capabilities import Capability

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from tidegate.metadata.postgres.link import Link
    from tidegate.metadata.postgres.schema import Migration
    from tidegate.ports import Change, Counts, Ended, Line, MetadataStore, Room, Undelivered
    from tidegate.protocol.model import Event, Kind, Segment, State, Upload, UploadId

T = TypeVar("T")

_PAGE = 256
# Seconds between two looks at a lease that another process holds: where its release is told, and
# where it is not.
_WATCH_TOLD, _WATCH = 0.5, 0.05
# How long a process may wait for another one that migrates the same tables.
_MIGRATION = 600.0


class PostgresMetadataStore:
    """Implements `tidegate.ports.MetadataStore` in the database at `url`.

    See `address` for what a URL may say. Raises AddressError. Every commit waits until it
    is synced, as the database is configured to: an acknowledged offset must survive the death of
    any process, PostgreSQL's own included.
    """

    capabilities = Capability.EXPIRY | Capability.PENDING
    shared = True
    leases_expire = True

    def __init__(
        self, url: str, *, migrations: Sequence[Migration] = postgres_schema.MIGRATIONS
    ) -> None:
        self.address = parse(url)
        self.newest_schema = len(migrations)
        self._migrations = migrations
        self._pool: Pool | None = None

    # ------------------------------------------------------------------------ opening, closing

    async def open(self, boot_id: str = "") -> None:
        """Connect, create or migrate the schema, come alive. Raises MetadataError."""
        async with contextlib.AsyncExitStack() as stack:
            pool = Pool(self.address)
            stack.push_async_callback(pool.close)
            await pool.run(postgres_schema.version)  # fails soon where nobody is there
            await pool.run(self._prepare, patience=_MIGRATION)
            self._holder = holds.Holder(secrets.token_hex(8), boot_id)
            self._leases = Leases(self._holder.id)
            self._left: dict[UploadId, set[asyncio.Task[None]]] = {}
            self._presence = Presence(self.address, pool, self._leases)
            await self._presence.begin()
            stack.push_async_callback(self._presence.end)
            self._opened = stack.pop_all()
        self._pool = pool

    async def _prepare(self, link: Link) -> None:
        await postgres_schema.prepare(link, self._migrations)

    async def close(self) -> None:
        """Finish what was begun, and let go of all that `open` acquired. May be called twice."""
        if self._pool is None:
            return
        pool, self._pool = self._pool, None
        self._leases.wake_all()
        with anyio.CancelScope(shield=True):
            await pool.finish()
            await self._opened.aclose()

    async def schema_version(self) -> int:
        """The version of the tables, 0 when there are none; opens nothing. Raises MetadataError."""
        pool = Pool(self.address)
        try:
            return await pool.run(postgres_schema.version)
        finally:
            with anyio.CancelScope(shield=True):
                await pool.close()

    # ------------------------------------------------------------------------------- records

    async def insert(
        self,
        upload: Upload,
        *,
        lease: bool = False,
        events: Sequence[Event] = (),
        durable: bool = False,  # noqa: ARG002  (everything is)
        room: Room | None = None,
    ) -> Grant | None:
        """Write a new record, and take its lease when asked to. See the port."""
        upload = replace(upload, version=upload.version + 1)
        call = _new_call()
        key = postgres_schema.second_key(self.address.schema)
        holder = self._holder if lease else None

        async def work(link: Link) -> holds.Taken:
            token = await rows.insert(link, upload, holder, events, call, room, key)
            return holds.Taken(token, upload, settled=True)

        if not lease:
            await self._run(work)
            return None
        granted = await self._granting(upload.id, call, work)
        assert isinstance(granted, Grant)  # noqa: S101  (a new record is held by nobody else)
        return granted

    async def load(self, upload_id: UploadId) -> Loaded | None:
        """The record and its hold, or None."""
        if not _is_text(upload_id):
            return None
        return await self._run(
            lambda link: postgres_lists.load(link, upload_id, list(self._leases.abandoned))
        )

    async def segments(self, upload_id: UploadId) -> list[Segment]:
        """By index."""
        return await self._run(lambda link: postgres_lists.segments(link, upload_id))

    # -------------------------------------------------------------------------------- leases

    async def acquire(self, upload_id: UploadId, *, force: bool = False) -> Grant | Held:
        """Take the upload's lease if it is free, or its holder is dead. See the port."""
        if not _is_text(upload_id):
            raise UnknownUploadError(upload_id)
        call = _new_call()

        async def work(link: Link) -> holds.Taken | Upload:
            abandoned = list(self._leases.abandoned)
            return await holds.acquire(link, upload_id, self._holder, abandoned, call, force=force)

        return await self._granting(upload_id, call, work)

    async def _granting(
        self,
        upload_id: UploadId,
        call: int,
        work: Callable[[Link], Awaitable[holds.Taken | Upload]],
    ) -> Grant | Held:
        """Do what may be granted a lease, which nobody is left with when the caller goes away."""
        pool, leases = self._opened_pool(), self._leases

        async def take() -> Grant | Held:
            try:
                taken = await pool.attempt(work)
            except UnavailableError:
                leases.doubtful[call] = upload_id
                raise
            if isinstance(taken, holds.Taken):
                return leases.grant(upload_id, taken)
            return Held(taken)

        # Not before what an earlier caller left behind has let go.
        while left := self._left.get(upload_id):
            await asyncio.wait(left)
        task = pool.begin(take())
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            left = self._left.setdefault(upload_id, set())
            undone = pool.begin(self._undo(pool, upload_id, task))
            left.add(undone)
            raise

    async def _undo(
        self, pool: Pool, upload_id: UploadId, task: asyncio.Task[Grant | Held]
    ) -> None:
        """Whoever asked went away, so nothing was written under this lease: let it go."""
        try:
            with contextlib.suppress(MetadataError):
                grant = await task
                if isinstance(grant, Grant) and grant.settled:
                    await self._release(pool, grant.lease)
                elif isinstance(grant, Grant):
                    self.abandon(grant.lease)
        finally:
            left = self._left[upload_id]
            left.discard(asyncio.current_task())
            if not left:
                del self._left[upload_id]

    async def request_release(self, upload_id: UploadId) -> None:
        """Ask the holder to let go."""
        self._leases.want_upload(upload_id)
        await self._run(lambda link: holds.want_release(link, upload_id, self._holder.id))

    async def wait_released(self, upload_id: UploadId, timeout: float) -> None:
        """Return when the lease may be free, or after `timeout` seconds."""
        with anyio.move_on_after(timeout):
            while self._pool is not None:
                # Entered before the look, so that what happens after the look is not missed.
                with self._leases.waiter(upload_id) as released:
                    if await self._run(lambda link: self._is_free(link, upload_id)):
                        return
                    watch = _WATCH_TOLD if self._presence.listening else _WATCH
                    with anyio.move_on_after(watch):
                        await released.wait()

    async def _is_free(self, link: Link, upload_id: UploadId) -> bool:
        held = await postgres_lists.held(link, upload_id, list(self._leases.abandoned))
        if held is not None and held.late and held.holder != self._holder.id:
            await self._presence.probe(link, held.holder)
            held = await postgres_lists.held(link, upload_id, list(self._leases.abandoned))
        return held is None

    async def renew(self, lease: Lease) -> None:
        """See that the lease is held still, and make it last. See the port."""
        if self._leases.holds(lease):
            if await self._run(
                lambda link: self._presence.renew(link, lease.upload_id, lease.token)
            ):
                return
            self._lose(lease)
        raise LeaseLostError(lease.upload_id)

    async def commit(self, lease: Lease, change: Change) -> Upload:
        """Carry out `change`, fenced by `lease`. See the port."""
        upload = replace(change.upload, version=change.upload.version + 1)
        if not self._leases.holds(lease) or lease.upload_id != upload.id:
            self._lose(lease)
            raise LeaseLostError(lease.upload_id)
        pool, call, boot_id = self._opened_pool(), _new_call(), self._holder.boot_id

        async def carry_out() -> Upload:
            try:
                await pool.attempt(
                    lambda link: rows.commit(link, lease, boot_id, change, upload, call)
                )
            except LeaseLostError:
                self._lose(lease)
                raise
            if change.release or change.forget:
                self._leases.drop(lease)
            return upload

        return await asyncio.shield(pool.begin(carry_out()))

    async def release(self, lease: Lease) -> None:
        """Let go, settled. When that cannot be written down, the lease is abandoned."""
        if self._leases.holds(lease):
            pool = self._opened_pool()
            await asyncio.shield(pool.begin(self._release(pool, lease)))

    async def _release(self, pool: Pool, lease: Lease) -> None:
        try:
            await pool.attempt(lambda link: holds.release(link, lease))
        except MetadataError:
            self.abandon(lease)
            raise
        self._leases.drop(lease)

    def abandon(self, lease: Lease) -> None:
        """Let go without a word: whoever comes next must recover."""
        if self._leases.abandon(lease) and self._pool is not None:
            # What fails is done with a heartbeat; a holder that dies abandons all that it has.
            self._pool.begin(self._pool.attempt(self._presence.tell_abandoned))

    def _lose(self, lease: Lease) -> None:
        """What is said to be lost must not look held: nobody will let it go any more."""
        if self._leases.holds(lease):
            self._leases.want(lease.token)
            self.abandon(lease)

    # --------------------------------------------------------------------------------- lists

    async def pending_finals(self, part: UploadId | None = None) -> list[UploadId]:
        """Final uploads that are still receiving: all, or those that need `part`."""
        return await self._run(lambda link: postgres_lists.pending_finals(link, part))

    def uploads(
        self, *, state: State | None = None, kind: Kind | None = None
    ) -> AsyncIterator[Upload]:
        """All records (of a state, of a kind) by id. What changes meanwhile may be missed."""

        def page(after: str) -> Awaitable[list[Upload]]:
            return self._run(
                lambda link: postgres_lists.uploads_after(link, after, state, kind, _PAGE)
            )

        return paged("", page, lambda upload: upload.id)

    def undone(self) -> AsyncIterator[Upload]:
        """All records that are `undone`, by id. What changes meanwhile may be missed."""

        def page(after: str) -> Awaitable[list[Upload]]:
            return self._run(lambda link: postgres_lists.undone_after(link, after, _PAGE))

        return paged("", page, lambda upload: upload.id)

    async def expired(self, now: float, limit: int) -> list[UploadId]:
        """Uploads whose time is up, that nobody holds alive; oldest first. See the port."""
        abandoned = list(self._leases.abandoned)
        return await self._run(lambda link: postgres_lists.expired(link, now, abandoned, limit))

    async def tombstones(self, ended_before: float, limit: int) -> list[UploadId]:
        """Expired, terminated and failed uploads that ended before a time, oldest first."""
        return await self._run(lambda link: postgres_lists.tombstones(link, ended_before, limit))

    async def take_turn(self, name: str, now: float, ttl: float) -> bool:
        """Be the one who does `name` for `ttl` seconds, unless someone else who is alive is."""
        holder = self._holder.id
        return await self._run(lambda link: postgres_lists.take_turn(link, name, holder, now, ttl))

    async def end_turn(self, name: str) -> None:
        """Let someone else have the turn, if it is ours."""
        await self._run(lambda link: postgres_lists.end_turn(link, name, self._holder.id))

    # -------------------------------------------------------------------------------- events

    async def claim_events(self, now: float, limit: int, ttl: float) -> list[Line]:
        """Take what uploads have to tell for delivery, for `ttl` seconds. See the port.

        What was claimed by a call whose answer was lost waits for the end of that claim.
        """
        return await self._run(lambda link: postgres_events.claim(link, now, limit, ttl))

    async def end_claims(self, ended: Sequence[Ended]) -> list[UploadId]:
        """Note what became of lines, and let go of them. See the port."""
        return await self._run(lambda link: postgres_events.end_claims(link, ended))

    def events(self) -> AsyncIterator[Undelivered]:
        """All events that are kept, by sequence."""

        def page(after: int) -> Awaitable[list[Undelivered]]:
            return self._run(lambda link: postgres_events.events(link, after, _PAGE))

        return paged(0, page, lambda undelivered: undelivered.delivery.sequence)

    async def replay(self, sequence: int) -> bool:
        """Have an event that was given up delivered after all. See the port."""
        return await self._run(lambda link: postgres_events.replay(link, sequence), once=True)

    async def counts(self) -> Counts:
        """How much there is; reads an entry of an index for each upload."""
        return await self._run(postgres_events.counts)

    # ------------------------------------------------------------------------------------------

    def _opened_pool(self) -> Pool:
        if self._pool is None:
            raise UnavailableError("the metadata database is closed")
        return self._pool

    async def _run(self, work: Callable[[Link], Awaitable[T]], *, once: bool = False) -> T:
        return await self._opened_pool().run(work, once=once)


def _is_text(upload_id: str) -> bool:
    """Whether PostgreSQL could have stored it: an id from a URL may have any character in it."""
    return "\0" not in upload_id and not any("\ud800" <= c <= "\udfff" for c in upload_id)


def _new_call() -> int:
    """A number that no other call has: 63 random bits."""
    return secrets.randbits(63)


if TYPE_CHECKING:
    _: type[MetadataStore] = PostgresMetadataStore
