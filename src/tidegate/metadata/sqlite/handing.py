"""What the SQLite store of one process hands to who delivers events there: from the transaction that
writes it down to the one that forgets it.
"""

from __future__ import annotations

import array
import mmap
import os
from typing import TYPE_CHECKING, Final, NamedTuple

from tidegate.metadata.sqlite import handed
from tidegate.ports import HANDED

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tidegate.ports import Ended, Line
    from tidegate.protocol.model import UploadId

_MARKS: Final = 8192
_BYTES: Final = 8 * _MARKS


class Marks:
    """The sequences of events that were told, as were those of their uploads before them, and are not
    forgotten yet; in memory that outlives the process: a file that is mapped, as SQLite's own -shm is.
    It need not outlive the machine.

    Only its process writes to it, on its event loop. Blocks to be made; raises OSError.
    """

    def __init__(self, descriptor: int) -> None:
        # So that there is room for it, and no write to it can fail.
        os.posix_fallocate(descriptor, 0, _BYTES)
        self._map = mmap.mmap(descriptor, _BYTES)
        self._cells = memoryview(self._map).cast("q")

    def set(self, place: int, sequence: int) -> None:
        """Mark an event as told, in a place of its own for as long as it is not forgotten."""
        self._cells[place % _MARKS] = sequence

    def close(self) -> None:
        """Let go of the file."""
        self._cells.release()
        self._map.close()

    @staticmethod
    def read(path: Path) -> frozenset[int]:
        """Those in a file; blocks. None are marked where it is not there."""
        found = array.array("q")
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            return frozenset()
        found.frombytes(raw[: len(raw) // 8 * 8])
        return frozenset(found)


class Batch:
    """What one transaction handed over: a row."""

    __slots__ = ("first", "last", "left", "place", "records", "uploads")

    def __init__(self, first: int) -> None:
        self.first = first
        """Its key."""
        self.last = first
        """The sequence of its last event."""
        self.records: list[bytes] = []
        self.uploads: list[UploadId] = []
        self.place = 0
        """That of the mark of its first event."""
        self.left: set[int] = set()
        """The last sequences of the uploads that have something to tell still."""


class Place(NamedTuple):
    """Where an upload's events are written down."""

    batch: Batch
    first: int
    last: int
    """Their sequences."""


class Outcome(NamedTuple):
    """What is to be noted of lines, in a transaction."""

    lines: Sequence[Ended]
    """Those that were claimed, and those that are taken out of their batch."""
    out: Mapping[int, Sequence[Ended]]
    """These, by the batch's key."""
    over: Sequence[Batch]
    """Those of which all was told, or taken out."""


class Handing:
    """See the module. What is told apart by threads is said of each function."""

    def __init__(self, holder: str) -> None:
        self._holder = holder
        self._marks: Marks | None = None
        self._sequences = handed.Sequences()
        self._batch: Batch | None = None
        """That of the transaction under way."""
        self._lines: dict[int, tuple[Batch, int]] = {}
        """By the sequence of its last event: in which batch a line is, and the place of that event's
        mark."""
        self._live: dict[int, Batch] = {}
        """The batches of which something is not told, or not forgotten, by key; the oldest first."""
        self._next = 0
        """The place of the next mark."""

    def open(self, descriptor: int) -> bool:
        """Keep marks in a file; whether there is room for that. Blocks."""
        try:
            self._marks = Marks(descriptor)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Let go of it. May be called twice."""
        marks, self._marks = self._marks, None
        if marks is not None:
            marks.close()

    # ------------------------------------------------------------------ in the writer's thread

    def reserve(self, db: sqlite3.Connection, count: int) -> Place:
        """A place for so many events."""
        first = self._sequences.draw(db, count)
        if self._batch is None:
            self._batch = Batch(first)
        return Place(self._batch, first, first + count - 1)

    def add(self, place: Place, events: bytes) -> None:
        """Have events written down there."""
        place.batch.records.append(handed.record(place.last, events))
        place.batch.last = place.last

    def refused(self) -> None:
        """What had reserved a place does not need it, and the database may have forgotten it."""
        self._sequences.drop()
        if self._batch is not None and not self._batch.records:
            self._batch = None

    def write(self, db: sqlite3.Connection) -> None:
        """Write down what the transaction hands over. See writer.Together."""
        batch, self._batch = self._batch, None
        if batch is not None and batch.records:
            handed.write(db, batch.first, batch.last, self._holder, batch.records)

    def undo(self) -> None:
        """The transaction was rolled back. See writer.Together."""
        self._sequences.drop()
        self._batch = None

    # ---------------------------------------------------------------------------- on the loop

    def committed(self, batch: Batch, line: Line) -> None:
        """A line is handed over."""
        last = line.deliveries[-1].sequence
        if not batch.left:
            batch.place = self._next
            self._live[batch.first] = batch
        self._next += len(line.deliveries)
        self._lines[last] = batch, self._next - 1
        batch.left.add(last)
        batch.uploads.append(line.upload_id)
        batch.records.clear()

    def told(self, line: Line, sequence: int) -> bool:
        """Mark an event of a line as told; False: there are too many marks."""
        last = line.deliveries[-1].sequence
        place = self._lines[last][1] - last + sequence
        oldest = next(iter(self._live.values()))
        if self._marks is None or place - oldest.place >= _MARKS:
            return False
        self._marks.set(place, sequence)
        return True

    def outcome(self, ended: Sequence[Ended]) -> Outcome:
        """What is to be noted of these. The same again if it could not be."""
        lines: list[Ended] = []
        out: dict[int, list[Ended]] = {}
        over: dict[int, Batch] = {}
        for each in ended:
            line = each.line
            if line.claim != HANDED:
                lines.append(each)
                continue
            last = line.deliveries[-1]
            found = self._lines.get(last.sequence)
            if found is None:  # what a stop cut short was noted after all
                continue
            batch, _ = found
            if each.kept or each.given_up:
                lines.append(each)
                out.setdefault(batch.first, []).append(each)
            else:
                self.told(line, last.sequence)
            batch.left.discard(last.sequence)
            if not batch.left:
                over[batch.first] = batch
        return Outcome(lines, out, [*over.values()])

    def noted(self, ended: Sequence[Ended], outcome: Outcome) -> None:
        """It was."""
        for each in ended:
            if each.line.claim == HANDED:
                self._lines.pop(each.line.deliveries[-1].sequence, None)
        for batch in outcome.over:
            self._live.pop(batch.first, None)
