"""The folders below a local store's root, and the list of templates that files there are named by.

Blocking, like `disk`.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tidegate.ports import DataError
from tidegate.stores import disk, naming

INCOMING: Final = "incoming"
"""Where files are while they are received."""
FINISHED: Final = "finished"
"""Where they are once they are whole."""
TEMPLATES: Final = "templates"
"""The file with every name template that was ever used, one per line."""

NO_LOCKS: Final = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL})


def prepare(base: str, template: naming.Template) -> list[naming.Template]:
    """Make the folders and see that files can be written and locked there; clean nothing.

    Returns every template that files in FINISHED may be named by. Raises DataError, in one line.
    """
    with _explained(base):
        parent = os.path.dirname(base)
        if not os.path.isdir(parent):
            raise DataError(f"{base}: its parent folder {parent} does not exist")
        if os.path.lexists(base) and not os.path.isdir(base):
            raise DataError(f"{base}: is not a folder")
        make_folder(base)
        devices = set()
        for name in (INCOMING, FINISHED):
            folder = os.path.join(base, name)
            make_folder(folder)
            devices.add(os.stat(folder).st_dev)
        if len(devices) > 1:
            raise DataError(
                f"{base}: {INCOMING} and {FINISHED} must be on one file system, since a file is"
                " moved from one to the other when it is whole"
            )
        templates = _templates(base, template)
        # Also what was there: whoever made it may have been killed before it synced.
        disk.sync_directory(base)
        disk.sync_directory(parent)
        return templates


@contextmanager
def _explained(base: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = {
            errno.EACCES: "is not writable for this user",
            errno.EPERM: "is not writable for this user",
            errno.EROFS: "is on a read-only file system",
        }.get(error.errno or 0, f"cannot be used: {error.strerror or error}")
        raise DataError(f"{base}: {why}") from error


def _templates(base: str, template: naming.Template) -> list[naming.Template]:
    path = os.path.join(base, TEMPLATES)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, disk.FILE_MODE)
    try:
        _lock(fd, base)
        # A last line without its end was being written when the machine stopped, before anything
        # was named by it.
        whole, end, _ = os.pread(fd, os.fstat(fd).st_size, 0).rpartition(b"\n")
        texts = whole.decode(errors="replace").split("\n") if end else []
        if template.text not in texts:
            start = len(whole + end)
            os.ftruncate(fd, start)
            os.pwrite(fd, f"{template.text}\n".encode(), start)
            texts.append(template.text)
        os.fsync(fd)
        try:
            return [naming.Template(text) for text in texts]
        except ValueError as error:
            raise DataError(f"{path}: {error}") from error
    finally:
        os.close(fd)


def _lock(fd: int, base: str) -> None:
    try:
        # Held for an instant, by whoever else is starting.
        fcntl.flock(fd, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        raise DataError(f"{base}: files cannot be locked there; choose a local disk") from error


def incoming(name: str) -> str:
    """The relative path of a file that is being received, by what its id is called there."""
    return f"{INCOMING}/{naming.shard(name)}/{name}"


def make_folder(path: str) -> bool:
    """Make one folder; False when it was there. Raises OSError."""
    try:
        os.mkdir(path, disk.DIRECTORY_MODE)
    except FileExistsError:
        return False
    return True


def make_folders(path: str) -> None:
    """Make a folder and those that it is in. Raises OSError."""
    try:
        make_folder(path)
    except FileNotFoundError:
        make_folders(os.path.dirname(path))
        make_folder(path)
