"""The first events of uploads, which are handed to a process that delivers events: inside a transaction
of the SQLite store.

All that one transaction hands over is one row: they are written down, told and forgotten in a quarter
of the time that it takes to have them claimed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tidegate.metadata.encoding import decode_handed, encode
from tidegate.ports import HANDED, Delivery, Undelivered

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from tidegate.ports import Ended
    from tidegate.protocol.model import UploadId

    Told = Callable[[str], frozenset[int]]
    """The sequences that a holder has told by now."""

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
        """What drew some was rolled back: others may draw them, too."""
        self._next = self._end = 0


def record(last: int, events: bytes) -> bytes:
    """What is written down of an upload, whose last event has the sequence `last`."""
    return b"[%d,%b]" % (last, events)


def write(
    db: sqlite3.Connection, first: int, last: int, holder: str, records: Iterable[bytes]
) -> None:
    """Write down what is handed to a holder, between two sequences."""
    db.execute(
        "INSERT INTO handed (first, last, holder, records) VALUES (?, ?, ?, ?)",
        (first, last, holder, _row(records)),
    )


def _row(records: Iterable[bytes]) -> bytes:
    return b"[%b]" % b",".join(records)


def holds(db: sqlite3.Connection, upload_id: UploadId) -> bool:
    """Whether somebody was handed events of an upload, and is at it."""
    row = db.execute(
        "SELECT 1 FROM handed WHERE first = (SELECT handed FROM upload WHERE id = ?)", (upload_id,)
    ).fetchone()
    return row is not None


def claim(db: sqlite3.Connection, upload_id: UploadId, *, more: bool) -> None:
    """Give an upload a line that whoever was handed its first events has claimed."""
    db.execute(
        "INSERT INTO line (upload_id, due_at, claimed, more) VALUES (?, ?, 1, ?)"
        " ON CONFLICT (upload_id) DO UPDATE SET more = more OR excluded.more",
        (upload_id, HANDED, more),
    )


def take_out(db: sqlite3.Connection, first: int, ended: Sequence[Ended]) -> None:
    """Make events, and lines that are claimed, of what is left of some uploads of a row."""
    row = db.execute("SELECT records FROM handed WHERE first = ?", (first,)).fetchone()
    there = dict(decode_handed(row[0])) if row is not None else {}
    for each in ended:
        if there.pop(each.line.deliveries[-1].sequence, None) is None:
            continue  # it is done already
        upload_id = each.line.upload_id
        db.execute("UPDATE upload SET handed = NULL WHERE id = ?", (upload_id,))
        claim(db, upload_id, more=False)
        _keep(db, upload_id, each.line.deliveries)
    left = [record(last, encode(events)) for last, events in there.items()]
    db.execute("UPDATE handed SET records = ? WHERE first = ?", (_row(left), first))


def forget(db: sqlite3.Connection, rows: Sequence[int], uploads: Sequence[UploadId]) -> None:
    """Forget rows by their keys, of whose uploads there is nothing left to tell."""
    db.execute(
        "DELETE FROM handed WHERE first IN (SELECT value FROM json_each(?))",
        (encode(rows).decode(),),
    )
    _go_on(db, uploads, min(rows))


def _go_on(db: sqlite3.Connection, uploads: Sequence[UploadId], first: int) -> None:
    """Have what some of these had to tell since delivered by anyone."""
    if db.execute("SELECT 1 FROM line WHERE due_at = ? LIMIT 1", (HANDED,)).fetchone() is None:
        return
    db.execute(
        "UPDATE line SET claimed = 0, due_at = ?"
        " WHERE due_at = ? AND upload_id IN (SELECT value FROM json_each(?))",
        (-1 / first, HANDED, encode(uploads).decode()),
    )


def holders(db: sqlite3.Connection) -> list[str]:
    """Those that were handed events, and are at it."""
    return [holder for (holder,) in db.execute("SELECT DISTINCT holder FROM handed")]


def take_back(db: sqlite3.Connection, holder: str, told: frozenset[int]) -> None:
    """Have what was handed to a holder that is dead, and that it has not told, delivered by anyone."""
    rows = db.execute("DELETE FROM handed WHERE holder = ? RETURNING first, records", (holder,))
    for first, records in rows.fetchall():
        over: list[UploadId] = []
        for upload_id, left in _left(records, told):
            if not left:
                over.append(upload_id)
                continue
            _keep(db, upload_id, left)
            db.execute(
                "INSERT INTO line (upload_id, due_at) VALUES (?, ?)"
                " ON CONFLICT (upload_id) DO UPDATE SET claimed = 0, due_at = excluded.due_at",
                (upload_id, -1 / left[0].sequence),
            )
        _go_on(db, over, first)


def _keep(db: sqlite3.Connection, upload_id: UploadId, left: Iterable[Delivery]) -> None:
    db.executemany(
        "INSERT INTO event (sequence, upload_id, type, at, record) VALUES (?, ?, ?, ?, ?)",
        [
            (each.sequence, upload_id, each.event.type.value, each.event.at, encode(each.event))
            for each in left
        ],
    )


def _left(records: bytes, told: frozenset[int]) -> Iterator[tuple[UploadId, list[Delivery]]]:
    """Of each upload, what follows the last that was told."""
    for last, events in decode_handed(records):
        first = last - len(events) + 1
        after = max(told.intersection(range(first, last + 1)), default=0)
        yield (
            events[0].upload.id,
            [Delivery(first + n, event, 0) for n, event in enumerate(events) if first + n > after],
        )


def events(db: sqlite3.Connection, after: int, told: Told) -> list[Undelivered]:
    """What was handed over behind a sequence, and is not told yet: there is little of it."""
    rows = db.execute("SELECT holder, records FROM handed WHERE last > ?", (after,)).fetchall()
    has_told = {holder: told(holder) for holder in {holder for holder, _ in rows}}
    return [
        Undelivered(each, None, given_up=False)
        for holder, records in rows
        for _, left in _left(records, has_told[holder])
        for each in left
        if each.sequence > after
    ]
