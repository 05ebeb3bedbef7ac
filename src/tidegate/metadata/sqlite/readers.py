"""Threads that read the database, for reads that are not of one row."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from typing import TYPE_CHECKING, TypeVar

from tidegate.metadata.sqlite import schema

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable
    from pathlib import Path

T = TypeVar("T")


class Readers:
    """A few threads, each with a connection of its own."""

    def __init__(self, path: Path, *, busy_timeout: float) -> None:
        self._path = path
        self._busy_timeout = busy_timeout
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        # Some may be at work on a long list while others ask for a short one.
        self._threads = concurrent.futures.ThreadPoolExecutor(4, "tidegate-metadata-read")

    def submit(self, read: Callable[[sqlite3.Connection], T]) -> asyncio.Future[T]:
        """Run `read` in a thread. Its future may raise sqlite3.Error.

        All that it reads is of one moment (https://sqlite.org/isolation.html).
        """
        return asyncio.get_running_loop().run_in_executor(self._threads, self._run, read)

    def _run(self, read: Callable[[sqlite3.Connection], T]) -> T:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = schema.connect(self._path, busy_timeout=self._busy_timeout, readonly=True)
            self._connections.append(connection)
            self._local.connection = connection
        with connection:
            connection.execute("BEGIN")
            return read(connection)

    def close(self) -> None:
        """Wait for the reads that run, and close. Blocks."""
        self._threads.shutdown()
        for connection in self._connections:
            connection.close()
