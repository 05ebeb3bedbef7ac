"""Delivering events: each at least once, those of one upload in order, also after a crash."""

from __future__ import annotations

import random
import re
from collections import deque
from operator import itemgetter
from typing import TYPE_CHECKING, Final

import anyio
import anyio.lowlevel
from msgspec.structs import replace

from tidegate.engine.core import log
from tidegate.engine.standing import Standing, first_lacking
from tidegate.engine.within import within
from tidegate.ports import HANDED, DeliveryError, Ended, Line, MetadataError, Retry

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tidegate.engine.core import Core
    from tidegate.ports import Delivery, EventSink

AT_ONCE = 16
"""Uploads whose events are being delivered at a time: so many connections or processes
are little for a server, and a sink that needs a tenth of a second gets 160 each second."""
CLAIMED = 64
"""Uploads whose events are claimed at a time: a claim costs as much as ten of its events."""
HANDED_MOST = 1024
"""Uploads whose events are handed over without being claimed, and wait to be told: those of a
twentieth of a second, of many, and a few MB. What is more waits in the metadata store."""
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
BREATH = 32
"""Lines that are told one after the other before others get their turn, where no sink keeps them
waiting: a millisecond."""
GATHER = 0.02
"""Seconds for which what happens is gathered once all that was due is claimed: nobody is told of
something that he sees himself."""
LET_GO_WITHIN = 1.0
"""Seconds to say at a stop which events were delivered, and which are not being delivered any more."""

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,99}", re.ASCII)
"""What a sink may be called."""


class Outbox:
    """Carries committed events to the sinks.

    What an upload has to tell is claimed together, or handed over by the metadata store, which saves
    that. Each sink is told the first event that it lacks, all at once; that is noted before they are
    told the next, so that no event is told again after a later one. Who fails to take an event waits
    with those that follow, until it has it or that was given up for it; nobody else waits for that.
    Raises ValueError for names of sinks that are not right, or not different.
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
        """Lines that we have claimed."""
        self._behind = True
        """More is due than we have claimed, as far as is known."""
        self._telling = 0
        """Tasks that tell them."""
        self._breathes = False
        """One of them lets others have their turn, and is kept waiting by no sink."""
        self._waiting: deque[tuple[Line, float]] = deque()
        """Of these, and of those that were handed to us, those that nobody is telling yet, and until
        when each is ours."""
        self._ended: list[tuple[Ended, float]] = []
        """And those of which something was told, or tried, and that is not noted yet."""
        self._hung: dict[str, tuple[int, float]] = {}
        """Of each sink that did not answer: how often in a row, and until when it is let alone."""
        self.claim_for = CLAIM_BEYOND + max((sink.timeout for sink in sinks), default=0.0)
        """Seconds until an event that was claimed by a process that died is claimed again."""

    def wake(self) -> None:
        """There is, or there may be, something to deliver."""
        self._woken.set()

    def has_room(self) -> bool:
        """Whether events can be handed to us. See ports.Outlet."""
        return not self._behind and len(self._waiting) < HANDED_MOST

    def take(self, line: Line) -> None:
        """Deliver a line that was handed to us. See ports.Outlet."""
        self._waiting.append((line, HANDED))

    async def run(self) -> None:
        """Deliver until cancelled."""
        handing = self._core.handing_store
        if handing is not None:
            handing.hand_over(self)
        try:
            while True:
                self._woken = anyio.Event()
                await self._end_claims()
                free = max(0, CLAIMED - self._at_work)
                all_due = await self._claim(free) < free
                self._behind = not all_due
                await self._tell_waiting()
                # Where all we may claim is ours: until a sink has answered.
                if all_due if free else not self._ended:
                    with anyio.move_on_after(LOOK_EVERY):
                        await self._woken.wait()
                        await anyio.sleep(GATHER)
        finally:
            if handing is not None:
                handing.hand_over(None)
            await self._let_go()

    async def deliver_due(self) -> int:
        """Deliver what is due now; of how many uploads."""
        count = await self._claim(CLAIMED)
        while self._waiting:
            async with anyio.create_task_group() as tasks:
                for _ in range(min(AT_ONCE, len(self._waiting))):
                    tasks.start_soon(self._tell_on)
            await self._end_claims()
        return count

    async def _claim(self, limit: int) -> int:
        """Claim what is to be delivered; of how many uploads."""
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
        self._waiting.extend((line, until) for line in claimed)
        return len(claimed)

    async def _tell_waiting(self) -> None:
        """See that all that wait are being told, by as many tasks as it takes."""
        while self._waiting and self._telling < AT_ONCE:
            if not self._breathes:
                self._core.spawn(self._tell_on)
            # It takes one after the other for as long as no sink keeps it waiting.
            await anyio.lowlevel.checkpoint()

    async def _tell_on(self) -> None:
        self._telling += 1
        try:
            told = 0
            while self._waiting:
                await self._deliver(*self._waiting.popleft())
                told += 1
                if not told % BREATH:
                    self._breathes = True
                    await anyio.lowlevel.checkpoint()
                    self._breathes = False
        finally:
            self._telling -= 1

    async def _deliver(self, line: Line, until: float) -> None:
        plain = self._is_plain(line, until)
        ended = await (self._tell_plain(line, until) if plain else self._tell(line, until))
        self._ended.append((ended, until))
        if len(self._ended) == 1:
            self.wake()

    def _is_plain(self, line: Line, until: float) -> bool:
        """Whether it is as most are: there is one sink, which wants all of it, and was never told.

        To look at all that else may be takes longer than to tell it.
        """
        if len(self._sinks) != 1 or not line.deliveries:
            return False
        types = self._sinks[0].types
        for each in line.deliveries:
            if each.done or each.retries or each.event.type not in types:
                return False
        return self._has_time(self._sinks, until)

    async def _tell_plain(self, line: Line, until: float) -> Ended:
        """Tell the only sink of a line that is plain; what became of it."""
        sink, deliveries = self._sinks[0], line.deliveries
        told = 0
        try:
            while True:
                delivery = deliveries[told]
                await self._try(sink, delivery)
                told += 1
                if told == len(deliveries):
                    return Ended(line=line)
                if until != HANDED or not self._noted(line, (delivery.sequence,)):
                    break
        except anyio.get_cancelled_exc_class():
            await self._stop(Ended(line=line, kept=deliveries[told:]), until)
            raise
        except Exception as error:  # noqa: BLE001 - whatever an application's sink raises
            standings = [Standing(delivery) for delivery in deliveries[told:]]
            self._failed(sink, standings[0], error)
            return self._what_became_of(line, standings, until)
        goes_on = until != HANDED and self._has_time(self._sinks, until)
        return Ended(line=line, kept=deliveries[told:], goes_on=goes_on)

    async def _tell(self, line: Line, until: float) -> Ended:
        """Tell each sink what it lacks; what became of it."""
        standings = [Standing(delivery) for delivery in line.deliveries]
        try:
            while True:
                await self._tell_firsts(standings, until)
                ended = self._what_became_of(line, standings, until)
                if not ended.goes_on or until != HANDED:
                    return ended
                if not self._noted(line, ended.told):
                    return replace(ended, goes_on=False)
        except anyio.get_cancelled_exc_class():
            await self._stop(self._what_became_of(line, standings, until), until)
            raise

    def _noted(self, line: Line, told: Sequence[int]) -> bool:
        """Note, at once, what was told of a line that was handed over; whether that was possible."""
        handing = self._core.handing_store
        return handing is not None and all(handing.told(line, each) for each in told)

    async def _stop(self, ended: Ended, until: float) -> None:
        """The server stops. The next one need not wait for the claim to run out."""
        self._ended.append((ended, until))
        with anyio.move_on_after(LET_GO_WITHIN, shield=True):
            await self._end_claims(stopping=True)

    async def _end_claims(self, *, stopping: bool = False) -> None:
        """Have the metadata store note what became of lines, of all of them at once."""
        found, self._ended = self._ended, []
        if not found:
            return
        # Of what we claimed again, having been paused for longer than a claim, the latest is ours.
        ours = {each[0].line.upload_id: each for each in sorted(found, key=itemgetter(1))}
        ended = list(ours.values())
        if outlasted := len(found) - len(ended):
            log.warning(
                "events of %d uploads: their delivery took longer than its claim", outlasted
            )
            self._at_work -= outlasted
        noted = [replace(each, goes_on=False) if stopping else each for each, _ in ended]
        try:
            lost = await self._core.metadata.end_claims(noted)
        except MetadataError as error:
            # They stay claimed for a while, and are delivered again then. Not so what was handed
            # to us, which nobody else would note.
            names = ", ".join(each.line.upload_id for each in noted)
            log.error("events of %s: their delivery is not noted: %s", names, error)
            self._ended += (handed := [one for one in ended if one[1] == HANDED])
            self._at_work -= len(ended) - len(handed)
            return
        except BaseException:
            self._ended += ended
            raise
        # What was being noted when the server was stopped may have been.
        for upload_id in () if stopping else lost:
            # We were paused: someone else tells them by now, and says how that goes.
            log.warning("events of %s: their delivery took longer than its claim", upload_id)
        for each, until in ended:
            line = each.line
            if each.goes_on and not stopping and line.upload_id not in lost:
                self._waiting.append((replace(line, deliveries=tuple(each.kept)), until))
            elif until != HANDED:
                self._at_work -= 1

    async def _let_go(self) -> None:
        """The server stops: note what became of all that is claimed and nobody is telling."""
        while self._waiting:
            line, until = self._waiting.popleft()
            self._ended.append((Ended(line=line, kept=line.deliveries), until))
        with anyio.move_on_after(LET_GO_WITHIN, shield=True):
            await self._end_claims(stopping=True)

    async def _tell_firsts(self, standings: Sequence[Standing], until: float) -> None:
        """Tell each sink the first that it lacks, where that is due."""
        now = self._core.clock.now()
        waiting = [
            (sink, first)
            for sink in self._sinks
            if (first := first_lacking(sink, standings)) is not None and first.due_at(sink) <= now
        ]
        if not self._has_time([sink for sink, _ in waiting], until):
            return
        if len(waiting) == 1:
            # As most have it; a group of tasks costs more than all the rest here.
            await self._tell_one(*waiting[0])
            return
        async with anyio.create_task_group() as tasks:
            for sink, first in waiting:
                tasks.start_soon(self._tell_one, sink, first)

    async def _tell_one(self, sink: EventSink, standing: Standing) -> None:
        try:
            await self._try(sink, standing.for_sink(sink))
        except Exception as error:  # noqa: BLE001 - whatever an application's sink raises
            self._failed(sink, standing, error)
        else:
            standing.took(sink)

    async def _try(self, sink: EventSink, delivery: Delivery) -> None:
        """Raises what the sink raises; DeliveryError when it does not answer."""
        hung = self._hung
        if hung:
            hangs, rests_until = hung.get(sink.name, (0, 0.0))
            if hangs >= HANGS:
                now = self._core.clock.monotonic()
                if now < rests_until:
                    raise DeliveryError("has not answered for some time")
                # Let one find out.
                hung[sink.name] = hangs, now + sink.timeout
        try:
            answered = await within(sink.timeout, sink.deliver(delivery))
        except Exception:
            hung.pop(sink.name, None)
            raise
        if not answered:  # pragma: no cover - the tracer loses a frame that is thrown into
            hangs, _ = hung.get(sink.name, (0, 0.0))
            hung[sink.name] = hangs + 1, self._core.clock.monotonic() + REST
            raise DeliveryError(f"no answer in {sink.timeout:g} s")
        if hung:
            hung.pop(sink.name, None)

    def _failed(self, sink: EventSink, standing: Standing, error: Exception) -> None:
        """Have it told again later to a sink that failed, or give it up for that."""
        delivery = standing.delivery
        before = standing.for_sink(sink).attempts
        attempts = before + 1
        said = error if isinstance(error, DeliveryError) else None
        what = f"event {delivery.sequence} ({delivery.event.type} of {delivery.event.upload.id})"
        why = f"{sink.name}: {said or repr(error)}"
        if (said and said.final) or attempts >= GIVE_UP_AFTER:
            log.error(
                "%s given up after %d attempts: %s. To have it delivered after all:"
                " tidegate events replay %d",
                what,
                attempts,
                why,
                delivery.sequence,
            )
            standing.retries[sink.name] = Retry(sink.name, attempts, None)
            return
        # Of what failed for more than a thousand seconds the delay is the longest anyway.
        delay = min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(before, 16))
        delay *= 1 + JITTER * self._chance()
        if said and said.retry_after:
            delay = max(delay, min(said.retry_after, LONGEST_RETRY_AFTER))
        log.warning("%s not delivered, again in %.0f s: %s", what, delay, why)
        due_at = self._core.clock.now() + delay
        standing.retries[sink.name] = Retry(sink.name, attempts, due_at)

    def _what_became_of(self, line: Line, standings: Sequence[Standing], until: float) -> Ended:
        kept: list[Delivery] = []
        given_up: list[Delivery] = []
        for each in standings:
            lacking = [sink for sink in self._sinks if each.lacks(sink)]
            if lacking:
                over = all(each.given_up(sink) for sink in lacking)
                (given_up if over else kept).append(each.left())
        # What comes after a sink's first waits for that.
        due = {
            sink: first.due_at(sink)
            for sink in (self._sinks if kept else ())
            if (first := first_lacking(sink, standings)) is not None
        }
        now = self._core.clock.now()
        waiting = [sink for sink, due_at in due.items() if due_at <= now]
        if not waiting:
            due_at = min(due.values(), default=None)
            return Ended(line=line, kept=kept, given_up=given_up, due_at=due_at)
        ended = Ended(line=line, kept=kept, given_up=given_up, goes_on=True)
        # Who fails to take what was handed to us is told by anyone.
        goes_on = self._has_time(waiting, until) and not (until == HANDED and ended.changed)
        return ended if goes_on else replace(ended, goes_on=False)

    def _has_time(self, sinks: Sequence[EventSink], until: float) -> bool:
        """Whether a delivery to them may begin: it must not outlast its claim."""
        if until == HANDED:
            return True
        longest = max((sink.timeout for sink in sinks), default=0.0)
        return self._core.clock.monotonic() <= until - longest - CLAIM_BEYOND / 2
