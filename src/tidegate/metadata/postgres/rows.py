"""What the PostgreSQL store writes to its records: a statement per operation where one can do.

See `holds` for what such a statement may rely on, and what a `call` is.
"""

# ruff: noqa: S608  (made of our own words; what comes from outside is a value)

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from tidegate.metadata.encoding import encode
from tidegate.metadata.postgres.holds import TELL
from tidegate.metadata.postgres.schema import ROOM
from tidegate.ports import (
    LeaseLostError,
    OverLimitError,
    PartUnavailableError,
    PinnedError,
    UnavailableError,
    UploadExistsError,
)
from tidegate.protocol.model import Event, Kind, State, Upload

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tidegate.metadata.postgres.holds import Holder
    from tidegate.metadata.postgres.link import Link
    from tidegate.ports import Change, Lease, Room

# ------------------------------------------------------------------------------------- inserting

# Locks against whatever would end a part meanwhile; in order, so that two don't wait for each other.
_PARTS = """
    part AS MATERIALIZED (
        SELECT id FROM tidegate.upload
        WHERE id = ANY($14::text[]) AND kind = 'partial' AND state IN ('receiving', 'complete')
        ORDER BY id FOR SHARE
    ),"""
_PIN = """,
    pinned AS (
        INSERT INTO tidegate.final_part (part_id, final_id)
        SELECT part.id, made.id FROM part, made WHERE $3::text = 'receiving'
    )"""
# Whoever ends a claim of the line waits, or is waited for: what is added here is never overlooked.
_TOLD = """,
    told AS (
        INSERT INTO tidegate.event (upload_id, type, at, record)
        SELECT made.id, e.type, e.at, e.record
        FROM made, unnest(${0}::text[], ${1}::float8[], ${2}::bytea[])
            WITH ORDINALITY AS e (type, at, record, number)
        ORDER BY e.number RETURNING upload_id, sequence
    ),
    line AS (
        INSERT INTO tidegate.line AS l (upload_id, due_at)
        SELECT upload_id, -1.0 / min(sequence) FROM told GROUP BY upload_id
        ON CONFLICT (upload_id) DO UPDATE SET more = true,
            due_at = CASE WHEN l.claimed THEN l.due_at ELSE least(l.due_at, excluded.due_at) END
    )"""


@functools.cache
def _insert_sql(*, final: bool, told: bool) -> str:
    first = 15 if final else 14
    return (
        f"WITH {_PARTS if final else ''} made AS ("
        " INSERT INTO tidegate.upload (id, version, state, kind, expires_at, ended_at, promised,"
        " stored, record, written_by, holder, boot_id, token, granted_by, undone)"
        " SELECT $1::text, $2::bigint, $3::text, $4::text, $5::float8, $6::float8, $7::bigint,"
        " $8::bigint, $9::bytea, $10::bigint, $11::text, $12::text,"
        " CASE WHEN $11 IS NULL THEN 0 ELSE nextval('tidegate.token') END, $10, $13::boolean"
        + (" WHERE cardinality($14) = (SELECT count(*) FROM part)" if final else "")
        + " ON CONFLICT DO NOTHING RETURNING id, token)"
        + (_PIN if final else "")
        + (_TOLD.format(f"{first}", f"{first + 1}", f"{first + 2}") if told else "")
        + " SELECT (SELECT token FROM made) AS token"
        + (", (SELECT array_agg(id) FROM part) AS parts" if final else "")
    )


_WRITTEN = (
    "SELECT version, token, holder, written_by, granted_by FROM tidegate.upload WHERE id = $1"
)
_ROOM = """
    SELECT coalesce(sum(promised), 0) AS promised, coalesce(sum(stored), 0) AS stored
    FROM tidegate.upload WHERE state = 'receiving'
"""


async def insert(
    link: Link,
    upload: Upload,
    holder: Holder | None,
    events: Sequence[Event],
    call: int,
    room: Room | None = None,
    room_key: int = 0,
) -> int:
    """Add a record, held by `holder`; its token.

    Raises UploadExistsError, PartUnavailableError, OverLimitError.
    """
    if room is None:
        return await _insert(link, upload, holder, events, call)
    async with link.transaction():
        # One at a time: what two add together must fit, too.
        await link.script(f"SELECT pg_advisory_xact_lock({ROOM}, {room_key})")
        row = await link.row(_ROOM)
        promised, stored = int(row["promised"]), int(row["stored"])
        token = await _insert(link, upload, holder, events, call)
        _check_room(room, promised + upload.promised, stored + upload.offset)
        return token


def _check_room(room: Room, promised: int, stored: int) -> None:
    if room.unfinished is not None and promised > room.unfinished:
        raise OverLimitError(f"unfinished uploads would come to {promised} bytes")
    if room.missing is not None and promised - stored > room.missing:
        raise OverLimitError(f"unfinished uploads would still need {promised - stored} bytes")


async def _insert(
    link: Link, upload: Upload, holder: Holder | None, events: Sequence[Event], call: int
) -> int:
    final = upload.kind is Kind.FINAL
    parts = [list(dict.fromkeys(upload.parts))] if final else []
    row = await link.row(
        _insert_sql(final=final, told=bool(events)),
        upload.id,
        upload.version,
        upload.state.value,
        upload.kind.value,
        upload.expires_at,
        upload.ended_at,
        upload.promised,
        upload.offset,
        encode(upload),
        call,
        holder and holder.id,
        holder.boot_id if holder else "",
        upload.undone,
        *parts,
        *_columns(events),
    )
    if row["token"] is not None:
        return int(row["token"])
    there = await link.row(_WRITTEN, upload.id)
    if there is not None:
        if there["granted_by"] == call:
            return int(there["token"])
        if there["written_by"] == call and holder is None:
            return 0
        if link.again:
            raise UnavailableError(f"{upload.id}: nobody knows who created it")
        raise UploadExistsError(upload.id)
    found = set((row["parts"] if final else None) or ())
    for part in upload.parts:
        if part not in found:
            raise PartUnavailableError(part)
    raise UploadExistsError(upload.id)  # and was forgotten since


def _columns(events: Sequence[Event]) -> tuple[list[object], ...]:
    """Events, by column; nothing when there are none."""
    if not events:
        return ()
    return (
        [event.type.value for event in events],
        [event.at for event in events],
        [encode(event) for event in events],
    )


# ------------------------------------------------------------------------------------- committing

_HELD = "id = $1::text AND token = $2::bigint AND holder = $3::text AND version = $4::bigint"
_UPDATE = (
    "UPDATE tidegate.upload SET version = $5::bigint, state = $6::text, expires_at = $7::float8,"
    " ended_at = $8::float8, promised = $9::bigint, stored = $10::bigint, record = $11::bytea,"
    " written_by = $12::bigint, boot_id = $13::text,"
    " holder = CASE WHEN $14::boolean THEN NULL ELSE holder END, undone = $15::boolean"
    f" WHERE {_HELD} RETURNING id, {TELL.replace('wanted', 'wanted AND $14')}"
)
_CUT = """,
    cut AS (
        INSERT INTO tidegate.segment (upload_id, number, record)
        SELECT made.id, s.number, s.record
        FROM made, unnest(${0}::bigint[], ${1}::bytea[]) AS s (number, record)
        ON CONFLICT (upload_id, number) DO UPDATE SET record = excluded.record
    )"""
_UNPIN = ", unpinned AS (DELETE FROM tidegate.final_part USING made WHERE final_id = made.id)"
_DROP = (
    f"DELETE FROM tidegate.upload WHERE {_HELD} RETURNING id, {TELL}",
    ", uncut AS (DELETE FROM tidegate.segment USING made WHERE upload_id = made.id)",
)


@functools.cache
def _commit_sql(*, forget: bool, cut: bool, told: bool, unpin: bool) -> str:
    statement, first = (_DROP[0], 5) if forget else (_UPDATE, 16)
    if not (forget or cut or told or unpin):
        return statement
    sql = f"WITH made AS ({statement})"
    if forget:
        sql += _DROP[1]
    elif cut:
        sql += _CUT.format(f"{first}", f"{first + 1}")
        first += 2
    if told:
        sql += _TOLD.format(f"{first}", f"{first + 1}", f"{first + 2}")
    if unpin:
        sql += _UNPIN
    return sql + " SELECT id FROM made"


_LOCK = "SELECT 1 FROM tidegate.upload WHERE id = $1 FOR UPDATE"
_PINNED = "SELECT EXISTS (SELECT FROM tidegate.final_part WHERE part_id = $1) AS pinned"


async def commit(
    link: Link, lease: Lease, boot_id: str, change: Change, upload: Upload, call: int
) -> None:
    """Carry out `change`, whose new record is `upload`.

    Raises LeaseLostError, PinnedError; UnavailableError when it may have been carried out before.
    """
    if not change.unless_pinned:
        done = await _commit(link, lease, boot_id, change, upload, call)
    else:
        async with link.transaction():
            # A final that is being created locks its parts: its pins are seen after that.
            await link.fetch(_LOCK, upload.id)
            pinned = (await link.row(_PINNED, upload.id))["pinned"]
            done = await _commit(link, lease, boot_id, change, upload, call)
            if done and pinned:
                raise PinnedError(upload.id)
    if not done:
        await _explain(link, lease, change, call)


async def _commit(
    link: Link, lease: Lease, boot_id: str, change: Change, upload: Upload, call: int
) -> bool:
    values: list[Any] = [upload.id, lease.token, lease.holder, change.upload.version]
    cut = bool(change.segments) and not change.forget
    if not change.forget:
        values += [
            upload.version,
            upload.state.value,
            upload.expires_at,
            upload.ended_at,
            upload.promised,
            upload.offset,
            encode(upload),
            call,
            boot_id,
            change.release,
            upload.undone,
        ]
    if cut:
        # One row is not written twice by one statement: the last of an index counts.
        segments = {segment.index: encode(segment) for segment in change.segments}
        values += [list(segments), list(segments.values())]
    sql = _commit_sql(
        forget=change.forget,
        cut=cut,
        told=bool(change.events),
        unpin=upload.kind is Kind.FINAL and (change.forget or upload.state is not State.RECEIVING),
    )
    return await link.row(sql, *values, *_columns(change.events)) is not None


async def _explain(link: Link, lease: Lease, change: Change, call: int) -> None:
    """Say why nothing was committed, unless an earlier attempt of this call did it."""
    row = await link.row(_WRITTEN, lease.upload_id)
    if row is not None and row["written_by"] == call:
        return
    if link.again and (row is None or row["version"] > change.upload.version):
        # Perhaps an earlier attempt, whose answer was lost, and then somebody else.
        raise UnavailableError(f"{lease.upload_id}: nobody knows who changed it")
    if row is None or row["token"] != lease.token or row["holder"] != lease.holder:
        raise LeaseLostError(lease.upload_id)
    raise LeaseLostError(
        f"{lease.upload_id}: version {change.upload.version}, now {row['version']}"
    )
