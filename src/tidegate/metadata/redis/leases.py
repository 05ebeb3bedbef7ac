"""The leases that this process holds in a Redis, and what other processes want of them.

Redis says who holds a lease; only the process itself knows whether a lease in its name is still in
use. One key says that the process lives: it expires by the clock of Redis, and is renewed by one
task for all leases. A process that comes back after its key expired makes it anew, which gives it
nothing that was taken meanwhile: a lease is known by its token.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
from redis.exceptions import NoPermissionError, RedisError

from tidegate.metadata.redis import scripts
from tidegate.ports import Grant, Lease, LeaseLostError, MetadataError, UnavailableError
from tidegate.protocol.model import UploadId

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator

    from tidegate.metadata.redis.link import Link, Once
    from tidegate.protocol.model import Upload

T = TypeVar("T")

# Seconds between two looks at what others want of us, while we hold any lease: should the message
# not arrive, the port allows 200 ms.
_POLL = 0.15
# Seconds before another attempt at what failed, of the tasks that never give up.
_PAUSE = 0.3


class _Active:
    """A lease that this process holds."""

    __slots__ = ("upload_id", "wanted")

    def __init__(self, upload_id: UploadId) -> None:
        self.upload_id = upload_id
        self.wanted = anyio.Event()


class Leases:
    """Which leases this process holds. `open` starts the tasks that keep them."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._active: dict[int, _Active] = {}
        # What was given up, and Redis may not know yet.
        self._abandoned: dict[int, UploadId] = {}
        self._unheard: dict[Once, UploadId] = {}
        self._to_tell = asyncio.Event()
        self._any_active = asyncio.Event()
        self._waiting: dict[UploadId, set[anyio.Event]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._calls: set[asyncio.Task[Any]] = set()
        self._cut_off: asyncio.TimerHandle | None = None
        self._closed = False

    async def open(self) -> None:
        """Be alive from now on. Raises MetadataError."""
        await self._beat()
        for work in (self._keep_alive, self._listen, self._poll, self._tell):
            self._tasks.add(asyncio.create_task(work()))

    async def close(self) -> None:
        """Finish what was begun, and leave; what is held is abandoned."""
        self._closed = True
        for waiting in self._waiting.values():
            for event in waiting:
                event.set()
        if self._cut_off is not None:
            self._cut_off.cancel()
        if self._calls:
            await asyncio.wait(self._calls)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # Should it fail, the key expires.
        with contextlib.suppress(MetadataError):
            await self._link.run(scripts.LEAVE)

    # ---------------------------------------------------------------------------- being alive

    async def _keep_alive(self) -> None:
        while True:
            pause = self._link.address.heartbeat
            try:
                await self._beat()
            except MetadataError:
                pause = min(pause, _PAUSE)
            await asyncio.sleep(pause)

    async def _beat(self) -> None:
        sent_at = asyncio.get_running_loop().time()
        await self._link.try_to_run(scripts.BEAT)
        self._alive_since(sent_at)

    def _alive_since(self, sent_at: float) -> None:
        """Redis will not take us for dead for a ttl from then on."""
        # A quarter is for those who hold leases, to let go while they may.
        at = sent_at + 0.75 * self._link.address.lease_ttl
        if self._closed or (self._cut_off is not None and self._cut_off.when() > at):
            return
        if self._cut_off is not None:
            self._cut_off.cancel()
        self._cut_off = asyncio.get_running_loop().call_at(at, self._want_all)

    def _want_all(self) -> None:
        """Nobody can be sure of a lease any more."""
        for active in self._active.values():
            active.wanted.set()

    async def renew(self, lease: Lease) -> None:
        """Have the lease for a ttl from now on. Raises LeaseLostError, UnavailableError."""
        if self.holds(lease):
            sent_at = asyncio.get_running_loop().time()
            if await self._link.run(scripts.RENEW, id=lease.upload_id, token=str(lease.token)):
                self._alive_since(sent_at)
                if self.holds(lease):
                    return
            self.lose(lease)
        raise LeaseLostError(lease.upload_id)

    # ----------------------------------------------------------------------- taking, letting go

    def holds(self, lease: Lease) -> bool:
        """Whether this process has this lease in use."""
        active = self._active.get(lease.token)
        return (
            active is not None
            and active.upload_id == lease.upload_id
            and lease.holder == self._link.holder
        )

    def is_abandoned(self, token: int) -> bool:
        """Whether a lease in our name was given up, which Redis may not know yet."""
        return token in self._abandoned

    def abandoned(self, upload_id: UploadId | None = None) -> dict[str, bool]:
        """For a script: what was given up, of an upload or of all."""
        found = self._abandoned.items()
        return {str(token): True for token, of in found if upload_id in {None, of}}

    async def granted_by(self, upload_id: UploadId, take: Callable[[Once], Awaitable[T]]) -> T:
        """What `take` returns, a Grant perhaps; if nobody hears of that, it is let go again."""
        once = self._link.once()

        async def taken() -> T:
            try:
                return await take(once)
            except UnavailableError:
                self._unheard[once] = upload_id
                self._to_tell.set()
                raise

        return await self._finished(taken(), self._unwanted)

    async def _finished(
        self, work: Coroutine[Any, Any, T], unwanted: Callable[[T], None] | None = None
    ) -> T:
        """Do something to its end, also when whoever waits for it goes away."""
        task = asyncio.create_task(work)
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:

            def done(task: asyncio.Task[T]) -> None:
                if unwanted is not None and not task.cancelled() and task.exception() is None:
                    unwanted(task.result())

            task.add_done_callback(done)
            raise

    def _unwanted(self, result: object) -> None:
        """Whoever asked went away, so nothing was written under this lease."""
        if not isinstance(result, Grant):
            return
        if not result.settled:
            self.abandon(result.lease)
            return
        task = asyncio.create_task(self._release(result.lease))
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    def grant(
        self, upload: Upload, token: bytes, *, previous: bytes = b"", boot_id: bytes = b""
    ) -> Grant:
        """From now on it is in use; the one whose place it took is not."""
        lease = Lease(upload.id, self._link.holder, int(token))
        active = self._active[lease.token] = _Active(upload.id)
        self._any_active.set()
        if previous:
            self._abandoned.pop(int(previous), None)
            if replaced := self._active.pop(int(previous), None):
                replaced.wanted.set()
        return Grant(lease, upload, not previous, boot_id.decode(), active.wanted)

    def drop(self, lease: Lease) -> bool:
        """Have a lease in use no more, and wake who waits for it. Whether it was in use."""
        held = self.holds(lease)
        if held:
            del self._active[lease.token]
            if not self._active:
                self._any_active.clear()
        self._wake(lease.upload_id)
        return held

    def abandon(self, lease: Lease) -> None:
        """Let go without a word: whoever comes next must recover."""
        if self.drop(lease):
            self._abandoned[lease.token] = lease.upload_id
            self._to_tell.set()

    def lose(self, lease: Lease) -> None:
        """What is said to be lost must not look held: nobody will let it go any more."""
        if self.holds(lease):
            self._active[lease.token].wanted.set()
            self.abandon(lease)

    async def release(self, lease: Lease) -> None:
        """Let go, settled. When that cannot be written down, the lease is abandoned."""
        if self.holds(lease):
            await self._finished(self._release(lease))

    async def _release(self, lease: Lease) -> None:
        try:
            await self._link.run(scripts.RELEASE, id=lease.upload_id, token=str(lease.token))
        except MetadataError:
            self.abandon(lease)
            raise
        self.drop(lease)

    async def _tell(self) -> None:
        """Let other processes know what was given up."""
        while True:
            await self._to_tell.wait()
            self._to_tell.clear()
            abandoned, unheard = dict(self._abandoned), dict(self._unheard)
            try:
                await self._link.run(
                    scripts.ABANDON,
                    leases=[{"id": of, "token": str(token)} for token, of in abandoned.items()],
                    unheard=[
                        {"id": of, "op": once.op, "generation": once.generation}
                        for once, of in unheard.items()
                    ],
                )
            except MetadataError:
                self._to_tell.set()
                await asyncio.sleep(_PAUSE)
                continue
            for token in abandoned:
                self._abandoned.pop(token, None)
            for once in unheard:
                del self._unheard[once]

    # --------------------------------------------------------- what other processes want of us

    def want(self, upload_id: UploadId) -> bool:
        """Ask whoever has the upload here to let go. False when nobody here was still to be told."""
        told = False
        for active in self._active.values():
            if active.upload_id == upload_id and not active.wanted.is_set():
                active.wanted.set()
                told = True
        return told

    def _want(self, token: bytes) -> None:
        if active := self._active.get(int(token)):
            active.wanted.set()

    def _wake(self, upload_id: UploadId) -> None:
        for event in self._waiting.get(upload_id, ()):
            event.set()

    async def _poll(self) -> None:
        wanted = self._link.key("wanted", self._link.holder)
        while True:
            await self._any_active.wait()
            await asyncio.sleep(_POLL)
            with contextlib.suppress(MetadataError):
                for token in await self._link.command("SMEMBERS", wanted):
                    self._want(token)

    async def _listen(self) -> None:
        while True:
            # What is said while nobody listens is found by the poll, and by those who wait.
            try:
                async with contextlib.aclosing(self._messages()) as messages:
                    async for message in messages:
                        what, about = message[:1], message[1:]
                        if what == b"w":
                            self._want(about)
                        else:
                            self._wake(UploadId(about.decode()))
            except NoPermissionError:
                return
            except (RedisError, OSError):
                await asyncio.sleep(_PAUSE)

    async def _messages(self) -> AsyncGenerator[bytes, None]:
        async with self._link.client.pubsub(ignore_subscribe_messages=True) as channel:
            await channel.subscribe(self._link.key("told", self._link.holder))
            async for message in channel.listen():
                yield message["data"]

    @contextlib.contextmanager
    def waiter(self, upload_id: UploadId) -> Iterator[anyio.Event]:
        """An event that is set when a lease of `upload_id` is let go, while it is entered."""
        event = anyio.Event()
        self._waiting.setdefault(upload_id, set()).add(event)
        try:
            yield event
        finally:
            waiting = self._waiting[upload_id]
            waiting.discard(event)
            if not waiting:
                del self._waiting[upload_id]
