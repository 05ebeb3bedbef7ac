"""Both stores do what any data store must."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from msgspec.structs import replace

from tidegate.ports import Buffer, DataStore, Digest, Fence, Stored, Writer
from tidegate.protocol.capabilities import Capability
from tidegate.protocol.model import Upload
from tidegate.stores.local import LocalStore
from tidegate.stores.memory import MemoryStore, MemoryWriter, _Bytes
from tidegate.testing import check_data_store, data
from tidegate.testing.data import DATA_STORE_CHECKS, DataStoreCheck, basics

pytestmark = pytest.mark.anyio

MakeStore = Callable[[], AbstractAsyncContextManager[DataStore]]

STORES: dict[str, Callable[[Path], DataStore]] = {
    "local": LocalStore,
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


class Careless(MemoryStore):
    """Wrong in one way, chosen by `fault`."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault

    async def writer(self, upload: Upload, fence: Fence) -> Writer:
        stored = self._uploads.get(upload.id)
        if self.fault == "appends at the end" and stored is not None:
            upload = replace(upload, offset=len(stored.data))
        if self.fault == "makes up for missing bytes":
            stored = self._uploads.setdefault(upload.id, _Bytes())
            stored.data += bytes(max(0, upload.offset - len(stored.data)))
        writer = CarelessWriter(self, (await super().writer(upload, fence))._stored)  # type: ignore[attr-defined]
        writer._stored.writer = writer
        return writer

    async def measure(self, upload: Upload) -> int:
        size = await super().measure(upload)
        return max(0, size - 1) if self.fault == "forgets the last byte" else size

    async def truncate(self, upload: Upload, offset: int, fence: Fence) -> None:
        if self.fault != "does not truncate":
            await super().truncate(upload, offset, fence)

    async def finish(self, upload: Upload, fence: Fence, *, durable: bool) -> dict[str, Any]:
        if self.fault == "finishes what is not whole":
            return dict(upload.storage)
        return await super().finish(upload, fence, durable=durable)

    async def delete(self, upload: Upload) -> None:
        if self.fault != "does not delete":
            await super().delete(upload)

    def bytes_of(self, upload: Upload, stop: int) -> bytearray:
        if self.fault == "reads what is complete" and not upload.complete:
            return bytearray(stop)
        if self.fault == "reads what there is" and upload.id in self._uploads:
            return self._uploads[upload.id].data
        return super().bytes_of(upload, stop)

    async def stored(self) -> AsyncIterator[Stored]:
        async for found in super().stored():
            if self.fault != "hides the unfinished" or found.size != 60:
                yield found


class CarelessWriter(MemoryWriter):
    async def write(self, chunks: Sequence[Buffer], digest: Digest | None = None) -> None:
        match self._store.fault:  # type: ignore[attr-defined]
            case "drops the last of many chunks":
                chunks = chunks[:1024]
            case "does not copy the chunks":
                chunks = [chunk for chunk in chunks if not isinstance(chunk, memoryview)]
            case "hashes out of order" if digest is not None:
                for chunk in reversed(chunks):
                    digest.update(chunk)
                digest = None
        await super().write(chunks, digest)

    async def copy(self, part: Upload, start: int, stop: int) -> None:
        if self._store.fault == "copies from the beginning":  # type: ignore[attr-defined]
            start, stop = 0, stop - start
        await super().copy(part, start, stop)

    async def sync(self) -> int:
        synced = await super().sync()
        return synced - 1 if self._store.fault == "syncs too little" else synced  # type: ignore[attr-defined]


FAULTS = {
    "": None,
    "appends at the end": "cuts_back_on_open",
    "makes up for missing bytes": "nothing_is_there_at_first",
    "forgets the last byte": "appends_across_sessions",
    "does not truncate": "truncates",
    "finishes what is not whole": "tells_of_missing_bytes",
    "does not delete": "reading_may_end_early",
    "reads what is complete": "reads_what_is_whole_and_not_finished",
    "reads what there is": "reading_tells_of_missing_bytes",
    "hides the unfinished": "finds_what_is_stored",
    "drops the last of many chunks": "takes_many_chunks",
    "does not copy the chunks": "takes_any_buffers",
    "hashes out of order": "adds_to_the_digest",
    "copies from the beginning": "copies_parts",
    "syncs too little": "syncs_what_was_flushed",
}


@pytest.mark.parametrize(("fault", "check"), FAULTS.items())
async def test_a_careless_store_is_found_out(fault: str, check: str | None) -> None:
    """And the failure says in which check."""

    @asynccontextmanager
    async def make() -> AsyncIterator[DataStore]:
        yield Careless(fault)

    failed = None
    try:
        await check_data_store(make)
    except AssertionError as failure:
        failed = failure.__notes__[0].split(":")[0].removeprefix("in the check ")
    assert failed == check


async def test_a_store_that_can_do_less_is_asked_for_less() -> None:
    """Only what its capabilities promise is checked."""

    class WriteOnly(MemoryStore):
        capabilities = Capability.NONE

        def read(self, *_: object) -> AsyncIterator[bytes]:
            raise AssertionError

        async def truncate(self, *_: object) -> None:
            raise AssertionError

        async def delete(self, *_: object) -> None:
            raise AssertionError

    @asynccontextmanager
    async def make() -> AsyncIterator[DataStore]:
        yield WriteOnly()

    await check_data_store(make)


async def test_a_check_that_hangs_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hangs(MemoryStore):
        async def free_space(self) -> int | None:
            await anyio.sleep_forever()
            return None

    @asynccontextmanager
    async def make() -> AsyncIterator[DataStore]:
        yield Hangs()

    monkeypatch.setattr(data, "PATIENCE", 0.01)
    monkeypatch.setattr(data, "DATA_STORE_CHECKS", [basics.tells_its_free_space])
    with pytest.raises(AssertionError, match="tells_its_free_space: not done after"):
        await check_data_store(make)
