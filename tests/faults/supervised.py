"""A supervisor of two workers that do what its arguments say, one thing each, the last repeated."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tidegate.cli.errors import Failure
from tidegate.cli.workers import Supervisor, serving

if TYPE_CHECKING:
    import socket

log = logging.getLogger("supervised")
marks = Path(sys.argv[1])
plan = sys.argv[2:]


def next_number() -> int:
    """How many workers began before this one."""
    number = 0
    while True:
        try:
            (marks / str(number)).touch(exist_ok=False)
        except FileExistsError:
            number += 1
        else:
            return number


def announce() -> None:
    log.info("announced")
    (marks / "announced").touch()


def work(supervisor: socket.socket, _place: int) -> int:
    part = plan[min(next_number(), len(plan) - 1)]
    if part == "exit":
        os._exit(3)
    if part == "raise":
        raise RuntimeError("astray")
    if part == "fail":
        raise Failure("no room")
    serving(supervisor)
    if part != "serve":
        while not (marks / "announced").exists():
            time.sleep(0.01)
    if part == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if part == "stop":
        os.kill(os.getppid(), signal.SIGTERM)
    supervisor.recv(1)
    return 0


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    supervisor = Supervisor(2, work, sockets=[], announce=announce, shutdown_timeout=5)
    try:
        log.info("ended with %d", supervisor.run())
    except Failure as failure:
        log.info("failed: %s", failure)
