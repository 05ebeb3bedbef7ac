"""What the SQLite store does to its tables: one function per operation, inside a transaction that
the caller began.

A function that raises one of the port's exceptions may have written before; the caller rolls back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tidegate.metadata.encoding import decode_segment, decode_upload
from tidegate.metadata.sqlite.events import tell
from tidegate.ports import (
    LeaseLostError,
    OverLimitError,
    PartUnavailableError,
    PinnedError,
    UnknownUploadError,
    UploadExistsError,
)
from tidegate.protocol.model import Event, Kind, Segment, State, Upload, UploadId

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable

    from tidegate.ports import Change, Lease, Room

ABANDONED = ""
"""The holder of a lease that was given up without a word."""

# ------------------------------------------------------------------------------- records, leases


class Taken(NamedTuple):
    """A lease that was taken."""

    token: int
    upload: Upload
    boot_id: str = ""
    """Under which boot the last holder wrote, when it never let go."""
    previous: int | None = None
    """The token of the lease that it took the place of."""


def insert(
    db: sqlite3.Connection,
    upload: Upload,
    record: bytes,
    events: Iterable[tuple[Event, bytes]],
    room: Room | None = None,
    handed: int | None = None,
) -> None:
    """Add a record, whose first events are in a row of what is handed over, if they are in one.

    Raises UploadExistsError, PartUnavailableError, OverLimitError.
    """
    added = db.execute(
        "INSERT INTO upload"
        " (id, version, state, kind, expires_at, ended_at, record, promised, stored, undone, handed)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (
            upload.id,
            upload.version,
            str(upload.state),
            str(upload.kind),
            upload.expires_at,
            upload.ended_at,
            record,
            upload.promised,
            upload.offset,
            upload.undone,
            handed,
        ),
    )
    if added.rowcount == 0:
        raise UploadExistsError(upload.id)
    if room is not None:
        _check_room(db, room)
    if upload.kind is Kind.FINAL:
        for part in dict.fromkeys(upload.parts):
            if not _is_usable_part(db, part):
                raise PartUnavailableError(part)
            if upload.state is State.RECEIVING:
                db.execute(
                    "INSERT INTO final_part (part_id, final_id) VALUES (?, ?)", (part, upload.id)
                )
    tell(db, upload.id, events)


def _check_room(db: sqlite3.Connection, room: Room) -> None:
    promised, stored = db.execute(
        # total(): two clients' claims of 2^63-1 bytes must not overflow a sum.
        "SELECT total(promised), total(stored) FROM upload WHERE state = 'receiving'"
    ).fetchone()
    if room.unfinished is not None and promised > room.unfinished:
        raise OverLimitError(f"unfinished uploads would come to {promised:.0f} bytes")
    if room.missing is not None and promised - stored > room.missing:
        raise OverLimitError(f"unfinished uploads would still need {promised - stored:.0f} bytes")


def _is_usable_part(db: sqlite3.Connection, part: UploadId) -> bool:
    row = db.execute(
        "SELECT 1 FROM upload"
        " WHERE id = ? AND kind = 'partial' AND state IN ('receiving', 'complete')",
        (part,),
    ).fetchone()
    return row is not None


class Holder(NamedTuple):
    """Who takes leases."""

    id: str
    boot_id: str


def grant(
    db: sqlite3.Connection, upload_id: UploadId, holder: Holder, boot_id: str | None = None
) -> int:
    """Write a lease that is free, and return its token."""
    cursor = db.execute(
        "INSERT INTO lease (upload_id, holder, boot_id) VALUES (?, ?, ?)",
        (upload_id, holder.id, holder.boot_id if boot_id is None else boot_id),
    )
    token = cursor.lastrowid
    assert token is not None  # noqa: S101  (it was an INSERT)
    return token


def acquire(
    db: sqlite3.Connection,
    upload_id: UploadId,
    holder: Holder,
    *,
    force: bool,
    is_alive: Callable[[str, int], bool],
) -> Taken | Upload:
    """Take the lease, or return the record when someone alive has it.

    `is_alive` is asked about a holder and a token. Raises UnknownUploadError.
    """
    row = db.execute(
        "SELECT u.record, l.holder, l.token, l.boot_id"
        " FROM upload u LEFT JOIN lease l ON l.upload_id = u.id WHERE u.id = ?",
        (upload_id,),
    ).fetchone()
    if row is None:
        raise UnknownUploadError(upload_id)
    record, previous_holder, previous, boot_id = row
    upload = decode_upload(record)
    if previous is None:
        return Taken(grant(db, upload_id, holder), upload)
    if not force and is_alive(previous_holder, previous):
        return upload
    db.execute("DELETE FROM lease WHERE token = ?", (previous,))
    # The boot is handed down until the first commit: should the new holder die before it has
    # recovered, the one after it must still know under which boot the bytes were written.
    return Taken(grant(db, upload_id, holder, boot_id), upload, boot_id, previous)


def commit(
    db: sqlite3.Connection,
    lease: Lease,
    boot_id: str,
    change: Change,
    upload: Upload,
    record: bytes,
    segments: Iterable[tuple[int, bytes]],
    events: Iterable[tuple[Event, bytes]],
) -> None:
    """Carry out `change`, whose new record is `upload`. Raises LeaseLostError, PinnedError."""
    held = db.execute(
        "SELECT u.version, l.boot_id FROM lease l JOIN upload u ON u.id = l.upload_id"
        " WHERE l.token = ? AND l.upload_id = ? AND l.holder = ?",
        (lease.token, upload.id, lease.holder),
    ).fetchone()
    if held is None:
        raise LeaseLostError(upload.id)
    if held[0] != change.upload.version:
        raise LeaseLostError(f"{upload.id}: version {change.upload.version}, now {held[0]}")
    if change.unless_pinned and is_pinned(db, upload.id):
        raise PinnedError(upload.id)
    # While it is known whether somebody was handed its first events.
    tell(db, upload.id, events)
    if change.forget:
        _forget(db, upload.id)
    else:
        db.execute(
            "UPDATE upload SET version = ?, state = ?, expires_at = ?, ended_at = ?, record = ?,"
            " promised = ?, stored = ?, undone = ? WHERE id = ?",
            (
                upload.version,
                str(upload.state),
                upload.expires_at,
                upload.ended_at,
                record,
                upload.promised,
                upload.offset,
                upload.undone,
                upload.id,
            ),
        )
        for index, segment in segments:
            db.execute(
                'INSERT OR REPLACE INTO segment (upload_id, "index", record) VALUES (?, ?, ?)',
                (upload.id, index, segment),
            )
        if upload.kind is Kind.FINAL and upload.state is not State.RECEIVING:
            db.execute("DELETE FROM final_part WHERE final_id = ?", (upload.id,))
        if change.release:
            db.execute("DELETE FROM lease WHERE token = ?", (lease.token,))
        elif held[1] != boot_id:
            db.execute("UPDATE lease SET boot_id = ? WHERE token = ?", (boot_id, lease.token))


def _forget(db: sqlite3.Connection, upload_id: UploadId) -> None:
    for statement in (
        "DELETE FROM upload WHERE id = ?",
        "DELETE FROM lease WHERE upload_id = ?",
        "DELETE FROM segment WHERE upload_id = ?",
        "DELETE FROM final_part WHERE final_id = ?",
    ):
        db.execute(statement, (upload_id,))


def release(db: sqlite3.Connection, lease: Lease) -> None:
    """Let a lease go, settled."""
    db.execute("DELETE FROM lease WHERE token = ? AND holder = ?", (lease.token, lease.holder))


def abandon(db: sqlite3.Connection, tokens: Iterable[int]) -> None:
    """Show other processes that nobody holds these leases any more."""
    for token in tokens:
        db.execute("UPDATE lease SET holder = ? WHERE token = ?", (ABANDONED, token))


def want_release(db: sqlite3.Connection, upload_id: UploadId) -> None:
    """Leave word for whoever holds the lease."""
    db.execute("UPDATE lease SET release_wanted = 1 WHERE upload_id = ?", (upload_id,))


def leases_of(db: sqlite3.Connection, holder: str) -> dict[int, bool]:
    """The tokens that `holder` holds, and which of them are wanted by someone else."""
    rows = db.execute("SELECT token, release_wanted FROM lease WHERE holder = ?", (holder,))
    return {token: bool(wanted) for token, wanted in rows}


# ------------------------------------------------------------------------------------------ lists


def segments(db: sqlite3.Connection, upload_id: UploadId) -> list[Segment]:
    """By index."""
    rows = db.execute(
        'SELECT record FROM segment WHERE upload_id = ? ORDER BY "index"', (upload_id,)
    )
    return [decode_segment(record) for (record,) in rows]


def uploads_after(
    db: sqlite3.Connection,
    after: str,
    state: State | None,
    kind: Kind | None,
    limit: int,
) -> list[Upload]:
    """A page of records by id."""
    where, values = "id > ?", [after]
    for column, value in (("state", state), ("kind", kind)):
        if value is not None:
            where += f" AND {column} = ?"
            values.append(value.value)
    rows = db.execute(
        f"SELECT record FROM upload WHERE {where} ORDER BY id LIMIT ?",  # noqa: S608
        (*values, limit),
    )
    return [decode_upload(record) for (record,) in rows]


UNDONE = "SELECT record FROM upload WHERE undone = 1 AND id > ? ORDER BY id LIMIT ?"


def undone_after(db: sqlite3.Connection, after: str, limit: int) -> list[Upload]:
    """A page of the records that are undone, by id."""
    return [decode_upload(record) for (record,) in db.execute(UNDONE, (after, limit))]


def expired(
    db: sqlite3.Connection, now: float, limit: int, is_alive: Callable[[str, int], bool]
) -> list[UploadId]:
    """Uploads whose time is up, that nobody holds and that no pending final needs; oldest first."""
    rows = db.execute(
        "SELECT u.id, l.holder, l.token FROM upload u LEFT JOIN lease l ON l.upload_id = u.id"
        " WHERE u.expires_at <= ?"
        " AND (u.state = 'receiving' OR (u.state = 'complete' AND u.kind = 'partial'))"
        " AND NOT EXISTS (SELECT 1 FROM final_part f WHERE f.part_id = u.id)"
        " ORDER BY u.expires_at",
        (now,),
    )
    found: list[UploadId] = []
    for upload_id, holder, token in rows:
        if len(found) >= limit:
            break
        if token is None or not is_alive(holder, token):
            found.append(upload_id)
    return found


def tombstones(db: sqlite3.Connection, ended_before: float, limit: int) -> list[UploadId]:
    """Uploads of which only a tombstone is left, oldest first."""
    rows = db.execute(
        "SELECT id FROM upload"
        " WHERE state IN ('expired', 'terminated', 'failed') AND ended_at < ?"
        " ORDER BY ended_at LIMIT ?",
        (ended_before, limit),
    )
    return [upload_id for (upload_id,) in rows]


def is_pinned(db: sqlite3.Connection, part: UploadId) -> bool:
    """Whether a pending final needs this partial."""
    row = db.execute("SELECT 1 FROM final_part WHERE part_id = ? LIMIT 1", (part,)).fetchone()
    return row is not None


def pending_finals(db: sqlite3.Connection, part: UploadId | None) -> list[UploadId]:
    """Finals that are still receiving: all, or those that need `part`."""
    if part is None:
        rows = db.execute(
            "SELECT id FROM upload WHERE kind = 'final' AND state = 'receiving' ORDER BY id"
        )
    else:
        rows = db.execute(
            "SELECT final_id FROM final_part WHERE part_id = ? ORDER BY final_id", (part,)
        )
    return [final for (final,) in rows]


# ------------------------------------------------------------------------------------------ turns


def take_turn(
    db: sqlite3.Connection,
    name: str,
    holder: str,
    now: float,
    ttl: float,
    is_alive: Callable[[str], bool],
) -> bool:
    """Be the one who does `name`, unless someone else who is alive is."""
    found = db.execute("SELECT holder FROM turn WHERE name = ? AND until > ?", (name, now))
    other = found.fetchone()
    if other is not None and other[0] != holder and is_alive(other[0]):
        return False
    db.execute("INSERT OR REPLACE INTO turn VALUES (?, ?, ?)", (name, holder, now + ttl))
    return True


def end_turn(db: sqlite3.Connection, name: str, holder: str) -> None:
    """Let someone else have the turn."""
    db.execute("DELETE FROM turn WHERE name = ? AND holder = ?", (name, holder))
