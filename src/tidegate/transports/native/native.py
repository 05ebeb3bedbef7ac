"""The native transport, as uvicorn is given it: `http=Native(app)`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from tidegate.threads import Threads
from tidegate.transports.native.connection import Connection
from tidegate.transports.native.limits import Limits
from tidegate.transports.native.pump import THREADS
from tidegate.transports.native.response import Defaults

if TYPE_CHECKING:
    import asyncio

    from uvicorn.config import Config
    from uvicorn.server import ServerState

    from tidegate.transports.asgi import Tidegate


class Native:
    """What all connections of a server have in common, and what makes them for uvicorn.

    `app` is the one that uvicorn is given; it has Capability.TRAILERS. The context ends the threads
    that move bytes.
    """

    def __init__(self, app: Tidegate, limits: Limits | None = None) -> None:
        self.app = app
        self.limits = limits or Limits(patience=app.patience)
        self.threads = Threads(THREADS, "tidegate-pump")
        app.queues["pump"] = lambda: self.threads.under_way
        self.defaults = Defaults()

    def __call__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> Connection:
        """A connection, where uvicorn expects a protocol class of its own."""
        del app_state, _loop
        return Connection(self, config, server_state)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.threads.close()
