"""Delivering events: each at least once, those of one upload in order, also after a crash."""

from __future__ import annotations

import random
import re
from collections import deque
from typing import TYPE_CHECKING, Final

import anyio
import anyio.lowlevel

from tidegate.engine.core import log
from tidegate.engine.within import within
from tidegate.ports import Delivery, DeliveryError, EventSink, MetadataError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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
GATHER = 0.02
"""Seconds for which what happens is gathered once all that was due is claimed: a claim costs as much
as ten of its events, and nobody is told of something that he sees himself."""
LET_GO_WITHIN = 1.0
"""Seconds to say at a stop which events were delivered, and which are not being delivered any more."""

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
        """Events that are ours."""
        self._claimed: deque[tuple[Delivery, float]] = deque()
        """Of these, those that nobody is telling yet, and until when each is ours."""
        self._told: list[Delivery] = []
        """And those that are told, and not forgotten yet."""
        self._hung: dict[str, tuple[int, float]] = {}
        """Of each sink that did not answer: how often in a row, and until when it is let alone."""
        self.claim_for = CLAIM_BEYOND + max((sink.timeout for sink in sinks), default=0.0)
        """Seconds until an event that was claimed by a process that died is claimed again."""

    def wake(self) -> None:
        """There is, or there may be, something to deliver."""
        self._woken.set()

    async def run(self) -> None:
        """Deliver until cancelled."""
        try:
            while True:
                self._woken = anyio.Event()
                await self._forget_told()
                free = max(0, AT_ONCE - self._at_work)
                all_due = await self._claim(free) < free
                await self._tell_claimed()
                if all_due or not free:
                    with anyio.move_on_after(LOOK_EVERY):
                        await self._woken.wait()
                        await anyio.sleep(GATHER)
        finally:
            await self._let_go()

    async def deliver_due(self) -> int:
        """Deliver what is due now; how many events were claimed."""
        count = await self._claim(AT_ONCE)
        async with anyio.create_task_group() as tasks:
            for _ in range(count):
                tasks.start_soon(self._tell_on)
        await self._forget_told()
        return count

    async def _claim(self, limit: int) -> int:
        """Claim events to deliver; how many there were."""
        core = self._core
        # By the monotonic clock.
        until = core.clock.monotonic() + self.claim_for
        if not limit:
            return 0
        try:
            claimed = await core.metadata.claim_events(core.clock.now(), limit, self.claim_for)
        except MetadataError as error:
            log.error("events: cannot be claimed: %s", error)
            return 0
        self._at_work += len(claimed)
        self._claimed.extend((delivery, until) for delivery in claimed)
        return len(claimed)

    async def _tell_claimed(self) -> None:
        """See that all that are claimed are being told, by as many tasks as it takes."""
        while self._claimed:
            self._core.spawn(self._tell_on)
            # It takes one after the other for as long as no sink keeps it waiting.
            await anyio.lowlevel.checkpoint()

    async def _tell_on(self) -> None:
        while self._claimed:
            await self._deliver(*self._claimed.popleft())

    async def _deliver(self, delivery: Delivery, until: float) -> None:
        clock = self._core.clock
        outcome = _Outcome(delivery.done)
        told = False
        try:
            await self._tell(delivery, outcome)
            if clock.monotonic() >= until:
                # We were paused. Someone else may be telling it by now, and says how that went.
                log.warning("event %d: its delivery took longer than its claim", delivery.sequence)
            elif outcome.failures:
                await self._retry(delivery, outcome)
            else:
                told = True
                self._told.append(delivery)
        except anyio.get_cancelled_exc_class():
            # The server stops. The next one need not wait for the claim to run out.
            if clock.monotonic() < until:
                with anyio.move_on_after(LET_GO_WITHIN, shield=True):
                    await self._postpone(delivery, outcome, clock.now())
            raise
        finally:
            self._at_work -= not told
            self.wake()

    async def _forget_told(self) -> None:
        """Have the metadata store forget what was told, all of it at once."""
        told, self._told = self._told, []
        if not told:
            return
        try:
            await self._core.metadata.acknowledge(*(delivery.sequence for delivery in told))
        except MetadataError as error:
            # They stay claimed for a while, and are delivered again then.
            log.error("%s: delivered, which is not noted: %s", _named(told), error)
        except BaseException:
            self._told += told
            raise
        self._at_work -= len(told)

    async def _let_go(self) -> None:
        """The server stops: note what became of all that is claimed and nobody is telling."""
        with anyio.move_on_after(LET_GO_WITHIN, shield=True):
            await self._forget_told()
            while self._claimed:
                delivery, _ = self._claimed.popleft()
                await self._postpone(delivery, _Outcome(delivery.done), self._core.clock.now())

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
            if not await within(sink.timeout, sink.deliver(delivery)):
                hangs, _ = self._hung.get(sink.name, (0, 0.0))
                self._hung[sink.name] = hangs + 1, monotonic() + REST
                outcome.failed(sink, DeliveryError(f"no answer in {sink.timeout:g} s"))
                return
        except Exception as error:  # noqa: BLE001 - whatever an application's sink raises
            outcome.failed(sink, error)
        else:
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

    async def _postpone(self, delivery: Delivery, outcome: _Outcome, due_at: float | None) -> None:
        try:
            await self._core.metadata.postpone(delivery.sequence, due_at, done=outcome.done)
        except MetadataError as error:
            # It stays claimed for a while, and is delivered again then.
            log.error("event %d: its delivery is not noted: %s", delivery.sequence, error)


def _named(told: Sequence[Delivery]) -> str:
    numbers = ", ".join(str(delivery.sequence) for delivery in told)
    return f"event{'s' * (len(told) > 1)} {numbers}"
