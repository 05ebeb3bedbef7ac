"""What the Redis store does to its events, and the count of all that there is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tidegate.metadata.encoding import decode_delivery, encode, encode_delivery
from tidegate.metadata.redis import scripts
from tidegate.metadata.redis.link import score
from tidegate.ports import Counts, Line, Undelivered
from tidegate.protocol.model import State, UploadId

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tidegate.metadata.redis.link import Link
    from tidegate.ports import Delivery, Ended
    from tidegate.protocol.model import Event


def fields(events: Iterable[Event]) -> list[dict[str, str]]:
    """What the scripts write down of events."""
    return [{"at": score(event.at), "record": encode(event).decode()} for event in events]


async def claim(link: Link, now: float, limit: int, ttl: float) -> list[Line]:
    """Take what is due."""
    ends = now + ttl
    found = await link.run_once(
        scripts.CLAIM, link.once(), now=score(now), ends=score(ends), limit=limit
    )
    return [
        Line(UploadId(upload_id.decode()), ends, tuple(_delivery(*row) for row in rows))
        for upload_id, rows in found
    ]


def _delivery(sequence: bytes, record: bytes, done: bytes, retries: bytes | None) -> Delivery:
    return decode_delivery(int(sequence), record, done.decode(), retries or b"")


def _padded(sequence: int) -> str:
    """As the scripts write it."""
    return f"{sequence:016}"


async def end_claims(link: Link, ended: Sequence[Ended]) -> list[UploadId]:
    """Note what became of lines, and let go of them; those that were not held."""
    lost: list[bytes] = await link.run(scripts.END_CLAIMS, ended=[_ended(each) for each in ended])
    return [UploadId(upload_id.decode()) for upload_id in lost]


def _ended(ended: Ended) -> dict[str, Any]:
    due = {} if ended.due_at is None else {"due": score(ended.due_at)}
    return due | {
        "id": ended.line.upload_id,
        "claim": score(ended.line.claim),
        "told": [_padded(sequence) for sequence in ended.told],
        "changed": [
            (_padded(delivery.sequence), *encode_delivery(delivery), given_up)
            for delivery, given_up in ended.changed
        ],
        "keeps": bool(ended.kept),
        "goes_on": ended.goes_on,
    }


async def replay(link: Link, sequence: int) -> bool:
    """Have an event delivered after all that was given up."""
    return bool(await link.run_once(scripts.REPLAY, link.once(), sequence=_padded(sequence)))


async def events(link: Link, after: int, limit: int) -> list[Undelivered]:
    """A page of all that are kept."""
    rows: list[Any] = await link.run(scripts.EVENTS, after=str(after), limit=limit)
    return [
        Undelivered(_delivery(*row), None if due is None else float(due), given_up is not None)
        for due, given_up, *row in rows
    ]


async def counts(link: Link) -> Counts:
    """How much there is."""
    sizes, pending, given_up, oldest = await link.run(
        scripts.COUNTS, states=[state.value for state in State]
    )
    return Counts(
        uploads={state: size for state, size in zip(State, sizes, strict=True) if size},
        pending_events=pending,
        given_up_events=given_up,
        oldest_event_at=float(oldest[1]) if oldest else None,
    )
