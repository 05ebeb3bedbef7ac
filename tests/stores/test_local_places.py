"""Where a store on a local disk keeps its files, and where no record leads it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from msgspec.structs import replace

from tidegate.ports import DataError, Stored
from tidegate.protocol.model import UploadId
from tidegate.stores.local import LocalStore
from tidegate.testing.data import ALONE

from .conftest import append, make_upload, read_all
from .on_disk import files

pytestmark = pytest.mark.anyio


async def test_where_the_files_are(root: Path) -> None:
    store = LocalStore(root, name="{year}-{month}/{id}-{filename}")
    await store.open()
    upload = make_upload(store, metadata="filename Li4vYS50eHQ=")  # ../a.txt
    upload = await append(store, upload, b"1234567890")
    assert files(root) == [upload.storage["incoming"]]
    await store.finish(upload, ALONE, durable=False)
    assert files(root) == ["finished/2001-09/one-a.txt"]
    assert stat.S_IMODE((root / files(root)[0]).stat().st_mode) & 0o037 == 0


TAMPERED = [
    "../outside",
    "incoming/../../outside",
    "/etc/passwd",
    "incoming//etc/passwd",
    "incoming/./x",
    "incoming",
    "incoming/",
    "finished/aa/x",
    "incoming/a\0b",
    "",
    None,
    7,
    ["incoming", "x"],
]


@pytest.mark.parametrize("path", TAMPERED)
async def test_a_tampered_record_does_not_escape(
    store: LocalStore, root: Path, path: object
) -> None:
    outside = root.parent / "outside"
    outside.write_bytes(b"1234567890")
    upload = make_upload(store)
    upload = replace(upload, storage={**upload.storage, "incoming": path})
    whole = replace(upload, offset=10)
    for attempt in (
        lambda: store.writer(upload, ALONE),
        lambda: store.measure(upload),
        lambda: store.truncate(upload, 0, ALONE),
        lambda: store.finish(whole, ALONE, durable=False),
        lambda: store.delete(upload),
        lambda: read_all(store, upload),
    ):
        with pytest.raises(DataError, match="is not one below"):
            await attempt()
    with pytest.raises(DataError, match="is not one below"):
        await store.discard(Stored(UploadId("one"), 10, 0, str(path) + "/../x"))
    assert outside.read_bytes() == b"1234567890"


async def test_names_that_are_not_text_are_an_error_of_the_store(store: LocalStore) -> None:
    upload = make_upload(store)
    upload = replace(upload, storage={**upload.storage, "incoming": "incoming/aa/\ud800"})
    with pytest.raises(DataError):
        await store.measure(upload)


async def test_symbolic_links_and_special_files_are_not_followed(
    store: LocalStore, root: Path
) -> None:
    """Someone who can write below the root can't make us write to, or read, what lies outside."""
    outside = root.parent / "outside"
    outside.write_bytes(b"1234567890")
    upload = make_upload(store)
    whole = replace(upload, offset=10)
    for key in ("incoming", "finished"):
        path = root / upload.storage[key]
        path.parent.mkdir(exist_ok=True)
        path.symlink_to(outside)
        for attempt in (
            lambda: store.writer(upload, ALONE),
            lambda: store.measure(upload),
            lambda: store.truncate(upload, 0, ALONE),
            lambda: read_all(store, whole),
            lambda: store.finish(whole, ALONE, durable=True),
        ):
            with pytest.raises(DataError):
                await attempt()
        assert [found async for found in store.stored()] == []
        await store.delete(upload)
        assert not path.is_symlink()
        os.mkfifo(path)
        with pytest.raises(DataError, match="not a regular file"):
            await store.writer(upload, ALONE)
        with pytest.raises(DataError, match="not a regular file"):
            await store.measure(upload)
        path.unlink()
    assert outside.read_bytes() == b"1234567890"
