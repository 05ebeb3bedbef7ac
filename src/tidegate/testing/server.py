"""A server for an application's own tests: on a port of this event loop, by default in memory.

    async with served(authorize=authorize) as server:
        ...  # any client of tus, at server.url
        await told(server.app)

or, for an application with uploads mounted in it, whose stores a test chooses:

    async with served(create_app(MemoryStore(), MemoryMetadataStore())) as server:
        ...  # at server.url + "files/"
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, overload

import anyio
import msgspec
import uvicorn

from tidegate.metadata.memory import MemoryMetadataStore
from tidegate.stores.memory import MemoryStore
from tidegate.transports import h11_protocol
from tidegate.transports.asgi import Tidegate

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
    from contextlib import AbstractAsyncContextManager

    Application = Callable[[Any, Any, Any], Awaitable[None]]

App = TypeVar("App")

PATIENCE: Final = 20.0
"""Seconds for what has to come: far more than it takes, on a busy machine."""


class Server(msgspec.Struct, Generic[App], frozen=True):
    """A server that runs."""

    url: str
    """What it is called, with a slash at the end."""
    app: App
    """What it serves."""


class _Uvicorn(uvicorn.Server):
    """Tells when it listens, and leaves signals to the test runner."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listens = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        except SystemExit:
            # It would end the whole event loop.
            raise RuntimeError("the application did not start: its log says why") from None
        self.listens.set()


@overload
def served(app: None = None, **settings: Any) -> AbstractAsyncContextManager[Server[Tidegate]]: ...
@overload
def served(app: App, **settings: Any) -> AbstractAsyncContextManager[Server[App]]: ...
@asynccontextmanager
async def served(app: Any = None, **settings: Any) -> AsyncGenerator[Server[Any]]:
    """Serve `app`, with its lifespan; without one a `Tidegate` on new stores in memory.

    `settings` are for that `Tidegate`; beside an `app` they are uvicorn's (`root_path="/api"`).
    Raises RuntimeError when the application's lifespan does not begin; its log says why.
    """
    if app is None:
        app = Tidegate(
            settings.pop("data", None) or MemoryStore(),
            settings.pop("metadata", None) or MemoryMetadataStore(),
            **settings,
        )
        settings = {}
    config = uvicorn.Config(
        app,
        http=h11_protocol.Protocol,
        lifespan="on",
        log_config=None,
        access_log=False,
        # A test that fails leaves its requests behind.
        timeout_graceful_shutdown=1,
        **settings,
    )
    server = _Uvicorn(config)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        running = asyncio.create_task(server.serve([listener]), name="tidegate.testing")
        listens = asyncio.create_task(server.listens.wait())
        try:
            await asyncio.wait((running, listens), return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                yield Server(f"http://127.0.0.1:{port}/", app)
        finally:
            listens.cancel()
            server.should_exit = True
            with anyio.CancelScope(shield=True):
                await running


async def told(uploads: Tidegate, *, within: float = PATIENCE) -> None:
    """Wait until every event so far was taken by every listener. Raises TimeoutError after `within`
    seconds, and what the metadata store raises.
    """
    async with asyncio.timeout(within):
        while (await uploads.engine.counts()).pending_events:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.005)
