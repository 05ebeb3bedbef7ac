"""Python callables that are told of events."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import anyio.to_thread

from tidegate.ports import Delivery, EventSink
from tidegate.protocol.model import STORED_EVENTS, EventType

TIMEOUT = 20.0
"""Seconds that a sink has for one event, unless told otherwise: between the 15 and 30 that Standard
Webhooks recommends. Long work is for a queue of its own, into which a sink puts it."""
THREADS = 32
"""Calls of one synchronous callable at a time: some more than the outbox makes, for those that go on
when their time is up."""

OnEvent: TypeAlias = Callable[[Delivery], Any]
"""Gets an event, and returns once it is taken; what it raises makes it be told again, later."""

_UNFIT = re.compile(r"[^A-Za-z0-9._-]+")


class CallableSink:
    """Tells a callable, each time with the `Delivery`.

    A coroutine function runs on the event loop, any other in a thread (which goes on when its time
    is up, though the event is told again). `name` is how it is remembered, over restarts, what it
    has; without one it is called after where it is defined. `timeout` is in seconds.
    """

    def __init__(
        self,
        call: OnEvent,
        *,
        name: str | None = None,
        types: Collection[EventType] = STORED_EVENTS,
        timeout: float = TIMEOUT,
    ) -> None:
        self.name = name or _name(call)
        self.types = frozenset(types)
        self.timeout = timeout
        self._call = call
        self._is_async = inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(
            getattr(call, "__call__", None)  # noqa: B004 - an instance's, to look at
        )
        self._threads = anyio.CapacityLimiter(THREADS)

    async def open(self) -> None:
        """There is nothing to open."""

    async def close(self) -> None:
        """Nor to close."""

    async def deliver(self, delivery: Delivery) -> None:
        """Call it, and wait until it is done. Raises what it raises."""
        if self._is_async:
            await self._call(delivery)
            return
        returned = await anyio.to_thread.run_sync(
            self._call, delivery, abandon_on_cancel=True, limiter=self._threads
        )
        if inspect.isawaitable(returned):
            # A lambda, or a partial, around a coroutine function.
            await returned


def as_sinks(listeners: Sequence[EventSink | OnEvent]) -> list[EventSink]:
    """Sinks as they are, and each other callable as one. Of equal names the later get a number."""
    sinks: list[EventSink] = []
    taken: set[str] = set()
    for listener in listeners:
        if callable(listener):
            sink = CallableSink(listener)
            first, number = sink.name, 1
            while sink.name in taken:
                number += 1
                sink.name = f"{first}-{number}"
            sinks.append(sink)
        else:
            sinks.append(listener)
        taken.add(sinks[-1].name)
    return sinks


def _name(call: OnEvent) -> str:
    named = inspect.unwrap(cast("Callable[..., Any]", getattr(call, "func", call)))
    if not hasattr(named, "__qualname__"):
        named = type(named)
    return _UNFIT.sub("", f"{named.__module__}.{named.__qualname__}").lstrip("._-")[-100:]


if TYPE_CHECKING:
    _: type[EventSink] = CallableSink
