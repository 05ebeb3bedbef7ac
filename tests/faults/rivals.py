"""Several servers on one folder and one database, and clients that choose which of them to ask."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from tests.faults.wire import Answer, Call, pieces, read_answer, send
from tests.support.server import ServerProcess

from tidegate.config import Transport
from tidegate.protocol.model import UploadId
from tidegate.stores import naming

PATIENCE: Final = 30.0
"""Seconds after which something will not happen any more."""
TUS: Final = {"Tus-Resumable": "1.0.0"}
STREAM: Final = {"Content-Type": "application/offset+octet-stream"}


class Server:
    """One process of them, as a client sees it."""

    def __init__(self, process: ServerProcess) -> None:
        self.process = process

    @property
    def address(self) -> tuple[str, int]:
        url = urlsplit(self.process.url)
        return str(url.hostname), int(url.port or 0)

    async def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        pause: float = 0.0,
        **fields: object,
    ) -> Answer:
        """A request with its whole body, paced by `pause`. `upload_offset=5` is a field."""
        call = _call(method, path, fields)
        if body is not None:
            step = max(1, len(body) // 5)
            chunks = [body[at : at + step] for at in range(0, len(body), step)]
            call.fields |= STREAM
            call.pieces, call.length = pieces(chunks, pause), len(body)
        return await send(self.address, call, patience=PATIENCE)

    async def create(self, length: int) -> str:
        """The path of a new upload."""
        answer = await self.ask("POST", "/files/", upload_length=length)
        assert answer.status == 201, answer
        return urlsplit(answer.fields["location"]).path

    @contextlib.asynccontextmanager
    async def patch(
        self, path: str, offset: int, length: int, **fields: object
    ) -> AsyncIterator[Patch]:
        """A PATCH whose body is sent by hand."""
        call = _call("PATCH", path, {**fields, "upload_offset": offset})
        call.fields |= STREAM
        call.pieces, call.length = pieces([]), length
        reader, writer = await asyncio.open_connection(*self.address)
        try:
            writer.write(call.head())
            yield Patch(reader, writer)
        finally:
            writer.transport.abort()

    @contextlib.contextmanager
    def asleep(self) -> Iterator[None]:
        """While it is stopped, as by SIGSTOP, a debugger, or a host that is out of memory."""
        os.kill(self.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGCONT)


def _call(method: str, path: str, fields: dict[str, object]) -> Call:
    call = Call(method, path, dict(TUS))
    call.fields |= {name.replace("_", "-"): str(value) for name, value in fields.items()}
    return call


class Patch:
    """A request under way."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        with contextlib.suppress(ConnectionError):  # the answer will tell
            await self._writer.drain()

    async def answer(self) -> Answer:
        async with asyncio.timeout(PATIENCE):
            return await read_answer(self._reader)


@contextlib.contextmanager
def rivals(folder: Path, count: int, transport: Transport = "native") -> Iterator[list[Server]]:
    """So many servers on one folder."""
    flags = ("--transport", transport)
    servers = [Server(ServerProcess(folder / "data", *flags)) for _ in range(count)]
    try:
        revive(servers)
        yield servers
    finally:
        for server in servers:
            server.process.kill()


def revive(servers: Iterable[Server]) -> None:
    """Start those that don't run, all at once."""
    dead = [server.process for server in servers if not server.process.running]
    with ThreadPoolExecutor(max_workers=len(dead) or 1) as threads:
        for started in [threads.submit(process.start) for process in dead]:
            started.result()


class Disk:
    """Where the servers of one folder keep an upload's bytes."""

    def __init__(self, folder: Path) -> None:
        self._data = folder / "data"

    def files(self, path: str) -> list[Path]:
        """All files of an upload, of which there is one at most between two steps."""
        name = naming.token(UploadId(path.rpartition("/")[2]))
        places = (self._data / top / naming.shard(name) / name for top in ("incoming", "finished"))
        return [place for place in places if place.exists()]

    def content(self, path: str) -> bytes:
        found = self.files(path)
        return found[0].read_bytes() if found else b""

    async def holds(self, path: str, size: int) -> None:
        """Wait until so many bytes of an upload are stored."""
        await until(lambda: len(self.content(path)) >= size)


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        await asyncio.sleep(0.005)


# --------------------------------------------------------------------------------- whose bytes


@dataclass(frozen=True)
class Attempt:
    """What one request tried to add, by the offset that it named."""

    offset: int
    content: bytes
    acknowledged: bool


def not_pure(found: bytes, attempts: Iterable[Attempt]) -> str:
    """Why these can't be the bytes of one writer after the other; empty when they can.

    Each writer began where the one before had ended, and nobody else's bytes are among its own;
    of those that were acknowledged all are there.
    """
    attempts = list(attempts)
    for attempt in attempts:
        stop = attempt.offset + len(attempt.content)
        if attempt.acknowledged and found[attempt.offset : stop] != attempt.content:
            return f"bytes {attempt.offset} to {stop} were acknowledged, and are others"
    # Two may have the same bytes by chance where one ends, so all ways to read it are tried.
    starts = sorted({attempt.offset for attempt in attempts} | {len(found)})
    reached, furthest = {0}, 0
    for at in starts:
        if at not in reached or at >= len(found):
            continue
        lengths = [_common(found[at:], each.content) for each in attempts if each.offset == at]
        furthest = max(furthest, at + max(lengths))
        reached.update(start for start in starts if at < start <= at + max(lengths))
    return "" if len(found) in reached else f"the bytes at {furthest} nobody sent to there"


def _common(one: bytes, other: bytes) -> int:
    """How many bytes are the same."""
    size = min(len(one), len(other))
    if one[:size] == other[:size]:
        return size
    low, high = 0, size
    while low < high:
        middle = (low + high + 1) // 2
        if one[:middle] == other[:middle]:
            low = middle
        else:
            high = middle - 1
    return low
