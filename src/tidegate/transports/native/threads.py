"""A small pool of threads for moving bytes: one hop there, one hop back, nothing else.

anyio's threads cost three times as much per call, most of it for what is not needed here (contexts,
limiters, cancellation between the two).
"""

from __future__ import annotations

import asyncio
import queue
import threading
from typing import TYPE_CHECKING, Any, Final, TypeVar, TypeVarTuple

import anyio

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

THREADS: Final = 8
"""Copying gains nothing from more threads than cores; a disk that holds writers up does: then the
others wait for a thread, and their clients are not read."""
BUFFER: Final = 512 * 1024
"""Bytes that a thread takes from a socket at a time: large enough that the system calls don't
count, small enough for the processor's cache."""


class Threads:
    """Threads that are started when they are needed, each with a buffer of its own."""

    def __init__(self, most: int = THREADS) -> None:
        self._most = most
        self._started = 0
        self._jobs: queue.SimpleQueue[
            tuple[asyncio.Future[Any], Callable[..., Any], Any] | None
        ] = queue.SimpleQueue()
        self._waiting = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._local = threading.local()

    def buffer(self) -> memoryview:
        """The calling thread's own buffer."""
        found: memoryview | None = getattr(self._local, "buffer", None)
        if found is None:
            found = self._local.buffer = memoryview(bytearray(BUFFER))
        return found

    def submit(self, function: Callable[[*Ts], T], *args: *Ts) -> asyncio.Future[T]:
        """Have `function` called in a thread. Only from one event loop."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = self._loop.create_future()
        self._waiting += 1
        if self._waiting > self._started < self._most:
            self._started += 1
            threading.Thread(target=self._work, name="tidegate-pump", daemon=True).start()
        self._jobs.put((future, function, args))
        return future

    async def run(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """Call `function` in a thread, and wait until it has returned, cancelled or not."""
        future = self.submit(function, *args)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            with anyio.CancelScope(shield=True):
                await asyncio.wait([future])
            if not future.cancelled():
                future.exception()  # seen
            raise

    def close(self) -> None:
        """End the threads, once they have done what was submitted."""
        for _ in range(self._started):
            self._jobs.put(None)
        self._started = 0

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            future, function, args = job
            result: Any = None
            error: BaseException | None = None
            try:
                result = function(*args)
            except BaseException as raised:  # noqa: BLE001 - goes to whoever waits
                error = raised
            try:
                future.get_loop().call_soon_threadsafe(self._settle, future, result, error)
            except RuntimeError:
                # The loop is gone, and with it whoever waited.
                return
            del job, future, function, args, result, error

    def _settle(
        self, future: asyncio.Future[Any], result: object, error: BaseException | None
    ) -> None:
        self._waiting -= 1
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)
