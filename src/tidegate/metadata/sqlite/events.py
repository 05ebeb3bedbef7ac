"""What the SQLite store does to its events: one function per operation, inside a transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tidegate.metadata.encoding import decode_event
from tidegate.ports import Counts, Delivery, Undelivered
from tidegate.protocol.model import State

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Iterator, Sequence

    from tidegate.protocol.model import Event, UploadId


def tell(
    db: sqlite3.Connection, upload_id: UploadId, events: Iterable[tuple[Event, bytes]]
) -> None:
    """Write down events, each with its record."""
    for event, record in events:
        db.execute(
            "INSERT INTO event (upload_id, type, at, record, due_at) VALUES (?1, ?2, ?3, ?4,"
            " CASE WHEN EXISTS (SELECT 1 FROM event WHERE upload_id = ?1 AND given_up = 0)"
            " THEN NULL ELSE 0 END)",
            (upload_id, event.type.value, event.at, record),
        )


def any_due(db: sqlite3.Connection, now: float) -> bool:
    """Whether there is an event to claim."""
    row = db.execute("SELECT 1 FROM event WHERE due_at <= ? LIMIT 1", (now,)).fetchone()
    return row is not None


def claim(db: sqlite3.Connection, now: float, limit: int, ttl: float) -> list[Delivery]:
    """Take events that are due."""
    rows: Sequence[Any] = db.execute(
        "SELECT sequence, record, attempts, done FROM event WHERE due_at <= ?"
        " ORDER BY due_at, sequence LIMIT ?",
        (now, limit),
    ).fetchall()
    for sequence, *_ in rows:
        db.execute("UPDATE event SET due_at = ? WHERE sequence = ?", (now + ttl, sequence))
    return [_delivery(*row) for row in rows]


def _delivery(sequence: int, record: bytes, attempts: int, done: str) -> Delivery:
    return Delivery(sequence, decode_event(record), attempts, tuple(done.split()))


def acknowledge(db: sqlite3.Connection, sequence: int) -> None:
    """Forget an event, and let the next of its upload come forward."""
    for upload_id in _upload_of(db, sequence):
        db.execute("DELETE FROM event WHERE sequence = ?", (sequence,))
        _bring_forward(db, upload_id)


def postpone(
    db: sqlite3.Connection, sequence: int, due_at: float | None, done: Iterable[str]
) -> None:
    """Note a failed delivery; None: give the event up."""
    for upload_id in _upload_of(db, sequence):
        db.execute(
            "UPDATE event SET attempts = attempts + 1, due_at = ?, given_up = ?, done = ?"
            " WHERE sequence = ?",
            (due_at, due_at is None, " ".join(done), sequence),
        )
        _bring_forward(db, upload_id)


def replay(db: sqlite3.Connection, sequence: int) -> bool:
    """Make an event that was given up the oldest of its upload that is to be delivered."""
    given_up = db.execute(
        "UPDATE event SET attempts = 0, done = '', given_up = 0"
        " WHERE sequence = ? AND given_up = 1 RETURNING upload_id",
        (sequence,),
    )
    found = given_up.fetchone()
    if found is None:
        return False
    # What was next is not any more; an older one that was given up stays so.
    db.execute(
        "UPDATE event SET due_at = NULL WHERE upload_id = ? AND given_up = 0 AND sequence >"
        " (SELECT min(sequence) FROM event WHERE upload_id = ?1 AND given_up = 0)",
        found,
    )
    _bring_forward(db, found[0])
    return True


def events(db: sqlite3.Connection, after: int, limit: int) -> list[Undelivered]:
    """A page of all that are kept."""
    rows = db.execute(
        "SELECT due_at, given_up, sequence, record, attempts, done FROM event WHERE sequence > ?"
        " ORDER BY sequence LIMIT ?",
        (after, limit),
    )
    return [
        Undelivered(_delivery(*delivery), due_at, bool(given_up))
        for due_at, given_up, *delivery in rows
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


def _upload_of(db: sqlite3.Connection, sequence: int) -> Iterator[UploadId]:
    rows = db.execute(
        "SELECT upload_id FROM event WHERE sequence = ? AND given_up = 0", (sequence,)
    )
    yield from [upload_id for (upload_id,) in rows]


def _bring_forward(db: sqlite3.Connection, upload_id: UploadId) -> None:
    db.execute(
        "UPDATE event SET due_at = 0 WHERE due_at IS NULL AND sequence ="
        " (SELECT min(sequence) FROM event WHERE upload_id = ? AND given_up = 0)",
        (upload_id,),
    )
