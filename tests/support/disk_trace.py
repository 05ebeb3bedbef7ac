"""What a program does to the files below one folder, in order, with who asked for each sync.

Python's own calls are caught in `os`, where the stores look each up when they make it; SQLite's in a
VFS (`sqlite_vfs`). `disk_states` says what a loss of power may leave of such a trace.
"""

from __future__ import annotations

import contextvars
import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any, Final, NamedTuple
from unittest import mock

from tests.support import sqlite_vfs

import tidegate
from tidegate.threads import Threads

PACKAGE: Final = os.path.dirname(tidegate.__file__) + os.sep

Node = int
"""A file or a folder, whatever it is called; 0 is the folder that the trace is about."""
ROOT: Final[Node] = 0


class Frame(NamedTuple):
    """A place in the product that a call went through."""

    file: str
    """Relative to the package."""
    line: int


Stack = tuple[Frame, ...]
"""Innermost first."""


class Make(NamedTuple):
    """A new file or folder got its first name."""

    folder: Node
    name: str
    node: Node
    is_folder: bool


class Unnamed(NamedTuple):
    """A new file that has no name yet."""

    node: Node


class Link(NamedTuple):
    """A file got another name, or its first."""

    folder: Node
    name: str
    node: Node


class Unlink(NamedTuple):
    """A name was taken away, of a file or of an empty folder."""

    folder: Node
    name: str


class Rename(NamedTuple):
    """A file got another name for the one that it had, at once."""

    folder: Node
    name: str
    old_folder: Node
    old_name: str
    node: Node


class Write(NamedTuple):
    """Bytes were written into a file."""

    node: Node
    offset: int
    data: bytes


class Truncate(NamedTuple):
    """A file was cut, or grew by zeros."""

    node: Node
    size: int


class Attribute(NamedTuple):
    """An extended attribute was set."""

    node: Node
    name: str
    value: bytes


class Sync(NamedTuple):
    """A file's bytes, or a folder's names, were made to survive a loss of power."""

    node: Node
    whole: bool
    """fsync, not fdatasync: attributes as well."""
    causes: tuple[Stack, ...]
    """Each of which asked for it. A sync is left out of a build when all its causes are."""


class Note(NamedTuple):
    """Something that the client, or the test, came to know at this point."""

    what: str
    subject: str = ""
    number: int = 0


Happening = Make | Unnamed | Link | Unlink | Rename | Write | Truncate | Attribute | Sync | Note

SQLITE: Final = "sqlite"
"""The file of the frames that stand for SQLite's own syncs: see SQLITE_SYNCS."""
COMMIT: Final = Frame(SQLITE, 1)
"""A commit, in the mode FULL."""
LOG: Final = Frame(SQLITE, 2)
"""The log, before it is copied into the database, or begun anew."""
DATABASE: Final = Frame(SQLITE, 3)
"""The database, before the log is begun anew or deleted."""
NEW_FILE: Final = Frame(SQLITE, 4)
"""The folder of a new log or journal."""
JOURNAL: Final = Frame(SQLITE, 5)
"""The rollback journal, while the database is made."""

_asked: contextvars.ContextVar[Stack] = contextvars.ContextVar("asked", default=())
"""The product's frames that sent a thread to work."""


def product_stack() -> Stack:
    """The product's frames on this thread, and behind them those that sent it here."""
    frames: list[Frame] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(PACKAGE):
            frames.append(Frame(name.removeprefix(PACKAGE), frame.f_lineno))
        frame = frame.f_back
    return (*frames, *_asked.get())


def _run_noting(run: Any) -> Any:
    """`Threads.run`, whose functions know who sent them."""

    async def noting(threads: Any, function: Any, *arguments: Any) -> Any:
        stack = product_stack()

        def in_thread() -> Any:
            token = _asked.set(stack)
            try:
                return function(*arguments)
            finally:
                _asked.reset(token)

        return await run(threads, in_thread)

    return noting


class Tracer:
    """Writes down what happens below `root`, from `tracing()` on, in all threads."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.happened: list[Happening] = []
        # Held while a call is carried out, so that the order of the notes is that of the calls.
        self._lock = threading.RLock()
        self._names: dict[str, Node] = {root: ROOT}
        self._folders: set[Node] = {ROOT}
        self._opened: dict[int, Node] = {}
        self._nodes = 0
        self._frames_written = False
        self._durable = threading.local()

    def note(self, what: str, subject: str = "", number: int = 0) -> None:
        """Write down that something is known from here on."""
        with self._lock:
            self.happened.append(Note(what, subject, number))

    @contextmanager
    def tracing(self) -> Iterator[None]:
        """Catch all calls. No two of a process at a time."""
        with ExitStack() as stack:
            stack.enter_context(sqlite_vfs.Vfs(self._sqlite))
            for name in (
                "open close pwrite pwritev ftruncate posix_fallocate copy_file_range fsync fdatasync "
                "link unlink remove rename mkdir rmdir setxattr"
            ).split():
                original = getattr(os, name)
                instead = functools.partial(getattr(self, f"_{name}"), original)
                stack.enter_context(mock.patch.object(os, name, instead))
            # What nothing of the product does; should it begin to, the trace would be wrong.
            for name in "replace truncate writev sendfile symlink removexattr".split():
                stack.enter_context(mock.patch.object(os, name, self._unknown(name)))
            stack.enter_context(mock.patch.object(Threads, "run", _run_noting(Threads.run)))
            yield

    @contextmanager
    def durable(self, causes: Sequence[Stack]) -> Iterator[None]:
        """This thread is at a commit that these asked to be durable; none: that nobody did."""
        self._durable.causes = tuple(causes)
        try:
            yield
        finally:
            self._durable.causes = ()

    # ------------------------------------------------------------------------------------ names

    def _place(self, path: str | os.PathLike[str]) -> str | None:
        place = os.path.abspath(os.fspath(path))
        return place if place == self.root or place.startswith(self.root + os.sep) else None

    def _folder(self, place: str) -> tuple[Node, str]:
        folder, _, name = place.rpartition(os.sep)
        return self._names[folder], name

    def _make(self, place: str, *, is_folder: bool) -> Node:
        self._nodes += 1
        node = self._nodes
        self._names[place] = node
        if is_folder:
            self._folders.add(node)
        folder, name = self._folder(place)
        self.happened.append(Make(folder, name, node, is_folder))
        return node

    # ------------------------------------------------------------------------- in place of `os`

    def _open(self, original: Any, path: Any, flags: int, *args: Any, **options: Any) -> int:
        with self._lock:
            place = self._place(path) if isinstance(path, str | os.PathLike) else None
            fd: int = original(path, flags, *args, **options)
            if place is not None and flags & os.O_TMPFILE == os.O_TMPFILE:
                self._nodes += 1
                self._opened[fd] = self._nodes
                self.happened.append(Unnamed(self._nodes))
            elif place is not None:
                assert not flags & os.O_TRUNC, "not known to the trace"
                node = self._names.get(place)
                if node is None:
                    assert flags & os.O_CREAT, place
                    node = self._make(place, is_folder=False)
                self._opened[fd] = node
            return fd

    def _close(self, original: Any, fd: int) -> None:
        with self._lock:
            self._opened.pop(fd, None)
            original(fd)

    def _pwrite(self, original: Any, fd: int, data: Any, offset: int) -> int:
        with self._lock:
            count: int = original(fd, data, offset)
            self._wrote(fd, offset, bytes(data)[:count])
            return count

    def _pwritev(self, original: Any, fd: int, buffers: Any, offset: int, *flags: int) -> int:
        with self._lock:
            count: int = original(fd, buffers, offset, *flags)
            self._wrote(fd, offset, b"".join(map(bytes, buffers))[:count])
            return count

    def _copy_file_range(
        self, original: Any, source: int, fd: int, count: int, start: int, offset: int
    ) -> int:
        with self._lock:
            copied: int = original(source, fd, count, start, offset)
            self._wrote(fd, offset, os.pread(source, copied, start))
            return copied

    def _wrote(self, fd: int, offset: int, data: bytes) -> None:
        if (node := self._opened.get(fd)) is not None and data:
            self.happened.append(Write(node, offset, data))

    def _ftruncate(self, original: Any, fd: int, size: int) -> None:
        with self._lock:
            original(fd, size)
            if (node := self._opened.get(fd)) is not None:
                self.happened.append(Truncate(node, size))

    def _posix_fallocate(self, original: Any, fd: int, offset: int, size: int) -> None:
        # Of a new file. What is then written to it as memory may all be lost: it is zeros here.
        with self._lock:
            original(fd, offset, size)
            if (node := self._opened.get(fd)) is not None:
                self.happened.append(Truncate(node, offset + size))

    def _fsync(self, original: Any, fd: int) -> None:
        self._sync(original, fd, whole=True)

    def _fdatasync(self, original: Any, fd: int) -> None:
        self._sync(original, fd, whole=False)

    def _sync(self, original: Any, fd: int, *, whole: bool) -> None:
        with self._lock:
            original(fd)
            if (node := self._opened.get(fd)) is not None:
                self.happened.append(Sync(node, whole, (product_stack(),)))

    def _link(self, original: Any, source: Any, target: Any, **options: Any) -> None:
        with self._lock:
            original(source, target, **options)
            old, new = self._place(source), self._place(target)
            fd = options.get("src_dir_fd")
            if new is not None and fd is not None:
                assert source == f"/proc/self/fd/{fd}", "not known to the trace"
                node = self._names[new] = self._opened[fd]
                self.happened.append(Link(*self._folder(new), node))
            elif old is not None and new is not None:
                node = self._names[new] = self._names[old]
                self.happened.append(Link(*self._folder(new), node))

    def _unlink(self, original: Any, path: Any) -> None:
        with self._lock:
            original(path)
            self._unlinked(path)

    _remove = _rmdir = _unlink

    def _unlinked(self, path: Any) -> None:
        if (place := self._place(path)) is not None:
            del self._names[place]
            self.happened.append(Unlink(*self._folder(place)))

    def _rename(self, original: Any, source: Any, target: Any) -> None:
        with self._lock:
            original(source, target)
            old, new = self._place(source), self._place(target)
            if old is not None and new is not None:
                node = self._names[new] = self._names.pop(old)
                self.happened.append(Rename(*self._folder(new), *self._folder(old), node))

    def _mkdir(self, original: Any, path: Any, *args: Any, **options: Any) -> None:
        with self._lock:
            original(path, *args, **options)
            if (place := self._place(path)) is not None:
                self._make(place, is_folder=True)

    def _setxattr(self, original: Any, target: Any, name: str, value: bytes) -> None:
        with self._lock:
            if (node := self._opened.get(target)) is not None:
                self.happened.append(Attribute(node, name, bytes(value)))
            original(target, name, value)

    def _unknown(self, name: str) -> Callable[..., Any]:
        def fail(*args: Any, **_: Any) -> Any:
            raise AssertionError(f"os.{name}{args}: the trace knows no such call")

        return fail

    # --------------------------------------------------------------------------------- of SQLite

    def _sqlite(self, call: sqlite_vfs.Call, perform: Callable[[], int]) -> int:
        with self._lock:
            code = perform()
            place = self._place(call.path)
            if code != sqlite_vfs.OK or place is None:
                return code
            match call.op:
                case "open":
                    if place not in self._names:
                        self._make(place, is_folder=False)
                case "write":
                    self.happened.append(Write(self._names[place], call.offset, call.data))
                    if place.endswith("-wal"):
                        # Its head is synced by itself, in every mode.
                        self._frames_written = call.offset > 0
                case "truncate":
                    self.happened.append(Truncate(self._names[place], call.offset))
                case "sync":
                    causes = self._causes(place)
                    self.happened.append(Sync(self._names[place], whole=False, causes=causes))
                    self._synced_folder(call, place, causes)
                case "delete":
                    self._unlinked(place)
                    self._synced_folder(call, place, ((),))
            return code

    def _synced_folder(self, call: sqlite_vfs.Call, place: str, causes: tuple[Stack, ...]) -> None:
        if call.synced_folder:
            folder = self._names[os.path.dirname(place)]
            new = tuple((NEW_FILE, *stack) for stack in causes)
            self.happened.append(Sync(folder, whole=True, causes=new))

    def _causes(self, place: str) -> tuple[Stack, ...]:
        if place.endswith("-journal"):
            return ((JOURNAL,),)
        if not place.endswith("-wal"):
            return ((DATABASE,),)
        # In the mode FULL a commit syncs what it wrote; what follows without a write between is
        # the sync that comes before the log is copied.
        written, self._frames_written = self._frames_written, False
        durable: tuple[Stack, ...] = getattr(self._durable, "causes", ())
        if written and durable:
            return tuple((COMMIT, *stack) for stack in durable)
        return ((LOG,),)
