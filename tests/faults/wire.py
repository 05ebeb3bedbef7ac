"""HTTP/1.1 over a raw socket, one request per connection: it knows how many bytes it really sent."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

_NOW = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends a reset


class Lost(Exception):
    """The connection ended before an answer did, or there was none."""

    def __init__(self, why: str, *, unconnected: bool = False) -> None:
        super().__init__(why)
        self.unconnected = unconnected


class Silence(Exception):
    """The connection is open, and there was no answer for too long."""


@dataclass
class Answer:
    """What a server said. Names of fields are in lower case."""

    status: int
    fields: dict[str, str]
    body: bytes = b""

    @property
    def offset(self) -> int | None:
        """Its Upload-Offset."""
        found = self.fields.get("upload-offset")
        return None if found is None else int(found)


@dataclass
class Call:
    """One request. `pieces` may pause between two pieces; `cut` sends that many bytes of them and
    then breaks the connection."""

    method: str
    path: str
    fields: dict[str, str] = field(default_factory=dict)
    pieces: AsyncIterator[bytes] | None = None
    length: int | None = 0
    """Of the body; None: chunked."""
    cut: int | None = None
    sent: int = 0
    """Bytes of the body that were given to the kernel, or may have been."""

    def head(self) -> bytes:
        lines = [f"{self.method} {self.path} HTTP/1.1", "Host: localhost", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in self.fields.items()]
        if self.pieces is not None:
            lines.append(
                "Transfer-Encoding: chunked"
                if self.length is None
                else f"Content-Length: {self.length}"
            )
        return "\r\n".join([*lines, "", ""]).encode("latin-1")


async def send(address: tuple[str, int], call: Call, *, patience: float) -> Answer:
    """Send a request and read its answer. Raises Lost; Silence after `patience` seconds of it."""
    try:
        async with asyncio.timeout(patience):
            reader, writer = await asyncio.open_connection(*address)
    except TimeoutError:
        raise Silence("cannot connect") from None
    except OSError as error:
        raise Lost(f"cannot connect: {error}", unconnected=True) from error
    try:
        async with asyncio.timeout(patience):
            return await _exchange(reader, writer, call)
    except TimeoutError:
        raise Silence(f"{call.method} {call.path}: no answer for {patience} s") from None
    except (OSError, asyncio.IncompleteReadError) as error:
        raise Lost(str(error)) from error
    finally:
        if call.cut is not None:
            with contextlib.suppress(OSError):
                _socket(writer).setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NOW)
        writer.transport.abort()


def _socket(writer: asyncio.StreamWriter) -> socket.socket:
    found: socket.socket = writer.get_extra_info("socket")
    return found


async def _exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, call: Call
) -> Answer:
    writer.write(call.head())
    reading = asyncio.ensure_future(read_answer(reader, head_only=call.method == "HEAD"))
    try:
        if call.pieces is not None:
            await _send_body(writer, call, reading)
        return await reading
    finally:
        reading.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await reading


async def _send_body(
    writer: asyncio.StreamWriter, call: Call, reading: asyncio.Future[Answer]
) -> None:
    assert call.pieces is not None
    chunked = call.length is None
    async for piece in call.pieces:
        if reading.done():  # refused, or gone
            return
        if call.cut is not None and call.sent >= call.cut:
            raise Lost("cut by the client")
        call.sent += len(piece)
        try:
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            await writer.drain()
        except OSError:
            # A refusal may have arrived before the connection was reset.
            return
    if chunked:
        writer.write(b"0\r\n\r\n")


async def read_answer(reader: asyncio.StreamReader, *, head_only: bool = False) -> Answer:
    """Raises OSError, asyncio.IncompleteReadError."""
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    answer = Answer(int(lines[0].split(" ", 2)[1]), {})
    for line in lines[1:-2]:
        name, _, value = line.partition(":")
        answer.fields[name.strip().lower()] = value.strip()
    if not head_only and answer.status not in (204, 304):
        answer.body = await _read_body(reader, answer)
    return answer


async def _read_body(reader: asyncio.StreamReader, answer: Answer) -> bytes:
    if answer.fields.get("transfer-encoding") == "chunked":
        body = b""
        while size := int(await reader.readline() or b"0", 16):
            body += await reader.readexactly(size)
            await reader.readline()
        return body
    return await reader.readexactly(int(answer.fields.get("content-length", "0")))


async def pieces(chunks: Sequence[bytes], pause: float = 0.0) -> AsyncIterator[bytes]:
    """A body, with a pause before each piece but the first."""
    for number, chunk in enumerate(chunks):
        if number and pause:
            await asyncio.sleep(pause)
        yield chunk
