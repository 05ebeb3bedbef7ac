"""The body of a request on a native connection, as the engine reads it."""

from __future__ import annotations

import asyncio
import functools
import os
from typing import TYPE_CHECKING, Final, cast

from tidegate.ports import BodyEnd
from tidegate.protocol.dialects import tus1
from tidegate.transports.body import RATE_WINDOW
from tidegate.transports.native import pump
from tidegate.transports.native.chunked import Counted
from tidegate.transports.native.parser import Rejected

if TYPE_CHECKING:
    from collections.abc import Sequence

    import anyio

    from tidegate.ports import Buffer, DirectSink, QuickBody, Sink, Splice, Store
    from tidegate.protocol.commands import Checksum
    from tidegate.threads import Threads
    from tidegate.transports.native.chunked import Framer
    from tidegate.transports.native.connection import Connection
    from tidegate.transports.native.limits import Limits

BUFFER: Final = 512 * 1024
"""Bytes that the loop reads ahead while the sink is busy, where no thread can read: enough to hide
a thread's wake-up, little enough for thousands of connections."""
TURNS: Final = 32
"""Turns of the loop in which it reads BUFFER bytes, if they are there: a loop reads 64 KiB or more
in a turn, and with TLS those of one or two records."""
SLICE: Final = 64 * 1024
"""Bytes of chunks that are taken out of their frames at a time on the loop."""


class NativeBody:
    """Bytes that the loop has read, and a socket with more."""

    def __init__(
        self,
        connection: Connection,
        framer: Framer,
        threads: Threads,
        limits: Limits,
        *,
        expects_continue: bool,
    ) -> None:
        self._connection = connection
        self.framer = framer
        self._threads = threads
        self._limits = limits
        self._expects_continue = self.waits_for_continue = expects_continue and not framer.done
        """The client may send nothing until it is told to."""
        self.received = 0
        """Bytes of content given to the sink."""
        self.rejected: Rejected | None = None
        """What came is not a body: the connection can't be kept."""
        self._gathered: list[bytes] = []
        """What the loop has read, in its frame."""
        self._size = 0
        self._came = 0
        """Bytes that came so far, for the clock."""
        self._end: BodyEnd | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._pumps = connection.descriptor is not None
        self._pumping = False
        """To be read by a thread, whether the loop has read something or not."""
        self._own_fd = -1
        """A descriptor of the socket for the next thread, when the loop was told by it that there
        is something to read."""
        self._unjudged = 0.0
        """Seconds of waiting for the client, since it was last asked whether that is too long."""
        self._had = 0
        """What had come then."""
        self._still = 0.0
        """Seconds of waiting since the last byte."""
        self._waited = 0.0
        """Seconds of waiting since the rate was judged last,"""
        self._judged = 0
        """when so many bytes had come."""

    # --------------------------------------------------------------------- for the connection

    @property
    def over(self) -> bool:
        """Whether nothing of it is left to read."""
        return self.framer.done

    @property
    def is_here(self) -> bool:
        """Whether the loop has read all of it."""
        return isinstance(self.framer, Counted) and self._size >= self.framer.left

    def feed(self, data: bytes) -> None:
        """The loop has read more. What is too much is waited with."""
        self.waits_for_continue = False
        self._gathered.append(data)
        self._size += len(data)
        self._came += len(data)
        # Of what is all here no more can come, and pausing for an instant costs more than a look.
        if (self._pumps or self._size >= BUFFER) and not self.is_here:
            self._connection.pause_reading()
        self._wake()

    def cut(self, end: BodyEnd) -> None:
        """Nothing more comes, or is to be waited for."""
        if self._end is None:
            self._end = end
        self._wake()

    @property
    def dropped(self) -> bool:
        """Whether the client went away, or sends no more."""
        return self._end is BodyEnd.DROPPED

    @property
    def cut_short(self) -> bool:
        """Whether it did before all was read."""
        return self.dropped and not self.over

    def look_through(self) -> bool:
        """Throw away what is here of it; whether that was all that was left."""
        try:
            for data in self._take():
                self.framer.feed(data)
        except Rejected:
            self.cut(BodyEnd.DROPPED)
        return self.framer.done

    def left(self) -> int | None:
        """Bytes that are still to come; None: who knows."""
        if self.framer.done:
            return 0
        return max(0, self.framer.left - self._size) if isinstance(self.framer, Counted) else None

    async def skip(self) -> bool:
        """Read the rest for nobody; whether that was all of it."""
        self._pumps = False
        try:
            while True:
                for data in self._take():
                    self.framer.feed(data)
                if self.framer.done or self._end is not None:
                    return self.framer.done
                await self._more()
        except Rejected:
            return False

    # ------------------------------------------------------------------------- for the engine

    def at_hand(self) -> Sequence[Buffer] | None:
        """See QuickBody."""
        if not self.is_here or self._expects_continue:
            return None
        pieces = [piece for data in self._take() for piece in self.framer.feed(data)]
        self.received += sum(map(len, pieces))
        return pieces

    async def copy_to(self, sink: Sink, stop: anyio.Event) -> BodyEnd:
        """See Body."""
        if self._expects_continue:
            # Also when some of the body is here: nobody knows what else the client waits with.
            self._expects_continue = self.waits_for_continue = False
            self._connection.send_continue()
        if getattr(sink, "pour", None) is None:
            self._pumps = False
        watch: asyncio.Task[None] | None = None
        caught_up: bool | None = None
        try:
            while True:
                if self._gathered or self._pumping:
                    await self._hand_over(sink, stop)
                if self.framer.done:
                    return BodyEnd.WHOLE
                if stop.is_set() and caught_up is not self._pumps:
                    # What the kernel has by now was sent before anyone asked. A thread that was to
                    # read it may have found that the sink takes it from the loop only.
                    caught_up = self._pumps
                    await self._catch_up()
                    continue
                if self._gathered:
                    continue
                if stop.is_set():
                    return self._end or BodyEnd.STOPPED
                if self._unjudged:
                    self._judge()
                if self._end is not None:
                    return self._end
                if not self._pumping:
                    if watch is None:
                        watch = asyncio.create_task(self._watch(stop))
                    await self._more()
        finally:
            if watch is not None:
                watch.cancel()
            self._drop_own_fd()
            if not self.framer.done:
                self._connection.pause_reading()
            self._low_water(1)

    def trailing_checksum(self) -> Checksum:
        """See Body."""
        return tus1.trailing_checksum(
            [value for name, value in self.framer.trailers if name == b"upload-checksum"]
        )

    # ------------------------------------------------------------------------------ inside

    async def _hand_over(self, sink: Sink, stop: anyio.Event) -> None:
        """Give the sink what is here, and what a thread can read."""
        if self._pumps:
            pour = cast("DirectSink", sink).pour
            first = self._take()
            if await pour(functools.partial(self._burst, first, stop)):
                return
            self._gathered[:0] = first
            self._size += sum(map(len, first))
        self._pumps = self._pumping = False
        pieces: list[memoryview] = []
        try:
            for data in self._take():
                for at in range(0, len(data), SLICE):
                    pieces += self.framer.feed(memoryview(data)[at : at + SLICE])
                    if not isinstance(self.framer, Counted):
                        await asyncio.sleep(0)
        except Rejected as rejected:
            pieces += rejected.before
            self._reject(rejected)
        if pieces:
            self.received += sum(map(len, pieces))
            await sink.write(pieces)

    async def _burst(
        self, first: Sequence[bytes], stop: anyio.Event, store: Store, splice: Splice | None
    ) -> None:
        def count(pieces: Sequence[Buffer]) -> None:
            self.received += sum(map(len, pieces))
            store(pieces)

        def move(pipe: int, size: int) -> None:
            self.received += size
            cast("Splice", splice)(pipe, size)

        last = stop.is_set()
        whole = isinstance(self.framer, Counted) and sum(map(len, first)) >= self.framer.left
        fd, self._own_fd = self._own_fd, -1
        if fd < 0 and not whole:
            fd = self._connection.duplicate()
        done = await self._threads.run(
            pump.burst,
            fd,
            first,
            self.framer,
            count,
            None if splice is None else move,
            None if last else stop.is_set,
        )
        self._came += done.moved
        if done.rejected is not None:
            self._reject(done.rejected)
        if done.end is not None:
            self.cut(done.end)
        # With a fast client it goes on at once.
        self._pumping = done.more and not last and self._end is None
        if not self._pumping and not self.framer.done:
            self._low_water(
                min(pump.LOW_WATER, self.framer.left) if isinstance(self.framer, Counted) else 1
            )

    async def _catch_up(self) -> None:
        """Have what the kernel has by now read, by the next thread or by the loop, and no more."""
        if self._pumps:
            self._pumping = True
            return
        for _ in range(TURNS):
            if self._end is not None or self._size >= BUFFER:
                break
            self._connection.resume_reading()
            await asyncio.sleep(0)
            if not self._connection.unread():
                break
        self._connection.pause_reading()

    def _reject(self, rejected: Rejected) -> None:
        self.rejected = rejected
        self.cut(BodyEnd.DROPPED)

    def _low_water(self, count: int) -> None:
        if count != self._connection.low_water:
            self._connection.set_low_water(count)

    def _take(self) -> list[bytes]:
        taken, self._gathered, self._size = self._gathered, [], 0
        return taken

    async def _more(self) -> None:
        """Wait until there is something new to look at."""
        if self._gathered or self._end is not None:
            return
        loop = asyncio.get_running_loop()
        began = loop.time()
        self._waiter = loop.create_future()
        self._listen(loop)
        patience = self._patience()
        timer = None if patience is None else loop.call_later(patience, self._look)
        try:
            await self._waiter
        finally:
            self._waiter = None
            if self._own_fd >= 0:
                loop.remove_reader(self._own_fd)
            if timer is not None:
                timer.cancel()
            self._unjudged += loop.time() - began

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        """Be told of what comes.

        Where a thread can read it, the loop leaves it to the kernel: what it took would lie about
        until there is a thread, 128 KiB for each of a thousand clients.
        """
        self._drop_own_fd()
        if self._pumps:
            self._own_fd = self._connection.duplicate()
        if self._own_fd >= 0:
            loop.add_reader(self._own_fd, self._readable)
        else:
            self._connection.resume_reading()

    def _readable(self) -> None:
        self._pumping = True
        self._wake()

    def _drop_own_fd(self) -> None:
        fd, self._own_fd = self._own_fd, -1
        if fd >= 0:
            os.close(fd)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _watch(self, stop: anyio.Event) -> None:
        await stop.wait()
        self._look()

    def _look(self) -> None:
        # What the kernel holds back until there is more of it counts, and is worth having.
        self._pumping = self._pumps and self._connection.low_water > 1
        self._wake()

    def _patience(self) -> float | None:
        """Seconds for which there is no need to look at how long the client has taken."""
        idle, rate = self._limits.patience.idle, self._limits.patience.rate
        times = [] if idle is None else [idle - self._still]
        if rate is not None:
            times.append(RATE_WINDOW - self._waited)
        return min(times, default=None)

    def _judge(self) -> None:
        """See whether the client took too long. Only while it is waited for, the clock runs."""
        waited, self._unjudged = self._unjudged, 0.0
        idle, rate = self._limits.patience.idle, self._limits.patience.rate
        self._still = 0.0 if self._came > self._had else self._still + waited
        self._had = self._came
        self._waited += waited
        if idle is not None and self._still >= idle:
            self.cut(BodyEnd.STALLED)
        if rate is not None and self._waited >= RATE_WINDOW:
            if self._came - self._judged < rate * self._waited:
                self.cut(BodyEnd.STALLED)
            self._waited, self._judged = 0.0, self._came


if TYPE_CHECKING:
    _: type[QuickBody] = NativeBody
