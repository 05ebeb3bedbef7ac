"""Very many slow uploads at once: all finish, and the server does not grow with them.

200, or 1,000 where TIDEGATE_CI is 1. What it took is printed; how long it took is never judged.
"""

from __future__ import annotations

import asyncio
import os
import random
import resource
import statistics
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import psutil
import pytest
from tests.support.server import ServerProcess

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]

COUNT = 1000 if os.environ.get("TIDEGATE_CI") == "1" else 200
PIECES = 12
PIECE = 4096
PAUSE = 0.4
"""Seconds between two pieces of an upload, on average: 10 KB/s each."""
GROWTH = 192 * 1024
"""Bytes that the server may need for each upload: uvicorn's 64 KiB of what came, what reads a
socket, the objects of a request, a row and its caches."""
HEAD = "{} {} HTTP/1.1\r\nHost: load\r\nTus-Resumable: 1.0.0\r\n{}\r\n"


class Connection:
    """One client's."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, port: int) -> Connection:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def ask(self, method: str, path: str, fields: str = "") -> None:
        await self.send(HEAD.format(method, path, fields).encode())

    async def answer(self, method: str = "PATCH") -> tuple[int, dict[str, str], bytes]:
        start, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[:-2]
        fields = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        status = int(start.split()[1])
        length = 0 if method == "HEAD" or status == 204 else int(fields["content-length"])
        return status, fields, await self.reader.readexactly(length)

    async def close(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()


def content(number: int) -> bytes:
    return random.Random(number).randbytes(PIECES * PIECE)


class Tide:
    """The uploads of a test, on one server."""

    def __init__(self, port: int, count: int) -> None:
        self.port = port
        self.count = count
        self.begun = 0
        self.all_begun = asyncio.Event()
        self.paths: list[str] = []
        self.waits: list[float] = []

    async def create(self, count: int) -> None:
        """Make them, one after the other."""
        connection = await Connection.open(self.port)
        for _ in range(count):
            await connection.ask("POST", "/files/", f"Upload-Length: {PIECES * PIECE}\r\n")
            status, fields, _ = await connection.answer("POST")
            assert status == 201
            self.paths.append(urlsplit(fields["location"]).path)
        await connection.close()

    async def upload(self, number: int) -> None:
        """One of them, slowly, from when all have begun."""
        whole = content(number)
        pauses = random.Random(-number)
        connection = await Connection.open(self.port)
        await connection.ask(
            "PATCH",
            self.paths[number],
            "Content-Type: application/offset+octet-stream\r\nUpload-Offset: 0\r\n"
            f"Expect: 100-continue\r\nContent-Length: {len(whole)}\r\n",
        )
        # Told to go on: the server is receiving it.
        assert (await connection.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        self.begun += 1
        if self.begun == self.count:
            self.all_begun.set()
        await self.all_begun.wait()
        for start in range(0, len(whole), PIECE):
            await connection.send(whole[start : start + PIECE])
            await asyncio.sleep(pauses.uniform(0, 2 * PAUSE))
        status, fields, _ = await connection.answer()
        assert (status, fields.get("upload-offset")) == (204, str(len(whole)))
        await connection.close()

    async def look(self) -> None:
        """HEAD on uploads that nobody writes to, one after the other, until cancelled."""
        connection = await Connection.open(self.port)
        try:
            while True:
                for path in self.paths[self.count :]:
                    began = time.perf_counter()
                    await connection.ask("HEAD", path)
                    status, fields, _ = await connection.answer("HEAD")
                    self.waits.append(time.perf_counter() - began)
                    assert (status, fields["upload-offset"]) == (200, "0")
                    await asyncio.sleep(0.01)
        finally:
            await connection.close()

    async def check(self) -> None:
        """Read them all."""
        connection = await Connection.open(self.port)
        for number in range(self.count):
            await connection.ask("GET", self.paths[number])
            status, _, body = await connection.answer("GET")
            assert (status, body == content(number)) == (200, True)
        await connection.close()


class Watch:
    """What a server and its workers need at most."""

    def __init__(self, pid: int) -> None:
        parent = psutil.Process(pid)
        self.processes = [parent, *parent.children()]
        self.memory = self.descriptors = 0

    def now(self) -> tuple[int, int]:
        memory = sum(process.memory_full_info().uss for process in self.processes)
        return memory, sum(process.num_fds() for process in self.processes)

    async def run(self) -> None:
        while True:
            memory, descriptors = await asyncio.to_thread(self.now)
            self.memory = max(self.memory, memory)
            self.descriptors = max(self.descriptors, descriptors)
            await asyncio.sleep(0.25)


@contextmanager
def descriptors(count: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("workers", [1, 2])
async def test_slow_uploads_by_the_hundred_all_finish(
    workers: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--workers", str(workers), "--log-level", "warning")
    with descriptors(COUNT + 500), ServerProcess(tmp_path / "data", *flags) as server:
        tide = Tide(server.port, COUNT)
        await tide.create(COUNT + 20)
        watch = Watch(server.pid)
        memory, open_files = watch.now()
        began = time.perf_counter()
        behind = [asyncio.create_task(tide.look()), asyncio.create_task(watch.run())]
        async with asyncio.TaskGroup() as uploads:
            for number in range(COUNT):
                uploads.create_task(tide.upload(number))
        seconds = time.perf_counter() - began
        for task in behind:
            task.cancel()
        assert [type(e) for e in await asyncio.gather(*behind, return_exceptions=True)] == [
            asyncio.CancelledError
        ] * 2
        assert watch.memory - memory < COUNT * GROWTH
        # A connection, a file and what tells of its bytes for each; some for threads and for who
        # looks on.
        assert watch.descriptors - open_files < 3 * COUNT + 100
        await tide.check()
        with capsys.disabled():
            print(
                f"\n{COUNT} slow uploads, {workers} worker(s): {seconds:.1f} s;"
                f" memory {memory / 2**20:.0f} -> {watch.memory / 2**20:.0f} MiB,"
                f" descriptors {open_files} -> {watch.descriptors};"
                f" HEAD p50 {statistics.median(tide.waits) * 1000:.1f} ms,"
                f" p99 {statistics.quantiles(tide.waits, n=100)[98] * 1000:.1f} ms"
                f" of {len(tide.waits)}"
            )
        assert server.stop() == 0
        assert "Traceback" not in server.tail()
