"""Somebody else's HTTP services: what they are asked is kept, and what they answer is set."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
from tests.support.serving import listening

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Service:
    """Answers every request with `status`, `headers` and `body`, once `go` is set.

    `asked` has the method, the path and the headers of each, `bodies` how much came behind it.
    """

    def __init__(self) -> None:
        self.url = ""
        self.status = 200
        self.headers: list[tuple[str, str]] = []
        self.body = b""
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.bodies: list[int] = []
        self.reached = anyio.Event()
        self.go = anyio.Event()
        self.go.set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI."""
        headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
        self.asked.append((scope["method"], scope["path"], headers))
        self.bodies.append(0)
        while True:
            message = await receive()
            self.bodies[-1] += len(message.get("body", b""))
            if not message.get("more_body", False):
                break
        self.reached.set()
        await self.go.wait()
        sent = [(name.lower().encode(), value.encode()) for name, value in self.headers]
        sent.append((b"content-length", str(len(self.body)).encode()))
        await send({"type": "http.response.start", "status": self.status, "headers": sent})
        await send({"type": "http.response.body", "body": self.body})


@asynccontextmanager
async def service() -> AsyncIterator[Service]:
    """One on a port of this event loop."""
    app = Service()
    async with listening(app, "httptools") as port:
        app.url = f"http://127.0.0.1:{port}"
        yield app
        app.go.set()
