"""TLS in front of a server that has none: what a client makes of certificates can be seen on it."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ASKED = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"
"""SSLRequest, with which a client of PostgreSQL begins; a server that agrees says S."""


@asynccontextmanager
async def terminating(
    port: int, context: ssl.SSLContext, *, asked: bytes = b""
) -> AsyncIterator[int]:
    """A port of loopback where TLS ends, and goes on to `port` in the clear; TLS begins once a
    client has `asked` for it.
    """
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        upstream = None
        try:
            if asked:
                assert await reader.readexactly(len(asked)) == asked
                writer.write(b"S")
            await writer.start_tls(context)
            answers, upstream = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.gather(_pass(reader, upstream), _pass(answers, writer))
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # a client that does not trust us; or the end of the test
        finally:
            tasks.discard(task)
            for end in (writer, upstream):
                if end is not None:
                    end.transport.abort()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        listener.close()
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()
