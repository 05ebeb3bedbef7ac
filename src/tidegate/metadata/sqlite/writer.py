"""The one thread of a process that writes to the database.

It takes all operations that wait, runs them in one transaction, and commits once. An operation that
is refused doesn't disturb the others; a commit that fails fails them all.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import queue
import sqlite3
import threading
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from tidegate.metadata.sqlite import schema as sqlite_schema
from tidegate.ports import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tidegate.metadata.sqlite.liveness import Turn

T = TypeVar("T")

# Bounds how long one transaction keeps other processes waiting: some 20 ms.
_MAX_BATCH = 512


class Operation(Generic[T]):
    """One thing to do in a transaction, and what to do on the event loop when it is done."""

    __slots__ = (
        "durable",
        "error",
        "future",
        "queued_at",
        "result",
        "run",
        "settle",
        "single",
        "undo",
        "unwanted",
    )

    def __init__(
        self,
        run: Callable[[sqlite3.Connection], T],
        *,
        durable: bool = False,
        single: bool = False,
        undo: Callable[[], None] | None = None,
        settle: Callable[[T], None] | None = None,
        unwanted: Callable[[T], None] | None = None,
    ) -> None:
        self.run = run
        """Runs in the writer's thread."""
        self.undo = undo
        """Takes back what `run` did outside of the database, when that is rolled back."""
        self.settle = settle
        """Called on the loop after the commit, with the result; must not raise."""
        self.unwanted = unwanted
        """Called on the loop, after that, when the caller was cancelled and will not see it."""
        self.durable = durable
        self.single = single
        """It is one statement: when that is refused, it has done nothing."""
        self.future: asyncio.Future[T]
        self.queued_at = 0.0
        self.result: T
        self.error: Exception | None = None


class Together(Protocol):
    """What is done once for all operations of a transaction, in the writer's thread."""

    def write(self, db: sqlite3.Connection) -> None:
        """Before it is committed."""

    def undo(self) -> None:
        """It was rolled back."""


class Writer:
    """Takes operations from the event loop, and carries them out in groups.

    `together` is what is done once for each group, in its transaction.
    """

    def __init__(self, path: Path, turn: Turn, together: Together, *, busy_timeout: float) -> None:
        self._path = path
        self._turn = turn
        self._together = together
        self._busy_timeout = busy_timeout
        # Both are safe between threads without a lock that the event loop could wait for. Who pops
        # an operation owns it.
        self._waiting: collections.deque[Operation[Any]] = collections.deque()
        self._wake: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._watchdog: asyncio.TimerHandle | None = None
        self._synchronous = ""
        self._closed = False

    def connect(self) -> None:
        """Connect; may block. Raises sqlite3.Error."""
        self._connection = sqlite_schema.connect(self._path, busy_timeout=self._busy_timeout)
        self._synchronous = ""

    def disconnect(self) -> None:
        """Undo `connect`; may block."""
        self._connection.close()

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to work for `loop`."""
        self._loop = loop
        self._thread = threading.Thread(target=self._work, name="tidegate-metadata", daemon=True)
        self._thread.start()

    async def submit(self, operation: Operation[T]) -> T:
        """Carry out an operation. Raises what it raised, NoRoomError, UnavailableError.

        Cancelling leaves it done or not done.
        """
        future = self.post(operation)
        try:
            return await future
        except asyncio.CancelledError:
            # Cancelled between the answer and our waking up: the answer is lost.
            done = future.done() and not future.cancelled() and future.exception() is None
            if done and operation.unwanted is not None:
                operation.unwanted(future.result())
            raise

    def post(self, operation: Operation[T]) -> asyncio.Future[T]:
        """As `submit`, without waiting."""
        operation.future = self._loop.create_future()
        if self._closed:
            operation.future.set_exception(UnavailableError("the metadata database is closed"))
            return operation.future
        operation.queued_at = self._loop.time()
        self._waiting.append(operation)
        # Else it is awake: waking a thread that need not be takes longer than all of this.
        if len(self._waiting) == 1:
            self._wake.put(True)
        if self._watchdog is None:
            self._watch()
        return operation.future

    @property
    def waiting(self) -> int:
        """How many operations wait."""
        return len(self._waiting)

    def stop(self) -> None:
        """Refuse new operations from now on; on the loop, before `join`."""
        self._closed = True
        self._wake.put(False)

    def join(self) -> bool:
        """Wait until all that was posted is done; False: that took too long. Blocks."""
        self._thread.join(self._busy_timeout * 2)
        return not self._thread.is_alive()

    def give_up(self) -> None:
        """Fail what could not be done; on the loop, after `join`."""
        if self._watchdog is not None:
            self._watchdog.cancel()
        self._expire(older_than=float("inf"))

    # ---------------------------------------------------------------------------- on the loop

    def _watch(self) -> None:
        self._watchdog = self._loop.call_later(self._busy_timeout, self._check)

    def _check(self) -> None:
        self._watchdog = None
        self._expire(older_than=self._loop.time() - self._busy_timeout)
        if self._waiting:
            self._watch()

    def _expire(self, older_than: float) -> None:
        """Give up what has waited too long for another process that sleeps in its turn."""
        while self._waiting:
            try:
                operation = self._waiting.popleft()
            except IndexError:  # the writer was quicker
                return
            if operation.queued_at > older_than:
                self._waiting.appendleft(operation)
                return
            if not operation.future.done():
                operation.future.set_exception(
                    UnavailableError("the metadata database is locked by another process")
                )

    @staticmethod
    def _settle(batch: list[Operation[Any]]) -> None:
        for operation in batch:
            future, error = operation.future, operation.error
            if error is not None:
                if not future.done():
                    future.set_exception(error)
                continue
            if operation.settle is not None:
                operation.settle(operation.result)
            if not future.done():
                future.set_result(operation.result)
            elif operation.unwanted is not None:
                operation.unwanted(operation.result)

    # -------------------------------------------------------------------------- in the thread

    def _work(self) -> None:
        going = True
        while going or self._waiting:
            if not self._waiting:
                going = self._wake.get()
                continue
            batch = self._next()
            # The loop may be gone, and with it everyone who waited.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._settle, batch)
            del batch

    def _next(self) -> list[Operation[Any]]:
        batch: list[Operation[Any]] = []
        try:
            with self._turn.held():
                # Only now: what came while we waited for our turn goes along.
                batch = self._take()
                if batch:
                    self._carry_out(batch)
        except OSError as error:
            if not batch:  # we had no turn
                batch = self._take()
                for operation in batch:
                    operation.error = sqlite_schema.translate(error)
        return batch

    def _take(self) -> list[Operation[Any]]:
        batch: list[Operation[Any]] = []
        with contextlib.suppress(IndexError):
            while len(batch) < _MAX_BATCH:
                operation = self._waiting.popleft()
                # Not done, rather than done and then undone.
                if operation.unwanted is None or not operation.future.cancelled():
                    batch.append(operation)
        return batch

    def _carry_out(self, batch: list[Operation[Any]]) -> None:
        alone = len(batch) == 1
        try:
            self._begin(durable=any(operation.durable for operation in batch))
            for operation in batch:
                self._run(operation, alone=alone or operation.single)
            if alone and batch[0].error:
                self._connection.execute("ROLLBACK")
                self._together.undo()
            else:
                self._together.write(self._connection)
                self._connection.execute("COMMIT")
        except Exception as error:  # noqa: BLE001  (goes to every caller)
            self._together.undo()
            for operation in batch:
                if operation.error is None:
                    operation.error = _translate(error)
                    if operation.undo is not None:
                        operation.undo()
            self._clean_up()

    def _begin(self, *, durable: bool) -> None:
        # In WAL mode NORMAL syncs before a checkpoint only, FULL at every commit, which also
        # makes durable what was committed before without.
        synchronous = "FULL" if durable else "NORMAL"
        if synchronous != self._synchronous:
            self._connection.execute(f"PRAGMA synchronous = {synchronous}")
            self._synchronous = synchronous
        self._connection.execute("BEGIN IMMEDIATE")

    def _run(self, operation: Operation[Any], *, alone: bool) -> None:
        """Run one operation so that its refusal takes nothing else back: `alone` it can't.

        Raises sqlite3.Error, after which the transaction may be gone.
        """
        if not alone:
            self._connection.execute("SAVEPOINT operation")
        try:
            operation.result = operation.run(self._connection)
        except Exception as error:
            if isinstance(error, sqlite3.Error) and not sqlite_schema.is_of_statement(error):
                raise
            operation.error = _translate(error)
            if operation.undo is not None:
                operation.undo()
            if not alone:
                self._connection.execute("ROLLBACK TO operation")
        if not alone:
            self._connection.execute("RELEASE operation")

    def _clean_up(self) -> None:
        """Leave a connection without a transaction behind, whatever became of this one."""
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except sqlite3.Error:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            # When that fails, too, the next transaction does, and comes back here.
            with contextlib.suppress(sqlite3.Error):
                self.connect()


def _translate(error: Exception) -> Exception:
    if isinstance(error, sqlite3.Error | OSError):
        return sqlite_schema.translate(error)
    return error
