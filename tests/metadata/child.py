"""A second process on the same database. Says on its standard output how far it is.

child.py PLACE hold ID          take the lease of ID, say so, and keep it
child.py PLACE hold ID commit  the same, and commit when it is wanted: refused, or committed
child.py PLACE add ID TIMES     take the lease, add one to the offset, let go; so many times
child.py PLACE turn NAME        take the turn of NAME for an hour, say so, and keep it
child.py PLACE insert           insert records, saying the id of each that is acknowledged
child.py PLACE hand             insert three records together, whose events are handed to it; tell one of
                                the first, both of the second; say their ids, and keep them
"""

from __future__ import annotations

import itertools
import sys
from contextlib import suppress

import anyio
from msgspec.structs import replace

from tidegate import registry
from tidegate.ports import Change, Grant, HandingStore, Held, Line, MetadataError, MetadataStore
from tidegate.protocol.model import EventType, UploadId
from tidegate.testing.metadata.support import event, hold, upload


async def main(*arguments: str) -> None:
    place, what, *args = arguments
    store = registry.metadata_store(place)
    await store.open("child")
    if what == "hold":
        grant = await hold(store, UploadId(args[0]))
        print("held", flush=True)
        await grant.wanted.wait()
        print("wanted", flush=True)
        if len(args) > 1:
            with suppress(MetadataError):
                await store.commit(grant.lease, Change(upload=replace(grant.upload, offset=99)))
                print("committed", flush=True)
            print("refused", flush=True)
        await anyio.sleep_forever()
    elif what == "add":
        for _ in range(int(args[1])):
            await add(store, UploadId(args[0]))
    elif what == "turn":
        print(await store.take_turn(args[0], 0, 3600), flush=True)
        await anyio.sleep_forever()
    elif what == "insert":
        for number in itertools.count():
            record = upload(f"{number:06}")
            await store.insert(record)
            print(record.id, flush=True)
    elif what == "hand":
        assert isinstance(store, HandingStore)
        taker = Taker()
        store.hand_over(taker)
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(hand, store)
        for line, count in zip(taker.lines, (1, 2, 0), strict=True):
            for delivery in line.deliveries[:count]:
                assert store.told(line, delivery.sequence)
            print(line.upload_id, flush=True)
        await anyio.sleep_forever()
    await store.close()


class Taker:
    """Takes lines, and does nothing about them."""

    def __init__(self) -> None:
        self.lines: list[Line] = []

    def has_room(self) -> bool:
        return True

    def take(self, line: Line) -> None:
        self.lines.append(line)


async def hand(store: MetadataStore) -> None:
    record = upload()
    await store.insert(record, events=[event(record), event(record, EventType.COMPLETED)])


async def add(store: MetadataStore, upload_id: UploadId) -> None:
    attempt: Grant | Held = await store.acquire(upload_id)
    while isinstance(attempt, Held):
        await store.wait_released(upload_id, 10)
        attempt = await store.acquire(upload_id)
    after = replace(attempt.upload, offset=attempt.upload.offset + 1)
    await store.commit(attempt.lease, Change(upload=after, release=True))


if __name__ == "__main__":
    anyio.run(main, *sys.argv[1:])
