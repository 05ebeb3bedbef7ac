"""A native server in this process, on files, spoken to in bytes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from tests.support.exchange import PATIENCE, STREAM
from tests.support.serving import listening

from tidegate.asgi import Tidegate
from tidegate.metadata.memory import MemoryMetadataStore
from tidegate.ports import Durability
from tidegate.protocol.capabilities import Capability
from tidegate.stores.local import LocalStore
from tidegate.transports.native.limits import Limits

if TYPE_CHECKING:
    from anyio.abc import SocketStream


class Wire:
    """One connection."""

    def __init__(self, stream: SocketStream) -> None:
        self.stream = stream
        self.buffer = b""

    async def send(self, *parts: bytes) -> None:
        await self.stream.send(b"".join(parts))

    async def head(self) -> bytes:
        """The next head, without its body."""
        with anyio.fail_after(PATIENCE):
            while b"\r\n\r\n" not in self.buffer:
                self.buffer += await self.stream.receive()
        found, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        return found

    async def rest(self) -> bytes:
        """All that comes until the server closes."""
        with anyio.fail_after(PATIENCE):
            try:
                while True:
                    self.buffer += await self.stream.receive()
            except anyio.EndOfStream:
                pass
        return self.buffer


Dial = Callable[..., Awaitable[Wire]]


@pytest.fixture
async def dial(tmp_path: Path) -> AsyncIterator[Dial]:
    """Connections to a server, which is started by the first, with its settings."""
    async with AsyncExitStack() as stack:
        ports: list[int] = []

        async def connect(limits: Limits | None = None, **settings: Any) -> Wire:
            if not ports:
                given: dict[str, Any] = {
                    "base_path": "/files/",
                    "transport": Capability.TRAILERS,
                    "durability": Durability.NONE,
                } | settings
                data = given.pop("data", None) or LocalStore(tmp_path / "data")
                app = Tidegate(data, MemoryMetadataStore(), **given)
                await stack.enter_async_context(app)
                ports.append(
                    await stack.enter_async_context(listening(app, "native", limits=limits))
                )
            stream = await anyio.connect_tcp("127.0.0.1", ports[0])
            await stack.enter_async_context(stream)
            return Wire(stream)

        yield connect


def head(method: str, path: str, *lines: str, version: str = "1.1") -> bytes:
    """A head with what tus asks for."""
    fields = ["Host: tus.test", "Tus-Resumable: 1.0.0", *lines]
    return "\r\n".join([f"{method} {path} HTTP/{version}", *fields, "", ""]).encode("latin-1")


def patch(path: str, offset: int, *lines: str) -> bytes:
    return head("PATCH", path, f"Content-Type: {STREAM}", f"Upload-Offset: {offset}", *lines)


async def create(wire: Wire, length: int) -> str:
    """A new upload's path."""
    await wire.send(head("POST", "/files/", f"Upload-Length: {length}"))
    fields = (await wire.head()).decode().split("\r\n")
    location = next(line for line in fields if line.startswith("location: "))
    return "/files/" + location.rpartition("/")[2]


async def offset(wire: Wire, path: str) -> int:
    await wire.send(head("HEAD", path))
    fields = (await wire.head()).decode().split("\r\n")
    return int(next(line for line in fields if line.startswith("upload-offset: "))[15:])
