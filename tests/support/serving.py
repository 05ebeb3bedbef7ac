"""Applications served to tests: the ways in, and the pairs of stores behind."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import ExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import uvicorn
from tests.support import postgres
from tests.support.exchange import AsgiClient, Client, SocketClient
from tests.support.s3 import LEAST_PART
from uvicorn.server import ServerState

from tidegate.asgi import Tidegate
from tidegate.cli.server import HEAD_BYTES
from tidegate.metadata.memory import MemoryMetadataStore
from tidegate.metadata.postgres.store import PostgresMetadataStore
from tidegate.metadata.redis.store import RedisMetadataStore
from tidegate.metadata.sqlite.store import SQLiteMetadataStore
from tidegate.stores.local import LocalStore
from tidegate.stores.memory import MemoryStore
from tidegate.transports import h11_protocol
from tidegate.transports.native.limits import Limits
from tidegate.transports.native.native import Native

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.support.s3_server import S3Server

    from tidegate.ports import DataStore, MetadataStore

PAIRS = ("local+sqlite", "local+redis", "local+memory", "memory+sqlite", "memory+memory")
CLUSTER = "local+postgresql"
"""Slower to open than the others: not over every way."""
S3_PAIR = "s3+sqlite"
WAYS = ("asgi", "h11", "httptools", "native")
"""In process; over a socket as `tidegate serve` does; as uvicorn serves an application by default."""
PROTOCOLS: dict[str, Any] = {"h11": h11_protocol.Protocol, "httptools": "httptools"}
MEMORY = 64 * 1024 * 1024


def stores(
    pair: str, folder: Path, redis: str = "", s3: S3Server | None = None
) -> tuple[DataStore, MetadataStore]:
    """The two stores of a pair, not opened yet. `redis` and `s3` are for those that need one."""
    data, _, metadata = pair.partition("+")
    make: dict[str, Callable[[], MetadataStore]] = {
        "sqlite": lambda: SQLiteMetadataStore(folder / "tidegate.db"),
        "redis": lambda: RedisMetadataStore(redis),
        "postgresql": lambda: PostgresMetadataStore(postgres.server().url(_schema(folder))),
        "memory": MemoryMetadataStore,
    }
    if s3 is not None:
        # Small parts, so that uploads of many are quick.
        options: dict[str, Any] = {
            "part_size": LEAST_PART,
            "least_part": LEAST_PART,
            "memory": 64 * LEAST_PART,
        }
        kept: DataStore = s3.store(folder.name, **options)
    else:
        kept = LocalStore(folder / "data") if data == "local" else MemoryStore(MEMORY)
    return (
        kept,
        make[metadata](),
    )


def _schema(folder: Path) -> str:
    """One for one folder: a server that is started again finds what it had."""
    return f"f{hashlib.blake2b(bytes(folder), digest_size=8).hexdigest()}"


def in_memory(**settings: Any) -> Tidegate:
    """An application on stores in memory, which nobody has opened."""
    return Tidegate(
        settings.pop("data", None) or MemoryStore(MEMORY),
        settings.pop("metadata", None) or MemoryMetadataStore(),
        **settings,
    )


@asynccontextmanager
async def served(app: Any, way: str) -> AsyncIterator[Client]:
    """A client of an application that is open already."""
    if way == "asgi":
        yield AsgiClient(app)
        return
    async with listening(app, way) as port:
        client = SocketClient("127.0.0.1", port)
        try:
            yield client
        finally:
            await client.aclose()


@asynccontextmanager
async def listening(
    app: Any,
    way: str,
    *,
    limits: Limits | None = None,
    tls: ssl.SSLContext | None = None,
    **settings: Any,
) -> AsyncIterator[int]:
    """One of WAYS on a port of this event loop; nothing waits for a server's ticks."""
    with ExitStack() as stack:
        protocol = PROTOCOLS.get(way) or stack.enter_context(Native(app, limits))
        async with _listening(app, protocol, tls, **settings) as port:
            yield port


@asynccontextmanager
async def _listening(
    app: Any, protocol: Any, tls: ssl.SSLContext | None, **settings: Any
) -> AsyncIterator[int]:
    config = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=HEAD_BYTES,
        **settings,
    )
    config.load()
    state = ServerState()
    protocol = config.http_protocol_class
    server = await asyncio.get_running_loop().create_server(
        lambda: protocol(config=config, server_state=state, app_state={}),
        "127.0.0.1",
        0,
        ssl=tls,
    )
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for connection in list(state.connections):
            connection.transport.abort()
        if state.tasks:
            await asyncio.wait(state.tasks, timeout=10)
        await server.wait_closed()
