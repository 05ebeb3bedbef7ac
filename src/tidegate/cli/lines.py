"""Lines about requests: made at a tenth of the cost of other log lines, for there are many.

They are gathered for a moment, and written by a thread: whoever reads them may be slow.
"""

from __future__ import annotations

import asyncio
import json
import logging
import queue
import threading
import time
from typing import TYPE_CHECKING, Final, TextIO

import msgspec

if TYPE_CHECKING:
    from tidegate.config import LogFormat
    from tidegate.transports.access import Line

GATHER: Final = 0.05
"""Seconds: what a killed process loses of its log at most, and twenty writes per second."""
MOST: Final = 20_000
"""Lines that wait for who reads them; some megabytes."""
LOGGER: Final = "tidegate.access"


class Handler(logging.StreamHandler[TextIO]):
    """Writes log lines in order; those about requests by `tell`, from one event loop."""

    def __init__(self, stream: TextIO, log_format: LogFormat, *, colors: bool) -> None:
        super().__init__(stream)
        self._render = _json if log_format == "json" else _colored if colors else _console
        self._lines: list[str] = []
        self._lost = 0
        self._gathering = False
        self._wake: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def tell(self, line: Line) -> None:
        """Write a line about a request, soon. Never waits; what is too much is lost, and told."""
        if len(self._lines) >= MOST:
            self._lost += 1
            return
        self._lines.append(self._render(_clean(line)))
        if self._gathering:
            return
        self._gathering = True
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="tidegate-log", daemon=True)
            self._thread.start()
        asyncio.get_running_loop().call_later(GATHER, self._gathered)

    def emit(self, record: logging.LogRecord) -> None:
        """See logging.Handler: what was told before comes before it."""
        self._write()
        super().emit(record)

    def close(self) -> None:
        """Write what was gathered, and write no more from the thread."""
        if self._thread is not None:
            self._wake.put(False)
            self._thread = None
        with self.lock or threading.Lock():
            self._write()
        super().close()

    def _gathered(self) -> None:
        self._gathering = False
        self._wake.put(True)

    def _work(self) -> None:
        while self._wake.get():
            with self.lock or threading.Lock():
                self._write()

    def _write(self) -> None:
        """The caller has the lock."""
        lines, self._lines = self._lines, []
        lost, self._lost = self._lost, 0
        if not lines:
            return
        if lost:
            lines.append(f"tidegate: {lost} lines about requests are lost: nobody read the log\n")
        try:
            self.stream.write("".join(lines))
            self.stream.flush()
        except (OSError, ValueError):
            pass  # nobody reads it any more, and there is nobody to tell


def _clean(line: Line) -> Line:
    """Let nothing that a client sent end a line or steer a terminal."""
    line.method = safe(line.method)
    line.path = safe(line.path)
    line.upload = line.upload and safe(line.upload)
    line.client = line.client and safe(line.client)
    if line.metadata:
        line.metadata = {safe(key): safe(value) for key, value in line.metadata.items()}
    return line


def safe(text: str) -> str:
    """A client's text, with what can't be printed spelled out."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )


def _now() -> str:
    now = time.time()
    second = int(now)
    if second != _second[0]:
        _second[:] = [second]
        _text[:] = [time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))]
    return f"{_text[0]}.{int((now - second) * 1e6):06d}Z"


_second: list[int] = [0]
_text: list[str] = [""]
"""The second that was told last, and how it is written."""


def _json(line: Line) -> str:
    fields = msgspec.json.encode(line).decode()
    return (
        f'{{"timestamp":"{_now()}","level":"info","logger":"{LOGGER}","event":"request",'
        f"{fields[1:]}\n"
    )


def _console(line: Line) -> str:
    fields = " ".join([f"{key}={_shown(value)}" for key, value in _fields(line)])
    return f"{_now()} [info] request [{LOGGER}] {fields}\n"


def _colored(line: Line) -> str:
    fields = " ".join(
        f"\x1b[36m{key}\x1b[0m=\x1b[35m{_shown(value)}\x1b[0m" for key, value in _fields(line)
    )
    return f"\x1b[2m{_now()}\x1b[0m [info] request [{LOGGER}] {fields}\n"


def _fields(line: Line) -> list[tuple[str, object]]:
    return [
        (key, value) for key in line.__struct_fields__ if (value := getattr(line, key)) is not None
    ]


def _shown(value: object) -> str:
    """A value, in quotes where it could not be told from what follows."""
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)
    if text and not any(c in text for c in ' "=\\'):
        return text
    return json.dumps(text, ensure_ascii=False)
