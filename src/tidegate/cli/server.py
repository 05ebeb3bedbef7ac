"""uvicorn, as tidegate runs it: the stores open before it listens, and the end is orderly."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import os
import signal
from typing import TYPE_CHECKING, Final, Protocol, cast

import uvicorn

from tidegate.cli import listen, monitor, workers
from tidegate.cli.errors import FAILED
from tidegate.transports import h11_protocol
from tidegate.transports.native import native
from tidegate.transports.native.connection import Connection as NativeConnection
from tidegate.transports.native.limits import Limits

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Callable, Iterator, Sequence

    from tidegate.config import Transport
    from tidegate.transports.asgi import Tidegate

HEAD_BYTES: Final = 64 * 1024
"""The longest head of a request. A final upload names its parts in it; common proxies let some
8 to 32 KiB pass."""
KEEP_ALIVE: Final = 75
"""Seconds that an idle connection is kept: longer than proxies keep theirs (nginx, AWS: 60), so
that none sends a request into a connection that we close."""
SAVE_WITHIN: Final = 2.0
"""Seconds that requests that were cut off have for storing what they read: a hundred times what a
disk that works needs."""
COLLECT_AFTER: Final = 10_000
"""Objects more than before at which garbage is looked for; Python's own 700 are those of a dozen
requests at work, and looking took a twentieth of the time. What could be garbage is some MiB."""
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)

log = logging.getLogger("tidegate.server")


class Connection(Protocol):
    """What is used of uvicorn's protocols."""

    transport: asyncio.Transport


class Server(uvicorn.Server):
    """A server that says when it listens, and ends in order.

    Asked to stop it accepts no more, calls `drain`, which ends the bodies that are being received,
    lets the requests at work finish for `shutdown_timeout` seconds (None: for ever), then closes
    their connections: to each it is as if its client went away, so it stores what it read. Asked
    twice it closes them at once.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        announce: Callable[[], None],
        drain: Callable[[], None],
        shutdown_timeout: float | None,
    ) -> None:
        super().__init__(config)
        self._announce = announce
        self._drain = drain
        self._shutdown_timeout = shutdown_timeout
        self.forced = False
        """Whether requests were cut off since somebody would not wait for them."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave them alone: they are handled from before the stores open until they are closed."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so. Raises Failure."""
        listen.accept(sockets or (), self.config.backlog)
        await super().startup(sockets)
        self._announce()

    def stop(self) -> None:
        """Begin to stop; asked again, hurry."""
        if self.should_exit:
            self.forced = bool(self.server_state.tasks)
            self._cut()
            return
        self.should_exit = True
        self._drain()
        if self._shutdown_timeout is not None:
            asyncio.get_running_loop().call_later(self._shutdown_timeout, self._cut)

    def _cut(self) -> None:
        state = self.server_state
        if state.tasks:
            log.warning("requests cut off: %d; their clients can resume", len(state.tasks))
        for connection in list(state.connections):
            # Not `close`, which would wait for a client that reads nothing.
            if isinstance(connection, NativeConnection):
                connection.abort()
            else:
                cast("Connection", connection).transport.abort()
        asyncio.get_running_loop().call_later(SAVE_WITHIN, self._give_up)

    def _give_up(self) -> None:
        """Wait no longer for requests: a disk that does not answer holds them."""
        self.force_exit = True


def run(
    app: Tidegate,
    sockets: Sequence[socket.socket],
    *,
    announce: Callable[[], None],
    tls: ssl.SSLContext | None,
    transport: Transport = "native",
    head_timeout: float | None = h11_protocol.HEAD_TIMEOUT,
    shutdown_timeout: float | None,
    supervisor: socket.socket | None = None,
    monitoring: Sequence[socket.socket] = (),
) -> int:
    """Serve until a signal ends it, or the supervisor, when there is one; the exit code.

    `monitoring` are sockets for the pages of operators alone, which are served to the very end.

    Raises DataError, MetadataError when the stores can't be opened, Failure.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_collecting_rarely())
        protocol: object
        if transport == "native":
            limits = Limits(
                head_bytes=HEAD_BYTES,
                head_timeout=head_timeout,
                keep_alive=KEEP_ALIVE,
                patience=app.patience,
            )
            protocol = stack.enter_context(native.Native(app, limits))
        else:
            # uvicorn's other protocol, on httptools, loses the body of a request that carries
            # Upgrade, and parses it as another one.
            protocol = functools.partial(h11_protocol.Protocol, head_timeout=head_timeout)
        config = _config(app, cast("type[asyncio.Protocol]", protocol), tls)
        server = Server(
            config, announce=announce, drain=app.drain, shutdown_timeout=shutdown_timeout
        )
        runner = stack.enter_context(asyncio.Runner(loop_factory=config.get_loop_factory()))
        return runner.run(_serve(app, server, sockets, supervisor, monitoring))


@contextlib.contextmanager
def _collecting_rarely() -> Iterator[None]:
    """Look for garbage in cycles less often: requests leave little of it, and what there is by now,
    modules mostly, stays to the end.
    """
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


def _config(
    app: Tidegate, protocol: type[asyncio.Protocol], tls: ssl.SSLContext | None
) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=protocol,
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
        ssl_context_factory=None if tls is None else lambda _config, _default: tls,
    )


async def _serve(
    app: Tidegate,
    server: Server,
    sockets: Sequence[socket.socket],
    supervisor: socket.socket | None,
    monitoring: Sequence[socket.socket],
) -> int:
    signals: list[int] = []
    if supervisor is None:
        _heed_signals(server, signals)
    else:
        _heed_supervisor(server, supervisor)
    async with monitor.served(app, monitoring), app:
        await server.serve(list(sockets))
        left = set(server.server_state.tasks)
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=SAVE_WITHIN)
    if not server.forced:
        return 0
    # As a shell tells of a command that a signal ended.
    return 128 + (signals[1] if supervisor is None else signal.SIGTERM)


def _heed_signals(server: Server, signals: list[int]) -> None:
    loop = asyncio.get_running_loop()

    def stop(number: int) -> None:
        signals.append(number)
        server.stop()
        if len(signals) > 1:
            # A third one ends the process: what was acknowledged survives that.
            for each in SIGNALS:
                loop.remove_signal_handler(each)
                signal.signal(each, signal.SIG_DFL)

    for number in SIGNALS:
        loop.add_signal_handler(number, stop, number)


def _heed_supervisor(server: Server, supervisor: socket.socket) -> None:
    """Stop, or hurry, when it says so; end when it is dead."""
    loop = asyncio.get_running_loop()

    def hear() -> None:
        try:
            orders = supervisor.recv(64)
        except BlockingIOError:
            return
        except ConnectionError:
            orders = b""
        if not orders:
            os._exit(FAILED)
        stop()
        if workers.HURRY in orders:
            server.stop()

    def stop() -> None:
        # A terminal and systemd send a signal to all, and the supervisor passes it on.
        if not server.should_exit:
            server.stop()

    supervisor.setblocking(False)
    loop.add_reader(supervisor, hear)
    for number in SIGNALS:
        loop.add_signal_handler(number, stop)
