"""The way in and the stores behind it, by parameter: every test here runs over all of them.

A test takes `client` (a server with default settings), or `serve`, which starts one with others.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.exchange import Client
from tests.support.logs import logs_kept
from tests.support.serving import CLUSTER, PAIRS, S3_PAIR, served, stores

from tidegate.asgi import Tidegate
from tidegate.ports import Durability
from tidegate.protocol.capabilities import Capability
from tidegate.testing import FakeClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.support.s3_server import S3Server

Serve = Callable[..., Awaitable[Client]]

COMBINATIONS = [
    *(("asgi", pair) for pair in PAIRS),
    # What is above the engine does not know which stores there are, and those not who asks. But a
    # body goes to files by threads, to what else there is by the loop, and may wait for a network.
    *(("native", pair) for pair in ("local+sqlite", "memory+memory", CLUSTER, S3_PAIR)),
    # What a framework's own server does differs below the stores only.
    *((way, "local+sqlite") for way in ("h11", "httptools")),
]


@pytest.fixture(params=COMBINATIONS, ids=lambda c: f"{c[0]}-{c[1]}")
def combination(request: pytest.FixtureRequest) -> tuple[str, str]:
    found: tuple[str, str] = request.param
    return found


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def s3(combination: tuple[str, str], request: pytest.FixtureRequest) -> S3Server | None:
    if combination[1] != S3_PAIR:
        return None
    found: S3Server = request.getfixturevalue("moto_server")
    return found


@pytest.fixture
async def serve(
    combination: tuple[str, str],
    tmp_path: Path,
    clock: FakeClock,
    s3: S3Server | None,
    request: pytest.FixtureRequest,
) -> AsyncIterator[Serve]:
    way, pair = combination
    redis = request.getfixturevalue("valkey").url() if pair.endswith("+redis") else ""
    async with AsyncExitStack() as stack:

        async def start(**settings: Any) -> Client:
            data, metadata = stores(pair, tmp_path, redis, s3)
            given: dict[str, Any] = {"base_path": "/files/", "clock": clock} | settings
            if way != "asgi":
                # Waiting for the disk is tried in process; here it would only take its time.
                given.setdefault("durability", Durability.NONE)
            if way == "native":
                given.setdefault("transport", Capability.TRAILERS)
            app = Tidegate(given.pop("data", data), given.pop("metadata", metadata), **given)
            await stack.enter_async_context(app)
            return await stack.enter_async_context(served(app, way))

        yield start


@pytest.fixture
async def client(serve: Serve) -> Client:
    return await serve()


@pytest.fixture(autouse=True)
def logged() -> Iterator[list[logging.LogRecord]]:
    with logs_kept() as records:
        yield records
