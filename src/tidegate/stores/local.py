"""Bytes on a local disk: one file per upload.

Below the root, `incoming/<shard>/<id>` while it is received and `finished/<name>` once it is whole,
so that nothing in `finished` is half a file. `templates` lists every name template that the store
was opened with, so that a file's upload can be told after the template was changed.

What a crash may leave, and what every method copes with: a record without a file (nothing was
written), a file that is longer than its record's offset, and, since a file is moved before the
record is committed, a file under its finished name, or under both, whose record says that it is
still received, or which has no record: then its name in `incoming` tells a sweep that none was
lost.
"""

from __future__ import annotations

import functools
import itertools
import os
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, TypeVarTuple, Unpack

from anyio import CancelScope

from tidegate.ports import Buffer, BytesMissingError, DataError, Digest, Flushed, Stored
from tidegate.protocol.capabilities import Capability
from tidegate.protocol.model import Upload
from tidegate.stores import disk, naming, whole
from tidegate.stores.disk import Descriptor, translated
from tidegate.stores.tree import Tree
from tidegate.threads import Threads

if TYPE_CHECKING:
    from tidegate.ports import (
        AheadStore,
        DataStore,
        Fence,
        FileStore,
        SplicingWriter,
        WholeStore,
        Writer,
    )

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

READ_CHUNK: Final = 256 * 1024
"""Bytes per chunk of a download: from here on the hop to a thread is a small part of the cost."""
COPY_STEP: Final = 16 * 1024 * 1024
"""Bytes copied per hop: some 10 ms from the page cache, a tenth of a second from a disk, so that a
cancelled copy ends soon."""
BATCH: Final = 256
"""Files per hop of a walk: a few milliseconds."""
THREADS: Final = 16
"""Writing to the page cache is a copy, so more threads than cores gain nothing until the disk
holds its writers up; then the others wait for a thread, and their clients are not read. Our own,
since anyio's are shared with all else in the process, and slow."""
SYNC_THREADS: Final = 4
"""A sync may take seconds, so these are apart and never take the writers' threads; more of them at
a time gain little on one disk."""
BOOT_ID: Final = "/proc/sys/kernel/random/boot_id"


class LocalStore:
    """Holds each upload's bytes in a file below `root`, on a disk of this machine.

    `name` is the template of finished files' names: see `naming.Template`; ValueError says what is
    wrong with it. Several processes may use one root: a writer holds an exclusive flock, so that a
    second one gets BytesBusyError as long as the first is alive.
    """

    capabilities = (
        Capability.GROW
        | Capability.DISCARD
        | Capability.DELETE
        | Capability.COPY
        | Capability.READ
        | Capability.PEEK
    )
    max_size: int | None = None

    def __init__(
        self,
        root: Path,
        *,
        name: str = "{shard}/{id}",
        threads: int = THREADS,
        sync_threads: int = SYNC_THREADS,
    ) -> None:
        self.root = root
        self.boot_id = ""
        self._tree = Tree(root, naming.Template(name))
        self._limits = threads, sync_threads
        self._threads: Threads | None = None
        self._sync_threads: Threads | None = None

    async def open(self) -> None:
        """Make the folders and see that locks work there; clean nothing. Raises DataError."""
        threads, sync_threads = self._limits
        self._threads = Threads(threads, "tidegate-data")
        self._sync_threads = Threads(sync_threads, "tidegate-sync")
        await self.run(self._tree.open)
        self.boot_id = await self.run(_boot_id)

    async def close(self) -> None:
        """End the threads. Writers and readers hold what they need themselves."""
        for threads in (self._threads, self._sync_threads):
            if threads is not None:
                threads.close()

    async def run(self, function: Callable[[Unpack[Ts]], T], *args: *Ts) -> T:
        """Call a blocking function in one of the store's threads.

        Cancelled while it waits for a thread, it was not called; later, it is waited for.
        """
        if self._threads is None:
            raise DataError("the data store is not open")
        return await self._threads.run(function, *args)

    async def run_sync(self, function: Callable[[], T]) -> T:
        """The same in a thread for syncs."""
        if self._sync_threads is None:
            raise DataError("the data store is not open")
        return await self._sync_threads.run(function)

    async def let_go(self, file: Descriptor) -> None:
        """Close a file, also when cancelled.

        In a thread, since closing a deleted one frees its blocks, which takes its time.
        """
        try:
            with CancelScope(shield=True):
                await self.run(file.close)
        finally:
            file.close()

    def place(self, upload: Upload) -> dict[str, Any]:
        """The two paths of the upload's file, relative to the root. Pure."""
        return self._tree.place(upload)

    async def writer(self, upload: Upload, fence: Fence) -> Writer:
        """Open the upload's file, lock it, cut it to `upload.offset`: see the port."""
        file, as_it_should = await self.run(self._tree.open_writer, upload)
        if not as_it_should:
            await self._cut_back(file, upload, upload.offset, fence)
        return LocalWriter(self, self._tree, upload, file)

    async def _cut_back(self, file: Descriptor, upload: Upload, offset: int, fence: Fence) -> None:
        """Cut a locked file, if it is ours to cut; else let it go."""
        try:
            # While it is locked: what somebody else added before that, they have committed by now.
            await fence.hold()
            await self.run(self._tree.cut_back, file, upload, offset)
        except BaseException:
            await self.let_go(file)
            raise

    async def measure(self, upload: Upload) -> int:
        """The size of the upload's file; 0 when there is none. Raises DataError."""
        return await self.run(self._tree.measure, upload)

    async def truncate(self, upload: Upload, offset: int, fence: Fence) -> None:
        """Cut off all bytes past `offset`. Raises BytesBusyError, DataError."""
        file = await self.run(self._tree.lock, upload)
        if file is not None:
            await self._cut_back(file, upload, offset, fence)
            await self.let_go(file)
        self._tree.went_back(upload.id, offset)

    async def finish(
        self,
        upload: Upload,
        fence: Fence,  # noqa: ARG002
        *,
        durable: bool,
    ) -> dict[str, Any]:
        """Sync, and move to the finished name, never over another file: see the port.

        Also while this store's own writer has the file open. Raises BytesMissingError,
        SyncFailedError, BytesBusyError when another process has it, DataError.
        """
        if durable:
            await self.run_sync(lambda: self._tree.finish(upload, durable=True))
        else:
            await self.run(lambda: self._tree.finish(upload, durable=False))
        return dict(upload.storage)

    async def store_whole(
        self, upload: Upload, chunks: Sequence[Buffer], *, durable: bool
    ) -> dict[str, Any]:
        """Write a file without a name, sync it, name it: see `ports.WholeStore`."""
        if durable:
            await self.run_sync(lambda: whole.store(self._tree, upload, chunks, durable=True))
        else:
            await self.run(lambda: whole.store(self._tree, upload, chunks, durable=False))
        return dict(upload.storage)

    async def store_ahead(self, upload: Upload, chunks: Sequence[Buffer], *, durable: bool) -> bool:
        """Write a file under both of its names: see `ports.AheadStore`."""
        store = functools.partial(whole.store_ahead, self._tree, upload, chunks, durable=durable)
        if durable:
            return await self.run_sync(store)
        if self._threads is None:
            raise DataError("the data store is not open")
        return await self._threads.run_together(store)

    def confirm(self, upload: Upload) -> None:
        """Have it known by its finished name alone: see `ports.AheadStore`."""
        if self._threads is not None:
            self._threads.post_together(whole.confirm, self._tree, upload)

    async def read(self, upload: Upload, start: int, stop: int) -> AsyncIterator[bytes]:
        """Bytes [start, stop) in chunks of READ_CHUNK.

        From one open file, so that deleting the upload meanwhile does not cut them short. Raises
        BytesMissingError, DataError.
        """

        def chunk(offset: int) -> bytes:
            with file.use() as fd, translated("read"):
                return os.pread(fd, min(READ_CHUNK, stop - offset), offset)

        file = await self.run(self._tree.open_reader, upload, stop)
        try:
            while start < stop:
                data = await self.run(chunk, start)
                if not data:
                    raise BytesMissingError(f"upload {upload.id} ends at {start}, before {stop}")
                start += len(data)
                yield data
        finally:
            await self.let_go(file)

    async def open_file(self, upload: Upload, stop: int) -> Descriptor:
        """The open file of a complete upload, with at least `stop` bytes: see `ports.FileStore`."""
        return await self.run(self._tree.open_reader, upload, stop)

    async def delete(self, upload: Upload) -> None:
        """Delete the upload's file, whatever its name is by now. Raises DataError."""
        await self.run(self._tree.delete, upload)

    async def stored(self) -> AsyncIterator[Stored]:
        """All files whose upload is certain; other files are nobody's to delete."""
        walk = self._tree.walk()
        try:
            while batch := await self.run(lambda: list(itertools.islice(walk, BATCH))):
                for found in batch:
                    yield found
        finally:
            with CancelScope(shield=True), suppress(ValueError):
                # ValueError: a thread that can't be interrupted is still in it, and will drop it.
                await self.run(walk.close)

    async def discard(self, stored: Stored) -> None:
        """Delete one file that `stored` found. Raises DataError."""
        await self.run(self._tree.discard, stored)

    def queued(self) -> int:
        """How many calls wait for a thread, or are made. See ports.QueuedStore."""
        pools = (self._threads, self._sync_threads)
        return sum(threads.under_way for threads in pools if threads is not None)

    async def free_space(self) -> int | None:
        """Bytes that an unprivileged user may still write."""

        def free() -> int:
            with translated("tell the free space"):
                found = os.statvfs(self._tree.base)
            return found.f_bavail * found.f_frsize

        return await self.run(free)


class LocalWriter:
    """An open and locked file. See `ports.Writer`.

    `write_blocking` and `sync_blocking` may be called from any thread, one of each at a time.
    """

    def __init__(self, store: LocalStore, tree: Tree, upload: Upload, file: Descriptor) -> None:
        self._store = store
        self._tree = tree
        self._id = upload.id
        self._path = tree.places(upload).incoming
        self._file = file
        self._offset = upload.offset
        self._synced = min(upload.synced_offset, upload.offset)
        # The name was synced together with the first bytes.
        self._name_synced = self._synced > 0
        self._sync_lock = threading.Lock()

    @property
    def offset(self) -> int:
        """Where the next byte goes."""
        return self._offset

    async def write(self, chunks: Sequence[Buffer], digest: Digest | None = None) -> None:
        """Append `chunks` in one hop to a thread. Raises NoSpaceError, DataError."""
        await self._store.run(self.write_blocking, chunks, digest)

    def write_blocking(self, chunks: Sequence[Buffer], digest: Digest | None = None) -> None:
        """Append `chunks`; `offset` then says how many bytes were stored, also when it raises.

        Raises NoSpaceError, DataError.
        """
        if digest is not None:
            for chunk in chunks:
                digest.update(chunk)
        with self._file.use() as fd:
            disk.write_at(fd, chunks, self._offset, self._advance)

    def splice_blocking(self, pipe: int, count: int) -> None:
        """Append `count` bytes out of a pipe; otherwise as `write_blocking`."""
        with self._file.use() as fd:
            disk.splice_at(pipe, count, fd, self._offset, self._advance)

    def _advance(self, count: int) -> None:
        self._offset += count

    async def copy(self, part: Upload, start: int, stop: int) -> None:
        """Append bytes [start, stop) of `part`, by the kernel where it can: see the port."""
        source = await self._store.run(self._tree.open_reader, part, stop)
        try:
            for begin in range(start, stop, COPY_STEP):
                await self._store.run(
                    self._copy_blocking, source, begin, min(begin + COPY_STEP, stop)
                )
        finally:
            await self._store.let_go(source)

    def _copy_blocking(self, source: Descriptor, start: int, stop: int) -> None:
        with source.use() as source_fd, self._file.use() as fd:
            disk.copy_at(source_fd, start, stop, fd, self._offset, self._advance)

    async def flush(self) -> Flushed:
        """All that was written: it is in the page cache, which a process's death leaves alone."""
        return Flushed(self._offset)

    progress = flush

    async def sync(self) -> int:
        """Sync what was written before the call; see the port. Raises SyncFailedError."""
        return await self._store.run_sync(self.sync_blocking)

    def sync_blocking(self) -> int:
        """The offset up to which bytes, and the file's name, survive a loss of power.

        Raises SyncFailedError; after one, so do all later calls, and `finish`, until the upload is
        opened at, or cut back to, what was synced before.
        """
        # One after the other: of two at a time only one would be told.
        with self._sync_lock:
            offset = self._offset
            with self._file.use() as fd, self._tree.noting_failed_sync(self._id, self._synced):
                disk.sync_data(fd)
                if not self._name_synced:
                    self._tree.sync_names(self._path)
                    self._name_synced = True
            self._synced = offset
            return offset

    async def close(self) -> None:
        """Close the file, and so unlock it. Never raises, may be called twice."""
        await self._store.let_go(self._file)


def _boot_id() -> str:
    try:
        return Path(BOOT_ID).read_text("ascii").strip()
    except OSError:
        # Elsewhere than on Linux there is no such thing, and the engine is told so.
        return ""


if TYPE_CHECKING:
    _: type[DataStore] = LocalStore
    __: type[Writer] = LocalWriter
    ___: type[SplicingWriter] = LocalWriter
    ____: type[FileStore] = LocalStore
    _____: type[WholeStore] = LocalStore
    ______: type[AheadStore] = LocalStore
