"""One session of writing to an upload in a bucket."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import anyio

from tidegate.ports import Buffer, BytesMissingError, DataError, Digest, Flushed
from tidegate.protocol.model import Upload
from tidegate.stores.s3.options import MIB
from tidegate.stores.s3.parts import Parts
from tidegate.stores.s3.pieces import Piece, Told, least_size, part_size

if TYPE_CHECKING:
    from tidegate.ports import Fence, Writer
    from tidegate.stores.s3.budget import Budget, Holder
    from tidegate.stores.s3.store import S3Store

BLOCK: Final = 16
"""Part numbers reserved at a time: as many are lost when a process dies."""
GRAIN: Final = 256 * 1024
"""Bytes to which room in use is rounded up."""
SMALL: Final = 16 * 1024
"""Bytes that are hashed in some 20 µs, less than a hop to a thread costs."""
READ_CHUNK: Final = 256 * 1024
MOST_COPIED: Final = 1024 * MIB
"""Bytes that the service copies in one request. It may copy five times as many, and take minutes."""
MOST_TAILS: Final = 16
"""With more of them the next bytes are joined to all of them: a read of each, once in a while."""


class Pending:
    """A part that is being filled: `tails` first, which are stored, then what is in memory only."""

    def __init__(self, size: int, at: int) -> None:
        self.data = memoryview(bytearray(size))
        """Memory only as far as it was written to."""
        self.start = at
        """From here on it is in memory; before are the bytes of tails, not read back."""
        self.end = at
        self.limit = size
        """As far as there is room in the budget."""

    @property
    def room(self) -> int:
        """Bytes of the budget that it holds."""
        size = self.data.nbytes
        return size if self.limit == size else self.limit - self.start


class S3Writer:
    """See `ports.Writer`. Holds no lock in the bucket: what counts is what the caller commits."""

    def __init__(
        self, store: S3Store, upload: Upload, fence: Fence, found: list[Piece], told: Told
    ) -> None:
        self._store = store
        self._client = store.client
        self._options = store.options
        self._budget: Budget = store.budget
        self._upload = upload
        self._fence = fence
        self._storage = dict(upload.storage)
        self._told = told
        self._told_end = upload.offset
        self._parts = Parts([p for p in found if p.part], self._options.concurrency)
        self._tails = [p for p in found if p.tail]
        self._pending: Pending | None = None
        # Of what is written only: whoever evicts, and whoever writes, take turns.
        self._lock = anyio.Lock(fast_acquire=True)
        self._next: int = self._storage.get("next_part", 1)
        self._reserved = self._next
        self._failure: DataError | None = None
        self._closed = False
        self.since = 0.0
        # That was committed, or they would not have been found.
        self._obsolete = [key for piece in found for key in piece.left]

    # --------------------------------------------------------------------- where it is

    @property
    def offset(self) -> int:
        """Where the next byte goes."""
        stored = self._parts.end + self._tail_bytes
        return stored + (self._pending.end - self._pending.start if self._pending else 0)

    @property
    def _tail_bytes(self) -> int:
        return sum(tail.length for tail in self._tails)

    @property
    def _unsent(self) -> int:
        """Bytes that are in no part yet."""
        return self.offset - self._parts.end

    def _check(self) -> None:
        if self._failure is not None:
            raise type(self._failure)(str(self._failure)) from self._failure
        if self._closed:
            raise DataError("the writer was closed")
        self._parts.check()

    def fail(self, failure: DataError) -> None:
        """Have every call from now on raise `failure`."""
        self._failure = self._failure or failure

    # ------------------------------------------------------------------------- writing

    async def write(self, chunks: Sequence[Buffer], digest: Digest | None = None) -> None:
        """Copy `chunks` to where parts are filled, and send those that are full: see the port.

        Waits for room in the budget. Raises DataError, also when an earlier part was not stored,
        NoSpaceError when no part numbers are left.
        """
        self._check()
        views = [memoryview(chunk).cast("B") for chunk in chunks if memoryview(chunk).nbytes]
        if digest is not None:
            await self._store.hash(digest, views)
        for whole in views:
            view = whole
            while view.nbytes:
                await self._make_room()
                async with self._lock:
                    pending = self._pending
                    if pending is None or pending.end == pending.limit:
                        continue  # it was evicted meanwhile
                    size = min(view.nbytes, pending.limit - pending.end)
                    pending.data[pending.end : pending.end + size] = view[:size]
                    pending.end += size
                    view = view[size:]
                    if pending.end == pending.data.nbytes:
                        await self._send()

    async def _make_room(self) -> None:
        """See that there is a part to be filled, with room for all of it."""
        self._check()
        if self._pending is None:
            async with self._lock:
                await self._begin()
        elif self._pending.end == self._pending.limit:
            await self._regain(self._pending)

    async def _begin(self) -> None:
        size = self._part_size()
        await self._budget.take(size)
        self._pending = Pending(size, self._tail_bytes)
        self.since = anyio.current_time()
        self._budget.join(self)
        if len(self._tails) > MOST_TAILS:
            await self._read_back(len(self._tails))

    async def _regain(self, pending: Pending) -> None:
        """Room for the whole part again, some of which was taken back. Not with the lock: it may be
        evicted meanwhile.
        """
        missing = pending.data.nbytes - pending.room
        await self._budget.take(missing)
        if self._pending is pending:
            pending.limit = pending.data.nbytes
        else:
            self._budget.give(missing)

    def _part_size(self) -> int:
        size: int = self._storage.get("part_size", 0)
        if not size:
            length = self._upload.length
            if length is None and self._options.uniform_parts:
                length = self._options.max_size // 2
            size = part_size(self._options, self._parts.end, length, self._next)
        # There may be tails from when parts were larger.
        grain = min(GRAIN, self._options.part_size)
        return -(-max(size, self._tail_bytes + 1) // grain) * grain

    # ------------------------------------------------------------------ parts and tails

    async def _send(self) -> None:
        """Send what is unsent as a part. Raises DataError. With the lock."""
        pending = self._pending
        if pending is None or pending.end == 0:
            return
        if pending.room < pending.data.nbytes:
            # There may be none to read tails back into, and waiting for it may be waiting for us.
            await self._store_tail(absorb=False)
            return
        await self._read_back(len(self._tails))
        number = await self._number()
        size = pending.data.nbytes
        piece = Piece(pending.end, part=number, left=self._keys_left(self._tails))
        data = pending.data[: pending.end]
        self._let_go_of(pending)
        self._tails = []
        send = partial(self._send_part, number, data)
        await self._parts.add(piece, send, partial(self._budget.give, size))

    def _let_go_of(self, pending: Pending) -> None:
        """It is no longer being filled. Its room is still taken."""
        del pending
        self._pending = None
        self._budget.leave(self)

    async def _send_part(self, number: int, data: memoryview) -> str:
        content = await self._store.content(data)
        return await self._client.put_part(
            self._storage["key"], self._storage["multipart"], number, content
        )

    async def _store_tail(self, *, absorb: bool) -> None:
        """Make what is in memory a tail. Raises DataError. With the lock.

        With `absorb` it takes in those tails that are not larger: so there are never many, and no
        byte is read back often.
        """
        pending = self._pending
        if pending is None:
            return
        first = len(self._tails)
        if absorb and pending.room == pending.data.nbytes:
            size = pending.end - pending.start
            while first and self._tails[first - 1].length <= size:
                first -= 1
                size += self._tails[first].length
            await self._read_back(len(self._tails) - first)
        first = self._loaded_from(pending)
        data = pending.data[pending.start : pending.end]
        if data.nbytes:
            key = self._store.layout.tails_of(self._upload.id) + secrets.token_urlsafe(12)
            etag = await self._client.put(key, await self._store.content(data))
            left = self._keys_left(self._tails[first:])
            self._tails[first:] = [Piece(data.nbytes, tail=key, etag=etag, left=left)]
        room = pending.room
        self._let_go_of(pending)
        self._budget.give(room)

    def _loaded_from(self, pending: Pending) -> int:
        """The first tail whose bytes are in memory."""
        at = 0
        for index, tail in enumerate(self._tails):
            if at >= pending.start:
                return index
            at += tail.length
        return len(self._tails)

    async def _read_back(self, number: int) -> None:
        """Have the bytes of the last tails in memory, too. Raises DataError. With the lock."""
        pending = self._pending
        assert pending is not None  # noqa: S101
        first = len(self._tails) - number
        at = sum(tail.length for tail in self._tails[:first])
        begin = at
        for tail in self._tails[first:]:
            if at >= pending.start:
                break
            await self._store.read_tail(tail, pending.data[at : at + tail.length])
            at += tail.length
        pending.start = min(pending.start, begin)

    @staticmethod
    def _keys_left(tails: Sequence[Piece]) -> tuple[str, ...]:
        return tuple(key for tail in tails for key in (tail.tail, *tail.left))

    # ------------------------------------------------------------------------- numbers

    async def _number(self) -> int:
        """A part's number that nobody ever used. Raises what the fence raises."""
        if self._next >= self._reserved or "multipart" not in self._storage:
            await self._reserve()
        number = self._next
        self._next += 1
        return number

    async def _reserve(self) -> None:
        storage: dict[str, Any] = dict(self._storage)
        if "multipart" not in storage:
            storage["multipart"] = await self._store.start_multipart(self._upload)
            if self._options.uniform_parts:
                filled = self._pending
                storage["part_size"] = filled.data.nbytes if filled else self._part_size()
        reserved: int = max(self._reserved, storage.get("next_part", 1)) + BLOCK
        storage["next_part"] = reserved
        await self._fence.reserve(storage)
        self._storage = dict(storage)
        self._reserved = reserved

    # ------------------------------------------------------------------------ giving way

    def spare(self) -> int:
        """See `budget.Holder`."""
        pending = self._pending
        if pending is None or self._lock.locked():
            return 0
        used = -(-(pending.end - pending.start) // GRAIN) * GRAIN
        limit = min(pending.data.nbytes, pending.start + used)
        if limit in {pending.data.nbytes, pending.limit}:
            return 0
        before = pending.room
        pending.limit = limit
        return before - pending.room

    def busy(self) -> bool:
        """See `budget.Holder`."""
        return self._pending is None or self._lock.locked()

    async def evict(self) -> None:
        """See `budget.Holder`."""
        async with self._lock:
            pending = self._pending
            if pending is None:
                return
            try:
                await self._store_tail(absorb=False)
            except DataError as failure:
                self.fail(failure)
                self._let_go_of(pending)
                self._budget.give(pending.room)

    # -------------------------------------------------------------------------- copying

    async def copy(self, part: Upload, start: int, stop: int) -> None:
        """Append bytes [start, stop) of `part`, by the service as far as it takes them: see the
        port. What is too little for a part of its own comes through memory.
        """
        self._check()
        if start == stop:
            return
        key = str(part.storage.get("key"))
        etag = None
        while start < stop:
            left = stop - start
            if self._is_part(self._unsent) and self._copied_by_service(left, unsent=0):
                async with self._lock:
                    await self._send()
            if size := self._copied_by_service(left, self._unsent):
                etag = etag or await self._etag(part, key, stop)
                await self._copy_part(key, etag, start, start + size)
            else:
                size = self._to_fill(left)
                async for chunk in self._client.read(key, start, start + size, READ_CHUNK):
                    await self.write([chunk])
            start += size

    async def _etag(self, part: Upload, key: str, stop: int) -> str:
        """Of a part's object, which is at least `stop` bytes long. Raises BytesMissingError."""
        found = await self._client.head(key)
        if found is None or found["ContentLength"] < stop:
            raise BytesMissingError(f"upload {part.id} has no bytes up to {stop}")
        return str(found["ETag"])

    def _copied_by_service(self, size: int, unsent: int) -> int:
        """Of the next `size` bytes, how many the service may copy into one part."""
        if unsent:
            return 0
        if self._options.uniform_parts:
            uniform = self._part_size()
            return uniform if size >= uniform else 0
        return min(size, MOST_COPIED) if size >= self._least_part() else 0

    def _least_part(self) -> int:
        """How small the next part may be, unless it is the last."""
        if self._options.uniform_parts:
            return self._part_size()
        needed = least_size(self._parts.end, self._upload.length, self._next)
        return max(self._options.least_part, min(needed, self._options.most_part))

    def _is_part(self, size: int) -> bool:
        """Whether so many bytes may be a part that is not the last."""
        if self._options.uniform_parts:
            return size == self._part_size()
        return size >= self._least_part()

    def _to_fill(self, size: int) -> int:
        """How many of `size` bytes to read, so that what is unsent can be a part."""
        least = self._least_part()
        if self._unsent >= least:
            return min(size, READ_CHUNK)
        return min(size, least - self._unsent) if self._unsent else size

    async def _copy_part(self, key: str, etag: str, start: int, stop: int) -> None:
        async with self._lock:
            number = await self._number()

            async def copy() -> str:
                own, multipart = self._storage["key"], self._storage["multipart"]
                return await self._client.copy_part(own, multipart, number, key, etag, start, stop)

            await self._parts.add(Piece(stop - start, part=number), copy, lambda: None)

    # ------------------------------------------------------------------- what is stored

    async def progress(self) -> Flushed:
        """The parts that are stored by now, and the tails: see the port.

        Raises DataError when a part could not be stored.
        """
        self._check()
        self._clean()
        if self._reserved - self._next < BLOCK // 2 and self._storage.get("multipart"):
            # Before they are needed, along with a commit that is made anyway.
            storage = self._storage | {"next_part": self._reserved + BLOCK}
            return self._tell(storage)
        return self._tell(None)

    async def flush(self) -> Flushed:
        """Store all that was written: in parts, and what is too little for one in a tail."""
        self._check()
        async with self._lock:
            last = self._upload.length is not None and self.offset == self._upload.length
            if last or self._is_part(self._unsent):
                await self._send()
            if self._pending is not None:
                await self._store_tail(absorb=True)
        await self._parts.wait()
        self._check()
        self._clean()
        if self._reserved > self._next:
            return self._tell(self._storage | {"next_part": self._next})
        return self._tell(None)

    def _tell(self, storage: dict[str, Any] | None) -> Flushed:
        """What is stored without a gap, as far as it is news."""
        if storage is not None:
            self._storage = dict(storage)
            self._reserved = storage["next_part"]
        stored = list(self._parts.stored())
        if len(stored) == len(self._parts):
            stored += self._tails
        end = sum(piece.length for piece in stored)
        if end < self._told_end:
            # A part on its way is to take the place of tails, which count until it does.
            return Flushed(self._told_end, (), storage, self._told_end)
        self._told_end = end
        self._obsolete = [key for piece in stored for key in piece.left]
        return Flushed(end, self._told.update(stored), storage, end)

    def _clean(self) -> None:
        """Delete what the pieces that are committed by now took in."""
        if self._obsolete:
            self._store.delete_soon(self._obsolete)
            self._forget_left()

    def _forget_left(self) -> None:
        gone = set(self._obsolete)
        self._parts.forget(gone)
        self._tails = [tail.without(gone) for tail in self._tails]
        self._obsolete = []

    async def sync(self) -> int:
        """What is in the bucket is there to stay."""
        return self._told_end

    async def close(self) -> None:
        """Give up what was not flushed: see the port."""
        if self._closed:
            return
        self._closed = True
        self._store.closed(self._upload.id, self)
        with anyio.CancelScope(shield=True):
            await self._parts.cancel()
            async with self._lock:
                if (pending := self._pending) is not None:
                    self._let_go_of(pending)
                    self._budget.give(pending.room)


if TYPE_CHECKING:
    _: type[Writer] = S3Writer
    __: type[Holder] = S3Writer
