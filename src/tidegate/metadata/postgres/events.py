"""What the PostgreSQL store does to its events.

`rows` writes them with the change that they tell of, and their upload's line: it locks that, and so
does whoever claims it, or ends a claim.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.metadata.encoding import decode_delivery, due_at_once, encode_delivery
from tidegate.ports import Counts, Line, Undelivered
from tidegate.protocol.model import State, UploadId

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tidegate.metadata.postgres.link import Link
    from tidegate.ports import Delivery, Ended

# Asked every moment, mostly in vain: then it writes nothing.
_CLAIM = """
    WITH due AS MATERIALIZED (
        SELECT upload_id FROM tidegate.line WHERE due_at <= $1::float8
        ORDER BY due_at LIMIT $2::bigint FOR UPDATE SKIP LOCKED
    )
    UPDATE tidegate.line l SET due_at = $1 + $3::float8, claimed = true, more = false
    FROM due WHERE l.upload_id = due.upload_id
    RETURNING l.upload_id, l.due_at
"""
# A statement of its own: it sees all that was added before the claim.
_LINES = """
    SELECT upload_id, sequence, record, done, retries FROM tidegate.event
    WHERE upload_id = ANY($1::text[]) AND NOT given_up ORDER BY sequence
"""


async def claim(link: Link, now: float, limit: int, ttl: float) -> list[Line]:
    """Take what is due."""
    claimed = await link.fetch(_CLAIM, now, limit, ttl)
    if not claimed:
        return []
    found: dict[str, list[Delivery]] = {row["upload_id"]: [] for row in claimed}
    for upload_id, *delivery in await link.fetch(_LINES, list(found)):
        found[upload_id].append(decode_delivery(*delivery))
    lines = [
        Line(UploadId(row["upload_id"]), row["due_at"], tuple(found[row["upload_id"]]))
        for row in claimed
    ]
    return sorted(lines, key=due_at_once)


# In order, so that of two who lock several none waits for the other.
_END_CLAIMS = """
    WITH held AS MATERIALIZED (
        SELECT l.upload_id, l.more, e.keeps, e.goes_on, e.due_at, e.at_once
        FROM tidegate.line l
        JOIN unnest(
            $1::text[], $2::float8[], $3::boolean[], $4::boolean[], $5::float8[], $6::float8[]
        ) AS e (upload_id, claim, keeps, goes_on, due_at, at_once) USING (upload_id)
        WHERE l.claimed AND l.due_at = e.claim ORDER BY l.upload_id FOR UPDATE OF l
    ),
    told AS (
        DELETE FROM tidegate.event e USING held
        WHERE e.sequence = ANY($7::bigint[]) AND e.upload_id = held.upload_id
    ),
    noted AS (
        UPDATE tidegate.event e SET done = n.done, retries = n.retries, given_up = n.given_up
        FROM held, unnest($8::bigint[], $9::text[], $10::text[], $11::boolean[])
            AS n (sequence, done, retries, given_up)
        WHERE e.sequence = n.sequence AND e.upload_id = held.upload_id
    ),
    over AS (
        DELETE FROM tidegate.line l USING held
        WHERE l.upload_id = held.upload_id AND NOT (held.more OR held.keeps OR held.goes_on)
    ),
    next AS (
        UPDATE tidegate.line l SET claimed = false,
            due_at = CASE WHEN held.more THEN held.at_once
                ELSE coalesce(held.due_at, held.at_once) END
        FROM held
        WHERE l.upload_id = held.upload_id AND (held.more OR held.keeps) AND NOT held.goes_on
    )
    SELECT upload_id FROM held
"""


async def end_claims(link: Link, ended: Sequence[Ended]) -> list[UploadId]:
    """Note what became of lines, and let go of them; those that were not held."""
    noted = [
        (delivery.sequence, *encode_delivery(delivery), given_up)
        for each in ended
        for delivery, given_up in each.changed
    ]
    held = await link.fetch(
        _END_CLAIMS,
        [each.line.upload_id for each in ended],
        [each.line.claim for each in ended],
        [bool(each.kept) for each in ended],
        [each.goes_on for each in ended],
        [each.due_at for each in ended],
        [due_at_once(each.line) for each in ended],
        [sequence for each in ended for sequence in each.told],
        *([row[column] for row in noted] for column in range(4)),
    )
    found = {row["upload_id"] for row in held}
    return [each.line.upload_id for each in ended if each.line.upload_id not in found]


_REPLAY = """
    WITH replayed AS (
        UPDATE tidegate.event SET done = '', retries = '', given_up = false
        WHERE sequence = $1::bigint AND given_up RETURNING upload_id, sequence
    )
    INSERT INTO tidegate.line AS l (upload_id, due_at)
    SELECT upload_id, -1.0 / sequence FROM replayed
    ON CONFLICT (upload_id) DO UPDATE SET more = true,
        due_at = CASE WHEN l.claimed THEN l.due_at ELSE least(l.due_at, excluded.due_at) END
    RETURNING 1
"""


async def replay(link: Link, sequence: int) -> bool:
    """Have an event that was given up delivered after all, before the younger ones."""
    return await link.row(_REPLAY, sequence) is not None


_EVENTS = """
    SELECT e.sequence, e.record, e.done, e.retries, e.given_up, l.due_at FROM tidegate.event e
    LEFT JOIN tidegate.line l ON l.upload_id = e.upload_id AND e.sequence = (
        SELECT min(o.sequence) FROM tidegate.event o
        WHERE o.upload_id = e.upload_id AND NOT o.given_up
    )
    WHERE e.sequence > $1::bigint ORDER BY e.sequence LIMIT $2::bigint
"""


async def events(link: Link, after: int, limit: int) -> list[Undelivered]:
    """A page of all that are kept."""
    return [
        Undelivered(decode_delivery(*delivery), due_at, given_up)
        for *delivery, given_up, due_at in await link.fetch(_EVENTS, after, limit)
    ]


_STATES = "SELECT state, count(*) AS count FROM tidegate.upload GROUP BY state"
_PENDING = """
    SELECT count(*) FILTER (WHERE NOT given_up) AS pending,
        count(*) FILTER (WHERE given_up) AS given_up, min(at) FILTER (WHERE NOT given_up) AS oldest
    FROM tidegate.event
"""


async def counts(link: Link) -> Counts:
    """How much there is."""
    uploads = {State(row["state"]): row["count"] for row in await link.fetch(_STATES)}
    row = await link.row(_PENDING)
    return Counts(
        uploads=uploads,
        pending_events=row["pending"],
        given_up_events=row["given_up"],
        oldest_event_at=row["oldest"],
    )
