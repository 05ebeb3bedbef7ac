"""The blocking half of the local store: each function is one or a few system calls.

None of it may run on the event loop. All of it may be called from any thread, so that a transport
that moves bytes in threads of its own can use it as it is. Every call is looked up in `os` when it
is made, so that a test of power loss or of a full disk can stand in its place.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final

from tidegate.ports import Buffer, BytesMissingError, DataError, NoSpaceError, SyncFailedError

NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
NO_COPY: Final = frozenset(
    {errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.EPERM}
)
"""How copy_file_range says that it can't do it here (EPERM: a seccomp filter that is too old)."""
NO_LINK: Final = frozenset(
    {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}
)
"""How link says that a file system has no hard links (FAT and many FUSE file systems)."""
NO_UNNAMED: Final = frozenset({errno.EOPNOTSUPP, errno.ENOTSUP, errno.EISDIR, errno.EINVAL})
"""How open says that a file system (NFS, FAT), or an old kernel, has no files without a name."""

IOV_MAX: Final = os.sysconf("SC_IOV_MAX")
COPY_CHUNK: Final = 1024 * 1024
"""Bytes at a time where the kernel can't copy: enough that the system calls don't count."""

DIRECTORY_MODE: Final = 0o750
FILE_MODE: Final = 0o640
"""Less the umask. What strangers upload is not for every account of the machine to read."""


class Translated:
    """Turns an OSError into NoSpaceError or DataError: "cannot <doing>: <why>"."""

    __slots__ = ("_doing",)

    def __init__(self, doing: str) -> None:
        self._doing = doing

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        """Raise what the port says instead of an OSError."""
        if isinstance(error, OSError):
            why = f"cannot {self._doing}: {error.strerror or error}"
            raise (NoSpaceError if error.errno in NO_SPACE else DataError)(why) from error


def translated(doing: str) -> Translated:
    """See Translated, which takes a third of the time of a generator."""
    return Translated(doing)


class Descriptor:
    """An open file, closed when `close` was called and the last thread that uses it is done.

    So no thread, however late, ever writes to a number that meanwhile means another file: a task
    may be cancelled, but a system call under way can't. Dropping it closes it too, so that one
    that was opened for a task that is gone does not leak.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._users = 0
        self._closing = False
        self._closed = False
        self._lock = threading.Lock()

    @contextmanager
    def use(self) -> Iterator[int]:
        """The number, valid inside the context. Raises DataError once it was closed."""
        with self._lock:
            if self._closing:
                raise DataError("the file was closed")
            self._users += 1
        try:
            yield self._fd
        finally:
            with self._lock:
                self._users -= 1
            self._close_if_unused()

    @property
    def closing(self) -> bool:
        """Whether `close` was called."""
        return self._closing

    def close(self) -> None:
        """Close as soon as nobody uses it. Never raises, may be called twice."""
        with self._lock:
            self._closing = True
        self._close_if_unused()

    def _close_if_unused(self) -> None:
        with self._lock:
            if not self._closing or self._users or self._closed:
                return
            self._closed = True
        try:
            os.close(self._fd)
        except OSError:
            # The descriptor is gone all the same; what did not reach the disk, sync tells.
            pass

    def __del__(self) -> None:
        self.close()


def open_file(path: str, flags: int) -> Descriptor:
    """Open a regular file. Raises OSError; ELOOP or EINVAL when something else is in its place."""
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, FILE_MODE)
    descriptor = Descriptor(fd)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
    except OSError:
        descriptor.close()
        raise
    return descriptor


def open_unnamed(folder: str) -> Descriptor | None:
    """A new file in a folder that has no name yet; None where there is no such thing.

    Raises OSError.
    """
    try:
        return Descriptor(os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, FILE_MODE))
    except OSError as error:
        if error.errno not in NO_UNNAMED:
            raise
        return None
    except AttributeError:
        return None  # elsewhere than on Linux


def give_name(fd: int, path: str) -> bool:
    """Name an unnamed file; False where that can't be done (no hard links, no /proc).

    Raises OSError, FileExistsError when the name is taken.
    """
    try:
        # With a descriptor, since else it would be the link in /proc that is linked.
        os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd, follow_symlinks=True)
    except OSError as error:
        if error.errno not in NO_LINK | {errno.ENOENT}:
            raise
        return False
    return True


def size_of(path: str) -> int | None:
    """The size of a regular file; None when there is none. Raises OSError."""
    try:
        found = os.stat(path, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", path)
    return found.st_size


def same_file(path: str, found: os.stat_result) -> bool:
    """Whether `path` names the file that `found` describes. Raises OSError."""
    try:
        named = os.stat(path, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return (named.st_dev, named.st_ino) == (found.st_dev, found.st_ino)


def remove(path: str) -> bool:
    """Delete a file; False when there was none. Raises OSError."""
    try:
        os.unlink(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def move(source: str, target: str, between: Callable[[], None] = lambda: None) -> None:
    """Rename a file without ever replacing another one; `between` runs while it has both names.

    Raises OSError, FileExistsError when another file is in the way. Fine when an earlier attempt
    was cut short.
    """
    try:
        os.link(source, target)
    except FileExistsError:
        if not same_file(target, os.stat(source, follow_symlinks=False)):
            raise
    except OSError as error:
        if error.errno not in NO_LINK:
            raise
        os.stat(source, follow_symlinks=False)
        # The names are unique, so this check only guards against what nobody meant to happen.
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target) from error
        os.rename(source, target)
        between()
        return
    between()
    remove(source)


def sync_data(fd: int) -> None:
    """Make a file's bytes survive a loss of power. Raises SyncFailedError."""
    try:
        os.fdatasync(fd)
    except OSError as error:
        raise SyncFailedError(f"cannot sync: {error.strerror or error}") from error


def sync_directory(path: str) -> None:
    """Make the names in a folder survive a loss of power. Raises SyncFailedError, DataError."""
    # Where it can't even be opened (no descriptors left, say) nothing was lost: it may be tried again.
    with translated(f"open {path}"):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        # Some network file systems can't, and need not: names are synced by the server.
        if error.errno != errno.EINVAL:
            raise SyncFailedError(f"cannot sync {path}: {error.strerror or error}") from error
    finally:
        # A descriptor that was only read has nothing to say when it is closed.
        with suppress(OSError):
            os.close(fd)


def flat(chunk: Buffer) -> memoryview:
    """The chunk as plain bytes, not copied."""
    view = memoryview(chunk)
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")


def write_at(fd: int, chunks: Sequence[Buffer], offset: int, wrote: Callable[[int], None]) -> None:
    """Write `chunks` one after the other from `offset` on; tell `wrote` of each piece's bytes.

    Where to write is always said, so that a call that failed can't shift what follows. Raises
    NoSpaceError, DataError; `wrote` has then been told of all that fitted.
    """
    views = [view for chunk in chunks if (view := flat(chunk)).nbytes]
    first = 0
    with translated("write"):
        while first < len(views):
            count = os.pwritev(fd, views[first : first + IOV_MAX], offset)
            if count <= 0:
                raise DataError("cannot write: the system wrote nothing and did not say why")
            wrote(count)
            offset += count
            while first < len(views) and count >= views[first].nbytes:
                count -= views[first].nbytes
                first += 1
            if count:
                views[first] = views[first][count:]


def splice_at(pipe: int, count: int, fd: int, offset: int, wrote: Callable[[int], None]) -> None:
    """Move `count` bytes out of a pipe to `offset`; tell `wrote` of each piece's bytes.

    Raises NoSpaceError, DataError; `wrote` has then been told of all that fitted.
    """
    with translated("write"):
        while count:
            try:
                moved = os.splice(pipe, fd, count, offset_dst=offset)
            except OSError as error:
                if error.errno not in NO_COPY:
                    raise
                # The file system can't take them like that.
                data = os.read(pipe, count)
                write_at(fd, [data], offset, wrote)
                moved = len(data)
            else:
                wrote(moved)
            if not moved:
                raise DataError("cannot write: the pipe ended before its bytes")
            offset += moved
            count -= moved


def copy_at(
    source: int, start: int, stop: int, fd: int, offset: int, wrote: Callable[[int], None]
) -> None:
    """Copy bytes [start, stop) of `source` to `offset` of `fd`; tell `wrote` of each piece.

    The kernel does it, and shares the blocks where the file system can. Raises BytesMissingError
    when the source ends before `stop`, NoSpaceError, DataError.
    """
    with translated("copy"):
        while start < stop:
            try:
                count = os.copy_file_range(source, fd, stop - start, start, offset)
            except OSError as error:
                if error.errno not in NO_COPY:
                    raise
                count = 0
            if not count:
                # Not here, or (some file systems say 0 for that as well) nothing is left.
                data = os.pread(source, min(stop - start, COPY_CHUNK), start)
                if not data:
                    raise BytesMissingError(f"the part ends at {start}; {stop} bytes were expected")
                write_at(fd, [data], offset, wrote)
                count = len(data)
            else:
                wrote(count)
            start += count
            offset += count
