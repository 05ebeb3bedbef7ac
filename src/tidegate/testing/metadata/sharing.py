"""Checks of what all uploads share: the room that they may need, and turns at doing something."""

# ruff: noqa: S101

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.ports import OverLimitError, Room
from tidegate.protocol.model import MAX_LENGTH, State
from tidegate.testing.metadata.support import NOW, change, end, new_id, opened, raises, upload

if TYPE_CHECKING:
    from tidegate.testing.metadata.support import Check, MakeStore


async def keeps_to_the_room(make: MakeStore) -> None:
    """What unfinished uploads promise, the new one included, stays within the room."""
    async with opened(make) as store:
        first = upload(length=60)
        await store.insert(first, room=Room(unfinished=100))
        second = upload(length=41)
        with raises(OverLimitError):
            await store.insert(second, room=Room(unfinished=100))
        assert await store.load(second.id) is None, "a refused upload left a record"
        await store.insert(upload(length=40), room=Room(unfinished=100, missing=100))


async def counts_what_is_missing(make: MakeStore) -> None:
    """What has come is not missing any more; what ended needs nothing."""
    async with opened(make) as store:
        first = upload(length=60)
        await store.insert(first)
        with raises(OverLimitError):
            await store.insert(upload(length=50), room=Room(missing=100))
        await change(store, first.id, offset=10)
        second = upload(length=50)
        await store.insert(second, room=Room(missing=100))
        await end(store, second.id, State.TERMINATED, NOW)
        await store.insert(upload(length=50), room=Room(missing=100, unfinished=110))


async def counts_deferred_lengths(make: MakeStore) -> None:
    """An upload of unknown length counts with what has come of it."""
    async with opened(make) as store:
        first = upload(length=None)
        await store.insert(first, room=Room(unfinished=0, missing=0))
        await change(store, first.id, offset=70)
        with raises(OverLimitError):
            await store.insert(upload(length=31), room=Room(unfinished=100))
        await store.insert(upload(length=30), room=Room(unfinished=100))


async def adds_up_the_largest(make: MakeStore) -> None:
    """Clients may claim as much as there is: no sum runs over."""
    async with opened(make) as store:
        for _ in range(3):
            await store.insert(upload(length=MAX_LENGTH))
        with raises(OverLimitError):
            await store.insert(upload(length=1), room=Room(unfinished=MAX_LENGTH))


async def gives_turns(make: MakeStore) -> None:
    """A turn can be made longer, ended, and taken again."""
    async with opened(make) as store:
        name = new_id()
        assert await store.take_turn(name, NOW, 10)
        assert await store.take_turn(name, NOW + 5, 10)
        await store.end_turn(name)
        await store.end_turn(name)
        assert await store.take_turn(name, NOW, 10)


async def gives_one_turn_among_two(make: MakeStore) -> None:
    """Only one of two servers has the turn, until it ends it or its time is up."""
    async with opened(make) as one, opened(make) as other:
        assert await one.take_turn("sweep", NOW, 10)
        assert not await other.take_turn("sweep", NOW + 9, 10)
        await other.end_turn("sweep")
        assert not await other.take_turn("sweep", NOW + 9, 10)
        assert await other.take_turn("another", NOW, 10)
        await one.end_turn("sweep")
        assert await other.take_turn("sweep", NOW + 9, 10)
        assert not await one.take_turn("sweep", NOW + 10, 10)
        assert await one.take_turn("sweep", NOW + 19, 10)


CHECKS: list[Check] = [
    keeps_to_the_room,
    counts_what_is_missing,
    counts_deferred_lengths,
    adds_up_the_largest,
    gives_turns,
]
SHARED_CHECKS: list[Check] = [gives_one_turn_among_two]
