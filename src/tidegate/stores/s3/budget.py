"""The memory that all uploads of a process share for bytes that are not stored yet.

Whoever fills a part holds room for all of it from the start, so that it can always be filled and
sent. Where others wait, those who fill theirs slowly give way: first the room that they do not use
yet, which costs nothing; if that is not enough the bytes themselves, which become a tail. Who waits
for more room may be asked, too, so nobody waits for ever.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final, Protocol

import anyio

from tidegate.ports import NoSpaceError

TENURE: Final = 2.0
"""Seconds for which a part may be filled undisturbed: who needs longer is slower than 4 MB/s."""
AT_ONCE: Final = 16
"""Holders that store what they have at the same time."""


class Holder(Protocol):
    """Someone who fills a part."""

    since: float
    """When it began to, as `anyio.current_time` tells."""

    def spare(self) -> int:
        """Give back room that is not used; how much it was."""

    def busy(self) -> bool:
        """Whether it has no bytes in memory, or is about to store them by itself."""

    async def evict(self) -> None:
        """Store the bytes, and give back all room. Never raises."""


class Budget:
    """`limit` bytes. One event loop uses it."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.free = limit
        self.tenure = TENURE
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._holders: set[Holder] = set()
        self._relief: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    async def take(self, size: int) -> None:
        """Wait for `size` bytes, first come, first served. Raises NoSpaceError: never so many."""
        if size > self.limit:
            raise NoSpaceError(f"a part of {size} bytes, and memory for {self.limit}: --s3-memory")
        if not self._waiting and size <= self.free:
            self.free -= size
            return
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, granted))
        self._changed.set()
        if self._relief is None:
            self._relief = asyncio.create_task(self._relieve(), name="tidegate-s3-budget")
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():
                self.give(size)
            else:
                self._waiting.remove((size, granted))
                self._grant()
            raise

    def give(self, size: int) -> None:
        """Give bytes back."""
        self.free += size
        self._grant()

    def join(self, holder: Holder) -> None:
        """It may be asked to give way from now on."""
        self._holders.add(holder)
        self._changed.set()

    def leave(self, holder: Holder) -> None:
        """It may not any more."""
        self._holders.discard(holder)

    async def close(self) -> None:
        """Nobody will wait any more."""
        relief, self._relief = self._relief, None
        if relief is not None:
            relief.cancel()
            await asyncio.wait([relief])

    def _grant(self) -> None:
        while self._waiting and self._waiting[0][0] <= self.free:
            size, granted = self._waiting.popleft()
            if not granted.done():
                self.free -= size
                granted.set_result(None)
        self._changed.set()

    async def _relieve(self) -> None:
        """As long as somebody waits, have the slow ones give way."""
        try:
            while self._waiting:
                self._changed.clear()
                slow = self._slow()
                if self._spare(slow):
                    continue
                if victims := self._victims(slow):
                    async with anyio.create_task_group() as tasks:
                        for victim in victims:
                            tasks.start_soon(victim.evict)
                    continue
                # Until somebody else has been at it for too long, or memory came back.
                with anyio.move_on_after(self.tenure / 4):
                    await self._changed.wait()
        finally:
            self._relief = None

    def _slow(self) -> list[Holder]:
        """Who has been filling a part for long, longest first."""
        before = anyio.current_time() - self.tenure
        return sorted((h for h in self._holders if h.since <= before), key=lambda h: h.since)

    def _spare(self, slow: list[Holder]) -> bool:
        """Take back what is not used, until the first in the line is served."""
        wanted = self._waiting[0][0]
        for holder in slow:
            self.free += holder.spare()
            if self.free >= wanted:
                self._grant()
                return True
        return False

    def _victims(self, slow: list[Holder]) -> list[Holder]:
        return [holder for holder in slow if not holder.busy()][:AT_ONCE]
