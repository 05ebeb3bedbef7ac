"""The blocking half of the local store: which file is an upload's, and how it moves.

Nothing of it may run on the event loop; all of it may run in several threads, and processes, at
once. It raises what `ports.DataStore` says, and never an OSError.
"""

from __future__ import annotations

import fcntl
import os
import re
import threading
import weakref
from collections import OrderedDict
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from tidegate.ports import (
    BytesBusyError,
    BytesMissingError,
    DataError,
    Stored,
    SyncFailedError,
)
from tidegate.protocol.model import Upload, UploadId
from tidegate.stores import disk, layout, naming, owners
from tidegate.stores.disk import Descriptor, translated
from tidegate.stores.layout import FINISHED, INCOMING, make_folders

MANY_FOLDERS: Final = 4096
"""Folders remembered as synced: all of `{shard}`, or ten years of `{year}/{month}/{day}`."""
ATTEMPTS: Final = 16
"""How often a file may be moved or deleted between opening and locking it before we give up: each
time somebody else got on, and an upload has two places."""


_PLAIN: Final = re.compile(r"[a-z]+(?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+")
"""Paths of which there is nothing to fear: what most are."""


class Places(NamedTuple):
    """The two paths that an upload's file can have."""

    incoming: str
    finished: str


class Tree:
    """The files below one root."""

    def __init__(self, root: Path, template: naming.Template) -> None:
        self.base = ""
        self._root = root
        self._template = template
        self.templates = [template]
        """Every template that files may be named by."""
        self._lock = threading.Lock()
        self._synced_folders: OrderedDict[str, None] = OrderedDict()
        self._failed_syncs: dict[UploadId, int] = {}
        self._writing: weakref.WeakValueDictionary[tuple[int, int], Descriptor] = (
            weakref.WeakValueDictionary()
        )

    def open(self) -> None:
        """Make the folders, see that locks work there; clean nothing. Raises DataError."""
        self.base = os.path.abspath(self._root)
        self.templates = layout.prepare(self.base, self._template)

    # ------------------------------------------------------------------------------- where it is

    def place(self, upload: Upload) -> dict[str, Any]:
        """Relative paths: what the record keeps. Pure."""
        name = naming.token(upload.id)
        return {
            "incoming": layout.incoming(name),
            "finished": f"{FINISHED}/{upload.name or self._template.render(upload)}",
        }

    def places(self, upload: Upload) -> Places:
        """Absolute paths. Raises DataError when the record's would leave the tree."""
        return Places(
            self._inside(upload.storage.get("incoming"), INCOMING),
            self._inside(upload.storage.get("finished"), FINISHED),
        )

    def _inside(self, relative: object, folder: str) -> str:
        if isinstance(relative, str) and _PLAIN.fullmatch(relative):
            if relative.startswith(f"{folder}/"):
                return f"{self.base}/{relative}"
        elif isinstance(relative, str) and _is_encodable(relative):
            parts = relative.split("/")
            if parts[0] == folder and len(parts) > 1 and not {"", ".", ".."}.intersection(parts):
                return os.path.join(self.base, relative)
        raise DataError(f"a record's path {relative!r} is not one below {self.base}/{folder}")

    # ------------------------------------------------------------------------------------ writing

    def open_writer(self, upload: Upload) -> tuple[Descriptor, bool]:
        """Open and lock an upload's file; whether it is just what `upload` says, or has to be
        `cut_back` first.

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
                as_it_should = found.st_size == upload.offset and not disk.same_file(
                    places.finished, found
                )
        self.went_back(upload.id, upload.offset)
        with self._lock:
            self._writing[found.st_dev, found.st_ino] = file
        return file, as_it_should

    def lock(self, upload: Upload) -> Descriptor | None:
        """Open and lock an upload's file; None when there is none. Raises BytesBusyError, DataError."""
        with translated("truncate"):
            return self._lock_file(self.places(upload), create=False)

    def cut_back(self, file: Descriptor, upload: Upload, offset: int) -> None:
        """Cut off what is past `offset` of a locked file. Raises DataError."""
        with translated("truncate"), file.use() as fd:
            found = os.fstat(fd)
            if found.st_size >= offset:
                self._receive_again(self.places(upload), found)
            if found.st_size > offset:
                os.ftruncate(fd, offset)

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
        make_folders(os.path.dirname(places.incoming))
        return disk.open_file(places.incoming, os.O_RDWR | os.O_CREAT), places.incoming

    def _is_writing(self, found: os.stat_result) -> bool:
        with self._lock:
            writer = self._writing.get((found.st_dev, found.st_ino))
        return writer is not None and not writer.closing

    def _receive_again(self, places: Places, found: os.stat_result) -> None:
        """Undo a move that no commit followed: what is not complete is not among the finished."""
        if disk.same_file(places.finished, found):
            make_folders(os.path.dirname(places.incoming))
            # In this order, so that a loss of power can't take both names.
            disk.move(
                places.finished,
                places.incoming,
                lambda: self.sync_names(places.incoming),
            )

    # ------------------------------------------------------------------------------------ syncing

    def sync_names(self, path: str) -> None:
        """Make the names of a file, and of the folders that it is in, survive a loss of power.

        Raises SyncFailedError.
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

    @contextmanager
    def noting_failed_sync(self, upload_id: UploadId, synced: int) -> Iterator[None]:
        """Raise SyncFailedError at once, and from then on, when one inside raises it.

        Until the upload goes back to the first `synced` bytes, which are sure: the kernel tells of
        a failed write-back once, and the next sync succeeds without the bytes.
        """
        with self._lock:
            sure = self._failed_syncs.get(upload_id)
        if sure is not None:
            raise SyncFailedError(
                f"an earlier sync of upload {upload_id} failed; {sure} bytes are sure"
            )
        try:
            yield
        except SyncFailedError:
            with self._lock:
                self._failed_syncs[upload_id] = synced
            raise

    def went_back(self, upload_id: UploadId, offset: int) -> None:
        """Note that an upload is at `offset`: a failed sync of what came after it is over."""
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
                owners.sign(fd, upload, upload.storage["finished"], self.templates)
                with self.noting_failed_sync(upload.id, upload.synced_offset):
                    if durable:
                        disk.sync_data(fd)
                    self._move_to_finished(upload, places, durable=durable)

    def _move_to_finished(self, upload: Upload, places: Places, *, durable: bool) -> None:
        # That the old name is gone is not synced: with both a file can be found all the same.
        def sync_new_name() -> None:
            if durable:
                self.sync_names(places.finished)

        try:
            make_folders(os.path.dirname(places.finished))
            disk.move(places.incoming, places.finished, sync_new_name)
        except FileExistsError:
            raise taken(upload) from None
        except FileNotFoundError:
            if disk.size_of(places.finished) is None:
                raise BytesMissingError(f"upload {upload.id} was deleted meanwhile") from None
            sync_new_name()  # the move was made before a crash, the sync perhaps not

    # ------------------------------------------------------------------------ reading, deleting

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
        self.went_back(upload.id, 0)

    def discard(self, stored: Stored) -> None:
        """Delete one file that `walk` found. Raises DataError."""
        path = self._inside(stored.place, stored.place.partition("/")[0])
        with translated("delete"):
            disk.remove(path)
            self._remove_own_folders(path, stored.upload_id)

    def walk(self) -> Generator[Stored, None, None]:
        """All files whose upload is certain. Raises DataError."""
        return owners.walk(self.base, self.templates)

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


def taken(upload: Upload) -> DataError:
    """What is raised when an upload's finished name is another file's."""
    place = upload.storage["finished"]
    return DataError(f"upload {upload.id}: another file is in its place, {place}")


@contextmanager
def _closed_on_error(file: Descriptor) -> Iterator[None]:
    # At once, and not with the traceback that refers to it: it holds the lock.
    try:
        yield
    except BaseException:
        file.close()
        raise


def _is_encodable(path: str) -> bool:
    try:
        return b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        return False
