"""A cluster on loopback: servers, the lines between them and what they need, a proxy before them.

All lines are relays in the event loop of whoever plays: each can be cut, or fall silent.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, TypeAlias

Streams: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Connect: TypeAlias = Callable[[], Awaitable[Streams]]
"""How a relay finds who it passes on to. Raises OSError."""

CHUNK: Final = 256 * 1024
START_WITHIN: Final = 60.0
"""Seconds in which a server that is started again and again serves, on a busy machine."""
STOP_WITHIN: Final = 60.0
"""... and one that is asked to stop has stopped; what it took is reported."""


class Relay:
    """Passes on what comes in to what `connect` finds; both ways, byte for byte."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._passing = asyncio.Event()
        self._passing.set()
        self._cut = False
        self._ends: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    @property
    def whole(self) -> bool:
        """Whether it passes on what comes."""
        return self._passing.is_set() and not self._cut

    def cut(self) -> None:
        """Reset all connections, and those that come, until `mend`."""
        self._cut = True
        for end in list(self._ends):
            end.transport.abort()

    def hush(self) -> None:
        """Pass nothing on until `mend`. Nobody is told, and nothing is lost: it comes late."""
        self._passing.clear()

    def mend(self) -> None:
        """Pass on again."""
        self._cut = False
        self._passing.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        ends = [writer]
        self._ends.add(writer)
        try:
            await self._passing.wait()
            answers, upstream = await self._connect()
            ends.append(upstream)
            self._ends.add(upstream)
            if not self._cut:
                await asyncio.gather(self._pass(reader, upstream), self._pass(answers, writer))
        except (OSError, asyncio.CancelledError):
            pass  # cancelled by `close` only; asyncio's own callback would complain
        finally:
            for end in ends:
                self._ends.discard(end)
                end.transport.abort()
            self._tasks.discard(task)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(CHUNK):
            await self._passing.wait()
            writer.write(data)
            await writer.drain()
        await self._passing.wait()
        writer.write_eof()

    async def close(self) -> None:
        """End all connections."""
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def relaying(connect: Connect) -> AsyncIterator[Relay]:
    """A relay for as long as it is entered."""
    relay = Relay(connect)
    server = await asyncio.start_server(relay._serve, "127.0.0.1", 0)
    relay.port = server.sockets[0].getsockname()[1]
    try:
        yield relay
    finally:
        server.close()
        await relay.close()


def to(port: int) -> Connect:
    """The way to one port of this machine."""

    async def connect() -> Streams:
        return await asyncio.open_connection("127.0.0.1", port)

    return connect


def round_robin(ports: Sequence[int], first: int) -> Connect:
    """The way to each of several ports by turns, past those where nobody listens."""
    turn = first

    async def connect() -> Streams:
        nonlocal turn
        for _ in ports:
            turn = (turn + 1) % len(ports)
            with contextlib.suppress(OSError):
                return await asyncio.open_connection("127.0.0.1", ports[turn])
        raise ConnectionRefusedError("nobody listens")

    return connect


class Server:
    """`tidegate serve` on a port of its own, with lines of its own to PostgreSQL and S3.

    All that it says, over all its lives, goes to `log`.
    """

    def __init__(
        self,
        command: Sequence[str],
        port: int,
        *,
        database: Relay,
        bucket: Relay,
        log: Path,
        environment: Mapping[str, str],
    ) -> None:
        self.port = port
        self.database = database
        self.bucket = bucket
        self.log = log
        self.afflicted: set[str] = set()
        """What is being done to it: one thing of a kind at a time."""
        self.starts = 0
        self.ended: list[str] = []
        """Every end that nobody asked for, of a server that had come to serve."""
        self.longest_stop = 0.0
        self.serves = False
        self.paused = False
        self._command = command
        self._environment = {**os.environ, "PYTHONUNBUFFERED": "1", **environment}
        self._process: asyncio.subprocess.Process | None = None

    @property
    def healthy(self) -> bool:
        """Whether it runs, and reaches what it needs."""
        return self.serves and not self.paused and self.database.whole and self.bucket.whole

    async def start(self) -> None:
        """Start it, as often as it takes, as a supervisor does: it ends where it can't open."""
        deadline = time.monotonic() + START_WITHIN
        while not await self._start_once():
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
        self.serves = True

    async def _start_once(self) -> bool:
        self.starts += 1
        with self.log.open("ab") as out:
            said = out.tell()
            self._process = process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "tidegate", "serve", "--port", str(self.port), *self._command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=self._environment,
                start_new_session=True,
            )
        while process.returncode is None:
            with self.log.open("rb") as log:
                log.seek(said)
                if b" listening on " in log.read():
                    return True
            await asyncio.sleep(0.05)
        return False

    def check(self) -> None:
        """Note it if it ended by itself."""
        process = self._process
        if self.serves and process is not None and process.returncode is not None:
            self.serves = False
            self.ended.append(f"port {self.port} ended by itself with {process.returncode}")

    async def end(self, number: signal.Signals) -> None:
        """SIGKILL, or SIGTERM, after which it ends in order."""
        self.check()
        process = self._process
        if process is None or process.returncode is not None:
            return
        self.serves = False
        began = time.monotonic()
        process.send_signal(number)
        try:
            async with asyncio.timeout(STOP_WITHIN):
                code = await process.wait()
        except TimeoutError:
            code = None
            process.kill()
            await process.wait()
        if number is not signal.SIGKILL:
            self.longest_stop = max(self.longest_stop, time.monotonic() - began)
            if code != 0:
                self.ended.append(f"port {self.port}: asked to stop, it ended with {code}")

    def pause(self) -> None:
        """Let it stand still, as in the middle of a step."""
        self._signal(signal.SIGSTOP)
        self.paused = True

    def resume(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)
        self.paused = False

    def _signal(self, number: signal.Signals) -> None:
        process = self._process
        assert process is not None
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)

    async def close(self) -> None:
        """Kill it, if it still runs."""
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
