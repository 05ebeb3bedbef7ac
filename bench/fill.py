"""Fills a database through the metadata store's port, and prints the ids of some of its uploads.

    python fill.py FOLDER COUNT SAMPLE

Run by the Python of the tidegate that will be measured, so that the schema is its own. Half of the
uploads are complete, half are receiving and will expire in a week. Their bytes are not there, and
nothing that is measured asks for them.
"""

import asyncio
import secrets
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from msgspec.structs import replace

from tidegate import registry
from tidegate.engine.core import random_id
from tidegate.protocol.model import State, Upload, UploadId
from tidegate.stores.local import LocalStore

BATCH = 5000
WEEK = 7 * 86_400


def records(store: LocalStore, count: int) -> Iterator[Upload]:
    """Uploads as the engine makes them."""
    now = time.time()
    for number in range(count):
        whole = number % 2 == 0
        upload = Upload(
            id=UploadId(""),
            length=1024,
            offset=1024 if whole else 0,
            synced_offset=1024 if whole else 0,
            state=State.COMPLETE if whole else State.RECEIVING,
            metadata="filename YmVuY2guYmlu,filetype YXBwbGljYXRpb24vb2N0ZXQtc3RyZWFt",
            created_at=now,
            active_at=now,
            expires_at=None if whole else now + WEEK + number / 1000,
            ended_at=now if whole else None,
        )
        upload = replace(upload, id=UploadId(random_id(upload)))
        yield replace(upload, storage=store.place(upload))


async def fill(folder: Path, count: int, sample: int) -> None:
    """Insert `count` records."""
    metadata = registry.metadata_store(registry.default_metadata(str(folder)))
    await metadata.open("bench")
    chosen: list[str] = []
    source = records(LocalStore(folder), count)
    left = count
    while left:
        batch = [next(source) for _ in range(min(BATCH, left))]
        await asyncio.gather(*(metadata.insert(upload) for upload in batch))
        chosen += [upload.id for upload in batch if secrets.randbelow(count) < sample]
        left -= len(batch)
    await metadata.close()
    print(*chosen, sep="\n")


asyncio.run(fill(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
