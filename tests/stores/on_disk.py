"""What tests of files on a disk look at, and make fail."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


def files(root: Path) -> list[str]:
    """Every file but the list of templates."""
    found = (path for path in root.rglob("*") if path.is_file() or path.is_symlink())
    return sorted(str(path.relative_to(root)) for path in found if path.name != "templates")


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def fails(number: int) -> Callable[..., Any]:
    def call(*_: object, **__: object) -> Any:
        raise OSError(number, os.strerror(number))

    return call


@contextmanager
def traced(monkeypatch: pytest.MonkeyPatch, *names: str) -> Iterator[list[tuple[str, str]]]:
    """The calls of `os` functions with the path, or the descriptor's path, that each was given."""
    calls: list[tuple[str, str]] = []
    with monkeypatch.context() as patch:
        for name in names:
            original = getattr(os, name)

            def call(what: Any, *args: Any, name: str = name, original: Any = original) -> Any:
                path = os.readlink(f"/proc/self/fd/{what}") if isinstance(what, int) else str(what)
                calls.append((name, path))
                return original(what, *args)

            patch.setattr(os, name, call)
        yield calls
