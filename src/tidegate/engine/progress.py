"""Telling how far uploads are: now and then, best effort, and no body waits for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from tidegate.engine.core import log
from tidegate.ports import Delivery
from tidegate.protocol.model import Event, EventType, Upload, UploadId

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anyio.streams.memory import MemoryObjectSendStream

    from tidegate.engine.core import Core
    from tidegate.ports import EventSink

QUEUED = 256
"""What waits for a sink that is slow; more is dropped. A few hundred bytes each, and old news."""


class Progress:
    """Carries the progress of uploads to the sinks that want it."""

    def __init__(self, core: Core, sinks: Sequence[EventSink]) -> None:
        self._core = core
        self._sinks = [sink for sink in sinks if EventType.PROGRESS in sink.types]
        self._queues: list[MemoryObjectSendStream[Delivery]] = []
        self._told: dict[UploadId, float] = {}
        """When each was told of, oldest first, as long as that matters."""

    def start(self) -> None:
        """Tell from now on, behind the requests."""
        for sink in self._sinks:
            queue, waiting = anyio.create_memory_object_stream[Delivery](QUEUED)
            self._queues.append(queue)
            self._core.spawn(self._run, sink, queue, waiting)
        if self._sinks:
            self._core.progressed = self.tell

    def tell(self, upload: Upload) -> None:
        """More of an upload was acknowledged."""
        now = self._core.clock.monotonic()
        every = self._core.settings.progress_every
        while self._told and next(iter(self._told.values())) <= now - every:
            del self._told[next(iter(self._told))]
        if upload.id in self._told:
            return
        self._told[upload.id] = now
        event = Event(type=EventType.PROGRESS, at=self._core.clock.now(), upload=upload)
        for queue in self._queues:
            try:
                queue.send_nowait(Delivery(0, event, 0))
            except anyio.WouldBlock:
                log.debug("progress of %s dropped: a sink is slow", upload.id)

    async def _run(
        self,
        sink: EventSink,
        queue: MemoryObjectSendStream[Delivery],
        waiting: anyio.abc.ObjectReceiveStream[Delivery],
    ) -> None:
        try:
            async for delivery in waiting:
                try:
                    with anyio.fail_after(sink.timeout):
                        await sink.deliver(delivery)
                except Exception as error:  # noqa: BLE001 - whatever an application's sink raises
                    log.debug("progress not told to %s: %r", sink.name, error)
        finally:
            self._queues.remove(queue)
            queue.close()
            await waiting.aclose()
