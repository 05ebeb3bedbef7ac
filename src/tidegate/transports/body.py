"""The body of an ASGI request, as the engine reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio

from tidegate.ports import BodyEnd

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tidegate.ports import Body, Sink
    from tidegate.protocol.commands import Checksum

BUFFER = 1024 * 1024
"""Bytes that are read ahead while the sink is busy: enough to hide a thread's wake-up at several
GB/s, little enough for thousands of connections."""


class AsgiBody:
    """Reads with `receive`, ahead of the sink by at most BUFFER bytes (and one message).

    While the sink stores one batch the next one gathers, so that a fast client gets few large
    writes and a slow one its bytes stored at once.
    """

    def __init__(self, receive: Callable[[], Awaitable[dict[str, Any]]]) -> None:
        self._receive = receive
        self.received = 0
        """Bytes read so far."""
        self.read = False
        """Whether any of it was asked for."""
        self._gathered: list[bytes] = []
        self._size = 0
        self._end: BodyEnd | None = None
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
        if failure is not None:
            raise failure
        return end

    def trailing_checksum(self) -> Checksum:
        """ASGI delivers no trailers, so this is never offered and never asked."""
        raise NotImplementedError

    async def _gather(self) -> None:
        while self._end is None:
            message = await self._receive()
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
                self._more = anyio.Event()
                await self._more.wait()
            batch, self._gathered, self._size = self._gathered, [], 0
            self._room.set()
            if batch:
                await sink.write(batch)


if TYPE_CHECKING:
    _: type[Body] = AsgiBody
