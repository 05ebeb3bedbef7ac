"""What is killed: servers that a nursery forks, and the real command with its workers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any, Final, Protocol, Self
from urllib.parse import urlsplit

import psutil
from tests.support.server import ServerProcess

from tidegate.config import Transport

ROOT: Final = Path(__file__).parents[2]
LIFE_SIGNS: Final = 20.0
"""Seconds in which a process has started, ended, or noticed that its parent did."""


class Prey(Protocol):
    """A server that can be killed, and comes back."""

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""

    async def kill(self, rng: random.Random) -> str:
        """Kill something of it, and have it come back; what it was."""

    async def rest(self) -> None:
        """End it in order. Raises AssertionError when it does not."""

    def log(self) -> str:
        """What it wrote."""


class Nursery:
    """Servers forked from a process that has everything loaded (`tests.faults.nursery`).

    Args:
        folder: for the data, the database, the events and the log.
        settings: those of one life, made anew for each.
        workers: how many live at a time.
        transport: native or asgi.
    """

    def __init__(
        self,
        folder: Path,
        rng: random.Random,
        *,
        workers: int = 2,
        transport: Transport = "native",
        expire_after: float,
    ) -> None:
        self.config = {
            "data": str(folder / "data"),
            "database": str(folder / "data" / "tidegate.db"),
            "events": str(folder / "events"),
            "base_path": "/files/",
            "transport": transport,
        }
        self.address = ("127.0.0.1", 0)
        self._log = folder / "log"
        self._rng = rng
        self._workers = workers
        self._expire_after = expire_after
        self._pids: list[int] = []

    async def __aenter__(self) -> Self:
        Path(self.config["data"]).mkdir()
        # What measures coverage would slow each life down, and dies with it anyway.
        env = {name: value for name, value in os.environ.items() if "COVERAGE" not in name}
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.faults.nursery", json.dumps(self.config)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                cwd=ROOT,
                env=env,
                start_new_session=True,
            )
        self.address = ("127.0.0.1", int((await self._hear("port"))[0]))
        for _ in range(self._workers):
            await self._start()
        return self

    async def __aexit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()
        with contextlib.suppress(OSError):
            await self._process.stdin.wait_closed()

    async def kill(self, rng: random.Random) -> str:
        kind = rng.choices(("one", "all", "stopping"), (70, 24, 6))[0]
        victims = list(self._pids) if kind == "all" else [rng.choice(self._pids)]
        if kind == "stopping":
            os.kill(victims[0], signal.SIGTERM)
            await asyncio.sleep(rng.uniform(0, 0.05))
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        for pid in victims:
            status = await self._reap(pid)
            if not os.WIFSIGNALED(status) and not (kind == "stopping" and status == 0):
                raise AssertionError(f"a server ended by itself, with {status}: {self.log()}")
        if kind == "all":
            await asyncio.sleep(rng.choice((0.0, 0.0, rng.uniform(0, 0.1))))
        for _ in victims:
            await self._start()
        return kind

    async def rest(self) -> None:
        for pid in self._pids:
            os.kill(pid, signal.SIGTERM)
        for pid in list(self._pids):
            status = await self._reap(pid)
            # One that is only starting has not said yet what it does with a signal.
            if status not in (0, signal.SIGTERM):
                raise AssertionError(f"a graceful stop ended with {status}: {self.log()}")

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def _settings(self) -> dict[str, Any]:
        rng = self._rng
        return {
            "expire_after": self._expire_after,
            "durability": rng.choice(("complete", "complete", "complete", "ack", "none")),
            "checkpoint_bytes": rng.choice((4_096, 65_536, 262_144)),
            "checkpoint_seconds": rng.choice((0.005, 0.05, 3.0)),
            "copy_step": rng.choice((16_384, 262_144)),
            "assemble_within": rng.choice((0.001, 0.02, 3.0)),
            "lease_wait": 5.0,
            "sweep_every": rng.choice((0.02, 0.1, 1.0)),
            "orphans_every": rng.choice((0.02, 0.5)),
            "orphan_age": 0.0,
        }

    async def _start(self) -> None:
        await self._tell("start", self._settings())
        self._pids.append(int((await self._hear("started"))[0]))

    async def _reap(self, pid: int) -> int:
        self._pids.remove(pid)
        await self._tell("reap", pid)
        return int((await self._hear("reaped"))[1])

    async def _tell(self, verb: str, what: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([verb, what]).encode() + b"\n")
        await self._process.stdin.drain()

    async def _hear(self, verb: str) -> list[str]:
        assert self._process.stdout is not None
        async with asyncio.timeout(LIFE_SIGNS):
            line = (await self._process.stdout.readline()).decode().split()
        if line[:1] != [verb]:
            raise AssertionError(f"the nursery said {line}, not {verb}: {self.log()}")
        return line[1:]


class Command:
    """`tidegate serve`, with its process tree.

    Args:
        folder: for the data.
        workers: 1 leaves the flag away.
        transport: native or asgi.
    """

    def __init__(
        self, folder: Path, *, workers: int, transport: Transport = "native", expire_after: float
    ) -> None:
        flags = ["--expire-after", f"{expire_after:g}", "--log-level", "warning"]
        flags += ["--transport", transport]
        if workers > 1:
            flags += ["--workers", str(workers)]
        self._workers = workers
        self._server = ServerProcess(folder / "data", *flags)

    @property
    def address(self) -> tuple[str, int]:
        url = urlsplit(self._server.url)
        return str(url.hostname), int(url.port or 0)

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._server.start)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self._server.kill)

    async def kill(self, rng: random.Random) -> str:
        kinds = ("all", "parent", "one") if self._workers > 1 else ("all",)
        kind = rng.choice(kinds)
        parent = psutil.Process(self._server.pid)
        children = parent.children(recursive=True)
        if kind == "one" and children:
            victim = rng.choice(children)
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
            return kind
        if kind == "parent":
            parent.kill()
            await _all_end(children)
        await asyncio.to_thread(self._server.restart, kill=True)
        return kind

    async def rest(self) -> None:
        code = await asyncio.to_thread(self._server.stop)
        if code != 0:
            raise AssertionError(f"a graceful stop ended with {code}: {self.log()}")

    def log(self) -> str:
        return self._server.tail(2000)


async def _all_end(processes: list[psutil.Process]) -> None:
    """Workers whose parent died must not keep its port."""
    deadline = time.monotonic() + LIFE_SIGNS
    while left := [process for process in processes if _runs(process)]:
        if time.monotonic() > deadline:
            raise AssertionError(f"{left} outlived their parent")
        await asyncio.sleep(0.01)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
