from __future__ import annotations

import functools
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

import pytest
from tests.support import postgres

from tidegate.metadata.sqlite.store import SQLiteMetadataStore
from tidegate.protocol.model import MAX_LENGTH, State
from tidegate.testing.metadata.support import NOW, upload

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from contextlib import AbstractContextManager

ALL_SORTS = (
    upload("new"),
    upload("new-deferred", length=None),
    upload("empty", length=0),
    upload("unsynced", offset=7, boot_id="boot"),
    upload("unsynced-deferred", length=None, offset=7),
    upload("unsynced-large", length=MAX_LENGTH, offset=2**62, synced_offset=5),
    upload("unsynced-odd", offset=7, name="日本/ü", storage={"synced_offset": 7, "\0": "\0"}),
    upload("partly", offset=7, synced_offset=6),
    upload("synced", offset=7, synced_offset=7),
    upload("synced-deferred", length=None, offset=7, synced_offset=7),
    upload("synced-large", length=MAX_LENGTH, offset=2**62, synced_offset=2**62),
    upload("synced-odd", offset=7, synced_offset=7, name="日本/ü", storage={"length": 7}),
    upload("whole", offset=100, synced_offset=100),
    upload("complete", offset=100, state=State.COMPLETE, ended_at=NOW),
    upload("terminated", offset=7, state=State.TERMINATED, ended_at=NOW),
)
"""Uploads of which something is left to do, or nothing: for stores that are migrated."""
UNDONE = sorted(
    ("empty", "whole", "partly", *(u.id for u in ALL_SORTS if u.id.startswith("unsynced")))
)
"""The ids of those of which something is."""

CHILD = Path(__file__).with_name("child.py")


class Child:
    """A second process on the same database."""

    def __init__(self, process: subprocess.Popen[str], output: IO[str]) -> None:
        self.process = process
        self._output = output

    def says(self) -> str:
        """Its next line; empty when there will be none."""
        return self._output.readline().strip()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)


StartChild = "Callable[..., AbstractContextManager[Child]]"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tidegate.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SQLiteMetadataStore]:
    store = SQLiteMetadataStore(path)
    await store.open("boot")
    yield store
    await store.close()


@contextmanager
def started(place: str, *args: str) -> Iterator[Child]:
    command = [sys.executable, str(CHILD), place, *args]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield Child(process, process.stdout)
        finally:
            process.kill()


@pytest.fixture
def child(path: Path) -> Callable[..., AbstractContextManager[Child]]:
    return functools.partial(started, str(path))


@pytest.fixture
def url() -> str:
    """Of PostgreSQL, in a schema of its own; with short times."""
    return postgres.server().url(heartbeat=0.5, ttl=3)


@pytest.fixture
def sibling(url: str) -> Callable[..., AbstractContextManager[Child]]:
    """A second process on PostgreSQL."""
    return functools.partial(started, url)
