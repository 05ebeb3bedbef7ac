"""What stands between clients and a server in tests, on the test's own event loop.

What is passed on, lost or kept back is for those that are built on it to say: `lossy`,
`postgres_wire`. Clients that are other processes need a proxy with threads of its own: `proxy`.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Self


class Relay:
    """Accepts connections of clients, at `port`, for as long as it is entered."""

    port: int

    def __init__(self, host: str, port: int) -> None:
        self._upstream = (host, port)
        self._clients: set[asyncio.StreamWriter] = set()
        self._servers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.reset()
        for task in list(self._tasks):
            task.cancel()
        while self._tasks:
            await asyncio.wait(set(self._tasks))
        await self._server.wait_closed()

    def reset(self) -> None:
        """Reset all connections, on both sides."""
        for writer in self._clients | self._servers:
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._clients.add(writer)
        try:
            with contextlib.suppress(OSError, EOFError, asyncio.CancelledError):
                await self._serve(reader, writer)
        finally:
            writer.transport.abort()
            self._clients.discard(writer)
            self._tasks.discard(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """See to one client, which is cut off when this ends."""
        raise NotImplementedError

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to the server. Raises OSError."""
        reader, writer = await asyncio.open_connection(*self._upstream)
        self._servers.add(writer)
        return reader, writer

    def _drop(self, writer: asyncio.StreamWriter) -> None:
        """Cut a connection to the server."""
        writer.transport.abort()
        self._servers.discard(writer)
