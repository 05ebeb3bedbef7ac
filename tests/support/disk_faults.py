"""A disk that fails the product at the call that a test chose: Python's calls, and SQLite's."""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any, Final
from unittest import mock

from tests.support import sqlite_vfs

import tidegate

PACKAGE: Final = os.path.dirname(tidegate.__file__)

GROWING: Final = "open pwrite pwritev ftruncate copy_file_range fsync fdatasync link mkdir".split()
"""What can find the disk full."""
ALL: Final = [*GROWING, *"unlink pread fstat stat close flock".split()]


class Trouble:
    """What goes wrong, at which call, and whether it goes on doing so.

    Calls are counted from the entry of `coming` on; `at` is that of the first that fails.
    """

    def __init__(self, kind: str, at: int, *, lasting: bool = False) -> None:
        self.kind = kind
        """The name of an error number; or `short`: a write that takes half of what it is given."""
        self.at = at
        self.lasting = lasting
        self.count = 0
        self.hits: list[str] = []
        """What failed, and in which file of the product."""
        self.gone = False

    def _due(self, what: str) -> bool:
        if self.gone:
            return False
        number, self.count = self.count, self.count + 1
        due = number == self.at or (self.lasting and number > self.at)
        if due:
            self.hits.append(what)
        return due

    # ------------------------------------------------------------------------- of Python's calls

    @contextmanager
    def of_calls(self) -> Iterator[None]:
        """Fail the product's calls in `os` and `fcntl`."""
        with ExitStack() as stack:
            for name in GROWING if self.kind == "ENOSPC" else ALL:
                module = fcntl if name == "flock" else os
                original = getattr(module, name)
                instead = functools.partial(self._call, name, original)
                stack.enter_context(mock.patch.object(module, name, instead))
            yield

    def _call(self, name: str, original: Callable[..., Any], *args: Any, **options: Any) -> Any:
        where = _product_file()
        if where is None or (self.kind == "short" and name not in {"pwritev", "copy_file_range"}):
            return original(*args, **options)
        if self.kind == "ENOSPC" and name == "open" and not args[1] & os.O_CREAT:
            return original(*args, **options)
        if not self._due(f"{name} in {where}"):
            return original(*args, **options)
        if self.kind == "short":
            return self._short(name, original, *args)
        if name == "close":  # which always closes, whatever it says
            original(*args)
        number = getattr(errno, self.kind)
        raise OSError(number, f"{os.strerror(number)} (injected)")

    @staticmethod
    def _short(name: str, original: Callable[..., Any], *args: Any) -> Any:
        if name == "copy_file_range":
            source, target, count, *rest = args
            return original(source, target, max(1, count // 2), *rest)
        fd, buffers, *rest = args
        return original(fd, [buffers[0][: max(1, len(buffers[0]) // 2)]], *rest)

    # ---------------------------------------------------------------------------- of SQLite's

    @contextmanager
    def of_sqlite(self) -> Iterator[None]:
        """Fail what SQLite does to files that are opened from now on."""
        with sqlite_vfs.Vfs(self._sqlite):
            yield

    def _sqlite(self, call: sqlite_vfs.Call, perform: Callable[[], int]) -> int:
        if self.kind == "ENOSPC" and call.op not in {"write", "sync"}:
            return perform()
        if not self._due(f"{call.op} of {os.path.basename(call.path)}"):
            return perform()
        if self.kind == "ENOSPC":
            return sqlite_vfs.FULL
        return {
            "open": sqlite_vfs.CANTOPEN,
            "write": sqlite_vfs.IOERR_WRITE,
            "truncate": sqlite_vfs.IOERR_TRUNCATE,
            "sync": sqlite_vfs.IOERR_FSYNC,
            "delete": sqlite_vfs.IOERR_DELETE,
        }[call.op]


def _product_file() -> str | None:
    frame: FrameType | None = sys._getframe(2)
    for _ in range(4):
        if frame is None:
            return None
        if frame.f_code.co_filename.startswith(PACKAGE):
            return os.path.relpath(frame.f_code.co_filename, PACKAGE)
        frame = frame.f_back
    return None
