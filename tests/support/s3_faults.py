"""Between a store and an S3 server: what goes wrong on the way, as a test says, and what was asked.

Speaks just enough HTTP for what the SDK sends: one request per connection, a body of known length.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qs, urlsplit

from tests.support.s3_server import S3Server

if TYPE_CHECKING:
    from collections.abc import Iterator


class Asked(NamedTuple):
    """One request."""

    method: str
    path: str
    query: dict[str, list[str]]
    size: int

    @property
    def operation(self) -> str:
        """Its name in S3's documentation, as far as tests tell requests apart."""
        if "uploads" in self.query:
            return "CreateMultipartUpload" if self.method == "POST" else "ListMultipartUploads"
        if "uploadId" in self.query:
            names = {"PUT": "UploadPart", "POST": "CompleteMultipartUpload", "GET": "ListParts"}
            return names.get(self.method, "AbortMultipartUpload")
        if self.method == "POST":
            return "DeleteObjects"
        kind = "Tail" if "/.tidegate/tails/" in self.path else "Object"
        kind = "Bucket" if self.path.count("/") == 1 else kind
        return {"PUT": "Put", "GET": "Get", "HEAD": "Head", "DELETE": "Delete"}[self.method] + kind

    @property
    def part(self) -> int:
        return int(self.query.get("partNumber", ["0"])[0])


Fault = Callable[[Asked, Callable[[], Awaitable[bytes]]], Awaitable[bytes]]
"""Is given a request, and what lets the server answer it; returns the answer to be given. An empty
one closes the connection."""


def refusal(status: int, code: str) -> bytes:
    """An error as S3 words it."""
    body = f"<Error><Code>{code}</Code><Message>as told</Message></Error>".encode()
    head = f"HTTP/1.1 {status} No\r\nContent-Type: application/xml\r\nConnection: close\r\n"
    return head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body


class Faults:
    """What is to go wrong: the first rule that fits a request is used, and used up."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self._rules: list[tuple[Callable[[Asked], bool], Fault, int]] = []

    def add(self, operation: str, fault: Fault, *, times: int = 1, part: int = 0) -> None:
        """Have the next `times` requests of a kind go wrong."""

        def fits(asked: Asked) -> bool:
            return asked.operation == operation and part in {0, asked.part}

        self._rules.append((fits, fault, times))

    def refuse(self, operation: str, status: int, code: str, *, times: int = 1) -> None:
        """Have them refused; the server never hears of them."""

        async def fault(_asked: Asked, _go: Callable[[], Awaitable[bytes]]) -> bytes:
            return refusal(status, code)

        self.add(operation, fault, times=times)

    def lose(self, operation: str, *, times: int = 1, status: int = 0, part: int = 0) -> None:
        """Have them carried out, and their answers lost, or replaced by an error."""

        async def fault(_asked: Asked, go: Callable[[], Awaitable[bytes]]) -> bytes:
            await go()
            return refusal(status, "InternalError") if status else b""

        self.add(operation, fault, times=times, part=part)

    def take(self, asked: Asked) -> Fault | None:
        self.asked.append(asked)
        for index, (fits, fault, times) in enumerate(self._rules):
            if fits(asked):
                self._rules[index] = (fits, fault, times - 1)
                if times == 1:
                    del self._rules[index]
                return fault
        return None

    def clear(self) -> None:
        """All is well from now on."""
        self._rules.clear()

    @property
    def pending(self) -> int:
        """How many faults did not happen yet."""
        return sum(times for *_, times in self._rules)

    def operations(self) -> list[str]:
        return [asked.operation for asked in self.asked]

    def parts(self) -> Iterator[int]:
        return (asked.part for asked in self.asked if asked.operation == "UploadPart")


@asynccontextmanager
async def faulty(server: S3Server) -> AsyncIterator[tuple[S3Server, Faults]]:
    """A way to a server on which things go wrong."""
    faults = Faults()
    target = urlsplit(server.endpoint)
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                answer = await _answer(reader, faults, target.hostname, target.port)
                writer.write(answer)
                await writer.drain()
        finally:
            tasks.discard(task)
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        port = listener.sockets[0].getsockname()[1]
        yield S3Server(f"http://127.0.0.1:{port}"), faults
    finally:
        listener.close()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await listener.wait_closed()


async def _answer(
    reader: asyncio.StreamReader, faults: Faults, host: str | None, port: int | None
) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    method, target, _ = lines[0].split(" ")
    fields = [line.partition(":") for line in lines[1:] if line]
    size = next((int(value) for name, _, value in fields if name.lower() == "content-length"), 0)
    body = await reader.readexactly(size)
    url = urlsplit(target)
    asked = Asked(method, url.path, parse_qs(url.query, keep_blank_values=True), size)

    async def go() -> bytes:
        kept = [line for line in lines[1:] if line and not line.lower().startswith("connection:")]
        upstream, sender = await asyncio.open_connection(host, port)
        try:
            request = "\r\n".join([lines[0], *kept, "Connection: close", "", ""])
            sender.write(request.encode("latin-1") + body)
            return await upstream.read()
        finally:
            sender.close()
            with suppress(ConnectionError):
                await sender.wait_closed()

    fault = faults.take(asked)
    answer = await (go() if fault is None else fault(asked, go))
    # What a HEAD is answered ends with the head.
    return answer.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" if method == "HEAD" else answer
