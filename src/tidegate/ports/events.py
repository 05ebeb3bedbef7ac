"""Who is told of events, and of what."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Protocol, runtime_checkable
from urllib.parse import quote

import msgspec

from tidegate.protocol.model import Event, EventType, UploadId


class Retry(msgspec.Struct, frozen=True, array_like=True):
    """A sink that failed to take an event."""

    sink: str
    attempts: int
    """How many in a row failed."""
    due_at: float | None
    """When it is told again, at the earliest; None: this event was given up for it."""


class Delivery(msgspec.Struct, frozen=True, gc=False):
    """An event that is to be delivered."""

    sequence: int
    """Grows with every event of the store; 0 for progress, which is not stored."""
    event: Event
    attempts: int
    """How many deliveries failed before this one: of the sink that is told, or, where it is nobody's
    yet, of the one that failed most."""
    done: tuple[str, ...] = ()
    """The sinks that have it already, by name."""
    retries: tuple[Retry, ...] = ()
    """The sinks that failed to take it, and don't have it yet."""

    def after(self, done: Sequence[str], retries: Sequence[Retry]) -> Delivery:
        """The same, as it is kept after an attempt."""
        attempts = max((retry.attempts for retry in retries), default=0)
        return Delivery(self.sequence, self.event, attempts, tuple(done), tuple(retries))

    @property
    def key(self) -> str:
        """The idempotency key: the same whenever this event is told, and of no other event.

        URL-safe, without full stops.
        """
        upload = self.event.upload
        upload_id = quote(upload.id, safe="").replace(".", "%2E")
        return f"{self.sequence or f'p{upload.offset}'}-{upload_id}"


HANDED: Final = math.inf
"""The claim of a line that was handed over: it ends with the process."""


class Line(msgspec.Struct, frozen=True, gc=False):
    """What an upload has to tell, claimed for delivery."""

    upload_id: UploadId
    claim: float
    """When the claim ends: it is no other one's that the upload ever had; or HANDED."""
    deliveries: tuple[Delivery, ...]
    """Its events that were not given up, oldest first. There may be none: end the claim."""


class Ended(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What became of a line: of its events, those that are neither kept nor given up were told."""

    line: Line
    kept: Sequence[Delivery] = ()
    """To be delivered still: as they were claimed, or as they stand `after` an attempt."""
    given_up: Sequence[Delivery] = ()
    due_at: float | None = None
    """When it is claimed next; None: at once. And so if the upload has more to tell by now."""
    goes_on: bool = False
    """Not ended yet: the claim stays. Not for a line that was handed over."""

    @property
    def told(self) -> list[int]:
        """The sequences of those to forget."""
        left = {delivery.sequence for delivery in (*self.kept, *self.given_up)}
        return [each.sequence for each in self.line.deliveries if each.sequence not in left]

    @property
    def changed(self) -> list[tuple[Delivery, bool]]:
        """Those of which something is to be noted, and whether they were given up."""
        before = {id(delivery) for delivery in self.line.deliveries}
        kept = [(delivery, False) for delivery in self.kept if id(delivery) not in before]
        return kept + [(delivery, True) for delivery in self.given_up]


class Undelivered(msgspec.Struct, frozen=True):
    """An event that is kept for delivery, as a list for people shows it."""

    delivery: Delivery
    due_at: float | None
    """When its upload is claimed next; None: there is an older one of its upload, it was given up,
    or it was handed over."""
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


class Outlet(Protocol):
    """Who delivers events in this process."""

    def has_room(self) -> bool:
        """Whether it has time for what happens now, and need not be given what waits first."""

    def take(self, line: Line) -> None:
        """Deliver the first events of an upload, and end their claim. At once, never raises."""


@runtime_checkable
class HandingStore(Protocol):
    """A metadata store that hands the first events of uploads to who delivers them in this process,
    once they are committed: they need not be claimed then.

    Should the process die, or be closed, they can be claimed by any.
    """

    def hand_over(self, outlet: Outlet | None) -> None:
        """To whom, while it has room; None: to nobody any more."""

    def told(self, line: Line, sequence: int) -> bool:
        """Note that all who want it took an event of a line that was handed over: should this process
        die, it is not told again. At once, never raises; False: not now, its claim is to end.
        """
