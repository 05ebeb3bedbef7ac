"""The blocking half of the local store: which file is an upload's, and how it moves.

Nothing of it may run on the event loop; all of it may run in several threads, and processes, at
once. It raises what `ports.DataStore` says, and never an OSError.
"""

# ruff: noqa: PTH
# Paths here are strings: see `disk`.

from __future__ import annotations

import errno
import fcntl
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from tidegate.ports import BytesBusyError, BytesMissingError, DataError, Stored
from tidegate.protocol.model import Upload, UploadId
from tidegate.stores import disk, naming
from tidegate.stores.disk import Descriptor, translated

INCOMING: Final = "incoming"
FINISHED: Final = "finished"
TEMPLATES: Final = "templates"

MANY_FOLDERS: Final = 4096
"""Folders remembered as synced: all of `{shard}`, or ten years of `{year}/{month}/{day}`."""
SIGNATURE: Final = "user.tidegate.id"
"""The extended attribute with the upload's id, for names from which it can't be told."""
ATTEMPTS: Final = 16
"""How often a file may be moved or deleted between opening and locking it before we give up: each
time somebody else got on, and an upload has two places."""
NO_LOCKS: Final = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL})


class Places(NamedTuple):
    """The two paths that an upload's file can have."""

    incoming: str
    finished: str


class Tree:
    """The files below one root."""

    def __init__(self, root: Path, template: naming.Template) -> None:
        self.base = ""
        self._root = root
        self.template = template
        self._known_templates = [template]
        self._lock = threading.Lock()
        self._synced_folders: OrderedDict[str, None] = OrderedDict()
        self._failed_syncs: dict[UploadId, int] = {}
        self._writing: weakref.WeakValueDictionary[tuple[int, int], Descriptor] = (
            weakref.WeakValueDictionary()
        )

    # ------------------------------------------------------------------------------------ opening

    def open(self) -> None:
        """Make the folders, see that locks work there. Raises DataError; cleans nothing."""
        self.base = os.path.abspath(self._root)
        made = self._make_root()
        devices = set()
        with self._opening():
            for name in (INCOMING, FINISHED):
                folder = os.path.join(self.base, name)
                made |= _make_folder(folder)
                devices.add(os.stat(folder).st_dev)
            self._open_templates()
            if made:
                disk.sync_directory(self.base)
                disk.sync_directory(os.path.dirname(self.base))
        if len(devices) > 1:
            raise DataError(
                f"{self.base}: {INCOMING} and {FINISHED} must be on one file system, since a file"
                " is moved between them when it is whole"
            )

    def _make_root(self) -> bool:
        parent = os.path.dirname(self.base)
        with self._opening():
            if not os.path.isdir(parent):
                raise DataError(f"{self.base}: its parent folder {parent} does not exist")
            if os.path.lexists(self.base) and not os.path.isdir(self.base):
                raise DataError(f"{self.base}: is a file; a folder was expected")
            return _make_folder(self.base)

    @contextmanager
    def _opening(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            why = {
                errno.EACCES: "is not writable for this user",
                errno.EPERM: "is not writable for this user",
                errno.EROFS: "is on a read-only file system",
            }.get(error.errno or 0, f"cannot be used: {error.strerror}")
            raise DataError(f"{self.base}: {why}") from error

    def _open_templates(self) -> None:
        """Add our template to those that files here may be named by, and learn the others."""
        path = os.path.join(self.base, TEMPLATES)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, disk.FILE_MODE)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                raise DataError(
                    f"{self.base}: this file system has no flock; choose a folder on a local disk"
                ) from error
            # A last line without its end was being written when the machine stopped, before
            # anything was named by it.
            whole = os.pread(fd, os.fstat(fd).st_size, 0).rpartition(b"\n")[0]
            texts = whole.decode(errors="replace").splitlines()
            if self.template.text not in texts:
                texts.append(self.template.text)
                lines = "".join(f"{text}\n" for text in texts[-1:]).encode()
                start = len(whole) + 1 if whole else 0
                os.ftruncate(fd, start)
                os.pwrite(fd, lines, start)
                os.fsync(fd)
            try:
                self._known_templates = [naming.Template(text) for text in texts]
            except ValueError as error:
                raise DataError(f"{path}: {error}") from error
        finally:
            os.close(fd)

    # ------------------------------------------------------------------------------- where it is

    def place(self, upload: Upload) -> dict[str, Any]:
        """Relative paths: what the record keeps. Pure."""
        name = naming.token(upload.id)
        return {
            "incoming": f"{INCOMING}/{naming.shard(name)}/{name}",
            "finished": f"{FINISHED}/{self.template.render(upload)}",
        }

    def places(self, upload: Upload) -> Places:
        """Absolute paths. Raises DataError when the record's would leave the tree."""
        return Places(
            self._inside(upload.storage.get("incoming"), INCOMING),
            self._inside(upload.storage.get("finished"), FINISHED),
        )

    def _inside(self, relative: object, folder: str) -> str:
        if isinstance(relative, str) and "\0" not in relative:
            parts = relative.split("/")
            if parts[0] == folder and len(parts) > 1 and not {"", ".", ".."}.intersection(parts):
                return os.path.join(self.base, relative)
        raise DataError(f"a record's path {relative!r} is not one below {self.base}/{folder}")

    # ------------------------------------------------------------------------------------ writing

    def open_writer(self, upload: Upload) -> Descriptor:
        """Open and lock an upload's file, and cut it to `upload.offset`.

        Raises BytesBusyError, BytesMissingError, NoSpaceError, DataError.
        """
        places = self.places(upload)
        if upload.complete:
            raise DataError(f"upload {upload.id} is complete; nothing may write to it")
        with translated("open for writing"):
            file = self._lock_file(places, create=upload.offset == 0)
            if file is None:
                raise BytesMissingError(f"{upload.storage['incoming']} is not there")
            with _closed_on_error(file), file.use() as fd:
                found = os.fstat(fd)
                if found.st_size < upload.offset:
                    raise BytesMissingError(
                        f"{upload.storage['incoming']} has {found.st_size} bytes;"
                        f" {upload.offset} were acknowledged"
                    )
                self._receive_again(places, found)
                if found.st_size > upload.offset:
                    os.ftruncate(fd, upload.offset)
        self._went_back(upload.id, upload.offset)
        with self._lock:
            self._writing[found.st_dev, found.st_ino] = file
        return file

    def truncate(self, upload: Upload, offset: int) -> None:
        """Cut off what is past `offset`. Raises BytesBusyError, DataError."""
        places = self.places(upload)
        with translated("truncate"):
            file = self._lock_file(places, create=False)
            if file is not None:
                with closing(file), file.use() as fd:
                    found = os.fstat(fd)
                    if found.st_size > offset:
                        self._receive_again(places, found)
                        os.ftruncate(fd, offset)
        self._went_back(upload.id, offset)

    def _lock_file(
        self, places: Places, *, create: bool, own_writer_too: bool = False
    ) -> Descriptor | None:
        """Open an upload's file, wherever it is, and lock it; None when it is nowhere.

        With `own_writer_too` a writer of this store that has it open is no obstacle: the caller
        holds the lease, and so is that writer. Raises BytesBusyError, OSError.
        """
        for _ in range(ATTEMPTS):
            opened = self._open_anywhere(places, create=create)
            if opened is None:
                return None
            file, path = opened
            with _closed_on_error(file), file.use() as fd:
                found = os.fstat(fd)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if not (own_writer_too and self._is_writing(found)):
                        raise BytesBusyError(f"another writer has {path} locked") from None
                # Before we had the lock it may have been moved, or deleted and made anew.
                if disk.same_file(path, found):
                    return file
            file.close()
        raise DataError(f"{places.incoming} does not hold still")

    def _open_anywhere(self, places: Places, *, create: bool) -> tuple[Descriptor, str] | None:
        # Twice, since it may be moved while we look.
        for path in (*places, *places):
            try:
                return disk.open_file(path, os.O_RDWR), path
            except (FileNotFoundError, NotADirectoryError):
                continue
        if not create:
            return None
        _make_folders(os.path.dirname(places.incoming))
        return disk.open_file(places.incoming, os.O_RDWR | os.O_CREAT), places.incoming

    def _is_writing(self, found: os.stat_result) -> bool:
        with self._lock:
            writer = self._writing.get((found.st_dev, found.st_ino))
        return writer is not None and not writer.closing

    def _receive_again(self, places: Places, found: os.stat_result) -> None:
        """Undo a move that no commit followed: what is not complete is not among the finished."""
        if disk.same_file(places.finished, found):
            _make_folders(os.path.dirname(places.incoming))
            # In this order, so that a loss of power can't take both names.
            disk.move(
                places.finished,
                places.incoming,
                lambda: self.sync_names(places.incoming),
            )

    # ------------------------------------------------------------------------------------ syncing

    def sync_names(self, path: str) -> None:
        """Make the names of a file, and of the folders that it is in, survive a loss of power.

        Raises OSError.
        """
        folder = os.path.dirname(path)
        disk.sync_directory(folder)
        while os.path.dirname(folder) != self.base:
            with self._lock:
                known = folder in self._synced_folders
                if known:
                    self._synced_folders.move_to_end(folder)
            if known:
                break
            parent = os.path.dirname(folder)
            disk.sync_directory(parent)
            with self._lock:
                self._synced_folders[folder] = None
                if len(self._synced_folders) > MANY_FOLDERS:
                    self._synced_folders.popitem(last=False)
            folder = parent

    def sync_failed(self, upload_id: UploadId, synced: int) -> None:
        """Remember that only [0, synced) is sure: see `check_synced`."""
        with self._lock:
            self._failed_syncs[upload_id] = min(synced, self._failed_syncs.get(upload_id, synced))

    def check_synced(self, upload_id: UploadId) -> None:
        """Raise DataError when a sync failed and the upload did not go back since.

        The kernel tells of a failed write-back once, and the next sync succeeds without the bytes.
        """
        with self._lock:
            synced = self._failed_syncs.get(upload_id)
        if synced is not None:
            raise DataError(
                f"a sync of upload {upload_id} failed, so that only {synced} bytes are sure"
            )

    def _went_back(self, upload_id: UploadId, offset: int) -> None:
        with self._lock:
            if offset <= self._failed_syncs.get(upload_id, -1):
                del self._failed_syncs[upload_id]

    # ---------------------------------------------------------------------------------- finishing

    def finish(self, upload: Upload, *, durable: bool) -> None:
        """Move a whole upload to its finished place. Raises BytesMissingError, DataError."""
        places = self.places(upload)
        if upload.length is None or not upload.whole:
            raise BytesMissingError(
                f"upload {upload.id} is not whole: {upload.offset} of {upload.length} bytes"
            )
        self.check_synced(upload.id)
        with translated("finish"):
            file = self._lock_file(places, create=upload.length == 0, own_writer_too=True)
            if file is None:
                raise BytesMissingError(f"{upload.storage['incoming']} is not there")
            with closing(file), file.use() as fd:
                size = os.fstat(fd).st_size
                if size < upload.length:
                    raise BytesMissingError(
                        f"upload {upload.id} has {size} of {upload.length} bytes"
                    )
                if size > upload.length:
                    # Never acknowledged, so they never counted.
                    os.ftruncate(fd, upload.length)
                self._sign(fd, upload)
                if durable:
                    self._sync_data(fd, upload)
                self._move_to_finished(upload, places, durable=durable)

    def _sync_data(self, fd: int, upload: Upload) -> None:
        try:
            os.fdatasync(fd)
        except OSError as error:
            self.sync_failed(upload.id, upload.synced_offset)
            raise DataError(f"cannot sync upload {upload.id}: {error.strerror}") from error

    def _move_to_finished(self, upload: Upload, places: Places, *, durable: bool) -> None:
        def sync_new_name() -> None:
            if durable:
                self.sync_names(places.finished)

        try:
            _make_folders(os.path.dirname(places.finished))
            disk.move(places.incoming, places.finished, sync_new_name)
        except FileExistsError:
            raise DataError(
                f"upload {upload.id}: another file is in its place, {upload.storage['finished']}"
            ) from None
        except FileNotFoundError:
            if disk.size_of(places.finished) is None:
                raise BytesMissingError(f"upload {upload.id} was deleted meanwhile") from None
            sync_new_name()  # the move was made before a crash, the sync perhaps not
            return
        if durable:
            disk.sync_directory(os.path.dirname(places.incoming))

    # ------------------------------------------------------------------------ reading and deleting

    def measure(self, upload: Upload) -> int:
        """The size of an upload's file, wherever it is. Raises DataError."""
        places = self.places(upload)
        with translated("measure"):
            # Twice, since it may be moved while we look.
            for path in (*places, *places):
                size = disk.size_of(path)
                if size is not None:
                    return size
        return 0

    def open_reader(self, upload: Upload, stop: int) -> Descriptor:
        """Open a complete upload's file. Raises BytesMissingError below `stop` bytes, DataError."""
        places = self.places(upload)
        with translated("open for reading"):
            for path in (places.finished, places.incoming, places.finished):
                try:
                    file = disk.open_file(path, os.O_RDONLY)
                except (FileNotFoundError, NotADirectoryError):
                    continue
                with _closed_on_error(file), file.use() as fd:
                    size = os.fstat(fd).st_size
                    if size < stop:
                        raise BytesMissingError(f"{path} has {size} bytes; {stop} were expected")
                return file
        raise BytesMissingError(f"{upload.storage['finished']} is not there")

    def delete(self, upload: Upload) -> None:
        """Delete an upload's file under all its names. Raises DataError."""
        places = self.places(upload)
        with translated("delete"):
            # In the order in which a finish at work moves it, and once more for one that is
            # being received again.
            for path in (places.incoming, places.finished, places.incoming):
                disk.remove(path)
            self._remove_own_folders(places.finished, upload.id)
        self._went_back(upload.id, 0)

    def discard(self, stored: Stored) -> None:
        """Delete one file that `walk` found. Raises DataError."""
        path = self._inside(stored.place, stored.place.partition("/")[0])
        with translated("delete"):
            disk.remove(path)
            self._remove_own_folders(path, stored.upload_id)

    def _remove_own_folders(self, path: str, upload_id: UploadId) -> None:
        """Remove the folders that only this upload can be in (the template `{id}/{filename}`)."""
        name = naming.token(upload_id)
        folder = os.path.dirname(path)
        while name in os.path.basename(folder) and os.path.dirname(folder) != self.base:
            try:
                os.rmdir(folder)
            except OSError:
                # Not empty (an operator's note?) or not there: a folder is no trace of bytes.
                return
            with self._lock:
                self._synced_folders.pop(folder, None)
            folder = os.path.dirname(folder)

    # ----------------------------------------------------------------------------------- sweeping

    def walk(self) -> Generator[Stored, None, None]:
        """All files whose upload is certain. Raises DataError."""
        with translated("list"):
            for top in (INCOMING, FINISHED):
                for place, entry in self._files(top):
                    upload_id = self._owner(place)
                    if upload_id is None:
                        continue
                    try:
                        found = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    yield Stored(upload_id, found.st_size, found.st_mtime, place)

    def _files(self, relative: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
        try:
            entries = os.scandir(os.path.join(self.base, relative))
        except FileNotFoundError:
            return
        with entries:
            for entry in entries:
                place = f"{relative}/{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    yield from self._files(place)
                elif entry.is_file(follow_symlinks=False):
                    yield place, entry

    def _owner(self, place: str) -> UploadId | None:
        """Whose file it is, or None where that is not certain.

        A sweep deletes what no record speaks of, so a guess could delete a completed upload: where
        a name may be that of two uploads, by any template that was ever used here, only what
        `_sign` left in the file tells.
        """
        owners = self._owners(place)
        if len(owners) == 1 and None not in owners:
            return owners.pop()
        return _signature(os.path.join(self.base, place)) if owners else None

    def _owners(self, place: str) -> set[UploadId | None]:
        """Every upload that may have been given this place; None is one whose id can't be told."""
        top, _, path = place.partition("/")
        if top == FINISHED:
            return {owner for template in self._known_templates for owner in template.ids(path)}
        try:
            return {naming.id_of(path.rpartition("/")[2])}
        except ValueError:
            return set()

    def _sign(self, fd: int, upload: Upload) -> None:
        """Note in a file whose it is, when its name does not tell."""
        if self._owners(upload.storage["finished"]) != {upload.id} and hasattr(os, "setxattr"):
            # A file system without attributes: such a file is never swept.
            with suppress(OSError):
                os.setxattr(fd, SIGNATURE, upload.id.encode())


def _signature(path: str) -> UploadId | None:
    if hasattr(os, "getxattr"):
        with suppress(OSError, UnicodeDecodeError):
            return UploadId(os.getxattr(path, SIGNATURE, follow_symlinks=False).decode())
    return None


@contextmanager
def _closed_on_error(file: Descriptor) -> Iterator[None]:
    # At once, and not with the traceback that refers to it: it holds the lock.
    try:
        yield
    except BaseException:
        file.close()
        raise


def _make_folder(path: str) -> bool:
    """Whether it was made now. Raises OSError."""
    try:
        os.mkdir(path, disk.DIRECTORY_MODE)
    except FileExistsError:
        return False
    return True


def _make_folders(path: str) -> None:
    try:
        _make_folder(path)
    except FileNotFoundError:
        _make_folders(os.path.dirname(path))
        _make_folder(path)
