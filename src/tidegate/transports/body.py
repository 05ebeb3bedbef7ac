"""The body of an ASGI request, as the engine reads it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.lowlevel
import msgspec

from tidegate.ports import BodyEnd

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    from tidegate.ports import Body, Sink
    from tidegate.protocol.commands import Checksum

BUFFER = 1024 * 1024
"""Bytes that are read ahead while the sink is busy: enough to hide a thread's wake-up at several
GB/s, little enough for thousands of connections."""
TURNS = 8
"""Turns of the loop within which a server hands over what its kernel has: it reads, perhaps
decrypts, wakes `receive`, and that wakes us."""
RATE_WINDOW = 30.0
"""Seconds of waiting over which the rate of a client is judged: a link of a moving client has gaps
of some seconds, and who is meant, one that sends a byte now and then, has time."""


class Patience(msgspec.Struct, frozen=True, kw_only=True):
    """How long a client is waited for. Time that the server takes itself does not count."""

    idle: float | None = None
    """Seconds without a byte; None: for ever."""
    rate: int | None = None
    """Bytes per second that must come, over RATE_WINDOW; None: any."""


PATIENT: Final = Patience()


class AsgiBody:
    """Reads with `receive`, ahead of the sink by at most BUFFER bytes (and one message).

    While the sink stores one batch the next one gathers, so that a fast client gets few large
    writes and a slow one its bytes stored at once.
    """

    def __init__(
        self,
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        patience: Patience = PATIENT,
    ) -> None:
        self._receive = receive
        self._patience = patience
        self._still = 0.0
        """Seconds of waiting since the last byte."""
        self._waited = 0.0
        """Seconds of waiting since the rate was judged last,"""
        self._judged = 0
        """when so many bytes had been received."""
        self.received = 0
        """Bytes read so far."""
        self.read = False
        """Whether any of it was asked for."""
        self._gathered: list[bytes] = []
        self._size = 0
        self._end: BodyEnd | None = None
        self._failure: Exception | None = None
        self._more = anyio.Event()
        self._room = anyio.Event()

    async def copy_to(self, sink: Sink, stop: anyio.Event) -> BodyEnd:
        """See Body."""
        self.read = True
        failure: Exception | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._gather)
            tasks.start_soon(self._watch, stop)
            try:
                end = await self._hand_over(sink)
            except Exception as error:  # noqa: BLE001 - raised again, outside of the task group
                failure = error
            tasks.cancel_scope.cancel()
        failure = failure or self._failure
        if failure is not None:
            raise failure
        return end

    @property
    def cut_short(self) -> bool:
        """Whether the client went away before it had sent all of it."""
        return self._end is BodyEnd.DROPPED

    def trailing_checksum(self) -> Checksum:
        """ASGI delivers no trailers, so this is never offered and never asked."""
        raise NotImplementedError

    async def _gather(self) -> None:
        while self._end is None:
            try:
                message = await self._receive()
            except Exception as error:  # noqa: BLE001 - raised again, when what came is stored
                self._failure = error
                self._finish(BodyEnd.DROPPED)
                return
            if message["type"] == "http.disconnect":
                self._finish(BodyEnd.DROPPED)
                return
            chunk = message.get("body", b"")
            if chunk:
                self.received += len(chunk)
                self._gathered.append(chunk)
                self._size += len(chunk)
                self._more.set()
            if not message.get("more_body", False):
                self._finish(BodyEnd.WHOLE)
            while self._size >= BUFFER and self._end is None:
                self._room = anyio.Event()
                await self._room.wait()

    async def _watch(self, stop: anyio.Event) -> None:
        await stop.wait()
        # What has arrived by now was sent before anyone asked.
        for _ in range(TURNS):
            await anyio.lowlevel.checkpoint()
        self._finish(BodyEnd.STOPPED)

    def _finish(self, end: BodyEnd) -> None:
        if self._end is None:
            self._end = end
        self._more.set()

    async def _hand_over(self, sink: Sink) -> BodyEnd:
        while True:
            if not self._gathered:
                if self._end is not None:
                    return self._end
                await self._wait()
            batch, self._gathered, self._size = self._gathered, [], 0
            self._room.set()
            if batch:
                await sink.write(batch)

    async def _wait(self) -> None:
        """Wait for more, or for the end of patience. Only here the client is what is waited for."""
        self._more = anyio.Event()
        idle, rate = self._patience.idle, self._patience.rate
        if idle is None and rate is None:
            return await self._more.wait()
        began = anyio.current_time()
        with anyio.move_on_after(
            min(
                math.inf if idle is None else idle - self._still,
                math.inf if rate is None else RATE_WINDOW - self._waited,
            )
        ):
            await self._more.wait()
        waited = anyio.current_time() - began
        self._still = 0.0 if self._gathered else self._still + waited
        self._waited += waited
        if idle is not None and self._still >= idle:
            self._finish(BodyEnd.STALLED)
        if rate is not None and self._waited >= RATE_WINDOW:
            if self.received - self._judged < rate * self._waited:
                self._finish(BodyEnd.STALLED)
            self._waited, self._judged = 0.0, self.received
        return None


if TYPE_CHECKING:
    _: type[Body] = AsgiBody
