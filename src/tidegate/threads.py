"""A few threads for blocking calls: one hop there, one hop back, nothing else.

anyio's cost six times as much per call (18 µs of processor time against 3), most of it for what is
not needed here: contexts, limiters, cancel scopes.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from typing import TYPE_CHECKING, Any, Generic, TypeVar, TypeVarTuple, cast

import anyio

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class _Job(Generic[T]):
    """One call."""

    __slots__ = (
        "arguments",
        "claim",
        "end_awaited",
        "ended",
        "error",
        "function",
        "future",
        "result",
    )

    def __init__(
        self, future: asyncio.Future[None], function: Callable[..., T], arguments: tuple[Any, ...]
    ) -> None:
        self.future = future
        self.function = function
        self.arguments = arguments
        self.claim: list[bool] = [True]
        """Whoever pops it, the thread that makes the call or who gives it up, has it."""
        # Not in the future: the loop holds that for as long as whoever awaited it runs on.
        self.result: T | None = None
        self.error: BaseException | None = None
        self.ended = False
        self.end_awaited: asyncio.Future[None] | None = None

    def outcome(self) -> T:
        """What the call returned, which nobody else holds then. Raises what it raised."""
        result, error = self.result, self.error
        self.result = self.error = None
        try:
            if error is not None:
                raise error
            return cast("T", result)
        finally:
            # Else its traceback, this frame and the error itself would hold each other.
            del error, result

    def claimed(self) -> bool:
        """Whether it is the caller's now."""
        try:
            return self.claim.pop()
        except IndexError:
            return False


class Threads:
    """At most `most` threads, started when they are needed, ended by `close`."""

    def __init__(self, most: int, name: str = "tidegate") -> None:
        self._most = most
        self._name = name
        self._threads: list[threading.Thread] = []
        self._under_way = 0
        # Safe between threads without a lock that the event loop could wait for.
        self._jobs: queue.SimpleQueue[_Job[Any] | None] = queue.SimpleQueue()

    async def run(self, function: Callable[[*Ts], T], *arguments: *Ts) -> T:
        """Call a blocking function in a thread.

        Cancelled while it waits for a thread, it is not called; later, it is waited for.
        """
        job = self._submit(function, arguments)
        try:
            await job.future
        except asyncio.CancelledError:
            if not job.claimed() and not job.ended:
                job.end_awaited = asyncio.get_running_loop().create_future()
                with anyio.CancelScope(shield=True):
                    await job.end_awaited
            raise
        return job.outcome()

    def _submit(self, function: Callable[..., T], arguments: tuple[Any, ...]) -> _Job[T]:
        job = _Job(asyncio.get_running_loop().create_future(), function, arguments)
        self._under_way += 1
        if self._under_way > len(self._threads) < self._most:
            name = f"{self._name}-{len(self._threads)}"
            thread = threading.Thread(target=self._work, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)
        self._jobs.put(job)
        return job

    @property
    def under_way(self) -> int:
        """How many calls wait for a thread, or are made."""
        return self._under_way

    def close(self) -> None:
        """End the threads, once they have done what was asked of them. Does not wait."""
        for _ in self._threads:
            self._jobs.put(None)
        self._threads.clear()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if job.claimed():
                try:
                    job.result = job.function(*job.arguments)
                except BaseException as raised:  # noqa: BLE001 - goes to whoever waits
                    job.error = raised
            try:
                job.future.get_loop().call_soon_threadsafe(self._settle, job)
            except RuntimeError:
                # The loop is gone, and with it whoever waited.
                return
            del job

    def _settle(self, job: _Job[Any]) -> None:
        self._under_way -= 1
        job.ended = True
        if job.end_awaited is not None and not job.end_awaited.done():
            job.end_awaited.set_result(None)
        if job.future.done():
            # Nobody wants it any more.
            job.result = job.error = None
        else:
            job.future.set_result(None)
