"""Who is alive, and whose turn it is to write: locks that the kernel drops when a process dies.

All of it is one directory beside the database. A file per holder, locked by it for as long as it
lives; and two files that make writing a matter of turns. Every function here may block.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from pathlib import Path

_HOLDER = "holder-"


class Turn:
    """A lock between processes, for one thread of each, that nobody can hog.

    A bare flock goes to whoever asks first once it is free, which is mostly the one that just let
    it go. Here one has to stand at the gate first, and whoever waits for the lock holds the gate:
    nobody overtakes.
    """

    def __init__(self, folder: Path) -> None:
        self._gate = _open(folder / "gate")
        try:
            self._lock = _open(folder / "turn")
        except BaseException:
            os.close(self._gate)
            raise

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Wait for our turn, however long that takes."""
        with self._held(lambda descriptor: fcntl.flock(descriptor, fcntl.LOCK_EX)):
            yield

    @contextlib.contextmanager
    def held_within(self, seconds: float) -> Iterator[None]:
        """Wait for our turn, so long at most. Raises TimeoutError."""
        deadline = time.monotonic() + seconds

        def lock(descriptor: int) -> None:
            while True:
                try:
                    return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise TimeoutError(errno.ETIMEDOUT, "another process writes") from None
                    time.sleep(0.01)

        with self._held(lock):
            yield

    @contextlib.contextmanager
    def _held(self, lock: Callable[[int], None]) -> Iterator[None]:
        lock(self._gate)
        try:
            lock(self._lock)
        finally:
            fcntl.flock(self._gate, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def close(self) -> None:
        """Let go of the files. Once."""
        os.close(self._gate)
        os.close(self._lock)


class Liveness:
    """Shows other processes that this holder is alive, and tells whether another is.

    Being open in a process that sleeps (SIGSTOP) is being alive. What is in a holder's file is its
    own, and can be read as long as that is there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.holder = secrets.token_hex(8)
        self.descriptor = -1
        """Of its file; -1: not alive."""

    def file(self, holder: str) -> Path:
        """A holder's file, whether it is there or not."""
        return self._folder / f"{_HOLDER}{holder}"

    def open(self, needed: Collection[str] = ()) -> None:
        """Come alive, and clear away what dead ones left, but for those that are still `needed`.
        The caller has the turn.

        (Otherwise the clearing could hit a file that was made and not yet locked.)
        """
        self.descriptor = _open(self.file(self.holder))
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for name in os.listdir(self._folder):
                holder = name.removeprefix(_HOLDER)
                if holder in {name, self.holder, *needed} or self.is_alive(holder):
                    continue
                self.clear(holder)
        except BaseException:
            self.close()
            raise

    def is_alive(self, holder: str) -> bool:
        """Whether some process has this holder open."""
        try:
            descriptor = os.open(self.file(holder), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return False
        try:
            # Shared, so that two that ask at once don't take each other for the holder.
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def clear(self, holder: str) -> None:
        """Clear away the file of one that is dead, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.file(holder))

    def close(self, *, needed: bool = False) -> None:
        """Die: whoever looks from now on finds this holder dead. May be called twice.

        Its file stays if it is `needed`.
        """
        if self.descriptor >= 0:
            if not needed:
                self.clear(self.holder)
            os.close(self.descriptor)
            self.descriptor = -1


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


# What these do to locks and to memory shared between machines is not what SQLite needs.
_NETWORK = frozenset(
    "9p afs beegfs ceph cifs coda gfs2 glusterfs gpfs lustre ncpfs nfs nfs4 ocfs2 orangefs smb3 "
    "smbfs fuse.ceph fuse.cephfs fuse.gcsfuse fuse.glusterfs fuse.goofys fuse.juicefs fuse.rclone "
    "fuse.s3fs fuse.sshfs".split()
)


def network_filesystem(folder: Path, mounts: str = "/proc/self/mountinfo") -> str | None:
    """The type of the network file system that `folder` is on; None when it is on none.

    None, too, where the system does not tell.
    """
    place = os.path.realpath(folder)
    best, found = "", None
    try:
        with open(mounts, encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines:
                fields, _, rest = line.partition(" - ")
                point = _unescape(fields.split(" ")[4])
                # The last of several mounts on one point is the one that is seen.
                inside = place == point or place.startswith(point.rstrip("/") + "/")
                if inside and len(point) >= len(best):
                    best, found = point, rest.split(" ")[0]
    except (OSError, IndexError):
        return None
    return found if found in _NETWORK else None


def _unescape(point: str) -> str:
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        point = point.replace(code, char)
    return point


def describe(error: OSError) -> str:
    """An operating system's error, in words."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return "the disk is full"
    return os.strerror(error.errno) if error.errno else str(error)
