"""A bucket does what any data store must, on two servers that have no code in common."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.s3 import LEAST_PART
from tests.support.s3_server import S3Server

from tidegate.stores.s3.options import MIB, Checksums
from tidegate.stores.s3.store import S3Store
from tidegate.testing.data import DATA_STORE_CHECKS, DataStoreCheck

pytestmark = pytest.mark.anyio

OPTIONS: dict[str, dict[str, Any]] = {
    "moto": {},
    "moto-small-parts": {"part_size": LEAST_PART, "memory": 4 * LEAST_PART},
    "moto-uniform": {
        "part_size": 3 * LEAST_PART,
        "memory": 16 * LEAST_PART,
        "uniform_parts": True,
        "checksums": Checksums.MD5,
        "concurrency": 1,
    },
    "moto-named": {"name": "{year}/{stem}-{id}{ext}", "checksums": Checksums.NONE},
    # Slow, so in one way only.
    "swift": {"part_size": 512 * 1024, "memory": 2 * MIB},
}


@pytest.fixture(params=OPTIONS)
def store(request: pytest.FixtureRequest) -> S3Store:
    server: S3Server = request.getfixturevalue(f"{request.param.partition('-')[0]}_server")
    options = {"least_part": LEAST_PART, "patience": 2.0} | OPTIONS[request.param]
    return server.store(f"/{request.node.name}/", **options)


@pytest.mark.parametrize("check", DATA_STORE_CHECKS, ids=lambda check: check.__name__)
async def test_data_store(check: DataStoreCheck, store: S3Store) -> None:
    await store.open()
    try:
        await check(store)
        assert store.budget.free == store.budget.limit, "memory that nobody gave back"
    finally:
        await store.close()
