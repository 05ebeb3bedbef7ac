"""Bytes in the memory of this process: for tests, demonstrations and what is small and short-lived."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from anyio import to_thread

from tidegate.ports import (
    Buffer,
    BytesBusyError,
    BytesMissingError,
    DataError,
    Digest,
    Flushed,
    NoSpaceError,
    Stored,
)
from tidegate.protocol.capabilities import Capability
from tidegate.protocol.model import Upload, UploadId

if TYPE_CHECKING:
    from tidegate.ports import DataStore, Fence, Writer

CAPACITY: Final = 256 * 1024 * 1024
"""Half of what the smallest virtual machines have."""
SMALL: Final = 16 * 1024
"""Bytes that are copied and hashed in some 20 µs, less than a hop to a thread costs."""
READ_CHUNK: Final = 256 * 1024


class _Bytes:
    """What is stored of one upload. A writer keeps it also when it was deleted."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.reserved = 0
        """Bytes of the store's capacity: `data`, and what is being appended to it."""
        self.writer: MemoryWriter | None = None
        self.modified_at = 0.0
        self.deleted = False


class MemoryStore:
    """Holds at most `capacity` bytes, of all uploads together; past that NoSpaceError.

    Nothing survives the process, so nothing is ever synced. One event loop uses it.
    """

    capabilities = (
        Capability.GROW
        | Capability.DISCARD
        | Capability.DELETE
        | Capability.COPY
        | Capability.READ
        | Capability.PEEK
    )
    boot_id = ""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.capacity = capacity
        self.max_size: int | None = capacity
        self.used = 0
        self._uploads: dict[UploadId, _Bytes] = {}
        # Between the loop and the threads that append; held for a few additions.
        self._lock = threading.Lock()

    async def open(self) -> None:
        """Nothing to acquire."""

    async def close(self) -> None:
        """Nothing to let go: what is stored stays as long as the store does."""

    def place(self, upload: Upload) -> dict[str, Any]:  # noqa: ARG002
        """Nothing: the id finds the bytes."""
        return {}

    async def writer(self, upload: Upload, fence: Fence) -> Writer:
        """Open the upload's bytes at `upload.offset`. Raises BytesBusyError, BytesMissingError."""
        if upload.complete:
            raise DataError(f"upload {upload.id} is complete; nothing may write to it")
        stored = self._uploads.get(upload.id)
        if stored is None:
            if upload.offset:
                raise BytesMissingError(f"nothing is stored of upload {upload.id}")
            stored = self._uploads[upload.id] = _Bytes()
        if len(stored.data) > upload.offset:
            await fence.hold()
        self._cut(upload, stored, upload.offset)
        if len(stored.data) < upload.offset:
            raise BytesMissingError(
                f"{len(stored.data)} bytes are stored of upload {upload.id};"
                f" {upload.offset} were acknowledged"
            )
        stored.modified_at = upload.active_at
        stored.writer = MemoryWriter(self, stored)
        return stored.writer

    def _cut(self, upload: Upload, stored: _Bytes, offset: int) -> None:
        if stored.writer is not None:
            raise BytesBusyError(f"upload {upload.id} is being written")
        cut = max(0, len(stored.data) - offset)
        del stored.data[offset:]
        with self._lock:
            stored.reserved -= cut
            self.used -= cut

    async def measure(self, upload: Upload) -> int:
        """How many bytes are stored."""
        stored = self._uploads.get(upload.id)
        return len(stored.data) if stored else 0

    async def truncate(self, upload: Upload, offset: int, fence: Fence) -> None:
        """Cut off all bytes past `offset`. Raises BytesBusyError."""
        await fence.hold()
        if stored := self._uploads.get(upload.id):
            self._cut(upload, stored, offset)

    async def finish(
        self,
        upload: Upload,
        fence: Fence,  # noqa: ARG002
        *,
        durable: bool,  # noqa: ARG002
    ) -> dict[str, Any]:
        """See that all is there. Raises BytesMissingError."""
        size = await self.measure(upload)
        if not upload.whole or size < (upload.length or 0):
            raise BytesMissingError(f"{size} of {upload.length} bytes are stored of {upload.id}")
        stored = self._uploads.setdefault(upload.id, _Bytes())
        if size > upload.offset:
            self._cut(upload, stored, upload.offset)
        return dict(upload.storage)

    async def read(self, upload: Upload, start: int, stop: int) -> AsyncIterator[bytes]:
        """Bytes [start, stop) in chunks of READ_CHUNK. Raises BytesMissingError."""
        data = self.bytes_of(upload, stop)
        for begin in range(start, stop, READ_CHUNK):
            with memoryview(data) as view:
                chunk = bytes(view[begin : min(begin + READ_CHUNK, stop)])
            yield chunk

    def bytes_of(self, upload: Upload, stop: int) -> bytearray:
        """A complete upload's bytes. Raises BytesMissingError when there are less than `stop`."""
        stored = self._uploads.get(upload.id)
        if stored is None or len(stored.data) < stop:
            size = len(stored.data) if stored else 0
            raise BytesMissingError(f"{size} bytes are stored of {upload.id}; {stop} were expected")
        return stored.data

    async def delete(self, upload: Upload) -> None:
        """Forget the upload's bytes; a writer still at work finds that they are gone."""
        self._forget(upload.id)

    def _forget(self, upload_id: UploadId) -> None:
        if stored := self._uploads.pop(upload_id, None):
            with self._lock:
                stored.deleted = True
                self.used -= stored.reserved

    def reserve(self, stored: _Bytes, wanted: int) -> int:
        """How many of `wanted` more bytes of an upload fit. Raises BytesMissingError: deleted."""
        with self._lock:
            if stored.deleted:
                raise BytesMissingError("the upload's bytes were deleted")
            fits = min(wanted, self.capacity - self.used)
            stored.reserved += fits
            self.used += fits
            return fits

    async def stored(self) -> AsyncIterator[Stored]:
        """All that is stored; `modified_at` is when it was last opened for writing."""
        for upload_id, stored in list(self._uploads.items()):
            yield Stored(upload_id, len(stored.data), stored.modified_at, "memory")

    async def discard(self, stored: Stored) -> None:
        """Forget what `stored` found."""
        self._forget(stored.upload_id)

    async def free_space(self) -> int | None:
        """What is left of the capacity."""
        return self.capacity - self.used


class MemoryWriter:
    """See `ports.Writer`."""

    def __init__(self, store: MemoryStore, stored: _Bytes) -> None:
        self._store = store
        self._stored = stored

    @property
    def offset(self) -> int:
        """Where the next byte goes."""
        return len(self._stored.data)

    async def write(self, chunks: Sequence[Buffer], digest: Digest | None = None) -> None:
        """Append `chunks`. Raises NoSpaceError, DataError when the bytes were deleted meanwhile."""
        views = [memoryview(chunk).cast("B") for chunk in chunks if memoryview(chunk).nbytes]
        if sum(view.nbytes for view in views) <= SMALL:
            self._append(views, digest)
        else:
            # Shielded from cancellation by anyio: until it returns the chunks are ours.
            await to_thread.run_sync(self._append, views, digest)

    def _append(self, views: Sequence[memoryview], digest: Digest | None) -> None:
        for view in views:
            if digest is not None:
                digest.update(view)
            self._append_one(view)

    def _append_one(self, view: memoryview) -> None:
        if self._stored.writer is not self:
            raise DataError("the writer was closed")
        fits = self._store.reserve(self._stored, view.nbytes)
        self._stored.data += view[:fits]
        if fits < view.nbytes:
            raise NoSpaceError(f"all {self._store.capacity} bytes of memory are in use")

    async def copy(self, part: Upload, start: int, stop: int) -> None:
        """Append bytes [start, stop) of `part`. Raises BytesMissingError, NoSpaceError."""
        data = self._store.bytes_of(part, stop)
        for begin in range(start, stop, READ_CHUNK):
            await self.write([data[begin : min(begin + READ_CHUNK, stop)]])

    async def flush(self) -> Flushed:
        """All that was written."""
        return Flushed(self.offset)

    progress = flush

    async def sync(self) -> int:
        """Nothing survives the process, so there is nothing to do."""
        return self.offset

    async def close(self) -> None:
        """Let go of the upload. Never raises, may be called twice."""
        if self._stored.writer is self:
            self._stored.writer = None


if TYPE_CHECKING:
    _: type[DataStore] = MemoryStore
    __: type[Writer] = MemoryWriter
