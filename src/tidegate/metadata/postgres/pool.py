"""Connections to PostgreSQL, and what becomes of a transaction when one is lost.

(The driver's own pool lets no statement outlive its turn, and clears the session in a round trip of
its own after every one.)
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import TYPE_CHECKING, Any, TypeVar

from tidegate.metadata.postgres.errors import (
    TROUBLE,
    Outcome,
    ends_connection,
    is_of_pooler,
    outcome,
    translate,
)
from tidegate.metadata.postgres.link import Link, connect
from tidegate.ports import UnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine

    from tidegate.metadata.postgres.address import Address

T = TypeVar("T")

# Seconds before a transaction that failed is tried again: at first, and at most.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 0.5


class Pool:
    """Runs transactions on up to `address.pool` connections."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._prepares = True
        self._idle: list[Link] = []
        self._slots = asyncio.Semaphore(address.pool)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

    async def run(
        self, work: Callable[[Link], Awaitable[T]], *, once: bool = False, patience: float = 0
    ) -> T:
        """As `attempt`; cancelling leaves it to end by itself."""
        return await asyncio.shield(self.begin(self.attempt(work, once=once, patience=patience)))

    def begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Do something that `finish` waits for."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever was cancelled does not ask for it

    async def attempt(
        self, work: Callable[[Link], Awaitable[T]], *, once: bool = False, patience: float = 0
    ) -> T:
        """Carry out `work`, which is one transaction, and again when that may help.

        With `once` it is not begun again when nobody knows whether it was done. Raises what `work`
        raises, MetadataError.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (patience or self._address.patience)
        pause = _FIRST_PAUSE
        again = False
        seen: BaseException | None = None
        while True:
            if self._closed:
                raise UnavailableError("the metadata database is closed")
            began = False
            try:
                async with asyncio.timeout_at(deadline), self._link() as link:
                    began = True
                    link.again = again
                    return await work(link)
            except TROUBLE as error:
                known = outcome(error)
                # That time was up in the end says less than what had used it up.
                seen = seen if seen is not None and isinstance(error, TimeoutError) else error
                self._prepares = self._prepares and not is_of_pooler(error)
                final = known is Outcome.REFUSED or (known is Outcome.UNKNOWN and began and once)
                again = again or (began and known is Outcome.UNKNOWN)
                pause = min(pause * 2, _LONGEST_PAUSE)
                # Not all at once, when many were cut off together.
                wait = pause * random.uniform(0.5, 1)  # noqa: S311
                if final or loop.time() + wait >= deadline:
                    raise translate(seen, self._address.dsn) from error
            await asyncio.sleep(wait)

    @contextlib.asynccontextmanager
    async def _link(self) -> AsyncIterator[Link]:
        async with self._slots:
            link = await self._take()
            try:
                yield link
            except BaseException as error:
                if isinstance(error, asyncio.CancelledError) or ends_connection(error):
                    # The server may still be at work on it.
                    link.connection.terminate()
                raise
            finally:
                if link.usable and not self._closed:
                    self._idle.append(link)
                else:
                    link.connection.terminate()

    async def _take(self) -> Link:
        while self._idle:
            link = self._idle.pop()
            if link.usable:
                return link
            link.connection.terminate()
        return await self.connect()

    async def connect(self) -> Link:
        """A connection that is not the pool's. Raises TROUBLE."""
        # The driver is not interrupted while it connects: it would leave pieces behind.
        task = self.begin(connect(self._address, prepares=self._prepares))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_drop)
            raise

    async def finish(self) -> None:
        """Wait for what was begun, but no longer than a call may take."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=self._address.patience)

    async def close(self) -> None:
        """Close all connections, and end what still goes on. Never raises."""
        await self.finish()
        self._closed = True
        for task in list(self._tasks):
            task.cancel()
        await self.finish()
        for link in self._idle:
            with contextlib.suppress(*TROUBLE):
                await link.connection.close(timeout=1)
        self._idle.clear()


def _drop(task: asyncio.Task[Link]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().connection.terminate()
