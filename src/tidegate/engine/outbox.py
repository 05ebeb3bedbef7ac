"""Delivering events: each at least once, those of one upload in order, also after a crash."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from tidegate.engine.core import log
from tidegate.ports import MetadataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tidegate.engine.core import Core
    from tidegate.ports import Delivery, EventSink

BATCH = 64
"""Events claimed at once."""
CLAIM_FOR = 60.0
"""Seconds until an event that was claimed by a process that died is claimed again."""
LOOK_EVERY = 2.0
"""Seconds between two looks at what other processes wrote, or what is due again."""
FIRST_DELAY, LONGEST_DELAY = 1.0, 3600.0
"""Seconds before a failed delivery is tried again; doubled each time, up to the longest."""
GIVE_UP_AFTER = 40
"""Failures in a row before an event is given up: with the delays above, more than a day."""


class Outbox:
    """Carries committed events to the sinks."""

    def __init__(self, core: Core, sinks: Sequence[EventSink]) -> None:
        self._core = core
        self._sinks = sinks
        self._written = anyio.Event()

    def wake(self) -> None:
        """There are new events."""
        self._written.set()

    async def run(self) -> None:
        """Deliver until cancelled."""
        while True:
            self._written = anyio.Event()
            if not await self.deliver_due():
                with anyio.move_on_after(LOOK_EVERY):
                    await self._written.wait()

    async def deliver_due(self) -> int:
        """Deliver what is due now; how many events were claimed."""
        core = self._core
        claimed_until = core.clock.monotonic() + CLAIM_FOR
        try:
            claimed = await core.metadata.claim_events(core.clock.now(), BATCH, CLAIM_FOR)
        except MetadataError as error:
            log.error("events: cannot be claimed: %s", error)
            return 0
        for delivery in claimed:
            if core.clock.monotonic() >= claimed_until:
                # The sinks were slow. Someone else may have the rest by now, and what follows it.
                break
            await self._deliver(delivery)
        return len(claimed)

    async def _deliver(self, delivery: Delivery) -> None:
        event = delivery.event
        try:
            try:
                for sink in self._sinks:
                    await sink(delivery)
            except Exception as error:  # noqa: BLE001 - whatever an application's sink raises
                await self._core.metadata.postpone(delivery.sequence, self._due(delivery))
                log.warning(
                    "event %d (%s of %s) not delivered: %r",
                    delivery.sequence,
                    event.type,
                    event.upload.id,
                    error,
                )
                return
            await self._core.metadata.acknowledge(delivery.sequence)
        except MetadataError as error:
            # It stays claimed for a while, and is delivered again then.
            log.error("event %d: its delivery is not noted: %s", delivery.sequence, error)

    def _due(self, delivery: Delivery) -> float | None:
        if delivery.attempts + 1 >= GIVE_UP_AFTER:
            return None
        delay: float = min(LONGEST_DELAY, FIRST_DELAY * 2.0**delivery.attempts)
        return self._core.clock.now() + delay
