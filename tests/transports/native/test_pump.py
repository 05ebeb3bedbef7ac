"""Bodies that threads read from the socket itself."""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.transports.native.conftest import Dial, Wire, create, head, offset, patch

from tidegate.ports import Buffer, Digest
from tidegate.stores.local import LocalStore, LocalWriter
from tidegate.transports.body import Patience
from tidegate.transports.native.limits import Limits

pytestmark = pytest.mark.anyio

MIB = 1024 * 1024
CONTENT = bytes(range(256)) * (8 * MIB // 256)


class Held:
    """Holds a thread of the pump in the middle of a write."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached = threading.Event()
        self.go = threading.Event()
        self.written = b""
        plain = LocalWriter.write_blocking

        def write(
            writer: LocalWriter, chunks: Sequence[Buffer], digest: Digest | None = None
        ) -> None:
            self.written += b"".join(bytes(chunk) for chunk in chunks)
            self.reached.set()
            assert self.go.wait(10)
            plain(writer, chunks, digest)

        monkeypatch.setattr(LocalWriter, "write_blocking", write)


@pytest.mark.parametrize("framing", ["Content-Length: %d", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("checksum", [False, True])
async def test_a_large_body(dial: Dial, tmp_path: Path, framing: str, checksum: bool) -> None:
    wire = await dial()
    path = await create(wire, len(CONTENT))
    lines = [framing.replace("%d", str(len(CONTENT)))]
    if checksum:
        lines.append("Upload-Checksum: sha1 Xh0ZLmAZhmt0cs/bzxoKTQIbtFE=")
    chunked = "chunked" in framing
    body = CONTENT
    if chunked:
        step = 100_000
        parts = [CONTENT[at : at + step] for at in range(0, len(CONTENT), step)]
        body = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in parts) + b"0\r\n\r\n"
    await wire.send(patch(path, 0, *lines), body, head("OPTIONS", "/files/"))
    answer = await wire.head()
    if checksum:
        assert answer.startswith(b"HTTP/1.1 460 ")
        return
    assert answer.startswith(b"HTTP/1.1 204 ")
    assert (await wire.head()).startswith(b"HTTP/1.1 204 ")
    await wire.send(head("GET", path))
    await wire.head()
    while len(wire.buffer) < len(CONTENT):
        wire.buffer += await wire.stream.receive()
    assert wire.buffer == CONTENT


async def test_a_thread_never_reads_from_another_connection(
    dial: Dial, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The descriptor of a connection that is closed under a pump soon means another socket."""
    held = Held(monkeypatch)
    wire = await dial()
    path = await create(wire, 4 * MIB)
    before = set(os.listdir("/proc/self/fd"))
    await wire.send(patch(path, 0, f"Content-Length: {4 * MIB}"), b"mine" * 1024)
    await anyio.to_thread.run_sync(held.reached.wait, 10)
    # The server closes the connection while the thread is at work.
    connection = _connection_with_a_body(dial)
    number = connection.descriptor
    connection.abort()
    with anyio.fail_after(10):
        while connection.descriptor is not None:
            await anyio.sleep(0)
    # Others come; one of them gets the number, if it is free.
    pairs = [socket.socketpair() for _ in range(8)]
    numbers = [end.fileno() for pair in pairs for end in pair]
    assert number in numbers
    for one, other in pairs:
        one.setblocking(False)
        other.setblocking(False)
        one.send(b"theirs")
        other.send(b"theirs")
    held.go.set()
    assert await _stored(dial, path) == 4096
    assert b"theirs" not in held.written
    for one, other in pairs:
        assert one.recv(100) == other.recv(100) == b"theirs"
        one.close()
        other.close()
    del before


async def _stored(dial: Dial, path: str) -> int:
    return await offset(await dial(), path)


def _connection_with_a_body(dial: Any) -> Any:
    import gc

    from tidegate.transports.native.connection import Connection

    found = [
        each
        for each in gc.get_objects()
        if type(each) is Connection and each._body is not None and each.descriptor is not None
    ]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_the_last_bytes_of_a_connection_are_kept(dial: Dial, how: str) -> None:
    wire = await dial()
    path = await create(wire, 2 * len(CONTENT))
    await wire.send(patch(path, 0, f"Content-Length: {2 * len(CONTENT)}"), CONTENT)
    raw = wire.stream.extra(anyio.abc.SocketAttribute.raw_socket)
    # Once the server's kernel has it all, nothing takes any of it away, nor does a newer request.
    with anyio.fail_after(10):
        while _unsent(raw):
            await anyio.sleep(0)
    if how == "reset":
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await wire.stream.aclose()
    assert await offset(await dial(), path) == len(CONTENT)


def _unsent(raw: socket.socket) -> int:
    import fcntl

    siocoutq = 0x5411
    return int(struct.unpack("i", fcntl.ioctl(raw, siocoutq, b"\0" * 4))[0])


async def test_a_newer_request_gets_what_trickled_in(dial: Dial) -> None:
    """Also what the kernel holds back until it would be worth waking up for."""
    wire = await dial()
    path = await create(wire, 10 * MIB)
    await wire.send(patch(path, 0, f"Content-Length: {10 * MIB}", "Expect: 100-continue"))
    assert (await wire.head()).startswith(b"HTTP/1.1 100 ")
    await wire.send(b"a" * 1000)
    other = await dial()
    assert await offset(other, path) <= 1000
    assert (await wire.head()).startswith(b"HTTP/1.1 423 ")
    assert await offset(other, path) == 1000


async def test_a_body_that_stalls(dial: Dial) -> None:
    wire = await dial(
        Limits(patience=Patience(idle=0.1)),
    )
    path = await create(wire, 10)
    await wire.send(patch(path, 0, "Content-Length: 10"), b"hello")
    assert (await wire.rest()).startswith(b"HTTP/1.1 503 ")
    assert await offset(await dial(), path) == 5


async def test_a_refusal_arrives_while_the_client_still_sends(dial: Dial) -> None:
    wire = await dial()
    path = await create(wire, 10)

    async def send() -> None:
        try:
            while True:
                await wire.send(b"x" * 65536)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass

    await wire.send(patch(path, 5, f"Content-Length: {1 << 40}"))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(send)
        answer = await wire.head()
        tasks.cancel_scope.cancel()
    assert answer.startswith(b"HTTP/1.1 409 ")
    assert b"\r\nconnection: close" in answer


async def test_the_client_that_never_stops_sending_is_cut(dial: Dial) -> None:
    wire: Wire = await dial(Limits(linger=30, linger_bytes=MIB))
    path = await create(wire, 10)
    await wire.send(patch(path, 5, f"Content-Length: {1 << 40}"))
    with anyio.fail_after(10):
        try:
            while True:
                await wire.send(b"x" * 65536)
        except anyio.BrokenResourceError:
            pass


async def test_a_store_without_a_disk(dial: Dial) -> None:
    """Its bytes come through the loop."""
    from tidegate.stores.memory import MemoryStore

    wire = await dial(data=MemoryStore(64 * MIB))
    path = await create(wire, len(CONTENT))
    await wire.send(patch(path, 0, f"Content-Length: {len(CONTENT)}"), CONTENT)
    assert (await wire.head()).startswith(b"HTTP/1.1 204 ")
    await wire.send(head("GET", path))
    await wire.head()
    while len(wire.buffer) < len(CONTENT):
        wire.buffer += await wire.stream.receive()
    assert wire.buffer == CONTENT


async def test_ranges_by_the_kernel(dial: Dial) -> None:
    wire = await dial()
    path = await create(wire, len(CONTENT))
    await wire.send(patch(path, 0, f"Content-Length: {len(CONTENT)}"), CONTENT)
    await wire.head()
    await wire.send(head("GET", path, "Range: bytes=1000000-3000000", "Connection: close"))
    answer = await wire.head()
    assert answer.startswith(b"HTTP/1.1 206 ")
    assert await wire.rest() == CONTENT[1000000:3000001]
    several = await dial()
    await several.send(head("GET", path, "Range: bytes=0-1,5-6", "Connection: close"))
    answer = await several.head()
    length = int(answer.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    rest = await several.rest()
    assert len(rest) == length
    assert rest.count(b"\r\nContent-Range: bytes ") == 2


def test_the_store_is_one_to_pump_into() -> None:
    assert hasattr(LocalStore, "open_file")


# ------------------------------------------------------------------------------- splicing


@pytest.mark.parametrize("refuses", ["socket", "file"])
async def test_where_the_kernel_cannot_splice_it_copies(
    dial: Dial, monkeypatch: pytest.MonkeyPatch, refuses: str
) -> None:
    calls, real = [], os.splice

    def splice(source: int, target: int, count: int, **options: Any) -> int:
        to_file = "offset_dst" in options
        calls.append(to_file)
        if to_file == (refuses == "file"):
            raise OSError(errno.EINVAL, "injected")
        return real(source, target, count, **options)

    monkeypatch.setattr(os, "splice", splice)
    wire = await dial()
    path = await create(wire, len(CONTENT))
    await wire.send(patch(path, 0, f"Content-Length: {len(CONTENT)}"), CONTENT, head("GET", path))
    assert (await wire.head()).startswith(b"HTTP/1.1 204 ")
    assert calls
    await wire.head()
    while len(wire.buffer) < len(CONTENT):
        wire.buffer += await wire.stream.receive()
    assert wire.buffer == CONTENT


async def test_a_full_disk_while_splicing(dial: Dial, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fitted counts; what the thread had not stored goes into no other upload."""
    room, real = 3 * MIB, os.splice

    def splice(source: int, target: int, count: int, **options: Any) -> int:
        nonlocal room
        if "offset_dst" in options:
            if not room:
                raise OSError(errno.ENOSPC, "injected")
            count = min(count, room)
            room -= count
        return real(source, target, count, **options)

    monkeypatch.setattr(os, "splice", splice)
    wire = await dial()
    path = await create(wire, len(CONTENT))
    with suppress(anyio.BrokenResourceError):
        await wire.send(patch(path, 0, f"Content-Length: {len(CONTENT)}"), CONTENT)
    assert (await wire.head()).startswith(b"HTTP/1.1 507 ")
    wire = await dial()
    reached = await offset(wire, path)
    assert 0 < reached < len(CONTENT)
    room = len(CONTENT)
    rest = CONTENT[reached:]
    await wire.send(patch(path, reached, f"Content-Length: {len(rest)}"), rest, head("GET", path))
    assert (await wire.head()).startswith(b"HTTP/1.1 204 ")
    await wire.head()
    while len(wire.buffer) < len(CONTENT):
        wire.buffer += await wire.stream.receive()
    assert wire.buffer == CONTENT
