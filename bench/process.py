"""Server processes: started, measured with all that they started, stopped."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

import psutil

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

ANNOUNCEMENT: Final = re.compile(rb"http://127\.0\.0\.1:(\d+)(/[^\s\"']*)")
START: Final = 60.0
"""Seconds until a server must answer: a million records may have to be looked at."""
STOP: Final = 15.0


class BenchError(Exception):
    """What was measured is not what should have been: the measurement is void."""


@dataclass(frozen=True)
class Command:
    """How a server is started, and where it then is.

    Args:
        argv: the command line.
        env: environment variables to add.
        port: the one that it was told to use; 0 when it says by itself which it got.
        path: of the creation resource.
        cwd: where it runs.
    """

    argv: Sequence[str]
    env: Mapping[str, str]
    port: int = 0
    path: str = "/files/"
    cwd: Path | None = None


def free_port() -> int:
    """A port that is free now: for servers that can't be told to take any."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A server at work. Use it as a context manager."""

    def __init__(self, name: str, command: Command, log: Path) -> None:
        self.name = name
        self.command = command
        self.log = log
        self.port = command.port
        self.path = command.path
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self.command.argv,
                stdin=subprocess.DEVNULL,
                # tusd says two lines per request, which no flag turns off.
                stdout=subprocess.DEVNULL if self.command.port else log,
                stderr=log,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **self.command.env},
                cwd=self.command.cwd,
                start_new_session=True,
            )
        try:
            self._wait_until_up(self._process)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _wait_until_up(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise BenchError(f"{self.name} ended with {process.returncode}\n{self.tail()}")
            if not self.command.port and (found := ANNOUNCEMENT.search(self.log.read_bytes())):
                self.port, self.path = int(found[1]), found[2].decode()
            if self.port:
                try:
                    socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                except OSError:
                    pass
                else:
                    return
            time.sleep(0.02)
        raise BenchError(f"{self.name} is not up after {START:g} s\n{self.tail()}")

    def stop(self) -> None:
        """Stop gracefully, and then whatever is left of its group."""
        process = self._process
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP)
        except subprocess.TimeoutExpired:
            pass
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
        self._process = None

    def tail(self) -> str:
        """The end of what it wrote."""
        return self.log.read_bytes()[-2000:].decode(errors="replace")

    def check(self) -> None:
        """Raise BenchError when it is not running any more."""
        if self._process is None or self._process.poll() is not None:
            raise BenchError(f"{self.name} is gone\n{self.tail()}")

    def _tree(self) -> list[psutil.Process]:
        if self._process is None:
            raise BenchError(f"{self.name} is not running")
        root = psutil.Process(self._process.pid)
        return [root, *root.children(recursive=True)]

    def cpu(self) -> float:
        """CPU seconds that the server and all its children have used so far.

        By each process's own CPU clock, which counts nanoseconds, where the sums in /proc count
        hundredths of a second; children that ended are in the parent's sums alone.
        """
        total = 0.0
        for process in self._tree():
            try:
                total += time.clock_gettime(~process.pid << 3 | 2)  # see clock_getcpuclockid(3)
                times = process.cpu_times()
            except (OSError, psutil.NoSuchProcess):
                continue
            total += times.children_user + times.children_system
        return total

    def memory(self) -> int:
        """Bytes of memory that are the server's own (its share of what is shared)."""
        total = 0
        for process in self._tree():
            try:
                total += process.memory_full_info().pss
            except psutil.NoSuchProcess:
                continue
        return total
