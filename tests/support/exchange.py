"""One HTTP client for tests, over two ways: an ASGI application called in process, and a socket.

Both can start a request and withhold its body, send it piece by piece, and drop it halfway. What an
application must never do in an answer is checked with every answer.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import anyio
import h11

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, MutableMapping

    from anyio.abc import SocketStream

TUS = {"Tus-Resumable": "1.0.0"}
STREAM = "application/offset+octet-stream"
PATIENCE = 20.0
"""Seconds after which an answer will not come any more."""

Headers = list[tuple[str, str]]


@dataclass
class Reply:
    """An answer."""

    status: int
    headers: Headers
    body: bytes = b""
    continued: bool = False
    """Whether the server asked for the body: it sent 100, or called `receive`."""

    def __getitem__(self, name: str) -> str:
        values = self.all(name)
        assert len(values) == 1, f"{name}: {values} in {self}"
        return values[0]

    def __contains__(self, name: str) -> bool:
        return bool(self.all(name))

    def all(self, name: str) -> list[str]:
        return [v for n, v in self.headers if n == name.lower()]

    @property
    def text(self) -> str:
        return self.body.decode()


class Exchange(ABC):
    """A request under way."""

    @abstractmethod
    async def send(self, data: bytes) -> None:
        """More of the body."""

    @abstractmethod
    async def end(self) -> None:
        """That was all of the body."""

    @abstractmethod
    async def drop(self) -> None:
        """The client goes away."""

    @abstractmethod
    async def reply(self) -> Reply:
        """The answer."""

    @abstractmethod
    async def asked_for(self) -> None:
        """Wait until the server asks for the body (on a socket: `Expect: 100-continue`)."""


class Client(ABC):
    """Sends requests to one server whose creation URL is `base`."""

    base = "/files/"

    @abstractmethod
    async def start(
        self, method: str, path: str, headers: Iterable[tuple[str, str]] = ()
    ) -> Exchange:
        """Send the head of a request, which says itself how its body is framed."""

    async def request(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        body: bytes | None = None,
    ) -> Reply:
        """A whole request, with a Content-Length where it has a body."""
        pairs = list(headers.items()) if hasattr(headers, "items") else list(headers)
        if body is not None and not any(n.lower() == "transfer-encoding" for n, _ in pairs):
            pairs.append(("Content-Length", str(len(body))))
        exchange = await self.start(method, path, pairs)
        if body:
            await exchange.send(body)
        await exchange.end()
        return await exchange.reply()

    async def withheld(
        self, method: str, path: str, headers: Mapping[str, str], *, length: int | None = 100
    ) -> Reply:
        """A request whose body is not sent before the server asks for it; it must not need to."""
        framing = {"Transfer-Encoding": "chunked"} if length is None else {}
        if length is not None:
            framing = {"Content-Length": str(length)}
        exchange = await self.start(
            method, path, [*{**headers, **framing, "Expect": "100-continue"}.items()]
        )
        reply = await exchange.reply()
        await exchange.drop()
        return reply

    # ------------------------------------------------------------------------ in words of tus

    async def tus(
        self, method: str, path: str, body: bytes | None = None, /, **headers: str
    ) -> Reply:
        """A request of tus; `Upload_Length="5"` becomes the header `Upload-Length: 5`."""
        named = TUS | {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.request(method, path, {n: v for n, v in named.items() if v != "-"}, body)

    async def post(self, body: bytes | None = None, /, **headers: str) -> Reply:
        if body is not None:
            headers.setdefault("Content_Type", STREAM)
        return await self.tus("POST", self.base, body, **headers)

    async def create(self, length: int | None = None, /, **headers: str) -> str:
        """A new upload; the path of its URL."""
        sized = {"Upload_Length": str(length)} if length is not None else {}
        reply = await self.post(**(sized | headers))
        assert reply.status == 201, reply
        return path_of(reply)

    async def whole(self, content: bytes, **headers: str) -> str:
        """A complete upload; the path of its URL."""
        reply = await self.post(content, Upload_Length=str(len(content)), **headers)
        assert reply.status == 201, reply
        return path_of(reply)

    async def head(self, path: str, **headers: str) -> Reply:
        return await self.tus("HEAD", path, **headers)

    async def offset(self, path: str) -> int:
        reply = await self.head(path)
        assert reply.status == 200, reply
        return int(reply["Upload-Offset"])

    async def patch(self, path: str, offset: int, body: bytes, **headers: str) -> Reply:
        given = {"Content_Type": STREAM, "Upload_Offset": str(offset)} | headers
        return await self.tus("PATCH", path, body, **given)

    async def start_patch(
        self, path: str, offset: int, length: int | None, **headers: str
    ) -> Exchange:
        """A PATCH whose body will follow; chunked when its `length` is None."""
        framing = ("Transfer-Encoding", "chunked")
        if length is not None:
            framing = ("Content-Length", str(length))
        return await self.start(
            "PATCH",
            path,
            [
                *TUS.items(),
                ("Content-Type", STREAM),
                ("Upload-Offset", str(offset)),
                framing,
                *((name.replace("_", "-"), value) for name, value in headers.items()),
            ],
        )

    async def delete(self, path: str) -> Reply:
        return await self.tus("DELETE", path)

    async def content(self, path: str) -> bytes:
        reply = await self.request("GET", path)
        assert reply.status == 200, reply
        return reply.body

    async def until(
        self, path: str, holds: Callable[[Reply], bool], *, within: float = PATIENCE
    ) -> Reply:
        """HEAD until the answer is as it should be, for at most `within` seconds."""
        with anyio.fail_after(within):
            while not holds(reply := await self.head(path)):
                await anyio.sleep(0.005)
        return reply


def path_of(reply: Reply) -> str:
    return urlsplit(reply["Location"]).path


def check(method: str, reply: Reply) -> None:
    """What holds of every answer."""
    context = f"{method} -> {reply}"
    for name, value in reply.headers:
        assert name == name.lower(), context
        assert not set("\r\n\0") & set(value), context
        assert value == value.strip(" \t"), context
    lengths = reply.all("content-length")
    if reply.status in (204, 304):
        assert reply.body == b"", context
        assert reply.status == 304 or not lengths, context
    elif method == "HEAD":
        assert reply.body == b"", context
    else:
        assert lengths == [str(len(reply.body))], context
    for name in ("location", "upload-offset", "upload-length", "tus-resumable", "content-type"):
        assert len(reply.all(name)) <= 1, context


# ----------------------------------------------------------------------------------- in process


@dataclass
class AsgiExchange(Exchange):
    """A request given to an application as ASGI messages, in a task of its own."""

    scope: MutableMapping[str, Any]
    asked: int = 0
    """How often `receive` was called."""
    messages: list[dict[str, Any]] = field(default_factory=list)
    """What the application sent."""
    _task: asyncio.Task[None] | None = None
    _incoming: asyncio.Queue[dict[str, Any]] = field(default_factory=asyncio.Queue)
    _gone: asyncio.Event = field(default_factory=asyncio.Event)

    def begin(self, app: Any) -> None:
        self._task = asyncio.create_task(app(self.scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        self.asked += 1
        if self._gone.is_set() and self._incoming.empty():
            return {"type": "http.disconnect"}
        return await self._incoming.get()

    async def _send(self, message: dict[str, Any]) -> None:
        self.messages.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self._leave()
        await asyncio.sleep(0)

    def _leave(self) -> None:
        self._gone.set()
        self._incoming.put_nowait({"type": "http.disconnect"})

    async def send(self, data: bytes) -> None:
        self._incoming.put_nowait({"type": "http.request", "body": data, "more_body": True})
        await asyncio.sleep(0)

    async def end(self) -> None:
        self._incoming.put_nowait({"type": "http.request", "body": b"", "more_body": False})

    async def drop(self) -> None:
        self._leave()
        assert self._task is not None
        async with asyncio.timeout(PATIENCE):
            await self._task

    async def asked_for(self) -> None:
        async with asyncio.timeout(PATIENCE):
            while not self.asked:
                await asyncio.sleep(0)

    async def reply(self) -> Reply:
        assert self._task is not None
        async with asyncio.timeout(PATIENCE):
            await self._task
        start, *bodies = self.messages
        assert start["type"] == "http.response.start", start
        assert isinstance(start["status"], int)
        headers: Headers = []
        for name, value in start["headers"]:
            assert isinstance(name, bytes)
            assert isinstance(value, bytes)
            headers.append((name.decode("ascii"), value.decode("latin-1")))
        # A server takes it literally and closes while the client may still be sending.
        assert "connection" not in [name for name, _ in headers]
        assert all(body["type"] == "http.response.body" for body in bodies)
        assert [body.get("more_body", False) for body in bodies] == [True] * (len(bodies) - 1) + [
            False
        ]
        body = b"".join(body.get("body", b"") for body in bodies)
        reply = Reply(start["status"], headers, body, continued=self.asked > 0)
        check(self.scope["method"], reply)
        return reply


class AsgiClient(Client):
    """Calls an ASGI application."""

    def __init__(self, app: Any, **scope: Any) -> None:
        self.app = app
        self.scope = scope

    def exchange(
        self, method: str, path: str, headers: Iterable[tuple[str, str]] = (), **scope: Any
    ) -> AsgiExchange:
        raw, _, query = path.partition("?")
        pairs = [(n.lower().encode("latin-1"), v.encode("latin-1")) for n, v in headers]
        if not any(name == b"host" for name, _ in pairs):
            pairs.insert(0, (b"host", b"tus.test"))
        return AsgiExchange(
            {
                "type": "http",
                "asgi": {"version": "3.0", "spec_version": "2.3"},
                "http_version": "1.1",
                "method": method,
                "scheme": "http",
                "path": unquote(raw),
                "raw_path": raw.encode("latin-1"),
                "query_string": query.encode("latin-1"),
                "root_path": "",
                "headers": pairs,
                "client": ("127.0.0.1", 40000),
                "server": ("127.0.0.1", 1080),
                **self.scope,
                **scope,
            }
        )

    async def start(
        self, method: str, path: str, headers: Iterable[tuple[str, str]] = ()
    ) -> AsgiExchange:
        exchange = self.exchange(method, path, headers)
        exchange.begin(self.app)
        return exchange


# ----------------------------------------------------------------------------------- on a socket


class SocketExchange(Exchange):
    """A request on a connection of its own."""

    def __init__(self, stream: SocketStream, method: str) -> None:
        self.stream = stream
        self.method = method
        self.connection = h11.Connection(h11.CLIENT, 64 * 1024)
        self.continued = False

    async def head(self, request: h11.Request) -> None:
        await self.stream.send(self.connection.send(request) or b"")

    async def send(self, data: bytes) -> None:
        await self._send(h11.Data(data=data))

    async def end(self) -> None:
        await self._send(h11.EndOfMessage())

    async def _send(self, event: h11.Event) -> None:
        data = self.connection.send(event)
        if data:
            try:
                await self.stream.send(data)
            except anyio.BrokenResourceError:
                pass  # refused and closed: the answer tells

    async def drop(self) -> None:
        await self.stream.aclose()

    async def asked_for(self) -> None:
        with anyio.fail_after(PATIENCE):
            while not self.continued:
                event = self.connection.next_event()
                if event is h11.NEED_DATA:
                    self.connection.receive_data(await _receive(self.stream))
                else:
                    assert isinstance(event, h11.InformationalResponse), event
                    self.continued = event.status_code == 100

    async def reply(self) -> Reply:
        try:
            with anyio.fail_after(PATIENCE):
                reply = await self._reply()
        finally:
            await self.stream.aclose()
        check(self.method, reply)
        return reply

    async def _reply(self) -> Reply:
        reply: Reply | None = None
        while True:
            event = self.connection.next_event()
            if event is h11.NEED_DATA:
                self.connection.receive_data(await _receive(self.stream))
            elif isinstance(event, h11.InformationalResponse):
                self.continued = self.continued or event.status_code == 100
            elif isinstance(event, h11.Response):
                headers = [(n.decode(), v.decode("latin-1")) for n, v in event.headers]
                reply = Reply(event.status_code, headers)
            elif isinstance(event, h11.Data):
                assert reply is not None
                reply.body += event.data
            elif isinstance(event, h11.EndOfMessage):
                assert reply is not None
                reply.continued = self.continued
                return reply
            else:
                raise AssertionError(f"{event} after {reply}")


async def _receive(stream: SocketStream) -> bytes:
    try:
        return await stream.receive()
    except anyio.EndOfStream:
        return b""


class SocketClient(Client):
    """Connects to a server, once for each request."""

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port
        self._streams: list[SocketStream] = []

    async def connect(self) -> SocketStream:
        stream = await anyio.connect_tcp(self.host, self.port)
        self._streams.append(stream)
        return stream

    async def aclose(self) -> None:
        """Close what a test that failed left open."""
        for stream in self._streams:
            await stream.aclose()

    async def start(
        self, method: str, path: str, headers: Iterable[tuple[str, str]] = ()
    ) -> SocketExchange:
        pairs = list(headers)
        if not any(name.lower() == "host" for name, _ in pairs):
            pairs.insert(0, ("Host", f"{self.host}:{self.port}"))
        exchange = SocketExchange(await self.connect(), method)
        await exchange.head(
            h11.Request(
                method=method,
                target=path,
                headers=[(n.encode(), v.strip(" \t").encode("latin-1")) for n, v in pairs],
            )
        )
        return exchange
