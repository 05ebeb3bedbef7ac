"""Reading, deleting and sweeping on a local disk."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tidegate.ports import BytesMissingError, DataError
from tidegate.stores import local
from tidegate.stores.local import LocalStore
from tidegate.testing.data import ALONE

from .conftest import append, make_upload, read_all
from .on_disk import fails, files, open_descriptors

pytestmark = pytest.mark.anyio


async def test_a_file_that_shrinks_while_it_is_read(store: LocalStore, root: Path) -> None:
    data = b"x" * (local.READ_CHUNK * 2)
    upload = await append(store, make_upload(store, length=len(data)), data)
    await store.finish(upload, ALONE, durable=False)
    reading = store.read(upload, 0, len(data))
    assert len(await anext(reading)) == local.READ_CHUNK
    os.truncate(root / upload.storage["finished"], local.READ_CHUNK)
    with pytest.raises(BytesMissingError, match="before"):
        await anext(reading)


async def test_deleting_does_not_cut_a_reader_short(store: LocalStore) -> None:
    data = os.urandom(local.READ_CHUNK * 2 + 1)
    upload = await append(store, make_upload(store, length=len(data)), data)
    await store.finish(upload, ALONE, durable=False)
    chunks = []
    async for chunk in store.read(upload, 0, len(data)):
        await store.delete(upload)
        chunks.append(chunk)
    assert b"".join(chunks) == data


async def test_a_sweep_names_only_what_is_certain(root: Path) -> None:
    """Not an operator's own files, nor what another template may have named."""
    old = LocalStore(root, name="{id}/{filename}")
    await old.open()
    name = "filename Yi50eHQ="  # b.txt
    before = await append(old, make_upload(old, "before", metadata=name), b"1234567890")
    await old.finish(before, ALONE, durable=False)
    # Under the new template alone, that file would be the upload "b.txt"'s.
    store = LocalStore(root, name="{filename}/{id}")
    await store.open()
    after = await append(store, make_upload(store, "after", metadata=name), b"1234567890")
    await store.finish(after, ALONE, durable=False)
    plain = await append(store, make_upload(store, "plain"), b"123")
    (root / "finished" / "note.txt").write_text("an operator's")
    (root / "incoming" / "x y").write_text("not a name of ours")
    (root / "incoming" / "link").symlink_to(root / "finished" / "note.txt")
    found = {stored.place: stored.upload_id async for stored in store.stored()}
    # The second was signed when it was finished, since its name alone does not tell any more.
    assert found == {
        after.storage["finished"]: "after",
        plain.storage["incoming"]: "plain",
    }


@pytest.mark.parametrize("signed", [True, False])
async def test_a_signature_tells_where_a_name_does_not(
    root: Path, monkeypatch: pytest.MonkeyPatch, signed: bool
) -> None:
    if not signed:
        monkeypatch.setattr(os, "setxattr", fails(errno.EOPNOTSUPP))
    store = LocalStore(root, name="{id}-{filename}")
    await store.open()
    ids = ["a-b", "plain", "x" * 500]
    for name in ids:
        upload = await append(store, make_upload(store, name, metadata="filename YS1i"), b"1" * 10)
        await store.finish(upload, ALONE, durable=False)
    found = {stored.upload_id async for stored in store.stored()}
    assert found == (set(ids) if signed else set())


async def test_a_walk_in_batches_and_left_early(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "BATCH", 3)
    ids = {f"upload-{number}" for number in range(10)}
    for name in ids:
        await append(store, make_upload(store, name), b"x")
    assert {found.upload_id async for found in store.stored()} == ids
    before = open_descriptors()
    walk = store.stored()
    assert (await anext(walk)).upload_id in ids
    await walk.aclose()  # type: ignore[attr-defined]
    assert open_descriptors() == before


async def test_own_folders_go_with_their_upload(root: Path) -> None:
    store = LocalStore(root, name="{year}/{id}/{filename}")
    await store.open()
    one = await append(store, make_upload(store, "one"), b"1234567890")
    two = await append(store, make_upload(store, "two"), b"1234567890")
    for upload in (one, two):
        await store.finish(upload, ALONE, durable=True)
    (root / "finished/2001/two/note.txt").write_text("an operator's")
    await store.delete(one)
    await store.delete(two)
    assert sorted(os.listdir(root / "finished/2001")) == ["two"]
    assert files(root) == ["finished/2001/two/note.txt"]


async def test_a_torn_list_of_templates_is_mended(root: Path) -> None:
    await LocalStore(root).open()
    with (root / "templates").open("a") as templates:
        templates.write("{id}/{filen")
    await LocalStore(root, name="{id}/x").open()
    assert (root / "templates").read_text() == "{shard}/{id}\n{id}/x\n"
    (root / "templates").write_text("nonsense\n")
    with pytest.raises(DataError, match=r"templates: the name template 'nonsense'"):
        await LocalStore(root).open()


@pytest.mark.parametrize("call", ["stat", "unlink", "ftruncate", "pread", "statvfs"])
async def test_no_error_of_the_system_gets_out(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    upload = await append(store, make_upload(store), b"1234567890")
    await store.finish(upload, ALONE, durable=False)
    attempts: dict[str, Callable[[], Any]] = {
        "stat": lambda: store.measure(upload),
        "unlink": lambda: store.delete(upload),
        "ftruncate": lambda: store.truncate(upload, 5, ALONE),
        "pread": lambda: read_all(store, upload),
        "statvfs": store.free_space,
    }
    monkeypatch.setattr(os, call, fails(errno.EIO))
    with pytest.raises(DataError, match="cannot"):
        await attempts[call]()
