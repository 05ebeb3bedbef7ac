"""What only bytes on a socket show: 100 Continue, framing, pipelining, connections that break.

Over `tidegate serve` as a process, over its protocol in this process, and over what a framework's
server uses by default.
"""

from __future__ import annotations

import re
import socket
import struct
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import pytest
from tests.support.exchange import PATIENCE, STREAM, Reply, SocketClient
from tests.support.server import ServerProcess
from tests.support.serving import in_memory, listening

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from anyio.abc import SocketStream

pytestmark = pytest.mark.anyio

SERVERS = ("serve", "serve-asgi", "h11", "httptools", "native")


class Connection:
    """One connection, spoken to in bytes."""

    def __init__(self, stream: SocketStream) -> None:
        self.stream = stream
        self.buffer = b""

    async def send(self, *parts: bytes) -> None:
        await self.stream.send(b"".join(parts))

    async def _until(self, end: bytes) -> bytes:
        while end not in self.buffer:
            self.buffer += await self.stream.receive()
        found, _, self.buffer = self.buffer.partition(end)
        return found

    async def reply(self, *, of: str = "") -> Reply:
        """The next answer, 100 included; `of` HEAD it has no body."""
        with anyio.fail_after(PATIENCE):
            head = (await self._until(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head.split("\r\n")
            status = int(first.split(" ")[1])
            headers = [(n.lower(), v.strip()) for n, _, v in (x.partition(":") for x in lines)]
            reply = Reply(status, headers)
            if of == "HEAD" or status in (100, 204, 304):
                return reply
            if "content-length" not in reply:
                # A server's own refusal, which ends with the connection.
                assert reply["connection"] == "close"
                return reply
            length = int(reply["content-length"])
            while len(self.buffer) < length:
                self.buffer += await self.stream.receive()
            reply.body, self.buffer = self.buffer[:length], self.buffer[length:]
        return reply

    async def closed(self) -> bool:
        """Whether the server closes, with nothing more to say."""
        with anyio.fail_after(PATIENCE):
            try:
                return not self.buffer and not await self.stream.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                return True

    async def reset(self) -> None:
        """Go away without a word: RST."""
        raw = self.stream.extra(anyio.abc.SocketAttribute.raw_socket)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await self.stream.aclose()


class Wire(SocketClient):
    """A server, and raw connections to it."""

    keeps_upgraded = True

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        async with await self.connect() as stream:
            yield Connection(stream)


# In use or not, so that it is there before the guards look at what is open.
@pytest.fixture(scope="module", autouse=True)
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path_factory.mktemp("served")) as server:
        yield server


@pytest.fixture(scope="module", autouse=True)
def asgi_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path_factory.mktemp("served"), "--transport", "asgi") as server:
        yield server


@pytest.fixture(params=SERVERS)
async def wire(request: pytest.FixtureRequest) -> AsyncIterator[Wire]:
    if request.param in {"serve", "serve-asgi"}:
        server = "process" if request.param == "serve" else "asgi_process"
        client = Wire("127.0.0.1", request.getfixturevalue(server).port)
        yield client
        await client.aclose()
        return
    upgradable = request.param != "httptools"
    async with (
        in_memory(base_path="/files/", accept_upgrade=upgradable) as app,
        listening(app, request.param) as port,
    ):
        client = Wire("127.0.0.1", port)
        client.keeps_upgraded = upgradable
        yield client
        await client.aclose()


def head(method: str, path: str, **headers: str) -> bytes:
    """The head of a request of tus."""
    fields = {"Host": "tus.test", "Tus-Resumable": "1.0.0"} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    lines = [f"{method} {path} HTTP/1.1", *(f"{n}: {v}" for n, v in fields.items() if v != "-")]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def patch(path: str, offset: int, length: int | None, **headers: str) -> bytes:
    framing = (
        {"Transfer-Encoding": "chunked"} if length is None else {"Content-Length": str(length)}
    )
    given = {"Content-Type": STREAM, "Upload-Offset": str(offset)} | framing | headers
    return head("PATCH", path, **given)


# --------------------------------------------------------------------------------- 100 Continue


@pytest.mark.parametrize(
    ("status", "changed"),
    [
        (409, {"Upload_Offset": "3"}),
        (412, {"Tus_Resumable": "0.2.2"}),
        (413, {"Content_Length": "11"}),
        (415, {"Content_Type": "text/plain"}),
        (400, {"Upload_Checksum": "sha1 AAAA"}),
        (400, {"Upload_Length": "7"}),
        (404, {}),
    ],
)
async def test_a_refusal_comes_in_place_of_100(
    wire: Wire, status: int, changed: dict[str, str]
) -> None:
    path = await wire.create(10) if changed else "/files/none"
    fields = {"Content_Type": STREAM, "Upload_Offset": "0", "Content_Length": "5"} | changed
    async with wire.connection() as connection:
        await connection.send(head("PATCH", path, Expect="100-continue", **fields))
        assert (await connection.reply()).status == status
    if changed:
        assert await wire.offset(path) == 0


async def test_an_accepted_request_is_told_to_go_on(wire: Wire) -> None:
    path = await wire.create(5)
    async with wire.connection() as connection:
        await connection.send(patch(path, 0, 5, Expect="100-continue"))
        assert (await connection.reply()).status == 100
        await connection.send(b"hello")
        assert (await connection.reply())["Upload-Offset"] == "5"
        await connection.send(head("HEAD", path))
        assert (await connection.reply(of="HEAD"))["Upload-Offset"] == "5"


async def test_after_a_refusal_in_place_of_100_nothing_is_taken_for_a_body(wire: Wire) -> None:
    """The client either closes or sends the body; the upload is none the wiser."""
    path = await wire.create(5)
    async with wire.connection() as connection:
        await connection.send(patch(path, 1, 4, Expect="100-continue"))
        assert (await connection.reply()).status == 409
        await connection.send(b"ello", head("HEAD", path))
        try:
            reply = await connection.reply(of="HEAD")
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            pass  # closed is as good
        else:
            assert (reply.status, reply["Upload-Offset"]) == (200, "0")
    assert await wire.offset(path) == 0


# ---------------------------------------------------------------------------------- connections


async def test_a_connection_is_kept_after_a_refusal(wire: Wire) -> None:
    path = await wire.create(10)
    async with wire.connection() as connection:
        for _ in range(3):
            await connection.send(patch(path, 3, 5), b"hello")
            assert (await connection.reply()).status == 409
        await connection.send(patch(path, 0, 5), b"hello")
        assert (await connection.reply())["Upload-Offset"] == "5"
        await connection.send(patch(path, 0, None), b"5\r\nhello\r\n0\r\n\r\n")
        assert (await connection.reply()).status == 409
        await connection.send(head("HEAD", path))
        assert (await connection.reply(of="HEAD"))["Upload-Offset"] == "5"


async def test_a_refused_head_leaves_the_framing_whole(wire: Wire) -> None:
    async with wire.connection() as connection:
        for _ in range(2):
            await connection.send(head("HEAD", "/files/none"))
            assert (await connection.reply(of="HEAD")).status == 404
        await connection.send(head("OPTIONS", "/files/"))
        assert (await connection.reply()).status == 204


async def test_a_refusal_is_readable_after_sending_it_all(wire: Wire) -> None:
    """A client that reads only when it has sent its body: many do."""
    path = await wire.create(10)
    size = 32 * 1024 * 1024
    async with wire.connection() as connection:
        await connection.send(patch(path, 0, size))
        with anyio.fail_after(PATIENCE):
            for _ in range(size // 2**20):
                await connection.send(bytes(2**20))
        reply = await connection.reply()
        assert reply.status == 413
        if reply.all("connection") != ["close"]:
            await connection.send(head("HEAD", path))
            assert (await connection.reply(of="HEAD"))["Upload-Offset"] == "0"
    assert await wire.offset(path) == 0


async def test_pipelined_requests_are_answered_in_order(wire: Wire) -> None:
    path = await wire.create(10)
    async with wire.connection() as connection:
        await connection.send(
            patch(path, 0, 5),
            b"hello",
            head("HEAD", path),
            patch(path, 3, 2),
            b"xx",
            patch(path, 5, None),
            b"5\r\nworld\r\n0\r\n\r\n",
            head("GET", path),
        )
        assert (await connection.reply())["Upload-Offset"] == "5"
        assert (await connection.reply(of="HEAD"))["Upload-Offset"] == "5"
        assert (await connection.reply()).status == 409
        assert (await connection.reply())["Upload-Offset"] == "10"
        assert (await connection.reply()).body == b"helloworld"


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_broken_connection_keeps_what_arrived(wire: Wire, how: str) -> None:
    path = await wire.create(1_000_000)
    async with wire.connection() as connection:
        await connection.send(patch(path, 0, 1_000_000, Expect="100-continue"))
        assert (await connection.reply()).status == 100
        await connection.send(b"hello" * 1000)
        if how == "reset":
            # What the kernel had not handed over when the reset came is lost.
            await anyio.wait_all_tasks_blocked()
            await connection.reset()
            await wire.until(path, lambda head: int(head["Upload-Offset"]) <= 5000)
        else:
            await connection.stream.send_eof()
            await wire.until(path, lambda head: head["Upload-Offset"] == "5000")
    offset = await wire.offset(path)
    rest = (b"hello" * 200_000)[offset:]
    assert (await wire.patch(path, offset, rest)).status == 204
    assert await wire.content(path) == b"hello" * 200_000


async def test_a_client_comes_back_at_once(wire: Wire) -> None:
    """Its old connection is still open, as a proxy or a NAT may leave it."""
    path = await wire.create(10)
    async with wire.connection() as old:
        await old.send(patch(path, 0, 10, Expect="100-continue"))
        assert (await old.reply()).status == 100
        await old.send(b"hello")
        began = anyio.current_time()
        await wire.until(path, lambda head: head["Upload-Offset"] == "5")
        assert (await wire.patch(path, 5, b"world")).status == 204
        assert anyio.current_time() - began < 5
        assert (await old.reply()).status == 423
    assert await wire.content(path) == b"helloworld"


# --------------------------------------------------------------------------------------- framing


async def test_a_request_that_dribbles(wire: Wire) -> None:
    path = await wire.create(5)
    async with wire.connection() as connection:
        for byte in (
            patch(path, 0, None) + b"1\r\nh\r\n004;x=y\r\nello\r\n0\r\nX-Trailer: 1\r\n\r\n"
        ):
            await connection.send(bytes([byte]))
        assert (await connection.reply())["Upload-Offset"] == "5"
    assert await wire.content(path) == b"hello"


async def test_an_old_client(wire: Wire) -> None:
    path = await wire.create(5)
    request = patch(path, 0, 5).replace(b"HTTP/1.1", b"HTTP/1.0")
    async with wire.connection() as connection:
        await connection.send(request, b"hello")
        assert (await connection.reply())["Upload-Offset"] == "5"
        assert await connection.closed()


async def test_a_target_in_absolute_form(wire: Wire) -> None:
    path = await wire.create(5)
    async with wire.connection() as connection:
        await connection.send(head("HEAD", f"http://tus.test{path}"))
        assert (await connection.reply(of="HEAD"))["Upload-Offset"] == "0"
        await connection.send(head("POST", "http://tus.test/files", Upload_Length="5"))
        reply = await connection.reply()
        assert re.fullmatch(r"http://tus.test/files/[\w-]{22}", reply["Location"])


@pytest.mark.parametrize("protocol", ["h2c", "websocket", "TLS/1.0, h2c"])
async def test_a_body_with_upgrade_is_kept_or_refused(wire: Wire, protocol: str) -> None:
    """Lost, it would be read as another request."""
    path = await wire.create(60)
    body = head("DELETE", path).ljust(60)[:60]
    upgrade = {"Upgrade": protocol, "Connection": "Upgrade, HTTP2-Settings"}
    async with wire.connection() as connection:
        await connection.send(patch(path, 0, 60, **upgrade), body)
        reply = await connection.reply()
        if wire.keeps_upgraded:
            assert (reply.status, reply["Upload-Offset"]) == (204, "60")
            await connection.send(head("HEAD", path))
            assert (await connection.reply(of="HEAD"))["Upload-Offset"] == "60"
        else:
            assert reply.status == 400
    if wire.keeps_upgraded:
        assert await wire.content(path) == body
    else:
        assert await wire.offset(path) == 0


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET\r\n\r\n",
        b"PATCH /files/x HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
        b"PATCH /files/x HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST /files/ HTTP/1.1\r\nHost: a\r\nbad header\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_answered_by_400(wire: Wire, garbage: bytes) -> None:
    async with wire.connection() as connection:
        await connection.send(garbage)
        await connection.stream.send_eof()
        data = b""
        with anyio.fail_after(PATIENCE):
            try:
                while True:
                    data += await connection.stream.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                pass
        assert not data or re.match(rb"HTTP/1.1 4\d\d ", data)
    assert (await wire.request("OPTIONS", wire.base)).status == 204


@pytest.mark.parametrize("coding", ["gzip", "gzip, chunked", "identity"])
async def test_another_transfer_coding_is_never_stored(wire: Wire, coding: str) -> None:
    path = await wire.create(10)
    request = patch(path, 0, None).replace(b"chunked", coding.encode())
    async with wire.connection() as connection:
        await connection.send(request, b"5\r\nhello\r\n0\r\n\r\n")
        assert (await connection.reply()).status in (400, 501)
    assert await wire.offset(path) == 0


async def test_a_long_head(wire: Wire) -> None:
    part = await wire.whole(b"ab", Upload_Concat="partial")
    async with wire.connection() as connection:
        parts = " ".join([part] * 1500)
        await connection.send(head("POST", "/files/", Upload_Concat=f"final;{parts}"))
        reply = await connection.reply()
    assert reply.status == 201
