"""Being alive, as other processes see it, and hearing what they want.

A process is alive for as long as its row says, by the database's clock: one heartbeat for all its
leases. Besides, it keeps one connection, where that is a session of its own, on which it hears at
once what others want, and which holds a lock that PostgreSQL drops when the process dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any

from tidegate.metadata.postgres import holds
from tidegate.metadata.postgres.errors import TROUBLE, translate
from tidegate.ports import MetadataError

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from tidegate.metadata.postgres.address import Address
    from tidegate.metadata.postgres.leases import Leases
    from tidegate.metadata.postgres.link import Link
    from tidegate.metadata.postgres.pool import Pool

log = logging.getLogger("tidegate.metadata")

# Seconds between two looks at what others want, where nobody tells us: the port allows 200 ms.
_POLL = 0.1
_BEAT = "beat"

# Late is who has missed a heartbeat by half of one.
_ALIVE = """
    INSERT INTO tidegate.holder (id, late_at, expires_at, session)
    VALUES ($1, clock_timestamp() + make_interval(secs => $2::float8 * 1.5),
        clock_timestamp() + make_interval(secs => $3::float8), $4::bigint)
    ON CONFLICT (id) DO UPDATE SET late_at = excluded.late_at, expires_at = excluded.expires_at,
        session = excluded.session
"""
_SELF = "SELECT pg_notify($1, $2)"
# Long after anybody could ask how it ended. Their leases are abandoned, with the row or without.
_CLEAR = "DELETE FROM tidegate.holder WHERE expires_at < clock_timestamp() - interval '1 day'"
_DIE = "DELETE FROM tidegate.holder WHERE id = $1"
# The lease must be ours, and nobody may find our time over while what it is needed for is done: a
# holder that is about to run out was cut off, and does not come back by a renewal.
_RENEW = """
    WITH alive AS (
        UPDATE tidegate.holder SET expires_at = clock_timestamp() + make_interval(secs => $4::float8)
        WHERE id = $3 AND expires_at > clock_timestamp() + make_interval(secs => $5::float8)
        RETURNING id
    )
    SELECT 1 FROM tidegate.upload u, alive
    WHERE u.id = $1 AND u.token = $2::bigint AND u.holder = $3
"""
# Dead before its time is over is who is late, and whose session is gone. After a restart of the
# database all sessions are, and everyone may be late.
_PROBE = """
    UPDATE tidegate.holder SET expires_at = clock_timestamp()
    WHERE id = $1 AND expires_at > clock_timestamp()
        AND pg_postmaster_start_time() < clock_timestamp() - make_interval(secs => $2::float8)
        AND CASE WHEN late_at < clock_timestamp()
            THEN pg_try_advisory_xact_lock(session) ELSE false END
"""
_LOCK = "SELECT pg_try_advisory_lock($1::bigint) AS locked"


class Presence:
    """Keeps one holder alive. Its leases are told when it can't."""

    def __init__(self, address: Address, pool: Pool, leases: Leases) -> None:
        self.listening = False
        self._address = address
        self._pool = pool
        self._leases = leases
        self._holder = leases.holder
        self._session: int | None = None
        self._due = asyncio.Event()
        self._heard = asyncio.Event()
        self._doom: asyncio.TimerHandle | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def margin(self) -> float:
        """Seconds before its end in which a holder does not count on its life any more."""
        return min(self._address.heartbeat, self._address.ttl / 4)

    async def begin(self) -> None:
        """Come alive. Raises MetadataError."""
        await self._beat()
        work: list[Coroutine[Any, Any, None]] = [self._keep_alive(), self._poll()]
        if self._address.listen is not False:
            work.append(self._listen())
        self._tasks = [asyncio.create_task(coroutine) for coroutine in work]

    async def end(self) -> None:
        """Die: whoever looks from now on finds this holder dead. Never raises."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._tasks.clear()
        if self._doom is not None:
            self._doom.cancel()
        with contextlib.suppress(MetadataError):
            await self._pool.run(lambda link: link.fetch(_DIE, self._holder))

    # -------------------------------------------------------------------------------- heartbeat

    async def _keep_alive(self) -> None:
        beats, failing = 0, False
        while True:
            self._due.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._address.heartbeat):
                    await self._due.wait()
            try:
                await self._beat()
                await self._pool.run(self._tidy, patience=self._address.heartbeat)
                beats += 1
                if beats % 1000 == 0:
                    await self._pool.run(lambda link: link.fetch(_CLEAR))
            except MetadataError as error:
                if not failing:
                    log.warning("heartbeat: %s", error)
                failing = True
            else:
                if failing:
                    log.warning("heartbeat: the metadata database is there again")
                failing = False

    async def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        address, started = self._address, loop.time()

        async def alive(link: Link) -> None:
            await link.fetch(_ALIVE, self._holder, address.heartbeat, address.ttl, self._session)

        await self._pool.run(alive, patience=address.heartbeat)
        if self._doom is not None:
            self._doom.cancel()
        # By our clock, from before the database's began to run.
        self._doom = loop.call_at(started + address.ttl - self.margin, self._doomed)

    def _doomed(self) -> None:
        log.warning("no heartbeat for %g s: the leases may be lost", self._address.ttl)
        self._leases.want_all()

    async def _tidy(self, link: Link) -> None:
        """Do what could not be done when it should, and see what became of our leases."""
        if self.listening:
            await link.fetch(_SELF, holds.HOLDER + self._holder, _BEAT)
        for call, upload_id in list(self._leases.doubtful.items()):
            await holds.forget_call(link, upload_id, self._holder, call)
            del self._leases.doubtful[call]
        await self.tell_abandoned(link)
        await self._look(link)

    async def tell_abandoned(self, link: Link) -> None:
        """Let other processes know what was abandoned here."""
        tokens = dict(self._leases.abandoned)
        if tokens:
            await holds.abandon(link, self._holder, tokens)
            for token in tokens:
                self._leases.abandoned.pop(token, None)

    async def _look(self, link: Link) -> None:
        tokens = self._leases.tokens
        if tokens:
            found = await holds.leases(link, list(set(tokens.values())))
            self._leases.compare(tokens, found)

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(_POLL)
            if not self.listening and self._leases.tokens:
                with contextlib.suppress(MetadataError):
                    await self._pool.run(self._look)

    # -------------------------------------------------------------------------------- listening

    async def _listen(self) -> None:
        said = ""
        while True:
            try:
                link = await self._pool.connect()
            except TROUBLE as error:
                why = str(translate(error, self._address.dsn))
            else:
                try:
                    if not link.direct and self._address.listen is None:
                        log.info("not listening: the connections are a pooler's")
                        return
                    why = await self._attend(link)
                except TROUBLE as error:
                    why = str(translate(error, self._address.dsn))
                finally:
                    self.listening, self._session = False, None
                    # A lost connection is no death: say so before anyone takes it for one.
                    self._due.set()
                    link.connection.terminate()
            if why != said:
                log.info("not listening: %s", why)
                said = why
            await asyncio.sleep(self._address.heartbeat / 2)

    async def _attend(self, link: Link) -> str:
        """Listen until nothing is heard; why that is."""
        connection = link.connection
        connection.add_termination_listener(lambda _: self._heard.set())
        await connection.add_listener(holds.HOLDER + self._holder, self._wanted)
        await connection.add_listener(link.named(holds.RELEASED + "tidegate."), self._released)
        key = int(self._holder, 16) - 2**63
        self.listening = True
        # What was wanted before is seen by the next heartbeat, which we hear, too.
        self._due.set()
        while not connection.is_closed():
            if self._session is None and (await link.row(_LOCK, key))["locked"]:
                self._session = key
            self._heard.clear()
            try:
                async with asyncio.timeout(self._address.heartbeat * 2 + 1):
                    await self._heard.wait()
            except TimeoutError:
                return "our own heartbeats are not heard"
        return "the connection was lost"

    def _wanted(self, _connection: object, _pid: int, _channel: str, payload: Any) -> None:
        self._heard.set()
        if payload != _BEAT:
            self._leases.want(int(payload))

    def _released(self, _connection: object, _pid: int, _channel: str, payload: Any) -> None:
        self._leases.wake(payload)

    # ----------------------------------------------------------------------------------- asking

    async def renew(self, link: Link, upload_id: str, token: int) -> bool:
        """Whether the lease is ours, and will be for some seconds."""
        row = await link.row(_RENEW, upload_id, token, self._holder, self._address.ttl, self.margin)
        return row is not None

    async def probe(self, link: Link, holder: str) -> None:
        """See whether another holder, that is late, is dead."""
        await link.fetch(_PROBE, holder, self._address.ttl)
