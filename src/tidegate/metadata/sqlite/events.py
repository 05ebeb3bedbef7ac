"""What the SQLite store does to its events: one function per operation, inside a transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tidegate.metadata.encoding import decode_delivery, due_at_once, encode, encode_delivery
from tidegate.metadata.sqlite import handed
from tidegate.ports import HANDED, Counts, Line, Undelivered
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
    first = 0
    for event, record in events:
        inserted = db.execute(
            "INSERT INTO event (upload_id, type, at, record) VALUES (?, ?, ?, ?)",
            (upload_id, event.type.value, event.at, record),
        )
        first = first or inserted.lastrowid or 0
    if first:
        _hurry(db, upload_id, first)


def _hurry(db: sqlite3.Connection, upload_id: UploadId, sequence: int) -> None:
    """Have what an upload has to tell delivered at once; if any of it is claimed, or was handed to
    someone, then after that.
    """
    if handed.holds(db, upload_id):
        handed.claim(db, upload_id, more=True)
        return
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
    db.execute(
        "UPDATE line SET due_at = ?, claimed = 1, more = 0"
        " WHERE upload_id IN (SELECT value FROM json_each(?))",
        (ends, encode([*found]).decode()),
    )
    return [
        Line(upload_id, ends, tuple(sorted(deliveries, key=lambda delivery: delivery.sequence)))
        for upload_id, deliveries in found.items()
    ]


def end_claims(db: sqlite3.Connection, ended: Sequence[Ended]) -> list[UploadId]:
    """Note what became of lines, and let go of them; those that were not held."""
    over = _forget(db, [each.line for each in ended if not each.kept])
    lost: list[UploadId] = []
    told: list[int] = []
    noted: list[tuple[str, str, bool, int]] = []
    for each in ended:
        if each.line.upload_id not in over and not _let_go(db, each):
            lost.append(each.line.upload_id)
            continue
        told += each.told
        noted += [(*encode_delivery(d), given_up, d.sequence) for d, given_up in each.changed]
    if noted:
        db.executemany(
            "UPDATE event SET done = ?, retries = ?, given_up = ? WHERE sequence = ?", noted
        )
    if told:
        db.execute(
            "DELETE FROM event WHERE sequence IN (SELECT value FROM json_each(?))",
            (encode(told).decode(),),
        )
    return lost


def _forget(db: sqlite3.Connection, lines: Iterable[Line]) -> set[UploadId]:
    """Forget lines of which nothing is kept; those that were held, and have nothing more to tell."""
    claims: dict[float, list[UploadId]] = {}
    for line in lines:
        claims.setdefault(line.claim, []).append(line.upload_id)
    over: set[UploadId] = set()
    for claim, uploads in claims.items():
        rows = db.execute(
            "DELETE FROM line WHERE upload_id IN (SELECT value FROM json_each(?))"
            " AND due_at = ? AND claimed AND NOT more RETURNING upload_id",
            (encode(uploads).decode(), claim),
        )
        over.update(upload_id for (upload_id,) in rows)
    return over


def _let_go(db: sqlite3.Connection, ended: Ended) -> bool:
    """Whether it was held; let go of it, unless it goes on."""
    ours = (ended.line.upload_id, ended.line.claim)
    if ended.goes_on:
        held = db.execute("SELECT 1 FROM line WHERE upload_id = ? AND due_at = ? AND claimed", ours)
        return held.fetchone() is not None
    at_once = due_at_once(ended.line)
    updated = db.execute(
        "UPDATE line SET claimed = 0, due_at = CASE WHEN more THEN ? ELSE ? END"
        " WHERE upload_id = ? AND due_at = ? AND claimed",
        (at_once, at_once if ended.due_at is None else ended.due_at, *ours),
    )
    return updated.rowcount > 0


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


def events(db: sqlite3.Connection, after: int, limit: int, told: handed.Told) -> list[Undelivered]:
    """A page of all that are kept."""
    found = [*_events(db, after, limit), *handed.events(db, after, told)]
    return sorted(found, key=lambda each: each.delivery.sequence)[:limit]


def _events(db: sqlite3.Connection, after: int, limit: int) -> list[Undelivered]:
    rows = db.execute(
        "SELECT e.sequence, e.record, e.done, e.retries, e.given_up, l.due_at FROM event e"
        " LEFT JOIN line l ON l.upload_id = e.upload_id AND l.due_at <> ? AND e.sequence ="
        " (SELECT min(sequence) FROM event WHERE upload_id = e.upload_id AND given_up = 0)"
        " WHERE e.sequence > ? ORDER BY e.sequence LIMIT ?",
        (HANDED, after, limit),
    )
    return [
        Undelivered(decode_delivery(*delivery), due_at, bool(given_up))
        for *delivery, given_up, due_at in rows
    ]


def counts(db: sqlite3.Connection, told: handed.Told) -> Counts:
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
    here = [each.delivery.event.at for each in handed.events(db, 0, told)]
    (given_up,) = db.execute("SELECT count(*) FROM event WHERE given_up = 1").fetchone()
    return Counts(
        uploads={state: count for state, count in uploads.items() if count},
        pending_events=pending + len(here),
        given_up_events=given_up,
        oldest_event_at=min(here if oldest is None else [oldest, *here], default=None),
    )
