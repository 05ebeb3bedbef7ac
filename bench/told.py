"""tidegate, with somebody who listens to all events: a byte is written to $BENCH_TOLD for each.

What a webhook or a command costs is a receiver's or a process's, beside which nothing else would be
seen. This one costs next to nothing, so that what is left is what it costs to have events: to write
them with the record, to claim, to tell and to forget them.
"""

import os

from tidegate.cli import main, notify
from tidegate.config.events import EventConfig
from tidegate.events.callable import CallableSink
from tidegate.ports import Delivery, EventSink

DESCRIPTOR = os.open(os.environ["BENCH_TOLD"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


async def told(_: Delivery) -> None:
    """Take an event."""
    os.write(DESCRIPTOR, b".")


def sinks(settings: EventConfig) -> list[EventSink]:
    """In the place of those that the settings speak of."""
    del settings
    return [CallableSink(told)]


if __name__ == "__main__":
    notify.sinks = sinks
    main()
