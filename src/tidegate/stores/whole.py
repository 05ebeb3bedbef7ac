"""Small uploads, which a local store takes at once. Blocking, like `tree`.

With a record already there, the file gets its finished name alone. Ahead of its record it gets both
names, the first of which says that there may be no record, so that a sweep looks (`owners.walk`);
once there is one, that name goes.
"""

from __future__ import annotations

import errno
import os
from contextlib import closing
from typing import TYPE_CHECKING

from msgspec.structs import replace

from tidegate.stores import disk, owners
from tidegate.stores.disk import translated
from tidegate.stores.layout import make_folders
from tidegate.stores.tree import taken

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tidegate.ports import Buffer
    from tidegate.protocol.model import Upload
    from tidegate.stores.disk import Descriptor
    from tidegate.stores.tree import Places, Tree


def store(tree: Tree, upload: Upload, chunks: Sequence[Buffer], *, durable: bool) -> None:
    """Store a whole upload, of which there is nothing but a record, under its finished name.

    Raises NoSpaceError, SyncFailedError, DataError.
    """
    path = tree.places(upload).finished
    folder = os.path.dirname(path)
    with translated("store"):
        try:
            file = disk.open_unnamed(folder)
        except FileNotFoundError:
            make_folders(folder)
            file = disk.open_unnamed(folder)
        named = file is not None and _store_named(tree, file, upload, chunks, durable=durable)
    if not named:
        _store_in_steps(tree, upload, chunks, durable=durable)
    elif durable:
        tree.sync_names(path)


def _store_named(
    tree: Tree, file: Descriptor, upload: Upload, chunks: Sequence[Buffer], *, durable: bool
) -> bool:
    with closing(file), file.use() as fd:
        _fill(tree, fd, upload, chunks, durable=durable)
        try:
            return disk.give_name(fd, tree.places(upload).finished)
        except FileExistsError:
            raise taken(upload) from None


def _store_in_steps(tree: Tree, upload: Upload, chunks: Sequence[Buffer], *, durable: bool) -> None:
    file, _ = tree.open_writer(upload)
    with closing(file):
        with file.use() as fd:
            disk.write_at(fd, chunks, 0, lambda _: None)
        tree.finish(replace(upload, offset=upload.promised), durable=durable)


def store_ahead(tree: Tree, upload: Upload, chunks: Sequence[Buffer], *, durable: bool) -> bool:
    """Store a whole upload that has no record yet under both its names.

    False: it can't be (a name is taken, there are no hard links); then nothing is there, as when it
    raises NoSpaceError, SyncFailedError, DataError.
    """
    places = tree.places(upload)
    with translated("store"):
        try:
            fd = _make(places.incoming)
        except FileExistsError:
            return False
        named = False
        try:
            _fill(tree, fd, upload, chunks, durable=durable)
            named = _link(places)
            if named and durable:
                # The other name need not be: when the record is lost with it, the file stays.
                tree.sync_names(places.finished)
        except BaseException:
            if named:
                disk.remove(places.finished)
            disk.remove(places.incoming)
            raise
        finally:
            os.close(fd)
        if not named:
            disk.remove(places.incoming)
    return named


def confirm(tree: Tree, upload: Upload) -> None:
    """Take the first name of a complete upload away, if it still has it. Raises DataError."""
    with translated("confirm"):
        disk.remove(tree.places(upload).incoming)


def _fill(tree: Tree, fd: int, upload: Upload, chunks: Sequence[Buffer], *, durable: bool) -> None:
    disk.write_at(fd, chunks, 0, lambda _: None)
    owners.sign(fd, upload, upload.storage["finished"], tree.templates)
    if durable:
        disk.sync_data(fd)


def _make(path: str) -> int:
    """A new file, open for writing. Raises OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, flags, disk.FILE_MODE)
    except FileNotFoundError:
        make_folders(os.path.dirname(path))
        return os.open(path, flags, disk.FILE_MODE)


def _link(places: Places) -> bool:
    """Give a file its second name; False when that is taken, or there is no such thing."""
    try:
        try:
            os.link(places.incoming, places.finished)
        except FileNotFoundError:
            make_folders(os.path.dirname(places.finished))
            os.link(places.incoming, places.finished)
    except OSError as error:
        if error.errno not in disk.NO_LINK | {errno.EEXIST}:
            raise
        return False
    return True
