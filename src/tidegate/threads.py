"""A few threads for blocking calls: one hop there, one hop back, nothing else.

anyio's cost six times as much per call (18 µs of processor time against 3), most of it for what is
not needed here: contexts, limiters, cancel scopes.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, TypeVarTuple, cast

import anyio

if TYPE_CHECKING:
    from collections.abc import Callable

TOGETHER: Final = 16
"""Quick calls that one thread makes in one hop: so many that a hop costs little of each, so few that
a slow disk holds up few others with one."""

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
        self._jobs: queue.SimpleQueue[list[_Job[Any]] | None] = queue.SimpleQueue()
        self._together: list[_Job[Any]] = []
        """Calls that wait for the end of the loop's turn, to go to one thread."""

    async def run(self, function: Callable[[*Ts], T], *arguments: *Ts) -> T:
        """Call a blocking function in a thread.

        Cancelled while it waits for a thread, it is not called; later, it is waited for.
        """
        job = _Job(asyncio.get_running_loop().create_future(), function, arguments)
        self._submit([job])
        return await self._outcome(job)

    async def run_together(self, function: Callable[[*Ts], T], *arguments: *Ts) -> T:
        """The same for a quick function: those that are to be called in one turn of the event loop
        go to one thread, and come back, in one hop.
        """
        loop = asyncio.get_running_loop()
        job = _Job(loop.create_future(), function, arguments)
        self._join(loop, job)
        return await self._outcome(job)

    def post_together(self, function: Callable[[*Ts], object], *arguments: *Ts) -> None:
        """The same without waiting: what it raises is dropped."""
        loop = asyncio.get_running_loop()
        self._join(loop, _Job(loop.create_future(), function, arguments))

    async def _outcome(self, job: _Job[T]) -> T:
        try:
            await job.future
        except asyncio.CancelledError:
            if not job.claimed() and not job.ended:
                job.end_awaited = asyncio.get_running_loop().create_future()
                with anyio.CancelScope(shield=True):
                    await job.end_awaited
            raise
        return job.outcome()

    def _join(self, loop: asyncio.AbstractEventLoop, job: _Job[Any]) -> None:
        self._together.append(job)
        if len(self._together) == 1:
            loop.call_soon(self._submit_together)

    def _submit_together(self) -> None:
        jobs, self._together = self._together, []
        for at in range(0, len(jobs), TOGETHER):
            self._submit(jobs[at : at + TOGETHER])

    def _submit(self, jobs: list[_Job[Any]]) -> None:
        self._under_way += 1
        if self._under_way > len(self._threads) < self._most:
            name = f"{self._name}-{len(self._threads)}"
            thread = threading.Thread(target=self._work, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)
        self._jobs.put(jobs)

    @property
    def under_way(self) -> int:
        """How many calls wait for a thread, or are made; those that are made together are one."""
        return self._under_way

    def close(self) -> None:
        """End the threads, once they have done what was asked of them. Does not wait."""
        if self._together:
            self._submit_together()
        for _ in self._threads:
            self._jobs.put(None)
        self._threads.clear()

    def _work(self) -> None:
        while (jobs := self._jobs.get()) is not None:
            for job in jobs:
                if job.claimed():
                    try:
                        job.result = job.function(*job.arguments)
                    except BaseException as raised:  # noqa: BLE001 - goes to whoever waits
                        job.error = raised
            try:
                jobs[0].future.get_loop().call_soon_threadsafe(self._settle, jobs)
            except RuntimeError:
                # The loop is gone, and with it whoever waited.
                return
            del jobs, job

    def _settle(self, jobs: list[_Job[Any]]) -> None:
        self._under_way -= 1
        for job in jobs:
            job.ended = True
            if job.end_awaited is not None and not job.end_awaited.done():
                job.end_awaited.set_result(None)
            if job.future.done():
                # Nobody wants it any more.
                job.result = job.error = None
            else:
                job.future.set_result(None)
