"""The first events of uploads, which are handed to a process that delivers events: inside a transaction
of the SQLite store.

It writes them down and forgets them in less than half the time that it takes to have them claimed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tidegate.metadata.encoding import decode_events, encode
from tidegate.ports import HANDED, Delivery, Undelivered

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Sequence

    from tidegate.ports import Ended
    from tidegate.protocol.model import UploadId

_RESERVED: Final = 1024


class Sequences:
    """Numbers for events, a thousand at a time: those of table `event` go on behind them."""

    def __init__(self) -> None:
        self._next = self._end = 0

    def draw(self, db: sqlite3.Connection, count: int) -> int:
        """The first of so many that follow each other."""
        if self._next + count > self._end:
            row = db.execute(
                "UPDATE sqlite_sequence SET seq = seq + ? WHERE name = 'event' RETURNING seq",
                (_RESERVED,),
            ).fetchone()
            if row is None:  # there never was an event
                row = db.execute(
                    "INSERT INTO sqlite_sequence (name, seq) VALUES ('event', ?) RETURNING seq",
                    (_RESERVED,),
                ).fetchone()
            self._next, self._end = row[0] - _RESERVED + 1, row[0] + 1
        first = self._next
        self._next += count
        return first

    def drop(self) -> None:
        """The transaction in which some were drawn was rolled back: others may draw them, too."""
        self._next = self._end = 0


def hand(
    db: sqlite3.Connection, upload_id: UploadId, last: int, holder: str, records: bytes
) -> None:
    """Write down an upload's first events, of which the last has the sequence `last`."""
    db.execute(
        "INSERT INTO handed (sequence, upload_id, holder, records) VALUES (?, ?, ?, ?)",
        (last, upload_id, holder, records),
    )


def holds(db: sqlite3.Connection, upload_id: UploadId) -> bool:
    """Whether somebody was handed events of an upload, and is at it."""
    row = db.execute("SELECT 1 FROM handed WHERE upload_id = ?", (upload_id,)).fetchone()
    return row is not None


def claim(db: sqlite3.Connection, upload_id: UploadId, *, more: bool) -> None:
    """Give an upload a line that whoever was handed its first events has claimed."""
    db.execute(
        "INSERT INTO line (upload_id, due_at, claimed, more) VALUES (?, ?, 1, ?)"
        " ON CONFLICT (upload_id) DO UPDATE SET more = more OR excluded.more",
        (upload_id, HANDED, more),
    )


def end(db: sqlite3.Connection, ended: Sequence[Ended]) -> list[Ended]:
    """Note what became of what was handed over; what is left to be noted, as of lines that were
    claimed.
    """
    left: list[Ended] = []
    told: list[tuple[int, int]] = []
    over: list[Ended] = []
    for each in ended:
        line = each.line
        if line.claim != HANDED:
            left.append(each)
            continue
        count = len(line.deliveries) - len(each.kept)
        if not each.kept and not each.given_up:
            over.append(each)
        elif each.goes_on and line.deliveries[count:] == tuple(each.kept):
            told.append((count, line.deliveries[-1].sequence))
        else:
            claim(db, line.upload_id, more=False)
            _keep(db, "upload_id", line.upload_id)
            left.append(each)
    if told:
        db.executemany("UPDATE handed SET told = told + ? WHERE sequence = ?", told)
    if over:
        _forget(db, over)
    return left


def _forget(db: sqlite3.Connection, over: Sequence[Ended]) -> None:
    last = [each.line.deliveries[-1].sequence for each in over]
    db.execute(
        "DELETE FROM handed WHERE sequence IN (SELECT value FROM json_each(?))",
        (encode(last).decode(),),
    )
    # Those that had more to tell since.
    db.execute(
        "UPDATE line SET claimed = 0, due_at = ?"
        " WHERE due_at = ? AND upload_id IN (SELECT value FROM json_each(?))",
        (-1 / min(last), HANDED, encode([each.line.upload_id for each in over]).decode()),
    )


def holders(db: sqlite3.Connection) -> list[str]:
    """Those that were handed events, and are at it."""
    return [holder for (holder,) in db.execute("SELECT DISTINCT holder FROM handed")]


def take_back(db: sqlite3.Connection, holder: str) -> None:
    """Have what was handed to a holder that is dead delivered by anyone."""
    for upload_id, first in _keep(db, "holder", holder):
        db.execute(
            "INSERT INTO line (upload_id, due_at) VALUES (?, ?)"
            " ON CONFLICT (upload_id) DO UPDATE SET claimed = 0, due_at = excluded.due_at",
            (upload_id, -1 / first),
        )


def _keep(db: sqlite3.Connection, column: str, value: str) -> list[tuple[UploadId, int]]:
    """Make events of what was handed over; of which uploads, and the first that was not told."""
    kept: list[tuple[UploadId, int]] = []
    rows = db.execute(
        f"DELETE FROM handed WHERE {column} = ? RETURNING sequence, upload_id, told, records",  # noqa: S608
        (value,),
    ).fetchall()
    for last, upload_id, told, records in rows:
        left = _deliveries(last, told, records)
        db.executemany(
            "INSERT INTO event (sequence, upload_id, type, at, record) VALUES (?, ?, ?, ?, ?)",
            [
                (each.sequence, upload_id, each.event.type.value, each.event.at, encode(each.event))
                for each in left
            ],
        )
        kept.append((upload_id, left[0].sequence))
    return kept


def _deliveries(last: int, told: int, records: bytes) -> list[Delivery]:
    """Those that were not told yet; one at least, or there was nothing left to write down."""
    events = decode_events(records)
    first = last - len(events) + 1
    return [Delivery(first + n, event, 0) for n, event in enumerate(events) if n >= told]


def events(db: sqlite3.Connection, after: int, limit: int) -> Iterable[Undelivered]:
    """A page of what was handed over."""
    rows = db.execute(
        "SELECT sequence, told, records FROM handed WHERE sequence > ? ORDER BY sequence LIMIT ?",
        (after, limit),
    )
    for row in rows:
        for delivery in _deliveries(*row):
            if delivery.sequence > after:
                yield Undelivered(delivery, None, given_up=False)


def count(db: sqlite3.Connection) -> tuple[int, float | None]:
    """How many events, and when the oldest of them was."""
    left = [each.delivery for each in events(db, 0, -1)]
    return len(left), min((each.event.at for each in left), default=None)
