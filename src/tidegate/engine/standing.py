"""How far the sinks are with an event, while the line of its upload is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tidegate.ports import Delivery, EventSink


class Standing:
    """How the delivery of one event stands, while its line is told."""

    __slots__ = ("delivery", "done", "retries")

    def __init__(self, delivery: Delivery) -> None:
        self.delivery = delivery
        self.done = delivery.done
        self.retries = {retry.sink: retry for retry in delivery.retries} if delivery.retries else {}

    def lacks(self, sink: EventSink) -> bool:
        """Whether the sink wants it, and does not have it."""
        return self.delivery.event.type in sink.types and sink.name not in self.done

    def given_up(self, sink: EventSink) -> bool:
        """Whether that is so for good."""
        return sink.name in self.retries and self.retries[sink.name].due_at is None

    def due_at(self, sink: EventSink) -> float:
        """When the sink is to be told of it, at the earliest."""
        retry = self.retries.get(sink.name)
        return (retry and retry.due_at) or 0.0

    def for_sink(self, sink: EventSink) -> Delivery:
        """What the sink is given."""
        retry = self.retries.get(sink.name)
        attempts = retry.attempts if retry else 0
        if attempts == self.delivery.attempts:
            return self.delivery
        return replace(self.delivery, attempts=attempts)

    def took(self, sink: EventSink) -> None:
        """The sink has it."""
        self.done += (sink.name,)
        self.retries.pop(sink.name, None)

    def left(self) -> Delivery:
        """What is kept of it."""
        if len(self.done) == len(self.delivery.done) and not self.retries:
            return self.delivery
        return self.delivery.after(self.done, tuple(self.retries.values()))


def first_lacking(sink: EventSink, standings: Sequence[Standing]) -> Standing | None:
    """The first event that a sink lacks, and that was not given up for it."""
    for each in standings:
        if each.lacks(sink) and not each.given_up(sink):
            return each
    return None
