"""Both stores do what any data store must."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from tidegate.ports import DataStore
from tidegate.stores.local import LocalStore
from tidegate.stores.memory import MemoryStore
from tidegate.testing import check_data_store
from tidegate.testing.datastore import DATA_STORE_CHECKS, DataStoreCheck

pytestmark = pytest.mark.anyio

MakeStore = Callable[[], AbstractAsyncContextManager[DataStore]]

STORES: dict[str, Callable[[Path], DataStore]] = {
    "local": lambda root: LocalStore(root),
    "local-named": lambda root: LocalStore(root, name="{year}/{shard}/{stem}-{id}{ext}"),
    "local-own-folders": lambda root: LocalStore(root, name="{id}/{filename}"),
    "local-one-thread": lambda root: LocalStore(root, threads=1, sync_threads=1),
    "memory": lambda _: MemoryStore(),
}


@pytest.fixture(params=STORES)
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> MakeStore:
    numbers = iter(range(1000))

    @asynccontextmanager
    async def make() -> AsyncIterator[DataStore]:
        store = STORES[request.param](tmp_path / f"store-{next(numbers)}")
        await store.open()
        try:
            yield store
        finally:
            await store.close()

    return make


@pytest.mark.parametrize("check", DATA_STORE_CHECKS, ids=lambda check: check.__name__)
async def test_data_store(check: DataStoreCheck, make_store: MakeStore) -> None:
    async with make_store() as store:
        await check(store)


async def test_all_at_once(tmp_path: Path) -> None:
    """The way in which someone runs the checks who has no pytest."""
    made = 0

    @asynccontextmanager
    async def make() -> AsyncIterator[DataStore]:
        nonlocal made
        made += 1
        yield MemoryStore()

    await check_data_store(make)
    assert made == len(DATA_STORE_CHECKS)


async def test_a_failure_names_its_check() -> None:
    """A store that forgets its last byte fails, and the message says in which check."""

    class Forgetful(MemoryStore):
        async def measure(self, upload: object) -> int:
            return max(0, await super().measure(upload) - 1)  # type: ignore[arg-type]

    @asynccontextmanager
    async def make() -> AsyncIterator[DataStore]:
        yield Forgetful()

    with pytest.raises(AssertionError) as failure:
        await check_data_store(make)
    assert "appends_across_sessions" in failure.value.__notes__[0]
