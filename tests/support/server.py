"""A real server as a process: started, stopped, killed, and started again on the same data."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

TIDEGATE: Sequence[str] = (sys.executable, "-m", "tidegate", "serve")

# "tidegate 0.1.0 listening on http://127.0.0.1:43521/files/"
ANNOUNCEMENT = re.compile(r"https?://(?:\[[0-9a-fA-F:.]+\]|[^\s/:\[\]]+):\d+/[^\s\"']*")


class ServerError(AssertionError):
    """The server did not start, or did not stop; the message ends with the tail of its log."""


class ServerProcess:
    """One server on one data folder.

    The port is chosen by the kernel at the first start and kept for every later one, so that a
    client finds a restarted server where it left it. The process leads a group of its own:
    whatever it starts ends with it.

    Args:
        data: the folder that holds bytes and records; it outlives the process.
        flags: more flags for the command, after `--port` and `--data`.
        env: environment variables to add.
        command: the server's command, up to its flags.
        announcement: finds the address in what the server says.
        start_timeout: seconds until the address must have been announced.
        stop_timeout: seconds that a graceful stop may take.
    """

    def __init__(
        self,
        data: Path,
        *flags: str,
        env: Mapping[str, str] | None = None,
        command: Sequence[str] = TIDEGATE,
        announcement: re.Pattern[str] = ANNOUNCEMENT,
        start_timeout: float = 20.0,
        stop_timeout: float = 20.0,
    ) -> None:
        self.data = data
        self.flags = flags
        self.env = dict(env or {})
        self.command = command
        self.announcement = announcement
        self.start_timeout = start_timeout
        self.stop_timeout = stop_timeout
        self.port = 0
        self._url = ""
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._settled = threading.Event()  # announced, or ended before that
        self._ready = False
        self._log: deque[str] = deque(maxlen=2000)

    def __enter__(self) -> Self:
        return self if self.running else self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    @property
    def url(self) -> str:
        """The address of the creation resource, as the server announced it."""
        return self._url

    @property
    def pid(self) -> int:
        """The process id of the server that was started last."""
        if self._process is None:
            raise ServerError("the server was never started")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    def argv(self) -> list[str]:
        """The command line of the next start."""
        return [*self.command, "--port", str(self.port), "--data", str(self.data), *self.flags]

    def start(self) -> Self:
        """Start, and come back once the address is announced."""
        if self.running:
            raise ServerError("the server runs already")
        self._reap()
        self._settled.clear()
        self._ready = False
        argv = self.argv()
        self._log.append(f"$ {' '.join(argv)}\n")
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, "PYTHONUNBUFFERED": "1", **self.env},
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()
        settled = self._settled.wait(self.start_timeout)
        if not self._ready:
            # Its output ends a moment before it does.
            code = self._code(within=5.0 if settled else 0.0)
            self.kill()
            reason = "said nothing of an address" if code is None else f"ended with {code}"
            raise ServerError(f"the server {reason}\n{self.tail()}")
        return self

    def stop(self) -> int:
        """Stop gracefully (SIGTERM); the exit code."""
        code = self.terminate_and_wait(signal.SIGTERM, self.stop_timeout)
        self._reap()
        return code

    def kill(self) -> None:
        """End the process and all that it started, at once (SIGKILL). Harmless when it is gone."""
        process = self._process
        if process is None:
            return
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
        self._reap()

    def restart(self, *, kill: bool = False) -> Self:
        """Stop (or kill) and start again: the same port, the same data."""
        if kill:
            self.kill()
        else:
            self.stop()
        return self.start()

    def terminate_and_wait(self, number: signal.Signals, timeout: float) -> int:
        """Send a signal to the main process alone, and wait until that process has ended."""
        process = self._process
        if process is None:
            raise ServerError("the server was never started")
        process.send_signal(number)
        try:
            return process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise ServerError(
                f"still running {timeout:g} s after {number.name}\n{self.tail()}"
            ) from None

    def tail(self, lines: int = 60) -> str:
        """The last lines of what the server wrote, over all its starts."""
        return "".join(list(self._log)[-lines:])

    def _code(self, *, within: float) -> int | None:
        assert self._process is not None
        try:
            return self._process.wait(within)
        except subprocess.TimeoutExpired:
            return None

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                self._log.append(line)
                if not self._ready and (found := self.announcement.search(line)):
                    self._url = found[0]
                    self.port = urlsplit(self._url).port or 0
                    self._ready = True
                    self._settled.set()
        except ValueError:  # closed under the reader's hands by `_reap`
            pass
        self._settled.set()

    def _reap(self) -> None:
        """Close what the last process left: its group, its pipe, the thread that read it."""
        process, reader = self._process, self._reader
        if process is None or process.stdout is None:
            return
        try:  # a worker that outlived its supervisor would hold the pipe open
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        if reader is not None:
            reader.join(5)
        process.stdout.close()
        self._reader = None
