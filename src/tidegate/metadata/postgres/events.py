"""What the PostgreSQL store does to its events.

`rows` writes them with the change that they tell of. What makes another event of an upload
the next one locks the one that was, in a statement before: so it sees all that were written
meanwhile, and who writes one waits to see what became of it. Those are scripts, in one round trip;
a number in them is a number, and text is in hexadecimal digits, so that nothing needs quotes.
"""

# ruff: noqa: S608  (made of our own words; what comes from outside is a value)

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tidegate.metadata.encoding import decode_event
from tidegate.ports import Counts, Delivery, Undelivered
from tidegate.protocol.model import State

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tidegate.metadata.postgres.link import Link

# That there is none before it is true of all that are due, but for an event that is replayed while
# its upload is changed.
_CLAIM = """
    WITH due AS MATERIALIZED (
        SELECT e.sequence FROM tidegate.event e
        WHERE e.due_at <= $1::float8 AND NOT EXISTS (
            SELECT FROM tidegate.event o
            WHERE o.upload_id = e.upload_id AND o.sequence < e.sequence AND NOT o.given_up
        )
        ORDER BY e.due_at, e.sequence LIMIT $2::bigint FOR UPDATE OF e SKIP LOCKED
    )
    UPDATE tidegate.event e SET due_at = $1 + $3::float8 FROM due WHERE e.sequence = due.sequence
    RETURNING e.sequence, e.record, e.attempts, e.done
"""
_DUE = "SELECT EXISTS (SELECT FROM tidegate.event WHERE due_at <= $1::float8) AS found"


async def claim(link: Link, now: float, limit: int, ttl: float) -> list[Delivery]:
    """Take events that are due."""
    # Asked every moment, mostly in vain: that should write nothing.
    if not (await link.row(_DUE, now))["found"]:
        return []
    rows = await link.fetch(_CLAIM, now, limit, ttl)
    return sorted((_delivery(row) for row in rows), key=lambda delivery: delivery.sequence)


def _delivery(row: Any) -> Delivery:
    done = tuple(row["done"].split())
    return Delivery(row["sequence"], decode_event(row["record"]), row["attempts"], done)


_LOCK = "SELECT 1 FROM tidegate.event WHERE sequence = {0} FOR UPDATE;"
_NEXT = """
    UPDATE tidegate.event SET due_at = 0 WHERE due_at IS NULL AND sequence = (
        SELECT min(e.sequence) FROM tidegate.event e, was
        WHERE e.upload_id = was.upload_id AND e.sequence <> was.sequence AND NOT e.given_up
    )"""


async def acknowledge(link: Link, sequence: int) -> None:
    """Forget an event, and let the next of its upload come forward."""
    await _script(
        link,
        f"{_LOCK.format(f'{sequence:d}')} WITH was AS (DELETE FROM tidegate.event"
        f" WHERE sequence = {sequence:d} AND NOT given_up RETURNING upload_id, sequence) {_NEXT}",
    )


async def postpone(link: Link, sequence: int, due_at: float | None, done: Iterable[str]) -> None:
    """Note a failed delivery; None: give the event up."""
    due = "NULL" if due_at is None else f"{due_at!r}::float8"
    names = " ".join(done).encode().hex()
    await _script(
        link,
        f"{_LOCK.format(f'{sequence:d}')} WITH was AS (UPDATE tidegate.event"
        f" SET attempts = attempts + 1, due_at = {due}, given_up = {due_at is None},"
        f" done = convert_from(decode('{names}', 'hex'), 'UTF8')"
        f" WHERE sequence = {sequence:d} AND NOT given_up RETURNING upload_id, sequence)"
        + (_NEXT if due_at is None else " SELECT FROM was"),
    )


_REPLAY = """
    UPDATE tidegate.event SET attempts = 0, done = '', given_up = false
    WHERE sequence = $1::bigint AND given_up RETURNING upload_id
"""
# What was next is not any more; an older one that was given up stays so.
_REORDER = """
    UPDATE tidegate.event e SET due_at = CASE WHEN e.sequence = f.first THEN 0 END
    FROM (
        SELECT min(sequence) AS first FROM tidegate.event WHERE upload_id = $1 AND NOT given_up
    ) f
    WHERE e.upload_id = $1 AND NOT e.given_up
        AND (e.sequence = f.first) = (e.due_at IS NULL)
"""


async def replay(link: Link, sequence: int) -> bool:
    """Make an event that was given up the oldest of its upload that is to be delivered."""
    async with link.transaction():
        row = await link.row(_REPLAY, sequence)
        if row is not None:
            await link.fetch(_REORDER, row["upload_id"])
    return row is not None


async def _script(link: Link, sql: str) -> None:
    # Where it fails it leaves a transaction behind: the pool drops such a link.
    await link.script(f"BEGIN ISOLATION LEVEL READ COMMITTED; {sql}; COMMIT")


_EVENTS = """
    SELECT sequence, due_at, given_up, record, attempts, done FROM tidegate.event
    WHERE sequence > $1::bigint ORDER BY sequence LIMIT $2::bigint
"""


async def events(link: Link, after: int, limit: int) -> list[Undelivered]:
    """A page of all that are kept."""
    rows = await link.fetch(_EVENTS, after, limit)
    return [Undelivered(_delivery(row), row["due_at"], row["given_up"]) for row in rows]


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
