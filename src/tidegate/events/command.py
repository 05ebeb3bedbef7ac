"""A command that is run for each event."""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import subprocess
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Final

import anyio

from tidegate.events.callable import TIMEOUT
from tidegate.events.payload import payload
from tidegate.ports import Delivery, DeliveryError
from tidegate.protocol.model import STORED_EVENTS, EventType

if TYPE_CHECKING:
    from anyio.abc import Process

    from tidegate.ports import EventSink

OUTPUT_BYTES: Final = 4096
"""How much of what a command says last is kept, and logged."""
LINGER: Final = 0.5
"""Seconds that output is waited for once the command has ended: something that it started, and left
running, may hold it open."""

log = logging.getLogger("tidegate.events")


class CommandSink:
    """Runs a command for each event, with the event (`payload`) on its standard input.

    No shell is asked. Its environment is the server's without what begins with TIDEGATE_ (which may
    hold secrets), with TIDEGATE_EVENT (the type), TIDEGATE_EVENT_KEY (the idempotency key) and
    TIDEGATE_UPLOAD_ID. Exit code 0 takes the event. When the time is up (`timeout`, in seconds) or
    the server stops, the command is killed, with all of its process group. Raises ValueError for a
    command of no words.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        name: str | None = None,
        types: Collection[EventType] = STORED_EVENTS,
        timeout: float = TIMEOUT,
    ) -> None:
        if not command:
            raise ValueError("a command has at least one word")
        self.name = name or command_name(command)
        self.types = frozenset(types)
        self.timeout = timeout
        self._command = list(command)

    async def open(self) -> None:
        """There is nothing to open."""

    async def close(self) -> None:
        """Nor to close."""

    async def deliver(self, delivery: Delivery) -> None:
        """Run it once. Raises DeliveryError."""
        code, output = await self._run(delivery)
        said = output.decode(errors="replace").strip()
        if code == 0:
            if said:
                log.info("%s, event %d: %s", self.name, delivery.sequence, said)
            return
        how = f"was killed by {_signal(-code)}" if code < 0 else f"ended with {code}"
        raise DeliveryError(f"{how}{said and f', and said: {said}'}")

    async def _run(self, delivery: Delivery) -> tuple[int, bytes]:
        """Its exit code (less than 0: of a signal), and the last that it said."""
        # A pipe of our own: asyncio's would stay open as long as anyone has its other end.
        reading, writing = os.pipe()
        try:
            os.set_blocking(reading, False)
            try:
                # Shielded: cancelled in the middle, it would be killed without its group.
                with anyio.CancelScope(shield=True):
                    process = await anyio.open_process(
                        self._command,
                        stdin=subprocess.PIPE,
                        stdout=writing,
                        stderr=subprocess.STDOUT,
                        env=_environment(delivery),
                        start_new_session=True,
                    )
            except OSError as error:
                raise DeliveryError(f"cannot be started: {error.strerror}") from error
            finally:
                os.close(writing)
            return await _attend(process, payload(delivery), reading)
        finally:
            os.close(reading)


def command_name(command: Sequence[str]) -> str:
    """What a command is called unless it has a name: its first word, and what tells it from others.

    The others may hold a password.
    """
    digest = hashlib.sha256("\0".join(command).encode()).hexdigest()[:8]
    word = "".join(c if c.isalnum() and c.isascii() else "-" for c in os.path.basename(command[0]))
    return f"command-{word[:60]}-{digest}"


def _environment(delivery: Delivery) -> dict[str, str]:
    event = delivery.event
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TIDEGATE_")}
    return kept | {
        "TIDEGATE_EVENT": event.type.value,
        "TIDEGATE_EVENT_KEY": delivery.key,
        "TIDEGATE_UPLOAD_ID": event.upload.id,
    }


async def _attend(process: Process, body: bytes, reading: int) -> tuple[int, bytes]:
    """Feed a command and hear it out; kill it when that is cancelled."""
    output = bytearray()
    async with process:
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_write, process, body)
                tasks.start_soon(_read, reading, output)
                code = await process.wait()
                tasks.cancel_scope.deadline = anyio.current_time() + LINGER
        except BaseException:
            _kill(process)
            raise
    return code, bytes(output)


async def _write(process: Process, body: bytes) -> None:
    if process.stdin is None:
        raise AssertionError
    try:
        await process.stdin.send(body)
        await process.stdin.aclose()
    except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
        pass  # it need not read what it is told


async def _read(reading: int, output: bytearray) -> None:
    while True:
        await anyio.wait_readable(reading)
        chunk = os.read(reading, 65_536)
        if not chunk:
            return
        output += chunk
        del output[:-OUTPUT_BYTES]


def _kill(process: Process) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


if TYPE_CHECKING:
    _: type[EventSink] = CommandSink
