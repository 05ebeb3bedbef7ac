"""Delivering events: each at least once, those of one upload in order, also after a crash."""

from __future__ import annotations

import random
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import anyio

from tidegate.engine.core import log
from tidegate.ports import Delivery, DeliveryError, EventSink, MetadataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tidegate.engine.core import Core

AT_ONCE = 16
"""Events that are being delivered at a time, of as many uploads: so many connections or processes
are little for a server, and a sink that needs a tenth of a second gets 160 each second."""
CLAIM_BEYOND = 10.0
"""Seconds that a claim holds beyond the longest that a delivery takes: for reaching the metadata
store before and after it. With a sink's usual 20 s, what a process that died was delivering is
delivered again after 30."""
LOOK_EVERY = 2.0
"""Seconds between two looks at what other processes wrote, or what is due again."""
FIRST_DELAY, LONGEST_DELAY = 1.0, 3600.0
"""Seconds before a failed delivery is tried again; doubled each time, up to the longest."""
JITTER = 0.25
"""How much longer, at most, so that what failed together does not come back together."""
GIVE_UP_AFTER = 40
"""Failures in a row before an event is given up: with the delays above, more than a day."""
LONGEST_RETRY_AFTER = 86_400.0
"""Seconds that a sink may ask to be left alone for."""
HANGS = 3
"""Timeouts in a row after which a sink is believed to hang."""
REST = 10.0
"""Seconds between two tries of a sink that hangs. What else is for it fails at once: it would hold
up what is for others."""
LET_GO_WITHIN = 1.0
"""Seconds to say at a stop which events are not being delivered any more."""

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,99}", re.ASCII)
"""What a sink may be called."""


class _Outcome:
    """What became of one delivery."""

    def __init__(self, done: Sequence[str]) -> None:
        self.done = list(done)
        self.failures: list[str] = []
        self.retry_after = 0.0
        self.final = True

    def failed(self, sink: EventSink, error: Exception) -> None:
        said = isinstance(error, DeliveryError)
        self.failures.append(f"{sink.name}: {error if said else repr(error)}")
        if isinstance(error, DeliveryError):
            self.retry_after = max(self.retry_after, error.retry_after or 0.0)
        if not (isinstance(error, DeliveryError) and error.final):
            self.final = False


class Outbox:
    """Carries committed events to the sinks.

    An event is told to all its sinks at once, and is done with when each has it; what an upload has
    to tell next waits for that, what others have to tell does not. Raises ValueError for names of
    sinks that are not right, or not different.
    """

    def __init__(
        self, core: Core, sinks: Sequence[EventSink], chance: Callable[[], float] = random.random
    ) -> None:
        names = [sink.name for sink in sinks]
        for name in names:
            if not NAME.fullmatch(name):
                raise ValueError(
                    f"{name!r} is not a name for a sink: expected up to 100 letters, digits and"
                    " . _ : -"
                )
            if names.count(name) > 1:
                raise ValueError(f"two sinks are called {name}: expected different names")
        self._core = core
        self._sinks = sinks
        self._chance = chance
        self._woken = anyio.Event()
        self._at_work = 0
        self._hung: dict[str, tuple[int, float]] = {}
        """Of each sink that did not answer: how often in a row, and until when it is let alone."""
        self.claim_for = CLAIM_BEYOND + max((sink.timeout for sink in sinks), default=0.0)
        """Seconds until an event that was claimed by a process that died is claimed again."""

    def wake(self) -> None:
        """There is, or there may be, something to deliver."""
        self._woken.set()

    async def run(self) -> None:
        """Deliver until cancelled."""
        while True:
            self._woken = anyio.Event()
            until, claimed = await self._claim(AT_ONCE - self._at_work)
            for delivery in claimed:
                self._at_work += 1
                self._core.spawn(self._deliver_behind, delivery, until)
            if not claimed:
                with anyio.move_on_after(LOOK_EVERY):
                    await self._woken.wait()

    async def deliver_due(self) -> int:
        """Deliver what is due now; how many events were claimed."""
        until, claimed = await self._claim(AT_ONCE)
        async with anyio.create_task_group() as tasks:
            for delivery in claimed:
                tasks.start_soon(self._deliver, delivery, until)
        return len(claimed)

    async def _claim(self, limit: int) -> tuple[float, Sequence[Delivery]]:
        """Events to deliver, and until when they are ours, by the monotonic clock."""
        core = self._core
        until = core.clock.monotonic() + self.claim_for
        if limit <= 0:
            return until, ()
        try:
            return until, await core.metadata.claim_events(core.clock.now(), limit, self.claim_for)
        except MetadataError as error:
            log.error("events: cannot be claimed: %s", error)
            return until, ()

    async def _deliver_behind(self, delivery: Delivery, until: float) -> None:
        try:
            await self._deliver(delivery, until)
        finally:
            self._at_work -= 1
            self.wake()

    async def _deliver(self, delivery: Delivery, until: float) -> None:
        clock = self._core.clock
        outcome = _Outcome(delivery.done)
        told = False
        try:
            await self._tell(delivery, outcome)
            told = not outcome.failures
            if clock.monotonic() >= until:
                # We were paused. Someone else may be telling it by now, and says how that went.
                log.warning("event %d: its delivery took longer than its claim", delivery.sequence)
            elif told:
                await self._acknowledge(delivery)
            else:
                await self._retry(delivery, outcome)
        except anyio.get_cancelled_exc_class():
            # The server stops. The next one need not wait for the claim to run out.
            with anyio.move_on_after(LET_GO_WITHIN, shield=True):
                if told:
                    await self._acknowledge(delivery)
                elif clock.monotonic() < until:
                    await self._postpone(delivery, outcome, clock.now())
            raise

    async def _tell(self, delivery: Delivery, outcome: _Outcome) -> None:
        """Tell the sinks that want the event and don't have it."""
        event_type = delivery.event.type
        waiting = [
            sink
            for sink in self._sinks
            if event_type in sink.types and sink.name not in delivery.done
        ]
        if len(waiting) == 1:
            # As most have it; a group of tasks costs more than all the rest here.
            await self._tell_one(waiting[0], delivery, outcome)
            return
        async with anyio.create_task_group() as tasks:
            for sink in waiting:
                tasks.start_soon(self._tell_one, sink, delivery, outcome)

    async def _tell_one(self, sink: EventSink, delivery: Delivery, outcome: _Outcome) -> None:
        monotonic = self._core.clock.monotonic
        hangs, rests_until = self._hung.get(sink.name, (0, 0.0))
        if hangs >= HANGS:
            if monotonic() < rests_until:
                outcome.failed(sink, DeliveryError("has not answered for some time"))
                return
            # Let one find out.
            self._hung[sink.name] = hangs, monotonic() + sink.timeout
        try:
            with anyio.move_on_after(sink.timeout) as scope:
                await sink.deliver(delivery)
        except Exception as error:  # noqa: BLE001 - whatever an application's sink raises
            outcome.failed(sink, error)
        else:
            if scope.cancelled_caught:
                hangs, _ = self._hung.get(sink.name, (0, 0.0))
                self._hung[sink.name] = hangs + 1, monotonic() + REST
                outcome.failed(sink, DeliveryError(f"no answer in {sink.timeout:g} s"))
                return
            outcome.done.append(sink.name)
        self._hung.pop(sink.name, None)

    async def _retry(self, delivery: Delivery, outcome: _Outcome) -> None:
        """Have it told again later to those that failed, or give it up."""
        event, attempts = delivery.event, delivery.attempts + 1
        what = f"event {delivery.sequence} ({event.type} of {event.upload.id})"
        why = "; ".join(outcome.failures)
        if outcome.final or attempts >= GIVE_UP_AFTER:
            log.error(
                "%s given up after %d attempts: %s. To have it delivered after all:"
                " tidegate events replay %d",
                what,
                attempts,
                why,
                delivery.sequence,
            )
            await self._postpone(delivery, outcome, None)
            return
        # Of what failed for more than a thousand seconds the delay is the longest anyway.
        delay = min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(delivery.attempts, 16))
        delay *= 1 + JITTER * self._chance()
        delay = max(delay, min(outcome.retry_after, LONGEST_RETRY_AFTER))
        log.warning("%s not delivered, again in %.0f s: %s", what, delay, why)
        await self._postpone(delivery, outcome, self._core.clock.now() + delay)

    async def _acknowledge(self, delivery: Delivery) -> None:
        with _noting(delivery):
            await self._core.metadata.acknowledge(delivery.sequence)

    async def _postpone(self, delivery: Delivery, outcome: _Outcome, due_at: float | None) -> None:
        with _noting(delivery):
            await self._core.metadata.postpone(delivery.sequence, due_at, done=outcome.done)


@contextmanager
def _noting(delivery: Delivery) -> Iterator[None]:
    try:
        yield
    except MetadataError as error:
        # It stays claimed for a while, and is delivered again then.
        log.error("event %d: its delivery is not noted: %s", delivery.sequence, error)
