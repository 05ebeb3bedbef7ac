"""What the PostgreSQL store reads: a statement per operation."""

# ruff: noqa: S608  (made of our own words; what comes from outside is a value)

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from tidegate.metadata.encoding import decode_segment, decode_upload
from tidegate.metadata.postgres.holds import DEAD
from tidegate.ports import Hold, Loaded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tidegate.metadata.postgres.link import Link
    from tidegate.protocol.model import Kind, Segment, State, Upload, UploadId

_LOAD = f"""
    SELECT u.record, u.holder IS NULL AS free, {DEAD.format("$2")} AS dead
    FROM tidegate.upload u LEFT JOIN tidegate.holder h ON h.id = u.holder WHERE u.id = $1
"""
_HELD = f"""
    SELECT u.holder, h.late_at < statement_timestamp() AND h.session IS NOT NULL AS late
    FROM tidegate.upload u JOIN tidegate.holder h ON h.id = u.holder
    WHERE u.id = $1 AND NOT {DEAD.format("$2")}
"""
_SEGMENTS = "SELECT record FROM tidegate.segment WHERE upload_id = $1 ORDER BY number"
_PAGE = """
    SELECT record FROM tidegate.upload
    WHERE id > $1 AND ($2::text IS NULL OR state = $2) AND ($3::text IS NULL OR kind = $3)
    ORDER BY id LIMIT $4::bigint
"""
UNDONE: Final = """
    SELECT record FROM tidegate.upload WHERE undone AND id > $1 ORDER BY id LIMIT $2::bigint
"""
_EXPIRED = f"""
    SELECT u.id FROM tidegate.upload u LEFT JOIN tidegate.holder h ON h.id = u.holder
    WHERE u.expires_at <= $1::float8
        AND (u.state = 'receiving' OR (u.state = 'complete' AND u.kind = 'partial'))
        AND NOT EXISTS (SELECT FROM tidegate.final_part f WHERE f.part_id = u.id)
        AND (u.holder IS NULL OR {DEAD.format("$2")})
    ORDER BY u.expires_at LIMIT $3::bigint
"""
_TOMBSTONES = """
    SELECT id FROM tidegate.upload
    WHERE state IN ('expired', 'terminated', 'failed') AND ended_at < $1::float8
    ORDER BY ended_at LIMIT $2::bigint
"""
_PENDING = "SELECT id FROM tidegate.upload WHERE kind = 'final' AND state = 'receiving' ORDER BY id"
_NEEDS = "SELECT final_id AS id FROM tidegate.final_part WHERE part_id = $1 ORDER BY final_id"


async def load(link: Link, upload_id: UploadId, abandoned: Sequence[int]) -> Loaded | None:
    """The record and its hold, or None."""
    row = await link.row(_LOAD, upload_id, abandoned)
    if row is None:
        return None
    hold = Hold.FREE if row["free"] else Hold.ABANDONED if row["dead"] else Hold.HELD
    return Loaded(decode_upload(row["record"]), hold)


class Holding(NamedTuple):
    """Who holds an upload."""

    holder: str
    late: bool
    """Whether a heartbeat is missing, of one who can be found dead before its time is over."""


async def held(link: Link, upload_id: UploadId, abandoned: Sequence[int]) -> Holding | None:
    """Who alive holds an upload."""
    row = await link.row(_HELD, upload_id, abandoned)
    return None if row is None else Holding(row["holder"], row["late"])


async def segments(link: Link, upload_id: UploadId) -> list[Segment]:
    """By index."""
    return [decode_segment(row["record"]) for row in await link.fetch(_SEGMENTS, upload_id)]


async def uploads_after(
    link: Link, after: str, state: State | None, kind: Kind | None, limit: int
) -> list[Upload]:
    """A page of records by id."""
    rows = await link.fetch(_PAGE, after, state and state.value, kind and kind.value, limit)
    return [decode_upload(row["record"]) for row in rows]


async def undone_after(link: Link, after: str, limit: int) -> list[Upload]:
    """A page of the records that are undone, by id."""
    return [decode_upload(row["record"]) for row in await link.fetch(UNDONE, after, limit)]


async def expired(link: Link, now: float, abandoned: Sequence[int], limit: int) -> list[UploadId]:
    """Uploads whose time is up, that nobody holds and that no pending final needs; oldest first."""
    return [row["id"] for row in await link.fetch(_EXPIRED, now, abandoned, limit)]


async def tombstones(link: Link, ended_before: float, limit: int) -> list[UploadId]:
    """Uploads of which only a tombstone is left, oldest first."""
    return [row["id"] for row in await link.fetch(_TOMBSTONES, ended_before, limit)]


async def pending_finals(link: Link, part: UploadId | None) -> list[UploadId]:
    """Finals that are still receiving: all, or those that need `part`."""
    rows = await link.fetch(_PENDING) if part is None else await link.fetch(_NEEDS, part)
    return [row["id"] for row in rows]


# ------------------------------------------------------------------------------------------ turns

_TAKE_TURN = """
    INSERT INTO tidegate.turn AS t (name, holder, until) VALUES ($1, $2, $3::float8 + $4::float8)
    ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, until = excluded.until
    WHERE t.until <= $3 OR t.holder = $2 OR NOT EXISTS (
        SELECT FROM tidegate.holder h WHERE h.id = t.holder AND h.expires_at > statement_timestamp()
    )
    RETURNING 1
"""
_END_TURN = "DELETE FROM tidegate.turn WHERE name = $1 AND holder = $2"


async def take_turn(link: Link, name: str, holder: str, now: float, ttl: float) -> bool:
    """Be the one who does `name`, unless someone else who is alive is."""
    return await link.row(_TAKE_TURN, name, holder, now, ttl) is not None


async def end_turn(link: Link, name: str, holder: str) -> None:
    """Let someone else have the turn."""
    await link.fetch(_END_TURN, name, holder)
