"""Standing between SQLite and the operating system, in this process, by ctypes alone.

SQLite does its own input and output in C, where nothing of Python can be put in its place. But it
does it through a table of functions, a VFS, and lets anyone register another. This one passes
everything on to the system's, and first asks a hook about what changes a disk: opening, writing,
truncating, syncing, deleting. The hook may carry it out, note it, or fail it.

It needs the very library that Python's `sqlite3` was linked with: see `library`.
"""

from __future__ import annotations

import _sqlite3
import ctypes
import os
import sqlite3
import threading
from ctypes import CFUNCTYPE, POINTER, Structure, byref, c_char_p, c_int, c_int64, c_void_p
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

OK: Final = 0
FULL: Final = sqlite3.SQLITE_FULL
IOERR_WRITE: Final = sqlite3.SQLITE_IOERR | 3 << 8
IOERR_FSYNC: Final = sqlite3.SQLITE_IOERR | 4 << 8
IOERR_TRUNCATE: Final = sqlite3.SQLITE_IOERR | 6 << 8
IOERR_DELETE: Final = sqlite3.SQLITE_IOERR | 10 << 8
CANTOPEN: Final = sqlite3.SQLITE_CANTOPEN

_POINTERS = 18  # the functions of sqlite3_io_methods, version 3
_METHODS_OF_VERSION = {1: 12, 2: 16, 3: 18}


@dataclass
class Call:
    """Something that SQLite is about to do to a disk."""

    op: Literal["open", "write", "truncate", "sync", "delete"]
    path: str
    offset: int = 0
    """Of a write; or the size of a truncation."""
    data: bytes = b""
    makes: bool = False
    """Of an opening: the file was not there."""
    synced_folder: bool = False
    """Once it was carried out: whether the folder that the file is in was synced, too."""


class _Vfs(Structure):
    _fields_ = (
        ("version", c_int),
        ("file_size", c_int),
        ("longest_path", c_int),
        ("next", c_void_p),
        ("name", c_char_p),
        ("data", c_void_p),
        ("open", c_void_p),
        ("delete", c_void_p),
        ("access", c_void_p),
        ("full_path", c_void_p),
        ("dl_open", c_void_p),
        ("dl_error", c_void_p),
        ("dl_sym", c_void_p),
        ("dl_close", c_void_p),
        ("randomness", c_void_p),
        ("sleep", c_void_p),
        ("current_time", c_void_p),
        ("last_error", c_void_p),
        ("current_time_64", c_void_p),
        ("set_system_call", c_void_p),
        ("get_system_call", c_void_p),
        ("next_system_call", c_void_p),
    )


class _Methods(Structure):
    _fields_ = (("version", c_int), ("functions", c_void_p * _POINTERS))


_OPEN = CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_int, POINTER(c_int))
_DELETE = CFUNCTYPE(c_int, c_void_p, c_void_p, c_int)
_CLOSE = CFUNCTYPE(c_int, c_void_p)
_WRITE = CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, c_int64)
_TRUNCATE = CFUNCTYPE(c_int, c_void_p, c_int64)
_SYNC = CFUNCTYPE(c_int, c_void_p, c_int)
_SET_CALL = CFUNCTYPE(c_int, c_void_p, c_char_p, c_void_p)
_GET_CALL = CFUNCTYPE(c_void_p, c_void_p, c_char_p)
_OPEN_FOLDER = CFUNCTYPE(c_int, c_char_p, POINTER(c_int))

# Where in sqlite3_io_methods.
_AT_CLOSE, _AT_WRITE, _AT_TRUNCATE, _AT_SYNC = 0, 2, 3, 4


def library() -> ctypes.CDLL | None:
    """The SQLite that `sqlite3` uses; None where it is linked in so that nobody else can use it."""
    candidates: list[str | None] = []
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
            places = {line.split(maxsplit=5)[-1].strip() for line in maps if "/" in line}
        candidates += sorted(p for p in places if "libsqlite3" in os.path.basename(p))
    except OSError:
        pass
    candidates += [getattr(_sqlite3, "__file__", None), None]
    for place in candidates:
        try:
            found = ctypes.CDLL(place)
            found.sqlite3_sourceid.restype = c_char_p
            found.sqlite3_vfs_find.restype = POINTER(_Vfs)
            source = found.sqlite3_sourceid().decode()
        except (OSError, AttributeError):
            continue
        with sqlite3.connect(":memory:") as db:
            (used,) = db.execute("SELECT sqlite_source_id()").fetchone()
        db.close()
        if used == source:
            return found
    return None


class Vfs:
    """While entered, all that this process's SQLite does to files opened from then on goes by.

    `hook` gets a call and what carries it out (and returns SQLite's code for how it went), and
    returns the code that SQLite gets to see. It is called in whatever thread uses the database.
    """

    def __init__(self, hook: Callable[[Call, Callable[[], int]], int]) -> None:
        found = library()
        if found is None:
            raise RuntimeError("no SQLite library that could be watched")
        self._library = found
        self._hook = hook
        self._files: dict[int, str] = {}
        self._tables: dict[int, _Methods] = {}
        self._keep: list[Any] = []
        self._thread = threading.local()
        self.failure: BaseException | None = None
        """What the hook raised, if it did: it can't cross SQLite."""

    def __enter__(self) -> Self:
        self._system = self._library.sqlite3_vfs_find(None)
        system = self._system.contents
        self._own = _Vfs.from_buffer_copy(system)
        self._own.name = b"tidegate-watched"
        self._own.next = None
        self._own.open = self._callback(_OPEN, self._open)
        self._own.delete = self._callback(_DELETE, self._delete)
        self._system_open = _OPEN(system.open)
        self._system_delete = _DELETE(system.delete)
        # A sync of a new file syncs its folder, too, by functions that are nobody's business; but
        # the one that opens the folder can be replaced.
        self._set_call = _SET_CALL(system.set_system_call)
        original = _GET_CALL(system.get_system_call)(ctypes.addressof(system), b"openDirectory")
        self._system_open_folder = _OPEN_FOLDER(original)
        self._replace_open_folder(self._callback(_OPEN_FOLDER, self._open_folder))
        self._library.sqlite3_vfs_register(byref(self._own), 1)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._library.sqlite3_vfs_register(self._system, 1)
        self._library.sqlite3_vfs_unregister(byref(self._own))
        self._replace_open_folder(None)
        if self.failure is not None and error is None:
            raise self.failure

    def _replace_open_folder(self, function: int | None) -> None:
        address = ctypes.addressof(self._system.contents)
        assert self._set_call(address, b"openDirectory", function) == OK

    def _callback(self, kind: Any, function: Callable[..., int]) -> int:
        def guarded(*args: Any) -> int:
            try:
                return function(*args)
            except BaseException as error:  # noqa: BLE001  (C is behind us)
                self.failure = self.failure or error
                return sqlite3.SQLITE_IOERR

        callback = kind(guarded)
        self._keep.append(callback)
        address = ctypes.cast(callback, c_void_p).value
        assert address is not None
        return address

    # -------------------------------------------------------------------------- in C's place

    def _ask(self, call: Call, perform: Callable[[], int]) -> int:
        def watched() -> int:
            self._thread.folder_opened = False
            code = perform()
            call.synced_folder = self._thread.folder_opened
            return code

        return self._hook(call, watched)

    def _open(self, _: int, name: int | None, file: int, flags: int, out: Any) -> int:
        own = ctypes.addressof(self._own)

        def perform() -> int:
            return int(self._system_open(own, name, file, flags, out))

        if name is None:  # a temporary file
            return perform()
        path = os.fsdecode(ctypes.string_at(name))
        call = Call("open", path, makes=not os.path.lexists(path))
        code = self._ask(call, perform)
        if code == OK:
            self._files[file] = path
            self._watch(file)
        return code

    def _watch(self, file: int) -> None:
        """Have the file's functions go through ours."""
        methods = c_void_p.from_address(file)
        system = methods.value
        assert system is not None
        if system not in self._tables:
            version = min(c_int.from_address(system).value, 3)
            table = _Methods()
            table.version = version
            source = _Methods.from_address(system)  # no farther than the version goes
            for at in range(_METHODS_OF_VERSION[version]):
                table.functions[at] = source.functions[at]
            close = _CLOSE(source.functions[_AT_CLOSE])
            write = _WRITE(source.functions[_AT_WRITE])
            truncate = _TRUNCATE(source.functions[_AT_TRUNCATE])
            sync = _SYNC(source.functions[_AT_SYNC])

            def on_close(file: int) -> int:
                self._files.pop(file, None)
                return int(close(file))

            def on_write(file: int, data: int, size: int, offset: int) -> int:
                call = Call("write", self._files[file], offset, ctypes.string_at(data, size))
                return self._ask(call, lambda: int(write(file, data, size, offset)))

            def on_truncate(file: int, size: int) -> int:
                call = Call("truncate", self._files[file], size)
                return self._ask(call, lambda: int(truncate(file, size)))

            def on_sync(file: int, flags: int) -> int:
                call = Call("sync", self._files[file])
                return self._ask(call, lambda: int(sync(file, flags)))

            table.functions[_AT_CLOSE] = self._callback(_CLOSE, on_close)
            table.functions[_AT_WRITE] = self._callback(_WRITE, on_write)
            table.functions[_AT_TRUNCATE] = self._callback(_TRUNCATE, on_truncate)
            table.functions[_AT_SYNC] = self._callback(_SYNC, on_sync)
            self._tables[system] = table
        methods.value = ctypes.addressof(self._tables[system])

    def _delete(self, _: int, name: int, sync_folder: int) -> int:
        own = ctypes.addressof(self._own)
        call = Call("delete", os.fsdecode(ctypes.string_at(name)))
        return self._ask(call, lambda: int(self._system_delete(own, name, sync_folder)))

    def _open_folder(self, name: bytes, out: Any) -> int:
        self._thread.folder_opened = True
        return int(self._system_open_folder(name, out))
