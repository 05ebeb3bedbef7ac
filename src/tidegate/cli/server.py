"""uvicorn, as tidegate runs it: the stores open before it listens, and the end is orderly."""

from __future__ import annotations

import asyncio
import contextlib
import math
import signal
from typing import TYPE_CHECKING, Any, Final

import uvicorn

from tidegate.cli.errors import Failure

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Callable, Iterator, Sequence

    from tidegate.transports.asgi import Tidegate

HEAD_BYTES: Final = 64 * 1024
"""The longest head of a request. A final upload names its parts in it; common proxies let some
8 to 32 KiB pass."""
KEEP_ALIVE: Final = 75
"""Seconds that an idle connection is kept: longer than proxies keep theirs (nginx, AWS: 60), so
that none sends a request into a connection that we close."""
SAVE_WITHIN: Final = 2.0
"""Seconds that requests that were cut off have for storing what they read."""


class Server(uvicorn.Server):
    """A server whose signals are handled by `run`, and which says when it listens."""

    def __init__(self, config: uvicorn.Config, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._announce = announce

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave them alone: they are handled from before the stores open until they are closed."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so. Raises Failure."""
        try:
            await super().startup(sockets)
        except OSError as error:
            raise Failure(f"cannot listen: {error.strerror or error}") from error
        self._announce()

    def stop(self) -> None:
        """Accept no more, and let what runs finish; asked again, wait for nobody."""
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True


def run(
    app: Tidegate,
    sockets: Sequence[socket.socket],
    *,
    announce: Callable[[], None],
    tls: ssl.SSLContext | None,
    shutdown_timeout: float | None,
) -> int:
    """Serve until a signal ends it; the exit code.

    Raises DataError, MetadataError when the stores can't be opened, Failure.
    """
    config = uvicorn.Config(
        app,
        # httptools loses the body of a request that carries Upgrade, and parses it as another one.
        http="h11",
        ws="none",
        loop="auto",
        lifespan="off",
        proxy_headers=False,
        server_header=False,
        date_header=True,
        access_log=False,
        log_config=None,
        h11_max_incomplete_event_size=HEAD_BYTES,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=None if shutdown_timeout is None else math.ceil(shutdown_timeout),
        ssl_context_factory=None if tls is None else lambda _config, _default: tls,
    )
    server = Server(config, announce)
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        return runner.run(_serve(app, server, sockets))


async def _serve(app: Tidegate, server: Server, sockets: Sequence[socket.socket]) -> int:
    loop = asyncio.get_running_loop()
    forced: list[int] = []

    def stop(number: int) -> None:
        server.stop()
        if server.force_exit:
            forced.append(number)
            # A third one finds nobody who handles it.
            for each in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(each)
                signal.signal(each, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    async with app:
        await server.serve(list(sockets))
        await _end(server.server_state.tasks)
    # As a shell reports a command that a signal ended.
    return 128 + forced[0] if forced else 0


async def _end(tasks: set[asyncio.Task[Any]]) -> None:
    """Cut off the requests that are left, and let them store what they read."""
    left = set(tasks)
    for task in left:
        task.cancel()
    if left:
        await asyncio.wait(left, timeout=SAVE_WITHIN)
