"""The bytes of a request, and where they go."""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

import anyio

if TYPE_CHECKING:
    from tidegate.protocol.commands import Checksum

Buffer: TypeAlias = bytes | bytearray | memoryview
Store: TypeAlias = Callable[[Sequence[Buffer]], None]
"""Stores chunks, in order; blocking, to be called from one thread at a time, not the event loop's.
What it raises ends the body's reading."""
Splice: TypeAlias = Callable[[int, int], None]
"""Stores so many bytes that are in a pipe, of which it is given the end to read from, and which
nobody needs to see. Otherwise as Store; what it leaves in the pipe when it raises is lost."""


class Sink(Protocol):
    """Where a body's bytes go."""

    async def write(self, chunks: Sequence[Buffer]) -> None:
        """Take `chunks`, in order, all or none before raising.

        The chunks belong to the sink until it returns. Whatever it raises ends the body's reading.
        """


@runtime_checkable
class DirectSink(Sink, Protocol):
    """A sink that a body may also write to from a thread of its own: what fast transports are for."""

    async def pour(self, burst: Callable[[Store, Splice | None], Awaitable[None]]) -> bool:
        """Let `burst` store what it likes from a thread of its own, without the event loop.

        It is given what stores chunks and, where that can be, what stores bytes out of a pipe. It
        may use both until it returns or raises, and raises what they raise. It returns from time to
        time, so that the sink can see to what it has stored (64 MiB, a quarter of a second). False:
        `write` is the only way now; nothing was done.
        """


class BodyEnd(enum.Enum):
    """How the reading of a body ended."""

    WHOLE = enum.auto()
    """All of it was read."""
    DROPPED = enum.auto()
    """The client went away; all that arrived was given to the sink."""
    STOPPED = enum.auto()
    """The reader was asked to stop; all that it had read was given to the sink."""
    STALLED = enum.auto()
    """The client sent nothing, or too little, for too long; all that arrived was given."""


class Body(Protocol):
    """The bytes of one request, read at most once.

    Until `copy_to` is called nothing of the body is read, and a client that sent
    `Expect: 100-continue` is not told to go on.
    """

    async def copy_to(self, sink: Sink, stop: anyio.Event) -> BodyEnd:
        """Give the body to `sink` until it ends, or until `stop` is set.

        Memory in use does not depend on the size of the body, nor on the speed of the client. When
        `stop` is set reading ends at once, whatever the client does. Raises what the sink raises.
        """

    def trailing_checksum(self) -> Checksum:
        """The checksum that the trailer brought, once `copy_to` has returned WHOLE.

        Only called when the head announced it, and the transport has Capability.TRAILERS. Raises
        Refusal when the trailer brought none, more than one, or a malformed one.
        """


class QuickBody(Body, Protocol):
    """A body of which all may be here before it is asked for."""

    def at_hand(self) -> Sequence[Buffer] | None:
        """All of it, which counts as read then. None: not yet; it is to be had by `copy_to`."""


class Digest(Protocol):
    """A running checksum, as in hashlib."""

    def update(self, data: Buffer, /) -> None:
        """Add bytes."""

    def digest(self) -> bytes:
        """The digest of all that was added."""
