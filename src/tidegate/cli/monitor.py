"""The pages of operators on a port of their own."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, cast

import uvicorn
from uvicorn.server import ServerState

from tidegate.cli import listen
from tidegate.transports import h11_protocol

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Sequence

    from tidegate.transports.asgi import Tidegate

BACKLOG: Final = 64
"""Connections that wait: those who ask are few."""


@asynccontextmanager
async def served(app: Tidegate, sockets: Sequence[socket.socket]) -> AsyncIterator[None]:
    """Answer on `sockets`, also while the application opens, drains and closes. Raises Failure.

    All processes accept from the same sockets, and each can answer for all of them.
    """
    config = uvicorn.Config(
        cast("type", app.monitoring),
        http=h11_protocol.Protocol,
        ws="none",
        lifespan="off",
        proxy_headers=False,
        server_header=False,
        access_log=False,
        log_config=None,
    )
    config.load()
    state = ServerState()
    listen.accept(sockets, BACKLOG)
    loop = asyncio.get_running_loop()
    servers = [
        await loop.create_server(
            lambda: h11_protocol.Protocol(config=config, server_state=state, app_state={}),
            sock=each.dup(),
            backlog=BACKLOG,
        )
        for each in sockets
    ]
    try:
        yield
    finally:
        for server in servers:
            server.close()
        for connection in list(state.connections):
            cast("asyncio.BaseProtocol", connection).transport.abort()  # type: ignore[attr-defined]
        if state.tasks:
            await asyncio.wait(state.tasks, timeout=1)
