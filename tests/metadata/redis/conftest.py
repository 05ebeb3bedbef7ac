"""A server, a store on it, and a line between them that loses what a test says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.metadata.redis.stage import at
from tests.support.lossy import LossyLine
from tests.support.valkey import Valkey

from tidegate.metadata.redis.store import RedisMetadataStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    import redis


@pytest.fixture
def url(valkey: Valkey) -> str:
    return valkey.url()


@pytest.fixture
async def store(url: str) -> AsyncIterator[RedisMetadataStore]:
    async with at(url, boot_id="boot") as store:
        yield store


@pytest.fixture
def client(valkey: Valkey) -> Iterator[redis.Redis]:
    with valkey.client() as client:
        yield client


@pytest.fixture
async def line(valkey: Valkey) -> AsyncIterator[LossyLine]:
    async with LossyLine("127.0.0.1", valkey.port) as line:
        yield line
