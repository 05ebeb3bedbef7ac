"""Bodies as they lie on the wire: counted bytes, or chunks (RFC 9112, 7.1).

Bytes in, views of the same bytes out; nothing is copied but what a chunk's head or the trailer is
made of. Both may be used in a thread, by one at a time.
"""

from __future__ import annotations

import enum
import re
from typing import TYPE_CHECKING, Final, Protocol

from tidegate.transports.native.parser import Rejected, parse_trailers

if TYPE_CHECKING:
    from tidegate.protocol.dialects.http import Header

LINE: Final = 256
"""Bytes of a chunk's size with its extensions: a size has 16 at most, and no client that we know
sends extensions; whoever does so to keep us busy is told to stop."""
EXTENSIONS: Final = 16 * 1024
"""Bytes of extensions in one body."""
TRAILERS: Final = 8 * 1024
"""Bytes of the trailer section, which holds a checksum."""

# chunk = chunk-size [ chunk-ext ] CRLF; the size has as many digits as an offset, or zeros before.
_SIZE: Final = re.compile(rb"0*([0-9A-Fa-f]{1,15})((?:[ \t]*;[^\x00-\x08\x0a-\x1f\x7f]*)?)")


class Framer(Protocol):
    """Takes a body out of its frame."""

    done: bool
    """All of the body was read."""
    rest: bytes
    """What came after it."""
    trailers: list[Header]

    def feed(self, data: bytes | memoryview) -> list[memoryview]:
        """What of `data` is content. Raises Rejected when it is not what it should be."""

    def want(self, most: int) -> int:
        """How many of `most` bytes may be read without getting hold of another request's."""


class Counted:
    """A body of a known length."""

    __slots__ = ("done", "left", "rest", "trailers")

    def __init__(self, length: int) -> None:
        self.left = length
        self.done = length == 0
        self.rest = b""
        self.trailers: list[Header] = []

    def feed(self, data: bytes | memoryview) -> list[memoryview]:
        """See Framer."""
        view = memoryview(data)
        size = len(view)
        if size > self.left:
            self.rest += view[self.left :]
            view = view[: self.left]
            size = self.left
        self.left -= size
        self.done = not self.left
        return [view] if size else []

    def want(self, most: int) -> int:
        """See Framer."""
        return min(most, self.left)

    def skip(self, size: int) -> None:
        """So many bytes of it, at most those that are left, were taken without being looked at."""
        self.left -= size
        self.done = not self.left


class _State(enum.Enum):
    SIZE = enum.auto()
    DATA = enum.auto()
    AFTER_DATA = enum.auto()
    TRAILERS = enum.auto()


class Chunked:
    """A body in chunks."""

    __slots__ = ("_extensions", "_left", "_line", "_state", "done", "rest", "trailers")

    def __init__(self) -> None:
        self._state = _State.SIZE
        self._left = 0
        """Bytes of this chunk that are still to come."""
        self._line = b""
        """The beginning of what is no content and not complete yet."""
        self._extensions = 0
        self.done = False
        self.rest = b""
        self.trailers: list[Header] = []

    def want(self, most: int) -> int:
        """See Framer. Of a chunk's frame, and what follows the body, `rest` takes care."""
        return most

    def feed(self, data: bytes | memoryview) -> list[memoryview]:
        """See Framer."""
        view = memoryview(data)
        found: list[memoryview] = []
        at = 0
        try:
            while at < len(view) and not self.done:
                at = self._step(view, at, found)
        except Rejected as rejected:
            rejected.before = found
            raise
        if self.done:
            self.rest += view[at:]
        return found

    def _step(self, view: memoryview, at: int, found: list[memoryview]) -> int:
        """Take in what one state can; where to go on."""
        if self._state is _State.SIZE:
            return self._size(view, at)
        if self._state is _State.AFTER_DATA:
            return self._after_data(view, at)
        if self._state is _State.TRAILERS:
            return self._trailers(view, at)
        piece = view[at : at + self._left]
        found.append(piece)
        self._left -= len(piece)
        if not self._left:
            self._state = _State.AFTER_DATA
        return at + len(piece)

    def _gather(self, view: memoryview, at: int, end: bytes, most: int, what: str) -> int:
        """Add to `_line` up to and with `end`; where it goes on, and `_line` is whole by then."""
        had = len(self._line)
        line = self._line + view[at : at + most - had + 1]
        found = line.find(end, max(0, had - len(end) + 1))
        if (found if found >= 0 else len(line)) + len(end) > most:
            raise Rejected(400, f"{what}: more than {most} bytes")
        self._line = line if found < 0 else line[: found + len(end)]
        return at + len(self._line) - had

    def _after_data(self, view: memoryview, at: int) -> int:
        had = len(self._line)
        self._line += view[at : at + 2 - had]
        if not b"\r\n".startswith(self._line):
            raise Rejected(400, "a chunk is longer than it says")
        at += len(self._line) - had
        if len(self._line) == 2:
            self._line = b""
            self._state = _State.SIZE
        return at

    def _size(self, view: memoryview, at: int) -> int:
        at = self._gather(view, at, b"\n", LINE, "the head of a chunk")
        if not self._line.endswith(b"\n"):
            return at
        line, self._line = self._line, b""
        # A lone LF ends nothing: what takes it for an end sees other chunks than we do.
        match = _SIZE.fullmatch(line[:-2]) if line.endswith(b"\r\n") else None
        if match is None:
            raise Rejected(400, "a chunk's size: expected hexadecimal digits, and CRLF")
        self._extensions += len(match[2])
        if self._extensions > EXTENSIONS:
            raise Rejected(400, f"chunk extensions: more than {EXTENSIONS} bytes")
        self._left = int(match[1], 16)
        self._state = _State.DATA if self._left else _State.TRAILERS
        return at

    def _trailers(self, view: memoryview, at: int) -> int:
        # The empty line follows the last chunk at once, or a field's end.
        if self._line in {b"", b"\r"}:
            first = bytes(view[at : at + 2 - len(self._line)])
            if (self._line + first) == b"\r\n":
                self.done = True
                return at + len(first)
            if (self._line + first) == b"\r":
                self._line = b"\r"
                return at + len(first)
        at = self._gather(view, at, b"\r\n\r\n", TRAILERS, "the trailers")
        if self._line.endswith(b"\r\n\r\n"):
            self.trailers = parse_trailers(self._line)
            self.done = True
        elif b"\n" in self._line.replace(b"\r\n", b""):
            raise Rejected(400, "the trailers: a line feed without a carriage return")
        return at


if TYPE_CHECKING:
    _: type[Framer] = Counted
    __: type[Framer] = Chunked
