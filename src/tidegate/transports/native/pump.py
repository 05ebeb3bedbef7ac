"""The burst pump: a thread drains a socket straight into a writer.

While a client's bytes come, one thread reads them from the raw descriptor into a buffer of its own,
and stores them from there: no event loop, no copy, no object per piece. When they stop coming, the
connection goes back to the loop, and the thread to others.

The descriptor that a thread works on is a duplicate that it owns. So whatever becomes of the
connection meanwhile, the number can't come to mean another client's socket.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import select
import socket
import sys
import termios
import threading
import time
from typing import TYPE_CHECKING, Final

import msgspec

from tidegate.ports import BodyEnd
from tidegate.transports.native.chunked import Counted
from tidegate.transports.native.parser import Rejected

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tidegate.ports import Splice, Store
    from tidegate.transports.native.chunked import Framer

BURST_SECONDS: Final = 0.25
"""How long a thread stays with one client: what others who have none wait at most."""
BURST_BYTES: Final = 64 * 1024 * 1024
"""How much it moves for it: what the engine looks at between bursts (checkpoints, a failed sync)."""
FAST: Final = 1024 * 1024
"""Bytes in one burst that show that a client is fast, and worth waiting for, and a pipe."""
LINGER_MS: Final = 2
"""Milliseconds for which a thread waits for a fast client's next bytes: ten times what giving the
connection back to the loop and fetching it again costs."""
THREADS: Final = min(8, 2 + (os.cpu_count() or 1))
"""Copying gains nothing from more threads than cores; a disk that holds writers up does, but then
the others' clients are simply not read for a while."""
BUFFER: Final = 256 * 1024
"""Bytes that a thread takes from a socket at a time: large enough that the system calls don't
count, small enough for the processor's cache."""
NO_SPLICE: Final = frozenset({errno.EINVAL, errno.ENOSYS})
"""How the system says that it can't splice from this socket."""
PIPE: Final = 1024 * 1024
"""Bytes of a pipe: what any user may have by default (/proc/sys/fs/pipe-max-size)."""
LOW_WATER: Final = 128 * 1024
"""Bytes for which a slow client's connection is worth waking up: with every few KiB, as they come,
1,000 slow clients cost five times as much."""


_local = threading.local()


class Burst(msgspec.Struct):
    """What became of one burst."""

    moved: int = 0
    """Bytes of the connection that were read."""
    end: BodyEnd | None = None
    """DROPPED: the client went away."""
    more: bool = False
    """There was no end to it: go on."""
    rejected: Rejected | None = None
    """What came is not a body."""


def burst(
    fd: int,
    first: Sequence[bytes],
    framer: Framer,
    store: Store,
    splice: Splice | None,
    stopped: Callable[[], bool] | None,
) -> Burst:
    """Store `first`, then what can be read from `fd` (-1: nothing), which is closed at the end.

    Until `stopped`; with None only what is there already. With `splice` nobody looks at the bytes.

    Blocking. Raises what `store` raises.
    """
    done = Burst()
    try:
        for data in first:
            if pieces := framer.feed(data):
                store(pieces)
        if fd >= 0 and not framer.done:
            copy = functools.partial(_copy, fd, framer, store, _buffer())
            with contextlib.ExitStack() as stack:
                faster: Callable[[], Callable[[], int]] | None = None
                if splice is not None and isinstance(framer, Counted) and hasattr(os, "splice"):
                    splicing = _splicing(fd, framer, splice, copy)
                    faster = functools.partial(stack.enter_context, splicing)
                _drain(fd, framer, copy, faster, stopped, done)
    except Rejected as rejected:
        done.rejected = rejected
        if rejected.before:
            store(rejected.before)
    finally:
        if fd >= 0:
            os.close(fd)
    return done


def _drain(
    fd: int,
    framer: Framer,
    take: Callable[[], int],
    faster: Callable[[], Callable[[], int]] | None,
    stopped: Callable[[], bool] | None,
    done: Burst,
) -> None:
    """Move what there is by `take`, which raises BlockingIOError when there is nothing, and says how
    many bytes it took; 0 at the end. `faster` gives another for a fast client.
    """
    until = time.monotonic() + BURST_SECONDS
    most = BURST_BYTES if stopped is not None else there(fd)
    while not (framer.done or (stopped is not None and stopped())):
        try:
            count = take()
        except BlockingIOError:
            if done.moved < FAST or not _more_soon(fd):
                return
            continue
        if not count:
            done.end = BodyEnd.DROPPED
            return
        done.moved += count
        if faster is not None and done.moved >= FAST:
            take, faster = faster(), None
        if done.moved >= most or time.monotonic() >= until:
            done.more = True
            return


@contextlib.contextmanager
def _splicing(
    fd: int, framer: Counted, splice: Splice, copy: Callable[[], int]
) -> Iterator[Callable[[], int]]:
    """What takes bytes from `fd` to the store without looking at them.

    For fast clients only: to make the pipe takes as long as to copy what a slow one has sent.
    """
    # Of this burst alone: what a writer that fails leaves in it is nobody's.
    out_of, into = os.pipe2(os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            # Where a user's pipes are at their limit it stays smaller, and is as good.
            fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, PIPE)
        yield functools.partial(_splice, fd, into, out_of, framer, splice, copy)
    finally:
        os.close(into)
        os.close(out_of)


def _copy(fd: int, framer: Framer, store: Store, buffer: memoryview) -> int:
    try:
        count = os.readv(fd, [buffer[: framer.want(len(buffer))]])
    except BlockingIOError:
        raise
    except OSError:
        # Reset: the kernel says so when all that had arrived was read.
        return 0
    if pieces := framer.feed(buffer[:count]):
        store(pieces)
    return count


def _splice(
    fd: int, into: int, out_of: int, framer: Counted, splice: Splice, copy: Callable[[], int]
) -> int:
    try:
        count = os.splice(fd, into, framer.want(PIPE), flags=os.SPLICE_F_NONBLOCK)
    except BlockingIOError:
        raise
    except OSError as error:
        return copy() if error.errno in NO_SPLICE else 0
    if count:
        framer.skip(count)
        splice(out_of, count)
    return count


def _buffer() -> memoryview:
    """The calling thread's own."""
    found: memoryview | None = getattr(_local, "buffer", None)
    if found is None:
        found = _local.buffer = memoryview(bytearray(BUFFER))
    return found


def _more_soon(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(LINGER_MS))


def shut_down(fd: int) -> None:
    """Have what a thread reads from the same socket end now."""
    with socket.socket(fileno=os.dup(fd)) as connection, contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RD)


def duplicate(fd: int) -> int:
    """A descriptor of the same socket, for a thread to own."""
    return os.dup(fd)


def there(fd: int) -> int:
    """How many bytes the kernel has."""
    return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)
