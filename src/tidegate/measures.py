"""What is counted while the server works: cells of memory that its processes share.

Everything that can be counted is known when this is imported, its labels too, so that counting is
an addition to a cell: no lock, no lookup by name, no file. What reads the cells, and in which form
they are told, is somebody else's business (`transports.monitoring`).
"""

from __future__ import annotations

import itertools
import math
import mmap
import time
from bisect import bisect_left
from typing import TYPE_CHECKING, Final

import msgspec

from tidegate.protocol.dialects import tus1
from tidegate.protocol.errors import Code
from tidegate.protocol.model import State

if TYPE_CHECKING:
    from collections.abc import Sequence

QUICK: Final = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
"""Seconds of a store's calls: from a read of one row to a disk that hangs."""
LONG: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0),
)
"""Seconds of requests: from a HEAD to a large body over a slow line."""

METHODS: Final = (*tus1.METHODS, "other")
OK: Final = "ok"
DROPPED: Final = "dropped"
"""The client went away before it had sent all, or had read all of the answer."""
BROKEN: Final = "broken"
"""The answer could not be given to its end."""
OUTCOMES: Final = (OK, DROPPED, BROKEN, *(code.label for code in Code), "other")
NO_STATUS: Final = "none"
"""Nothing was answered."""
STATUSES: Final = (
    *(
        str(status)
        for status in sorted({200, 201, 204, 206, 304, 401, *(code.status for code in Code)})
    ),
    *("2xx", "3xx", "4xx", "5xx", NO_STATUS),
)
"""What the server answers by itself; of others, which an application may choose, the class."""
DATA_CALLS: Final = (
    *("store_whole", "writer", "write", "flush", "sync", "copy", "finish", "measure", "delete"),
)
METADATA_CALLS: Final = ("load", "insert", "acquire", "commit", "renew", "release")
CALLS: Final = (
    *(("data", call) for call in DATA_CALLS),
    *(("metadata", call) for call in METADATA_CALLS),
)
QUEUES: Final = ("data", "metadata", "pump")
FRESH: Final = 10.0
"""Seconds for which what a process said of itself holds: five times as long as it is silent."""


class Family(msgspec.Struct, frozen=True, kw_only=True):
    """What is counted under one name, for each combination of labels."""

    name: str
    kind: str
    """counter; histogram; gauge (what each process says of itself); noted (of all, by any)."""
    help: str
    labels: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ((),)
    """The values of the labels."""
    bounds: tuple[float, ...] = ()
    """A histogram's, without the last, which is infinity."""
    width: int
    """How many cells each row has: of a histogram its buckets, and the sum."""
    start: int
    """Its first cell."""

    def cell(self, *labels: str) -> int:
        """The (first) cell of a row."""
        return self.start + self.width * self.rows.index(labels)


class _Layout:
    """Gives each family its cells."""

    def __init__(self) -> None:
        self.families: list[Family] = []
        self.size = 0

    def add(
        self,
        kind: str,
        name: str,
        text: str,
        labels: tuple[str, ...] = (),
        rows: Sequence[tuple[str, ...]] = ((),),
        bounds: tuple[float, ...] = (),
    ) -> Family:
        family = Family(
            name=name,
            kind=kind,
            help=text,
            labels=labels,
            rows=tuple(rows),
            bounds=bounds,
            width=len(bounds) + 2 if bounds else 1,
            start=self.size,
        )
        self.families.append(family)
        self.size += family.width * len(family.rows)
        return family


_layout = _Layout()
_add = _layout.add

REQUESTS: Final = _add(
    "counter",
    "requests",
    "Requests that were answered, or came to nothing.",
    ("method", "status", "outcome"),
    tuple(itertools.product(METHODS, STATUSES, OUTCOMES)),
)
REQUEST_SECONDS: Final = _add(
    "histogram",
    "request_duration_seconds",
    "From the head of a request to the end of its answer.",
    ("method",),
    [(method,) for method in METHODS],
    LONG,
)
RECEIVED: Final = _add("counter", "received_bytes", "Bytes of uploads that came.")
SENT: Final = _add("counter", "sent_bytes", "Bytes of bodies that were sent.")
CREATED: Final = _add("counter", "uploads_created", "Uploads that were made.")
MOVED: Final = {
    state: _add("counter", f"uploads_{word}", f"Uploads that {what}.")
    for state, word, what in (
        (State.COMPLETE, "completed", "became whole"),
        (State.TERMINATED, "terminated", "were deleted by a client, or by command"),
        (State.EXPIRED, "expired", "were given up, since nobody went on with them"),
        (State.FAILED, "failed", "came to nothing: finals of which a part is gone"),
    )
}
LEASE_WAITS: Final = _add(
    "histogram",
    "lease_wait_seconds",
    "Of requests that found another writer at work: until it let go, or they gave up.",
    bounds=QUICK,
)
TAKEOVERS: Final = _add(
    "counter", "lease_takeovers", "Uploads taken from a writer that is alive and did not let go."
)
RECOVERIES: Final = _add(
    "counter", "recoveries", "Uploads recovered after a writer that died, or did not let go."
)
CALL_SECONDS: Final = _add(
    "histogram",
    "storage_duration_seconds",
    "Of calls to the stores.",
    ("store", "operation"),
    CALLS,
    QUICK,
)
CALL_ERRORS: Final = _add(
    "counter",
    "storage_errors",
    "Calls to the stores that failed, but for refusals that are part of their work.",
    ("store", "operation"),
    CALLS,
)
# What a process says of itself from time to time, and when it did.
IN_FLIGHT: Final = _add("gauge", "requests_in_flight", "Requests at work.")
QUEUED: Final = _add(
    "gauge",
    "queue_depth",
    "Jobs that wait or are at work: of the store's threads, its writer, the pumps.",
    ("queue",),
    [(queue,) for queue in QUEUES],
)
WORKERS: Final = _add("gauge", "workers", "Processes that serve.")
_SAID_AT: Final = _add("gauge", "said_at", "").start
# What one process found out for all of them, and when.
UPLOADS: Final = _add(
    "noted", "uploads", "Uploads there are.", ("state",), [(state.value,) for state in State]
)
EVENTS_PENDING: Final = _add("noted", "events_pending", "Events still to be delivered.")
EVENTS_GIVEN_UP: Final = _add("noted", "events_given_up", "Events that nobody would take.")
OLDEST_EVENT: Final = _add("noted", "oldest_event_at", "")
_NOTED_AT: Final = _add("noted", "noted_at", "").start
FAMILIES: Final = tuple(_layout.families)
_SIZE: Final = _layout.size


class Measures:
    """The cells of all processes that were forked after this was made.

    Each of `places` processes writes to a row of its own, on its event loop, so no lock is needed.
    A process that follows one that died goes on with its counters: they never go back.
    """

    def __init__(self, *, places: int = 1) -> None:
        cells = memoryview(mmap.mmap(-1, 8 * _SIZE * places)).cast("d")
        self._rows = [cells[place * _SIZE : (place + 1) * _SIZE] for place in range(places)]
        self._row = self._rows[0]

    def take_place(self, place: int) -> None:
        """Be the process number `place`."""
        self._row = self._rows[place]

    def add(self, cell: int, amount: float = 1) -> None:
        """Count."""
        self._row[cell] += amount

    def observe(self, family: Family, cell: int, value: float) -> None:
        """Add an observation to a histogram, whose row begins at `cell`."""
        row = self._row
        bounds = family.bounds
        # Most are among the quickest.
        bucket = 0 if value <= bounds[0] else bisect_left(bounds, value)
        row[cell + bucket] += 1
        row[cell + family.width - 1] += value

    def say(self, values: dict[int, float]) -> None:
        """What this process has under way now, by cell. It is forgotten after FRESH seconds."""
        self._set(_SAID_AT, {**values, WORKERS.start: 1})

    def note(self, values: dict[int, float]) -> None:
        """What is so for all processes, by cell, as this one found out."""
        self._set(_NOTED_AT, values)

    def noted_for(self) -> float:
        """Seconds since one of the processes found out what is so for all; infinity: none has."""
        latest = max(row[_NOTED_AT] for row in self._rows)
        return time.monotonic() - latest if latest else math.inf

    def _set(self, at: int, values: dict[int, float]) -> None:
        for cell, value in values.items():
            self._row[cell] = value
        self._row[at] = time.monotonic()

    def totals(self) -> list[float]:
        """The cells of all processes, added up; of what is said and noted, what holds still."""
        rows = [row.tolist() for row in self._rows]
        totals = [sum(cells) for cells in zip(*rows, strict=True)]
        oldest = time.monotonic() - FRESH
        alive = [row for row in rows if row[_SAID_AT] >= oldest]
        latest = max(rows, key=lambda row: row[_NOTED_AT])
        for family in FAMILIES:
            for cell in range(family.start, family.start + len(family.rows)):
                if family.kind == "gauge":
                    totals[cell] = sum(row[cell] for row in alive)
                elif family.kind == "noted":
                    totals[cell] = latest[cell]
        return totals
