"""How much of what a plain client of the SDK gets out of an S3 server the store gets out of it.

    python -m bench.s3 [moto|swift] [MIB]

The same part size and concurrency, one upload and eight, each in a process of its own. Says also
how many requests a GiB takes, and how much memory beside the one that is budgeted.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import anyio
from msgspec.structs import replace
from tests.support.moto import moto
from tests.support.s3_server import BUCKET, ENVIRONMENT, S3Server
from tests.support.swift import swift

from tidegate.protocol.model import Upload, UploadId
from tidegate.stores.s3.options import MIB, S3Options
from tidegate.stores.s3.store import S3Store
from tidegate.testing.data import Journal

PART = 8 * MIB
AT_ONCE = 4
CHUNK = 256 * 1024
"""What a transport gives at a time."""
MEMORY = 256 * MIB
RUNS = 3


DATA = os.urandom(PART)


async def plain(server: S3Server, name: str, size: int) -> None:
    """As the SDK's documentation shows it."""
    slots = asyncio.Semaphore(AT_ONCE)
    config = {"max_pool_connections": 64}
    async with server.client(**config) as client:
        made = await client.create_multipart_upload(Bucket=BUCKET, Key=name)

        async def put(number: int) -> dict[str, Any]:
            async with slots:
                answer = await client.upload_part(
                    Bucket=BUCKET,
                    Key=name,
                    UploadId=made["UploadId"],
                    PartNumber=number,
                    Body=io.BytesIO(DATA),
                )
            return {"PartNumber": number, "ETag": answer["ETag"]}

        parts = await asyncio.gather(*(put(n + 1) for n in range(size // PART)))
        await client.complete_multipart_upload(
            Bucket=BUCKET, Key=name, UploadId=made["UploadId"], MultipartUpload={"Parts": parts}
        )


async def ours(store: S3Store, name: str, size: int) -> None:
    """As the engine does it."""
    upload = Upload(id=UploadId(name), length=size, created_at=1e9, active_at=1e9)
    upload = replace(upload, storage=store.place(upload))
    journal = Journal()
    writer = await store.writer(upload, journal)
    for start in range(0, size, CHUNK):
        at = start % PART
        await writer.write([memoryview(DATA)[at : at + CHUNK]])
    upload = journal.commit(upload, await writer.flush())
    await writer.close()
    await store.finish(upload, journal, durable=True)


async def measure(kind: str, number: int, size: int, server: S3Server) -> dict[str, Any]:
    store = S3Store(
        BUCKET, options=S3Options(endpoint=server.endpoint, path_style=True, memory=MEMORY)
    )
    await store.open()
    before = resource.getrusage(resource.RUSAGE_SELF)
    start = time.perf_counter()
    async with anyio.create_task_group() as tasks:
        for n in range(number):
            name = f"{kind}-{number}-{os.getpid()}-{n}"
            if kind == "plain":
                tasks.start_soon(plain, server, name, size // number)
            else:
                tasks.start_soon(ours, store, name, size // number)
    seconds = time.perf_counter() - start
    await store.close()
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "mb_s": size / 1e6 / seconds,
        "cpu_s_gib": (used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime)
        * 1024
        * MIB
        / size,
        "memory_mib": (used.ru_maxrss - before.ru_maxrss) / 1024,
    } | ({"requests_gib": store.client.requests * 1024 * MIB / size} if kind == "ours" else {})


def one(kind: str, number: int, size: int, server: S3Server) -> dict[str, float]:
    """In a process of its own, so that its memory can be told."""
    command = [sys.executable, "-m", "bench.s3", "one", kind, str(number), str(size)]
    ended = subprocess.run(
        [*command, server.endpoint],
        env={**os.environ, **ENVIRONMENT},
        check=True,
        capture_output=True,
        text=True,
    )
    result: dict[str, float] = json.loads(ended.stdout)
    return result


def main() -> None:
    if sys.argv[1:2] == ["one"]:
        kind, uploads, total, endpoint = sys.argv[2:]
        found = asyncio.run(measure(kind, int(uploads), int(total), S3Server(endpoint)))
        print(json.dumps(found))
        return
    name = sys.argv[1] if len(sys.argv) > 1 else "swift"
    size = int(sys.argv[2] if len(sys.argv) > 2 else "256") * MIB
    started = {"moto": moto, "swift": swift}[name]
    with tempfile.TemporaryDirectory() as folder, started(Path(folder)) as server:
        server.make_bucket()
        for number in (1, 8):
            # In turn, so that what slows the server down as it fills slows both.
            runs = [
                {kind: one(kind, number, size, server) for kind in ("plain", "ours")}
                for _ in range(RUNS)
            ]
            for kind in ("plain", "ours"):
                middle = {
                    key: round(statistics.median(run[kind][key] for run in runs), 2)
                    for key in runs[0][kind]
                }
                print(f"{name}, {number} at once, {kind}: {middle}")
            ratio = statistics.median(r["ours"]["mb_s"] / r["plain"]["mb_s"] for r in runs)
            print(f"{name}, {number} at once: {ratio:.2f} of the plain client")


if __name__ == "__main__":
    main()
