"""Every metadata store does what the port says."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
from tests.support import postgres
from tests.support.postgres_wire import Pooler

from tidegate.metadata.memory import MemoryMetadataStore
from tidegate.metadata.postgres.store import PostgresMetadataStore
from tidegate.metadata.redis.store import RedisMetadataStore
from tidegate.metadata.sqlite.store import SQLiteMetadataStore
from tidegate.testing.metadata import (
    METADATA_STORE_CHECKS,
    SHARED_METADATA_STORE_CHECKS,
    check_metadata_store,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.valkey import Valkey

    from tidegate.testing.metadata.support import Check, MakeStore

pytestmark = pytest.mark.anyio


def _name(check: Check) -> str:
    return check.__name__


@pytest.mark.parametrize("check", METADATA_STORE_CHECKS + SHARED_METADATA_STORE_CHECKS, ids=_name)
async def test_sqlite(check: Check, tmp_path: Path) -> None:
    await check(lambda: SQLiteMetadataStore(tmp_path / "tidegate.db"))


@pytest.mark.parametrize("check", METADATA_STORE_CHECKS + SHARED_METADATA_STORE_CHECKS, ids=_name)
async def test_redis(check: Check, valkey: Valkey) -> None:
    url = valkey.url()
    await check(lambda: RedisMetadataStore(url))


@pytest.mark.parametrize("check", METADATA_STORE_CHECKS + SHARED_METADATA_STORE_CHECKS, ids=_name)
async def test_postgresql(check: Check) -> None:
    url = postgres.server().url()
    await check(lambda: PostgresMetadataStore(url))


@pytest.mark.parametrize("check", METADATA_STORE_CHECKS + SHARED_METADATA_STORE_CHECKS, ids=_name)
async def test_postgresql_behind_a_pooler(check: Check) -> None:
    """No transaction finds the session of the one before, nor what that left in its own."""
    async with Pooler(postgres.server().port) as pooler:
        url = postgres.server().url(port=pooler.port)
        await check(lambda: PostgresMetadataStore(url))


@pytest.mark.parametrize("check", METADATA_STORE_CHECKS, ids=_name)
async def test_memory(check: Check) -> None:
    await check(MemoryMetadataStore)


async def test_all_at_once_without_a_test_runner(tmp_path: Path) -> None:
    """What someone else's store would be run through."""
    numbers = itertools.count()

    def new_place() -> MakeStore:
        path = tmp_path / f"{next(numbers)}.db"
        return lambda: SQLiteMetadataStore(path)

    await check_metadata_store(new_place)


async def test_names_the_check_that_failed() -> None:
    """A store that is broken is told where."""

    class Forgetful(MemoryMetadataStore):
        async def load(self, upload_id: str) -> None:
            return None

    with pytest.raises(AssertionError) as caught:
        await check_metadata_store(lambda: Forgetful)
    assert "in check inserts_a_record" in caught.value.__notes__[0]
