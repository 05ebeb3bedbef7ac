"""Downloads: pieces of a file, sent by the kernel where it can."""

from __future__ import annotations

import asyncio
import os
import select
import time
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Final

import anyio

from tidegate.ports import DataError
from tidegate.transports.native.pump import BURST_SECONDS, FAST, LINGER_MS
from tidegate.transports.service import log

if TYPE_CHECKING:
    from tidegate.ports import OpenFile
    from tidegate.protocol.dialects.downloads import Piece
    from tidegate.protocol.model import Upload
    from tidegate.transports.access import Sent
    from tidegate.transports.native.connection import Connection
    from tidegate.transports.service import Answer

STEP: Final = 4 * 1024 * 1024
"""Bytes per system call: between two of them a thread looks at its time."""


async def send(connection: Connection, head: bytes, answer: Answer, sent: Sent) -> None:
    """Send `head` and an answer's pieces; `sent` tells how far it got.

    The head says how much will come: to break off is the only way to say that this is not all.
    """
    upload = answer.upload
    if upload is None:
        raise AssertionError
    connection.transport.write(head)
    try:
        file = await connection.open_file(upload, max(piece.stop for piece in answer.pieces))
        if file is None:
            sent.whole = await _through_the_loop(connection, upload, answer, sent)
        else:
            try:
                sent.whole = await _by_the_kernel(connection, file, answer, sent)
            finally:
                await connection.in_thread(file.close)
    except DataError as error:
        log.error("upload %s cannot be read: %s", upload.id, error)
        sent.whole = False
    if not sent.whole:
        connection.abort()


async def _through_the_loop(
    connection: Connection, upload: Upload, answer: Answer, sent: Sent
) -> bool:
    transport = connection.transport
    for piece in answer.pieces:
        transport.write(piece.before)
        sent.bytes += len(piece.before)
        chunks = connection.read(upload, piece.start, piece.stop)
        try:
            async for chunk in chunks:
                if transport.is_closing():
                    return False
                transport.write(chunk)
                sent.bytes += len(chunk)
                await connection.drained()
        finally:
            if isinstance(chunks, AsyncGenerator):
                with anyio.CancelScope(shield=True):
                    await chunks.aclose()
    transport.write(answer.after)
    sent.bytes += len(answer.after)
    return True


async def _by_the_kernel(
    connection: Connection, file: OpenFile, answer: Answer, sent: Sent
) -> bool:
    for piece in answer.pieces:
        connection.transport.write(piece.before)
        sent.bytes += len(piece.before)
        if not await _send_piece(connection, file, piece, sent):
            return False
    connection.transport.write(answer.after)
    sent.bytes += len(answer.after)
    return True


async def _send_piece(connection: Connection, file: OpenFile, piece: Piece, sent: Sent) -> bool:
    """Send a piece in bursts; False: the client is gone."""
    at = piece.start
    # What was written before must be in the kernel first.
    await connection.flushed()
    while at < piece.stop:
        fd = connection.duplicate()
        if fd < 0:
            return False
        before = at
        at, gone = await connection.in_thread(_burst, fd, file, at, piece.stop)
        sent.bytes += at - before
        if gone:
            return False
        if at < piece.stop and not await _writable(connection):
            return False
    return True


def _burst(fd: int, file: OpenFile, at: int, stop: int) -> tuple[int, bool]:
    """Send what the socket takes, for a while; where to go on, and whether the client is gone.

    Blocking. `fd` is closed at the end. Raises DataError.
    """
    until = time.monotonic() + BURST_SECONDS
    began = at
    try:
        with file.use() as source:
            while at < stop:
                try:
                    count = os.sendfile(fd, source, at, min(STEP, stop - at))
                except BlockingIOError:
                    if at - began < FAST or not _takes_more_soon(fd):
                        return at, False
                    continue
                except OSError:
                    return at, True
                if not count:
                    raise DataError(f"the file ends at {at}, before {stop}")
                at += count
                if time.monotonic() >= until:
                    return at, False
    finally:
        os.close(fd)
    return at, False


def _takes_more_soon(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(LINGER_MS))


async def _writable(connection: Connection) -> bool:
    """Wait until the socket takes more; False: the client does not read, or is gone."""
    loop = asyncio.get_running_loop()
    fd = connection.duplicate()
    if fd < 0:
        return False
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_writer(fd, _set, ready)
    try:
        async with asyncio.timeout(connection.limits.unread):
            await ready
    except TimeoutError:
        return False
    finally:
        loop.remove_writer(fd)
        os.close(fd)
    return connection.descriptor is not None


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
