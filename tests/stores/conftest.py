"""Stores, and uploads in them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from tidegate.ports import DataStore
from tidegate.protocol.model import Upload, UploadId
from tidegate.stores.local import LocalStore
from tidegate.testing.data import ALONE

MakeUpload = Callable[..., Upload]


def make_upload(
    store: DataStore, name: str = "one", length: int | None = 10, **fields: Any
) -> Upload:
    """A record as the engine would make it."""
    upload = Upload(
        id=UploadId(name), length=length, **{"created_at": 1e9, "active_at": 1e9} | fields
    )
    return replace(upload, storage=store.place(upload))


async def append(store: DataStore, upload: Upload, *chunks: bytes) -> Upload:
    """One session of writing; the record afterwards."""
    writer = await store.writer(upload, ALONE)
    try:
        await writer.write(chunks)
        return replace(upload, offset=writer.offset)
    finally:
        await writer.close()


async def read_all(store: DataStore, upload: Upload) -> bytes:
    return b"".join([chunk async for chunk in store.read(upload, 0, upload.length or 0)])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
async def store(root: Path) -> AsyncIterator[LocalStore]:
    store = LocalStore(root)
    await store.open()
    yield store
    await store.close()
