"""Records, leases, segments and events in Redis (7 or newer) or Valkey, for servers on many machines.

Every change is one Lua script, which Redis runs alone and logs in one piece (`scripts`).

What was acknowledged survives a crash of Redis and of its machine only with `appendonly yes` and
`appendfsync always`; anything else is refused, unless the URL says `durability=unchecked`. Whatever
the settings, replication is behind the answers: after a failover to a replica, the last moments of
what was acknowledged may be gone: records may say less than their uploads' clients were told, and
uploads that were shown as complete may be unfinished. No setting of Redis rules that out. Where it
must not happen, have no failover that goes by itself, or choose PostgreSQL.

Leases expire by the clock of Redis when a process is not heard of for `lease_ttl` seconds. No commit
that was made under a lease that someone else took goes through.

A Redis with rules (ACL) must allow scripts, the keys `{PREFIX}:*` and the channels `{PREFIX}:told:*`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
from msgspec.structs import replace

from tidegate.metadata.certificates import unreadable
from tidegate.metadata.encoding import decode_segment, decode_upload, encode
from tidegate.metadata.paging import paged
from tidegate.metadata.redis import events as redis_events
from tidegate.metadata.redis import opening as redis_opening
from tidegate.metadata.redis import scripts
from tidegate.metadata.redis import url as redis_url
from tidegate.metadata.redis.leases import Leases
from tidegate.metadata.redis.link import Link, score
from tidegate.ports import (
    Grant,
    Held,
    Hold,
    Lease,
    LeaseLostError,
    Loaded,
    MetadataError,
    OverLimitError,
    PartUnavailableError,
    PinnedError,
    UnavailableError,
    UnknownUploadError,
    UploadExistsError,
)
from tidegate.protocol.capabilities import Capability
from tidegate.protocol.lifecycle import may_expire
from tidegate.protocol.model import Kind, UploadId

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence

    from tidegate.metadata.redis.link import Once
    from tidegate.ports import Change, Counts, Ended, Line, MetadataStore, Room, Undelivered
    from tidegate.protocol.model import Event, Segment, State, Upload

_PAGE = 256
# Seconds between two looks at a lease that is waited for: when another process has it, since its
# word may not arrive; and when our own has it, which wakes us by itself.
_WATCH, _WATCH_OWN = 0.1, 1.0


class RedisMetadataStore:
    """Implements `tidegate.ports.MetadataStore` in the Redis at `url`: see `url`.

    `patience` is how many seconds an outage is borne before UnavailableError is raised. Raises
    ValueError when the URL is none of a Redis.
    """

    capabilities = Capability.EXPIRY | Capability.PENDING
    shared = True
    leases_expire = True

    def __init__(self, url: str, *, patience: float = 5.0) -> None:
        self._address = redis_url.parse(url)
        self._patience = patience
        self._link: Link | None = None

    # ------------------------------------------------------------------------ opening, closing

    async def open(self, boot_id: str = "") -> None:
        """Acquire what is needed, and see that Redis keeps what it is told. Raises MetadataError."""
        url = self._address.driver_url
        if why := await anyio.to_thread.run_sync(unreadable, url, redis_url.FILES):
            raise MetadataError(f"{self._address.shown}: {why}")
        link = Link(self._address, boot_id=boot_id, patience=self._patience)
        try:
            await redis_opening.prepare(link)
            self._leases = Leases(link)
            await self._leases.open()
        except BaseException:
            with anyio.CancelScope(shield=True):
                await link.close()
            raise
        self._link = link

    async def close(self) -> None:
        """Finish what was begun, and let go of all that `open` acquired. May be called twice."""
        link, self._link = self._link, None
        if link is not None:
            with anyio.CancelScope(shield=True):
                await self._leases.close()
                await link.close()

    @property
    def _open(self) -> Link:
        if self._link is None:
            raise UnavailableError(f"{self._address.shown}: the metadata store is closed")
        return self._link

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
        link = self._open
        upload = replace(upload, version=upload.version + 1)
        arguments = {
            "id": upload.id,
            "kind": upload.kind.value,
            "parts": _parts(upload),
            "new": _fields(upload),
            "events": redis_events.fields(events),
            "lease": lease,
        }
        if room is not None:
            limits = {"unfinished": room.unfinished, "missing": room.missing}
            arguments |= {name: str(most) for name, most in limits.items() if most is not None}

        async def insert(once: Once) -> Grant | None:
            what, *rest = await link.run_once(scripts.INSERT, once, **arguments)
            if what == b"ok":
                return self._leases.grant(upload, rest[0]) if lease else None
            if what == b"exists":
                raise UploadExistsError(upload.id)
            if what == b"part":
                raise PartUnavailableError(UploadId(rest[0].decode()))
            sum_ = int(rest[0])
            if what == b"over":
                raise OverLimitError(f"unfinished uploads would come to {sum_} bytes")
            raise OverLimitError(f"unfinished uploads would still need {sum_} bytes")

        return await self._leases.granted_by(upload.id, insert)

    async def load(self, upload_id: UploadId) -> Loaded | None:
        """The record and its hold, or None."""
        link = self._open
        given_up = self._leases.abandoned(upload_id)
        record, token, holder = await link.command("HMGET", link.key("u", upload_id), "r", "t", "h")
        if record is None:
            return None
        hold = await self._hold(link, token, holder, given_up)
        return Loaded(decode_upload(record), hold)

    async def _hold(
        self, link: Link, token: bytes | None, holder: bytes | None, given_up: Mapping[str, bool]
    ) -> Hold:
        """`given_up` is what was, before Redis was asked: by now Redis may know, and we not."""
        if token is None or holder is None:
            return Hold.FREE
        name = holder.decode()
        if not name or token.decode() in given_up:
            return Hold.ABANDONED
        if name != link.holder:
            alive = await link.command("EXISTS", link.key("holder", name))
        else:
            alive = not self._leases.is_abandoned(int(token))
        return Hold.HELD if alive else Hold.ABANDONED

    async def segments(self, upload_id: UploadId) -> list[Segment]:
        """By index."""
        link = self._open
        found = await link.command("HGETALL", link.key("seg", upload_id))
        return sorted(map(decode_segment, found.values()), key=lambda segment: segment.index)

    # -------------------------------------------------------------------------------- leases

    async def acquire(self, upload_id: UploadId, *, force: bool = False) -> Grant | Held:
        """Take the upload's lease if it is free, or its holder is dead. See the port."""
        link = self._open

        async def acquire(once: Once) -> Grant | Held:
            what, *rest = await link.run_once(
                scripts.ACQUIRE,
                once,
                id=upload_id,
                force=force,
                abandoned=self._leases.abandoned(upload_id),
            )
            if what == b"unknown":
                raise UnknownUploadError(upload_id)
            upload = decode_upload(rest[0])
            if what == b"held":
                return Held(upload)
            _, token, previous, boot = rest
            return self._leases.grant(upload, token, previous=previous, boot_id=boot)

        return await self._leases.granted_by(upload_id, acquire)

    async def request_release(self, upload_id: UploadId) -> None:
        """Ask the holder to let go."""
        link = self._open
        if not self._leases.want(upload_id):
            await link.run(scripts.WANT, id=upload_id)

    async def wait_released(self, upload_id: UploadId, timeout: float) -> None:
        """Return when the lease may be free, or after `timeout` seconds."""
        with anyio.move_on_after(timeout):
            while link := self._link:
                # Entered before the look, so that what happens after the look is not missed.
                with self._leases.waiter(upload_id) as released:
                    given_up = self._leases.abandoned(upload_id)
                    found = await link.run(scripts.WATCH, id=upload_id)
                    if found is None or found[1].decode() in given_up:
                        return
                    own = found[0].decode() == link.holder
                    with anyio.move_on_after(_WATCH_OWN if own else _WATCH):
                        await released.wait()

    async def renew(self, lease: Lease) -> None:
        """See that the lease is held still, and keep it from expiring for a while."""
        if self._link is None:
            raise UnavailableError(f"{self._address.shown}: the metadata store is closed")
        await self._leases.renew(lease)

    async def commit(self, lease: Lease, change: Change) -> Upload:
        """Carry out `change`, fenced by `lease`. See the port."""
        link = self._open
        if not self._leases.holds(lease) or change.upload.id != lease.upload_id:
            raise LeaseLostError(lease.upload_id)
        upload = replace(change.upload, version=change.upload.version + 1)
        what, *rest = await link.run_once(
            scripts.COMMIT_END if change.forget or upload.gone else scripts.COMMIT,
            link.once(),
            id=upload.id,
            kind=upload.kind.value,
            token=str(lease.token),
            version=str(change.upload.version),
            unless_pinned=change.unless_pinned,
            forget=change.forget,
            release=change.release,
            parts=_parts(upload),
            new=_fields(upload),
            segments=[
                {"index": str(segment.index), "record": encode(segment).decode()}
                for segment in change.segments
            ],
            events=redis_events.fields(change.events),
        )
        if what == b"pinned":
            raise PinnedError(upload.id)
        if what != b"ok":
            self._leases.lose(lease)
            now = f": version {change.upload.version}, now {int(rest[0])}" if rest else ""
            raise LeaseLostError(f"{upload.id}{now}")
        if change.release or change.forget:
            self._leases.drop(lease)
        return upload

    async def release(self, lease: Lease) -> None:
        """Let go, settled. When that cannot be written down, the lease is abandoned."""
        if self._link is not None:
            await self._leases.release(lease)

    def abandon(self, lease: Lease) -> None:
        """Let go without a word: whoever comes next must recover."""
        if self._link is not None:
            self._leases.abandon(lease)

    # --------------------------------------------------------------------------------- lists

    async def pending_finals(self, part: UploadId | None = None) -> list[UploadId]:
        """Final uploads that are still receiving: all, or those that need `part`."""
        link = self._open
        key = link.key("finals") if part is None else link.key("pins", part)
        return _ids(await link.command("ZRANGE", key, "0", "-1"))

    def uploads(
        self, *, state: State | None = None, kind: Kind | None = None
    ) -> AsyncIterator[Upload]:
        """All records (of a state, of a kind) by id. What changes meanwhile may be missed."""
        return self._listed("ids" if state is None else f"in:{state.value}", kind)

    def undone(self) -> AsyncIterator[Upload]:
        """All records that are `undone`, by id. What changes meanwhile may be missed."""
        return self._listed("undone")

    async def _listed(self, index: str, kind: Kind | None = None) -> AsyncIterator[Upload]:
        after: str | None = "-"
        while after is not None:
            last, *records = await self._open.run(
                scripts.PAGE, index=index, after=after, limit=_PAGE, kind=kind and kind.value
            )
            for record in records:
                yield decode_upload(record)
            after = None if last is None else f"({last.decode()}"

    async def expired(self, now: float, limit: int) -> list[UploadId]:
        """Uploads whose time is up, that nobody holds alive; oldest first. See the port."""
        found = await self._open.run(
            scripts.EXPIRED, now=score(now), limit=limit, abandoned=self._leases.abandoned()
        )
        return _ids(found)

    async def tombstones(self, ended_before: float, limit: int) -> list[UploadId]:
        """Expired, terminated and failed uploads that ended before a time, oldest first."""
        link = self._open
        found = await link.command(
            "ZRANGEBYSCORE", link.key("ended"), "-inf", f"({score(ended_before)}",
            "LIMIT", "0", str(limit),
        )  # fmt: skip
        return _ids(found)

    async def take_turn(self, name: str, now: float, ttl: float) -> bool:
        """Be the one who does `name` for `ttl` seconds, unless someone else who is alive is."""
        ends = score(now + ttl)
        return bool(await self._open.run(scripts.TAKE_TURN, name=name, now=score(now), ends=ends))

    async def end_turn(self, name: str) -> None:
        """Let someone else have the turn, if it is ours."""
        await self._open.run(scripts.END_TURN, name=name)

    # -------------------------------------------------------------------------------- events

    async def claim_events(self, now: float, limit: int, ttl: float) -> list[Line]:
        """Take what uploads have to tell for delivery, for `ttl` seconds. See the port."""
        return await redis_events.claim(self._open, now, limit, ttl)

    async def end_claims(self, ended: Sequence[Ended]) -> list[UploadId]:
        """Note what became of lines, and let go of them. See the port."""
        return await redis_events.end_claims(self._open, ended)

    def events(self) -> AsyncIterator[Undelivered]:
        """All events that are kept, by sequence."""

        def page(after: int) -> Awaitable[list[Undelivered]]:
            return redis_events.events(self._open, after, _PAGE)

        return paged(0, page, lambda undelivered: undelivered.delivery.sequence)

    async def replay(self, sequence: int) -> bool:
        """Have an event that was given up delivered after all. See the port."""
        return await redis_events.replay(self._open, sequence)

    async def counts(self) -> Counts:
        """How much there is, from the sizes of the indexes."""
        return await redis_events.counts(self._open)


def _fields(upload: Upload) -> dict[str, str]:
    """What the scripts write down of a record, and find it by. Numbers are exact as text only."""
    fields = {
        "record": encode(upload).decode(),
        "version": str(upload.version),
        "state": upload.state.value,
        "promised": str(upload.promised),
        "stored": str(upload.offset),
    }
    if upload.expires_at is not None and may_expire(upload):
        fields["expires"] = score(upload.expires_at)
    if upload.ended_at is not None and upload.gone:
        fields["ended"] = score(upload.ended_at)
    if upload.undone:
        fields["undone"] = "0"
    return fields


def _parts(upload: Upload) -> list[str]:
    return list(dict.fromkeys(upload.parts)) if upload.kind is Kind.FINAL else []


def _ids(found: list[bytes]) -> list[UploadId]:
    return [UploadId(upload_id.decode()) for upload_id in found]


if TYPE_CHECKING:
    _: type[MetadataStore] = RedisMetadataStore
