"""The leases that this process holds, and what other processes want of them.

The database says who holds a lease; only the process itself knows whether a lease in its name is
still in use, or was abandoned. Everything here runs on the event loop unless it says otherwise.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import anyio

from tidegate.metadata.sqlite import rows
from tidegate.metadata.sqlite.writer import Operation
from tidegate.ports import Grant, Lease

if TYPE_CHECKING:
    import asyncio

    from tidegate.metadata.sqlite.liveness import Liveness
    from tidegate.metadata.sqlite.readers import Readers
    from tidegate.metadata.sqlite.writer import Writer
    from tidegate.protocol.model import UploadId

# Seconds between two looks at what other processes want of us, while we hold any lease: the port
# allows 200 ms.
_POLL = 0.1


class _Active:
    """A lease that this process holds."""

    __slots__ = ("granted", "upload_id", "wanted")

    def __init__(self, upload_id: UploadId) -> None:
        self.upload_id = upload_id
        self.wanted = anyio.Event()
        self.granted = False
        """Whether the transaction that granted it is known to be committed."""


class Leases:
    """Which leases this process holds."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        liveness: Liveness,
        writer: Writer,
        readers: Readers,
    ) -> None:
        self.holder = liveness.holder
        self._loop = loop
        self._liveness = liveness
        self._writer = writer
        self._readers = readers
        # By token. Changed in the writer's thread, too, one operation at a time.
        self._active: dict[int, _Active] = {}
        # Tokens that were abandoned, which the database does not say yet.
        self._abandoned: set[int] = set()
        self._waiting: dict[UploadId, set[anyio.Event]] = {}
        self._polling: asyncio.TimerHandle | asyncio.Future[Any] | None = None
        self._closed = False

    def close(self) -> None:
        """Stop looking, and wake all who wait."""
        self._closed = True
        if self._polling is not None:
            self._polling.cancel()
        for waiting in self._waiting.values():
            for event in waiting:
                event.set()

    # ---------------------------------------------------------------------------- being alive

    def holds(self, lease: Lease) -> bool:
        """Whether this process has this lease in use. In any thread."""
        active = self._active.get(lease.token)
        return (
            active is not None
            and active.upload_id == lease.upload_id
            and lease.holder == self.holder
        )

    def is_alive(self, holder: str, token: int) -> bool:
        """Whether a lease is in use by someone alive. In any thread; raises OSError.

        May block only when the holder is another process.
        """
        if holder == self.holder:
            return token in self._active
        return holder != rows.ABANDONED and self._liveness.is_alive(holder)

    def is_foreign(self, holder: str) -> bool:
        """Whether only the file system can tell if this holder is alive."""
        return holder not in {self.holder, rows.ABANDONED}

    # ----------------------------------------------------------------------- taking, letting go

    def granting(self, upload_id: UploadId) -> Granting:
        """Prepare for a lease that may be granted."""
        return Granting(self, upload_id, self._active)

    def want(self, token: int) -> None:
        """Tell whoever has this lease in use to let go."""
        if active := self._active.get(token):
            active.wanted.set()

    def drop(self, lease: Lease) -> bool:
        """Have a lease in use no more, and wake who waits for it. Whether it was in use."""
        held = self.holds(lease)
        if held:
            del self._active[lease.token]
        for event in self._waiting.get(lease.upload_id, ()):
            event.set()
        return held

    def abandon(self, lease: Lease) -> None:
        """Let go without a word: whoever comes next must recover."""
        if self.drop(lease) and not self._closed:
            self._abandoned.add(lease.token)
            self._tell_abandoned()
            self.poll_soon()

    def lose(self, lease: Lease) -> None:
        """What is said to be lost must not look held: nobody will let it go any more."""
        if self.holds(lease):
            self.want(lease.token)
            self.abandon(lease)

    def release(self, lease: Lease) -> asyncio.Future[None]:
        """Let go, settled."""

        def settle(_: None) -> None:
            self.drop(lease)

        return self._writer.post(Operation(lambda db: rows.release(db, lease), settle=settle))

    def _tell_abandoned(self) -> None:
        """Let other processes know. What fails is tried again by the poll."""
        tokens = tuple(self._abandoned)

        def done(future: asyncio.Future[None]) -> None:
            if not future.cancelled() and future.exception() is None:
                self._abandoned.difference_update(tokens)

        self._writer.post(Operation(lambda db: rows.abandon(db, tokens))).add_done_callback(done)

    def waiter(self, upload_id: UploadId) -> Waiter:
        """An event that is set when a lease of `upload_id` is dropped here, while it is entered."""
        return Waiter(self._waiting, upload_id)

    # --------------------------------------------------------- what other processes want of us

    def poll_soon(self) -> None:
        """Begin to look, when nobody looks."""
        if self._polling is None and not self._closed:
            self._polling = self._loop.call_later(_POLL, self._poll)

    def _poll(self) -> None:
        self._polling = None
        if self._abandoned:
            self._tell_abandoned()
        # Only those that a look at the database has to find.
        tokens = [token for token, active in list(self._active.items()) if active.granted]
        if tokens:
            self._polling = self._readers.submit(lambda db: rows.leases_of(db, self.holder))
            self._polling.add_done_callback(functools.partial(self._polled, tokens))
        elif self._abandoned:
            self.poll_soon()

    def _polled(self, tokens: list[int], future: asyncio.Future[dict[int, bool]]) -> None:
        self._polling = None
        self.poll_soon()
        if future.cancelled() or future.exception() is not None:
            return
        found = future.result()
        for token in tokens:
            if found.get(token, True):  # gone: someone took it by force
                self.want(token)


class Granting:
    """A lease on its way from the writer's thread to whoever asked for it."""

    __slots__ = ("_active", "_all", "_leases", "_taken")

    def __init__(self, leases: Leases, upload_id: UploadId, active: dict[int, _Active]) -> None:
        self._leases = leases
        self._all = active
        self._active = _Active(upload_id)
        self._taken: rows.Taken | None = None

    def grant(self, taken: rows.Taken) -> Grant:
        """In the writer's thread: from now on others in this transaction find it held."""
        self._taken = taken
        self._all[taken.token] = self._active
        lease = Lease(self._active.upload_id, self._leases.holder, taken.token)
        settled = taken.previous is None
        return Grant(lease, taken.upload, settled, taken.boot_id, self._active.wanted)

    def undo(self) -> None:
        """In the writer's thread: it was rolled back."""
        if self._taken is not None:
            self._all.pop(self._taken.token, None)

    def settle(self, _: object) -> None:
        """On the loop: it is committed."""
        if self._taken is None:
            return
        self._active.granted = True
        if self._taken.previous is not None:
            previous = self._all.pop(self._taken.previous, None)
            if previous is not None:
                previous.wanted.set()
        self._leases.poll_soon()

    def unwanted(self, result: object) -> None:
        """On the loop: whoever asked went away, so nothing was written under this lease."""
        if not isinstance(result, Grant):
            return
        if result.settled:
            lease = result.lease

            def done(future: asyncio.Future[None]) -> None:
                if future.cancelled() or future.exception() is not None:
                    self._leases.abandon(lease)

            self._leases.release(lease).add_done_callback(done)
        else:
            self._leases.abandon(result.lease)


class Waiter:
    """Registers an event for as long as it is entered."""

    __slots__ = ("_event", "_upload_id", "_waiting")

    def __init__(self, waiting: dict[UploadId, set[anyio.Event]], upload_id: UploadId) -> None:
        self._waiting = waiting
        self._upload_id = upload_id
        self._event = anyio.Event()

    def __enter__(self) -> anyio.Event:
        self._waiting.setdefault(self._upload_id, set()).add(self._event)
        return self._event

    def __exit__(self, *_: object) -> None:
        waiting = self._waiting[self._upload_id]
        waiting.discard(self._event)
        if not waiting:
            del self._waiting[self._upload_id]
