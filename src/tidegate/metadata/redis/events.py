"""What the Redis store does to its events, and the count of all that there is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tidegate.metadata.encoding import decode_event, encode
from tidegate.metadata.redis import scripts
from tidegate.metadata.redis.link import score
from tidegate.ports import Counts, Delivery, Undelivered
from tidegate.protocol.model import State

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tidegate.metadata.redis.link import Link
    from tidegate.protocol.model import Event


def fields(events: Iterable[Event]) -> list[dict[str, str]]:
    """What the scripts write down of events."""
    return [{"at": score(event.at), "record": encode(event).decode()} for event in events]


async def claim(link: Link, now: float, limit: int, ttl: float) -> list[Delivery]:
    """Take events that are due."""
    found = await link.run_once(
        scripts.CLAIM, link.once(), now=score(now), ends=score(now + ttl), limit=limit
    )
    return [_delivery(*row) for row in found]


def _delivery(sequence: bytes, record: bytes, attempts: bytes, done: bytes) -> Delivery:
    return Delivery(
        int(sequence), decode_event(record), int(attempts), tuple(done.decode().split())
    )


def _padded(sequence: int) -> str:
    """As the scripts write it."""
    return f"{sequence:016}"


async def acknowledge(link: Link, sequence: int) -> None:
    """Forget an event, and let the next of its upload come forward."""
    await link.run(scripts.ACKNOWLEDGE, sequence=_padded(sequence))


async def postpone(link: Link, sequence: int, due_at: float | None, done: Sequence[str]) -> None:
    """Note a failed delivery; None: give the event up."""
    due = {} if due_at is None else {"due": score(due_at)}
    await link.run_once(
        scripts.POSTPONE, link.once(), sequence=_padded(sequence), done=" ".join(done), **due
    )


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
