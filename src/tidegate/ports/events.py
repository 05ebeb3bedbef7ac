"""Who is told of events, and of what."""

from __future__ import annotations

from typing import Protocol
from urllib.parse import quote

import msgspec

from tidegate.protocol.model import Event, EventType


class Delivery(msgspec.Struct, frozen=True):
    """An event that was claimed for delivery."""

    sequence: int
    """Grows with every event of the store; 0 for progress, which is not stored."""
    event: Event
    attempts: int
    """How many deliveries failed before this one."""
    done: tuple[str, ...] = ()
    """The sinks that have it already, by name."""

    @property
    def key(self) -> str:
        """The idempotency key: the same whenever this event is told, and of no other event.

        URL-safe, without full stops.
        """
        upload = self.event.upload
        upload_id = quote(upload.id, safe="").replace(".", "%2E")
        return f"{self.sequence or f'p{upload.offset}'}-{upload_id}"


class Undelivered(msgspec.Struct, frozen=True):
    """An event that is kept for delivery, as a list for people shows it."""

    delivery: Delivery
    due_at: float | None
    """When it is delivered next; None: it waits for an older one of its upload, or was given up."""
    given_up: bool


class EventSink(Protocol):
    """Who is told of events: of each at least once, of those of one upload in order.

    Progress apart, which may be left out and may come late. Several events, of different uploads,
    are delivered at once.
    """

    name: str
    """Under which it is remembered what it has, over restarts. See `engine.outbox.NAME`."""
    types: frozenset[EventType]
    """What it wants to be told of."""
    timeout: float
    """Seconds after which a delivery is cancelled, and has failed."""

    async def open(self) -> None:
        """Acquire what is needed. Waits for nobody who is told: they may be away."""

    async def close(self) -> None:
        """Let go of all that `open` acquired. May be called twice."""

    async def deliver(self, delivery: Delivery) -> None:
        """Return once the event was taken.

        Whatever it raises makes the event be told again, later; DeliveryError says more.
        """
