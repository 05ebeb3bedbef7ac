"""The bytes of a response's head."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from tidegate.protocol.dialects.http import phrase

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tidegate.protocol.dialects.http import Header

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@functools.cache
def status_line(status: int) -> bytes:
    """The first line."""
    return f"HTTP/1.1 {status} {phrase(status)}\r\n".encode("latin-1")


def fields(headers: Sequence[Header]) -> bytes:
    """Header lines. Names and values hold no line ends: what makes them sees to that."""
    return b"".join([b"%b: %b\r\n" % field for field in headers])


def informational(status: int, headers: Sequence[Header] = ()) -> bytes:
    """A whole interim response (1xx)."""
    return status_line(status) + fields(headers) + b"\r\n"


class Defaults:
    """What every response carries, rendered once: uvicorn makes another list when the date does."""

    def __init__(self) -> None:
        self._of: object = None
        self._rendered = b""

    def render(self, headers: list[Header]) -> bytes:
        """Header lines for uvicorn's default headers."""
        if headers is not self._of:
            self._of = headers
            self._rendered = fields(headers)
        return self._rendered
