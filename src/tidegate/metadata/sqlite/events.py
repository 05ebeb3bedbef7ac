"""What the SQLite store does to its events: one function per operation, inside a transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tidegate.metadata.encoding import decode_delivery, due_at_once, encode, encode_delivery
from tidegate.ports import HANDED, Counts, Line, Undelivered
from tidegate.protocol.model import State

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Sequence

    from tidegate.ports import Delivery, Ended
    from tidegate.protocol.model import Event, UploadId


def tell(
    db: sqlite3.Connection,
    upload_id: UploadId,
    events: Sequence[tuple[Event, bytes]],
    outlet: str = "",
) -> int:
    """Write down events, each with its record; the first one's sequence, 0 without any.

    They are handed to `outlet`, a holder, if it is named: then nobody may have been told of this
    upload before.
    """
    if not events:
        return 0
    values: list[str | float | bytes] = []
    for event, record in events:
        values += (upload_id, event.type.value, event.at, record, outlet)
    inserted = db.execute(
        "INSERT INTO event (upload_id, type, at, record, holder) VALUES (?, ?, ?, ?, ?)"
        + ", (?, ?, ?, ?, ?)" * (len(events) - 1),
        values,
    )
    # Of one statement they follow each other.
    first = (inserted.lastrowid or 0) - len(events) + 1
    if not outlet:
        _hurry(db, upload_id, first)
    return first


def _hurry(db: sqlite3.Connection, upload_id: UploadId, sequence: int) -> None:
    """Have what an upload has to tell delivered at once; if any of it is claimed, or handed to
    someone, then after that.
    """
    handed = db.execute("SELECT 1 FROM event WHERE upload_id = ? AND holder <> ''", (upload_id,))
    if handed.fetchone() is not None:
        _claim_handed(db, upload_id, more=True)
        return
    db.execute(
        "INSERT INTO line (upload_id, due_at) VALUES (?, ?) ON CONFLICT (upload_id) DO UPDATE SET"
        " more = 1, due_at = CASE WHEN claimed THEN due_at ELSE min(due_at, excluded.due_at) END",
        (upload_id, -1 / sequence),
    )


def _claim_handed(db: sqlite3.Connection, upload_id: UploadId, *, more: bool) -> None:
    """Give the events of an upload that were handed to someone a line, as he has claimed it."""
    db.execute(
        "INSERT INTO line (upload_id, due_at, claimed, more) VALUES (?, ?, 1, ?)"
        " ON CONFLICT (upload_id) DO UPDATE SET more = more OR excluded.more",
        (upload_id, HANDED, more),
    )


def outlets(db: sqlite3.Connection) -> list[str]:
    """The holders that events were handed to."""
    return [
        holder for (holder,) in db.execute("SELECT DISTINCT holder FROM event WHERE holder <> ''")
    ]


def take_back(db: sqlite3.Connection, holder: str) -> None:
    """Have what was handed to a holder that is dead delivered by anyone."""
    db.execute(
        "INSERT INTO line (upload_id, due_at) SELECT upload_id, -1.0 / min(sequence) FROM event"
        " WHERE holder <> '' AND holder = ? GROUP BY upload_id"
        " ON CONFLICT (upload_id) DO UPDATE SET claimed = 0, due_at = excluded.due_at",
        (holder,),
    )
    db.execute("UPDATE event SET holder = '' WHERE holder <> '' AND holder = ?", (holder,))


ANY_DUE: Final = "SELECT 1 FROM line WHERE due_at <= ? LIMIT 1"
"""A row where there is something to claim."""


def claim(db: sqlite3.Connection, now: float, limit: int, ttl: float) -> list[Line]:
    """Take what is due."""
    rows = db.execute(
        "SELECT l.upload_id, e.sequence, e.record, e.done, e.retries"
        " FROM (SELECT upload_id FROM line WHERE due_at <= ? ORDER BY due_at LIMIT ?) l"
        " LEFT JOIN event e ON e.upload_id = l.upload_id AND e.given_up = 0 AND e.holder = ''",
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
    told: list[int] = []
    claimed: list[Ended] = []
    free: list[UploadId] = []
    for each in ended:
        if each.line.claim != HANDED:
            claimed.append(each)
        elif each.changed or (each.kept and not each.goes_on):
            # From now on as if it had been claimed.
            _claim_handed(db, each.line.upload_id, more=False)
            db.execute(
                "UPDATE event SET holder = '' WHERE upload_id = ? AND holder <> ''",
                (each.line.upload_id,),
            )
            claimed.append(each)
        else:
            told += each.told
            if not each.goes_on:
                free.append(each.line.upload_id)
    if free:
        # Those that had more to tell since.
        db.execute(
            "UPDATE line SET claimed = 0, due_at = ?"
            " WHERE due_at = ? AND upload_id IN (SELECT value FROM json_each(?))",
            (-1 / min(told), HANDED, encode(free).decode()),
        )
    return _end_claimed(db, claimed, told)


def _end_claimed(db: sqlite3.Connection, ended: Sequence[Ended], told: list[int]) -> list[UploadId]:
    over = _forget(db, [each.line for each in ended if not each.kept])
    lost: list[UploadId] = []
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


def events(db: sqlite3.Connection, after: int, limit: int) -> list[Undelivered]:
    """A page of all that are kept."""
    rows = db.execute(
        "SELECT e.sequence, e.record, e.done, e.retries, e.given_up, l.due_at FROM event e"
        " LEFT JOIN line l ON l.upload_id = e.upload_id AND l.due_at <> ? AND e.sequence ="
        " (SELECT min(sequence) FROM event"
        " WHERE upload_id = e.upload_id AND given_up = 0 AND holder = '')"
        " WHERE e.sequence > ? ORDER BY e.sequence LIMIT ?",
        (HANDED, after, limit),
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
