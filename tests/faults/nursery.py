"""A process that has tidegate loaded and forks a server when told to: a new life costs some 30 ms.

Run as `python -m tests.faults.nursery CONFIG`, where CONFIG is JSON: `data`, `database`, `events`,
`base_path`, `transport`. It listens itself and its children accept, as the workers of a real server do, so that
a client that comes while all are dead waits for the next one.

On its standard input, one JSON array per line:

- `["start", {...}]` forks a server with these settings; answered by `started PID`.
- `["reap", PID]` waits for a child; answered by `reaped PID STATUS`, as in waitpid.

At the end of its input it kills what is left and ends.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyio import to_thread

from tidegate.cli import logs, server
from tidegate.clock import SystemClock
from tidegate.engine.core import Settings
from tidegate.metadata.sqlite.store import SQLiteMetadataStore
from tidegate.ports import Delivery, Durability
from tidegate.protocol.checksums import algorithms
from tidegate.stores.local import LocalStore
from tidegate.transports.asgi import Tidegate

if TYPE_CHECKING:
    from tidegate.events.callable import OnEvent

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class ShiftedClock:
    """A clock that is ahead, so that what takes a minute need not be waited for."""

    def __init__(self, ahead: float) -> None:
        self._ahead = ahead

    def now(self) -> float:
        return SystemClock.now() + self._ahead

    def monotonic(self) -> float:
        return SystemClock.monotonic()


def sink(path: Path) -> OnEvent:
    """A listener that writes what it is told to the end of a file, a line at once."""

    def write(line: bytes) -> None:
        # The page cache survives a kill: no sync is needed, nor would it change a thing.
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(file, line)
        finally:
            os.close(file)

    async def tell(delivery: Delivery) -> None:
        event = delivery.event
        line = json.dumps(
            {
                "sequence": delivery.sequence,
                "type": event.type,
                "id": event.upload.id,
                "state": event.upload.state,
                "offset": event.upload.offset,
            }
        )
        await to_thread.run_sync(write, line.encode() + b"\n")

    return tell


def application(
    config: dict[str, Any], *, clock_ahead: float = 0.0, expire_after: float | None, **settings: Any
) -> Tidegate:
    """The server of one life."""
    if "durability" in settings:
        settings["durability"] = Durability(settings["durability"])
    return Tidegate(
        LocalStore(Path(config["data"])),
        SQLiteMetadataStore(Path(config["database"])),
        base_path=config["base_path"],
        relative_location=True,
        expire_after=expire_after,
        settings=Settings(**settings),
        on_event=[sink(Path(config["events"]))],
        accept_upgrade=True,
        clock=ShiftedClock(clock_ahead),
    )


def _live(listener: socket.socket, config: dict[str, Any], settings: dict[str, Any]) -> int:
    logs.configure("warning", "console")
    return server.run(
        application(config, **settings),
        [listener],
        announce=lambda: None,
        tls=None,
        transport=config["transport"],
        shutdown_timeout=5.0,
    )


def _fork(listener: socket.socket, config: dict[str, Any], settings: dict[str, Any]) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == parent:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, 0)
            os.dup2(2, 1)
            status = _live(listener, config, settings)
    except BaseException:  # noqa: BLE001 - a child must never come back from here
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(status)


def main(argument: str) -> None:
    config = json.loads(argument)
    algorithms()  # imports what verifies checksums, once for all lives
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        print("port", listener.getsockname()[1], flush=True)
        children = set()
        try:
            for line in sys.stdin:
                verb, what = json.loads(line)
                if verb == "start":
                    pid = _fork(listener, config, what)
                    children.add(pid)
                    print("started", pid, flush=True)
                else:
                    pid, status = os.waitpid(what, 0)
                    children.discard(pid)
                    print("reaped", pid, status, flush=True)
        finally:
            for pid in children:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


if __name__ == "__main__":
    main(sys.argv[1])
