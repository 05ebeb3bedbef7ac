"""Lines about requests: made at a tenth of the cost of other log lines, for there are many.

A few at a time become bytes: one by one they take longer, and where many wait as objects, those
push what requests work with out of the processor's cache. They are gathered for a moment, and
written by a thread: whoever reads them may be slow.
"""

from __future__ import annotations

import asyncio
import json
import logging
import queue
import threading
from typing import TYPE_CHECKING, Final, TextIO

import msgspec

from tidegate.cli.errors import printable

if TYPE_CHECKING:
    from tidegate.config import LogFormat
    from tidegate.transports.access import Line

GATHER: Final = 0.05
"""Seconds: what a killed process loses of its log at most, and twenty writes per second."""
TOGETHER: Final = 32
"""Lines that become bytes at once."""
MOST: Final = 20_000
"""Lines that wait for who reads them; some megabytes."""
LOGGER: Final = "tidegate.access"


class Handler(logging.StreamHandler[TextIO]):
    """Writes log lines in order; those about requests by `tell`, from one event loop."""

    def __init__(self, stream: TextIO, log_format: LogFormat, *, colors: bool) -> None:
        super().__init__(stream)
        self._render = _json if log_format == "json" else _colored if colors else _console
        self._lines: list[Line] = []
        """The latest; those before them are in `_rendered`."""
        self._rendered: list[bytes] = []
        """Of TOGETHER lines each."""
        self._lost = 0
        self._gathering = False
        self._wake: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def tell(self, line: Line) -> None:
        """Write a line about a request, soon. Never waits; what is too much is lost, and told."""
        if len(self._rendered) * TOGETHER + len(self._lines) >= MOST:
            self._lost += 1
            return
        self._lines.append(line)
        if len(self._lines) >= TOGETHER:
            lines, self._lines = self._lines, []
            rendered = self._render(lines)
            # Meanwhile the thread may have taken what there was: not in one expression.
            self._rendered.append(rendered)
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
        # Nothing is called between these: no other thread can come and tell of more.
        rendered, self._rendered = self._rendered, []
        lines, self._lines = self._lines, []
        lost, self._lost = self._lost, 0
        if lines:
            rendered.append(self._render(lines))
        if not rendered:
            return
        try:
            # What is in the text layer is older.
            self.stream.flush()
            buffer = getattr(self.stream, "buffer", None)
            if buffer is None:
                self.stream.write(b"".join(rendered).decode())
            else:
                buffer.write(b"".join(rendered))
                buffer.flush()
        except (OSError, ValueError):
            return  # nobody reads it any more, and there is nobody to tell
        if lost:
            record = {"name": LOGGER, "levelno": logging.WARNING, "levelname": "WARNING"}
            text = f"{lost} lines about requests are lost: the log is read too slowly"
            super().emit(logging.makeLogRecord({**record, "msg": text}))


def _clean(line: Line) -> Line:
    """Let nothing that a client sent end a line or steer a terminal."""
    line.method = printable(line.method)
    line.path = printable(line.path)
    line.upload = line.upload and printable(line.upload)
    line.client = line.client and printable(line.client)
    if line.metadata:
        line.metadata = {printable(key): printable(value) for key, value in line.metadata.items()}
    return line


def _json(lines: list[Line]) -> bytes:
    encoded = b"\n" + _ENCODER.encode_lines(lines)
    # What is safe as it is, and that is nearly all, is seen at once.
    if b"\\" in encoded or b"\x7f" in encoded or not encoded.isascii():
        encoded = b"\n" + _ENCODER.encode_lines([_clean(line) for line in lines])
    # Which is done in half the time that `replace` takes.
    return _BEGIN.join(encoded.split(b"\n{"))[1:]


_ENCODER: Final = msgspec.json.Encoder()
_BEGIN: Final = b'\n{"event":"request","level":"info","logger":"%b",' % LOGGER.encode()


def _console(lines: list[Line]) -> bytes:
    return "".join([_line(line, "{}={}") for line in lines]).encode()


def _colored(lines: list[Line]) -> bytes:
    return "".join([_line(line, "\x1b[36m{}\x1b[0m=\x1b[35m{}\x1b[0m") for line in lines]).encode()


def _line(line: Line, field: str) -> str:
    _clean(line)
    at = line.timestamp.isoformat().replace("+00:00", "Z")
    fields = [
        field.format(key, _shown(value))
        for key in line.__struct_fields__[1:]
        if (value := getattr(line, key)) is not None
    ]
    return f"{at} {_WHAT} {' '.join(fields)}\n"


_WHAT: Final = f"[info] request [{LOGGER}]"


def _shown(value: object) -> str:
    """A value, in quotes where it could not be told from what follows."""
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)
    if text and not any(c in text for c in ' "=\\'):
        return text
    return json.dumps(text, ensure_ascii=False)
