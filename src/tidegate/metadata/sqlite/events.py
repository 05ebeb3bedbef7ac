"""What the SQLite store does to its events: one function per operation, inside a transaction."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from tidegate.metadata.encoding import decode_delivery, due_at_once, encode_delivery
from tidegate.ports import Counts, Line, Undelivered
from tidegate.protocol.model import State

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Sequence

    from tidegate.ports import Delivery, Ended
    from tidegate.protocol.model import Event, UploadId


def tell(
    db: sqlite3.Connection, upload_id: UploadId, events: Iterable[tuple[Event, bytes]]
) -> None:
    """Write down events, each with its record."""
    for event, record in events:
        inserted = db.execute(
            "INSERT INTO event (upload_id, type, at, record) VALUES (?, ?, ?, ?)",
            (upload_id, event.type.value, event.at, record),
        )
        _hurry(db, upload_id, inserted.lastrowid or 0)


def _hurry(db: sqlite3.Connection, upload_id: UploadId, sequence: int) -> None:
    """Have what an upload has to tell delivered at once; if it is claimed, then after that."""
    db.execute(
        "INSERT INTO line (upload_id, due_at) VALUES (?, ?) ON CONFLICT (upload_id) DO UPDATE SET"
        " more = 1, due_at = CASE WHEN claimed THEN due_at ELSE min(due_at, excluded.due_at) END",
        (upload_id, -1 / sequence),
    )


ANY_DUE: Final = "SELECT 1 FROM line WHERE due_at <= ? LIMIT 1"
"""A row where there is something to claim."""


def claim(db: sqlite3.Connection, now: float, limit: int, ttl: float) -> list[Line]:
    """Take what is due."""
    rows = db.execute(
        "SELECT l.upload_id, e.sequence, e.record, e.done, e.retries"
        " FROM (SELECT upload_id FROM line WHERE due_at <= ? ORDER BY due_at LIMIT ?) l"
        " LEFT JOIN event e ON e.upload_id = l.upload_id AND e.given_up = 0",
        (now, limit),
    )
    found: dict[UploadId, list[Delivery]] = {}
    for upload_id, sequence, *delivery in rows:
        told = found.setdefault(upload_id, [])
        if sequence is not None:
            told.append(decode_delivery(sequence, *delivery))
    ends = now + ttl
    db.executemany(
        "UPDATE line SET due_at = ?, claimed = 1, more = 0 WHERE upload_id = ?",
        [(ends, upload_id) for upload_id in found],
    )
    return [
        Line(upload_id, ends, tuple(sorted(deliveries, key=lambda delivery: delivery.sequence)))
        for upload_id, deliveries in found.items()
    ]


def end_claims(db: sqlite3.Connection, ended: Sequence[Ended]) -> list[UploadId]:
    """Note what became of lines, and let go of them; those that were not held."""
    lost: list[UploadId] = []
    told: set[int] = set()
    noted: list[tuple[str, str, bool, int]] = []
    for each in ended:
        if not _let_go(db, each):
            lost.append(each.line.upload_id)
            continue
        told.update(delivery.sequence for delivery in each.line.deliveries)
        for deliveries, over in ((each.kept, False), (each.given_up, True)):
            noted += [(*encode_delivery(d), over, d.sequence) for d in deliveries]
    told.difference_update(sequence for *_, sequence in noted)
    if told:
        db.execute(
            "DELETE FROM event WHERE sequence IN (SELECT value FROM json_each(?))",
            (json.dumps([*told]),),
        )
    db.executemany("UPDATE event SET done = ?, retries = ?, given_up = ? WHERE sequence = ?", noted)
    return lost


def _let_go(db: sqlite3.Connection, ended: Ended) -> bool:
    ours = (ended.line.upload_id, ended.line.claim)
    over = not ended.kept and _count(
        db, "DELETE FROM line WHERE upload_id = ? AND due_at = ? AND claimed AND NOT more", *ours
    )
    return bool(over) or bool(
        _count(
            db,
            "UPDATE line SET claimed = 0, due_at = CASE WHEN more THEN ? ELSE ? END"
            " WHERE upload_id = ? AND due_at = ? AND claimed",
            *(due_at_once(ended.line), ended.due_at, *ours),
        )
    )


def _count(db: sqlite3.Connection, sql: str, *values: str | float) -> int:
    """How many rows a statement changed."""
    return db.execute(sql, values).rowcount


def replay(db: sqlite3.Connection, sequence: int) -> bool:
    """Have an event that was given up delivered after all, before the younger ones."""
    given_up = db.execute(
        "UPDATE event SET done = '', retries = '', given_up = 0"
        " WHERE sequence = ? AND given_up = 1 RETURNING upload_id",
        (sequence,),
    )
    found = given_up.fetchone()
    if found is None:
        return False
    _hurry(db, found[0], sequence)
    return True


def events(db: sqlite3.Connection, after: int, limit: int) -> list[Undelivered]:
    """A page of all that are kept."""
    rows = db.execute(
        "SELECT e.sequence, e.record, e.done, e.retries, e.given_up, l.due_at FROM event e"
        " LEFT JOIN line l ON l.upload_id = e.upload_id AND e.sequence ="
        " (SELECT min(sequence) FROM event WHERE upload_id = e.upload_id AND given_up = 0)"
        " WHERE e.sequence > ? ORDER BY e.sequence LIMIT ?",
        (after, limit),
    )
    return [
        Undelivered(decode_delivery(*delivery), due_at, bool(given_up))
        for *delivery, given_up, due_at in rows
    ]


def counts(db: sqlite3.Connection) -> Counts:
    """How much there is."""
    (total,) = db.execute("SELECT count(*) FROM upload").fetchone()
    (receiving,) = db.execute("SELECT count(*) FROM upload WHERE state = 'receiving'").fetchone()
    gone = db.execute(
        "SELECT state, count(*) FROM upload WHERE state IN ('expired', 'terminated', 'failed')"
        " GROUP BY state"
    ).fetchall()
    # Of the complete ones there may be millions: not one by one.
    uploads = {State.RECEIVING: receiving} | {State(state): count for state, count in gone}
    uploads[State.COMPLETE] = total - sum(uploads.values())
    pending, oldest = db.execute(
        "SELECT count(*), min(at) FROM event WHERE given_up = 0"
    ).fetchone()
    (given_up,) = db.execute("SELECT count(*) FROM event WHERE given_up = 1").fetchone()
    return Counts(
        uploads={state: count for state, count in uploads.items() if count},
        pending_events=pending,
        given_up_events=given_up,
        oldest_event_at=oldest,
    )
