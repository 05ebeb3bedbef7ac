"""What uvicorn's h11 protocol leaves to the client, ours does not, over both event loops and TLS."""

from __future__ import annotations

import asyncio
import functools
import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import trustme
import uvicorn
import uvloop
from uvicorn.server import ServerState

from tidegate.transports import h11_protocol
from tidegate.transports.h11_protocol import DISCARD, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

# libuv opens a pipe for signals once, which is no leak.
uvloop.new_event_loop().close()

PATIENCE = 20.0
HEAD = b"%s / HTTP/1.1\r\nHost: x\r\n%s\r\n"


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


pytestmark = pytest.mark.anyio


class App:
    """Refuses what is posted without reading it, and reads what is put."""

    def __init__(self) -> None:
        self.read: list[bytes] = []
        self.ended: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["method"] == "PUT":
            while (message := await receive())["type"] == "http.request":
                self.read.append(message["body"])
                if not message["more_body"]:
                    break
            self.ended.append(message["type"])
        headers = [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"ok"})


class Server:
    """A protocol on a port."""

    def __init__(self, port: int, app: App, state: ServerState, tls: ssl.SSLContext | None) -> None:
        self.port = port
        self.app = app
        self.state = state
        self.tls = tls

    @asynccontextmanager
    async def connected(self, data: bytes) -> AsyncIterator[Client]:
        name = "localhost" if self.tls else None
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=self.tls, server_hostname=name
        )
        try:
            writer.write(data)
            with anyio.fail_after(PATIENCE):
                yield Client(reader, writer)
        finally:
            writer.transport.abort()
            with anyio.fail_after(PATIENCE):
                while self.state.connections:
                    await anyio.sleep(0.005)


class Client:
    """What sent something."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def answer(self) -> bytes:
        head = await self.reader.readuntil(b"\r\n\r\n")
        return head + await self.reader.readexactly(2)

    async def rest(self) -> bytes:
        try:
            return await self.reader.read()
        except ConnectionResetError:
            return b""


@pytest.fixture(params=["plain", "tls"])
async def serve(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Callable[..., Any]]:
    # Over TLS a connection can't be closed by half, so this is what a client that waits waits for.
    monkeypatch.setattr(h11_protocol, "LINGER", 0.5)
    server_tls = client_tls = None
    if request.param == "tls":
        authority = trustme.CA()
        server_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost").configure_cert(server_tls)
        client_tls = ssl.create_default_context()
        authority.configure_trust(client_tls)
    servers = []

    async def start(**options: Any) -> Server:
        app, state = App(), ServerState()
        keep_alive = options.pop("keep_alive", 60)
        config = uvicorn.Config(
            app,
            ws="none",
            lifespan="off",
            log_config=None,
            timeout_keep_alive=keep_alive,
            h11_max_incomplete_event_size=10_000,
        )
        config.load()
        made = functools.partial(Protocol, config, state, {}, **options)
        loop = asyncio.get_running_loop()
        server = await loop.create_server(made, "127.0.0.1", 0, ssl=server_tls)
        servers.append(server)
        return Server(server.sockets[0].getsockname()[1], app, state, client_tls)

    yield start
    for server in servers:
        server.close()
        await server.wait_closed()


async def test_a_head_has_its_time(serve: Any) -> None:
    server = await serve(head_timeout=0.1)
    async with server.connected(b"") as client:
        assert await client.rest() == b""
    async with server.connected(b"GET / HT") as client:
        assert (await client.rest()).startswith(b"HTTP/1.1 408 ")


async def test_a_head_may_have_any_time(serve: Any) -> None:
    server = await serve(head_timeout=None)
    async with server.connected(b"GET / HT") as client:
        await anyio.sleep(0.05)
        client.writer.write(b"TP/1.1\r\nHost: x\r\n\r\n")
        assert (await client.answer()).startswith(b"HTTP/1.1 200 ")


async def test_neither_idleness_nor_a_body_is_a_late_head(serve: Any) -> None:
    server = await serve(head_timeout=0.05)
    async with server.connected(HEAD % (b"GET", b"")) as client:
        await client.answer()
        await anyio.sleep(0.1)
        client.writer.write(HEAD % (b"PUT", b"Content-Length: 2\r\n") + b"1")
        await anyio.sleep(0.1)
        client.writer.write(b"2")
        assert (await client.answer()).startswith(b"HTTP/1.1 200 ")
    assert b"".join(server.app.read) == b"12"


async def test_after_a_small_refused_body_the_connection_lives_on(serve: Any) -> None:
    server = await serve()
    async with server.connected(HEAD % (b"POST", b"Content-Length: 5\r\n") + b"12") as client:
        assert b"connection: close" not in (await client.answer()).lower()
        client.writer.write(b"345" + HEAD % (b"GET", b""))
        assert (await client.answer()).startswith(b"HTTP/1.1 200 ")


async def test_after_a_refused_body_an_idle_connection_is_closed(serve: Any) -> None:
    server = await serve(keep_alive=0.05)
    async with server.connected(HEAD % (b"POST", b"Content-Length: 5\r\n") + b"12") as client:
        await client.answer()
        client.writer.write(b"345")
        assert await client.rest() == b""


async def test_the_rest_of_a_refused_body_is_not_awaited_for_ever(
    serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(h11_protocol, "LINGER", 0.05)
    server = await serve()
    async with server.connected(HEAD % (b"POST", b"Content-Length: 5\r\n") + b"12") as client:
        await client.answer()
        assert await client.rest() == b""


async def send_for_ever(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
        await writer.drain()


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 10000000\r\n", b"Transfer-Encoding: chunked\r\n"]
)
async def test_a_large_refused_body_ends_the_connection_in_stages(
    framing: bytes, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # By what it sends it is ended here, not by the time that it takes.
    monkeypatch.setattr(h11_protocol, "LINGER", PATIENCE)
    monkeypatch.setattr(h11_protocol, "LINGER_BYTES", 2_000_000)
    server = await serve()
    async with server.connected(HEAD % (b"POST", framing)) as client:
        for _ in range(20):
            client.writer.write(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
            await client.writer.drain()
        answer = await client.answer()
        assert b"\r\nconnection: close\r\n" in answer.lower()
        with pytest.raises(ConnectionError):
            await send_for_ever(client.writer)


async def test_the_connection_of_a_larger_refused_body_is_not_used_again(
    serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(h11_protocol, "LINGER", 0.2)
    server = await serve()
    begun = HEAD % (b"POST", b"Content-Length: %d\r\n" % (DISCARD + 1000))
    async with server.connected(begun) as client:
        await client.answer()
        client.writer.write(b"x" * (DISCARD + 1000) + HEAD % (b"GET", b""))
        assert await client.rest() == b""


async def test_what_came_before_a_connection_broke_is_read(serve: Any) -> None:
    server = await serve()
    async with server.connected(HEAD % (b"PUT", b"Content-Length: 5\r\n") + b"12") as client:
        client.writer.write(b"34")
        client.writer.close()
        while not server.app.ended:
            await anyio.sleep(0.005)
    assert b"".join(server.app.read) == b"1234"
    assert server.app.ended == ["http.disconnect"]


async def test_a_body_that_goes_wrong_ends_the_reading(serve: Any) -> None:
    server = await serve()
    request = HEAD % (b"PUT", b"Transfer-Encoding: chunked\r\n") + b"2\r\n12\r\nno\r\n"
    async with server.connected(request) as client:
        assert (await client.rest()).startswith(b"HTTP/1.1 400 ")
    assert b"".join(server.app.read) == b"12"
    assert server.app.ended == ["http.disconnect"]


async def test_a_refused_body_that_goes_wrong_ends_the_connection(serve: Any) -> None:
    server = await serve()
    async with server.connected(HEAD % (b"POST", b"Content-Length: 5\r\n")) as client:
        await client.answer()
        client.writer.write(b"12345" + b"\0\r\n\r\n")
        assert (await client.rest()).startswith(b"HTTP/1.1 400 ")


async def test_a_stop_closes_what_is_idle(serve: Any) -> None:
    server = await serve()
    async with server.connected(HEAD % (b"GET", b"")) as client:
        await client.answer()
        for connection in list(server.state.connections):
            connection.shutdown()
        assert await client.rest() == b""


async def test_a_stop_lets_what_is_at_work_be_answered(serve: Any) -> None:
    server = await serve()
    request = HEAD % (b"PUT", b"Content-Length: 2\r\n")
    async with server.connected(request + b"1") as client:
        while not server.app.read:
            await anyio.sleep(0.005)
        for connection in list(server.state.connections):
            connection.shutdown()
        client.writer.write(b"2")
        assert (await client.rest()).endswith(b"\r\n\r\nok")
