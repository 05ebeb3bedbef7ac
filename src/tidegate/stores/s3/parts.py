"""Parts of one upload on their way to the service, several at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import TYPE_CHECKING

import anyio
from msgspec.structs import replace

from tidegate.ports import DataError
from tidegate.stores.s3.pieces import Piece

if TYPE_CHECKING:
    from collections.abc import Iterator


class _Slot:
    """One part: the piece that it becomes."""

    def __init__(self, piece: Piece, *, stored: bool = False) -> None:
        self.piece = piece
        self.stored = stored


class Parts:
    """All parts of an upload in order: stored, or on their way, at most `concurrency` of them."""

    def __init__(self, stored: list[Piece], concurrency: int) -> None:
        self._slots = [_Slot(piece, stored=True) for piece in stored]
        self._free = asyncio.Semaphore(concurrency)
        self._on_their_way: set[asyncio.Task[None]] = set()
        self.end = sum(piece.length for piece in stored)
        """Of the last of them: how many bytes all are."""
        self.failure: DataError | None = None
        """Why one of them could not be stored; no more are accepted then."""

    async def add(
        self, piece: Piece, store: Callable[[], Awaitable[str]], done: Callable[[], None]
    ) -> None:
        """Have `store` store the next part, and return as soon as it may begin.

        It returns the ETag; `done` is called at the end, whatever happened. Raises DataError.
        """
        try:
            await self._free.acquire()
        except BaseException:
            done()
            raise
        if self.failure is not None:
            self._free.release()
            done()
            self.check()
        slot = _Slot(piece)
        self._slots.append(slot)
        self.end += piece.length
        task = asyncio.create_task(self._store(slot, store), name="tidegate-s3-part")
        self._on_their_way.add(task)

        # Not in the task: one that is cancelled before it began never runs.
        def ended(task: asyncio.Task[None]) -> None:
            self._on_their_way.discard(task)
            self._free.release()
            done()

        task.add_done_callback(ended)

    async def _store(self, slot: _Slot, store: Callable[[], Awaitable[str]]) -> None:
        try:
            slot.piece = replace(slot.piece, etag=await store())
            slot.stored = True
        except DataError as failure:
            self.failure = self.failure or failure

    def check(self) -> None:
        """Raise DataError when a part could not be stored."""
        if self.failure is not None:
            raise type(self.failure)(str(self.failure)) from self.failure

    def stored(self) -> Iterator[Piece]:
        """Those from the first on, without a gap, that are stored."""
        for slot in self._slots:
            if not slot.stored:
                return
            yield slot.piece

    def forget(self, gone: Collection[str]) -> None:
        """Some tails were deleted, whose bytes are in these parts."""
        for slot in self._slots:
            slot.piece = slot.piece.without(gone)

    def __len__(self) -> int:
        return len(self._slots)

    async def wait(self) -> None:
        """Wait until all are stored. Raises DataError when one can't be."""
        while self._on_their_way:
            await asyncio.wait(self._on_their_way)
        self.check()

    async def cancel(self) -> None:
        """Give up those on their way."""
        for task in self._on_their_way:
            task.cancel()
        with anyio.CancelScope(shield=True):
            while self._on_their_way:
                await asyncio.wait(self._on_their_way)
