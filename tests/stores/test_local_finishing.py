"""Finishing uploads on a local disk, step by step."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from msgspec.structs import replace

from tidegate.ports import BytesBusyError, BytesMissingError, DataError
from tidegate.stores.local import LocalStore
from tidegate.testing.data import ALONE

from .conftest import append, make_upload, read_all
from .on_disk import fails, files, traced

pytestmark = pytest.mark.anyio


async def test_finishing_syncs_before_and_after_each_step(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes, then the new name and its folders, then away with the old name."""
    store = LocalStore(root, name="{year}/{id}")
    await store.open()
    upload = await append(store, make_upload(store), b"1234567890")
    incoming, finished = (root / upload.storage[key] for key in ("incoming", "finished"))
    with traced(monkeypatch, "fdatasync", "fsync", "link", "unlink", "rename") as calls:
        await store.finish(upload, ALONE, durable=True)
    assert calls == [
        ("fdatasync", str(incoming)),
        ("link", str(incoming)),
        ("fsync", str(finished.parent)),
        ("fsync", str(root / "finished")),
        ("unlink", str(incoming)),
    ]
    with traced(monkeypatch, "fdatasync", "fsync", "link", "unlink", "rename") as calls:
        await store.finish(upload, ALONE, durable=True)
    assert [name for name, _ in calls if name in {"fdatasync", "fsync"}] == ["fdatasync", "fsync"]


async def test_finishing_without_syncs(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = await append(store, make_upload(store), b"1234567890")
    with traced(monkeypatch, "fdatasync", "fsync") as calls:
        await store.finish(upload, ALONE, durable=False)
    assert calls == []


async def test_another_file_is_never_replaced(store: LocalStore, root: Path) -> None:
    upload = await append(store, make_upload(store), b"1234567890")
    finished = root / upload.storage["finished"]
    finished.parent.mkdir()
    finished.write_bytes(b"another's")
    with pytest.raises(DataError, match="another file is in its place"):
        await store.finish(upload, ALONE, durable=True)
    assert finished.read_bytes() == b"another's"
    finished.unlink()
    await store.finish(upload, ALONE, durable=True)
    assert finished.read_bytes() == b"1234567890"


async def test_a_file_system_without_links(
    store: LocalStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", fails(errno.EPERM))
    upload = await append(store, make_upload(store), b"1234567890")
    finished = root / upload.storage["finished"]
    finished.parent.mkdir()
    finished.write_bytes(b"another's")
    with pytest.raises(DataError, match="another file is in its place"):
        await store.finish(upload, ALONE, durable=True)
    finished.unlink()
    for _ in range(2):
        await store.finish(upload, ALONE, durable=True)
    assert files(root) == [upload.storage["finished"]]


async def test_a_crash_between_the_two_steps_of_a_move(
    store: LocalStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file has both names: everything copes, and nothing of it stays behind."""
    upload = await append(store, make_upload(store), b"1234567890")
    incoming, finished = (root / upload.storage[key] for key in ("incoming", "finished"))

    async def half_finish() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(os, "unlink", fails(errno.EIO))
            with pytest.raises(DataError):
                await store.finish(upload, ALONE, durable=True)
        assert incoming.samefile(finished)

    await half_finish()
    assert await store.measure(upload) == 10
    await store.finish(upload, ALONE, durable=True)
    assert files(root) == [upload.storage["finished"]]
    assert await read_all(store, upload) == b"1234567890"

    await store.writer(upload, ALONE)  # moved back, and dropped
    assert files(root) == [upload.storage["incoming"]]
    await half_finish()
    again = await append(store, replace(upload, offset=4), b"xxx")
    assert files(root) == [upload.storage["incoming"]]
    assert await store.measure(again) == 7
    upload = await append(store, again, b"yyy")
    await half_finish()
    await store.delete(upload)
    assert files(root) == []


async def test_bytes_past_the_length_are_cut_off(store: LocalStore, root: Path) -> None:
    """They were never acknowledged: a session that ran past the length and was killed."""
    upload = await append(store, make_upload(store), b"1234567890-more")
    upload = replace(upload, offset=10)
    await store.finish(upload, ALONE, durable=True)
    assert (root / upload.storage["finished"]).read_bytes() == b"1234567890"


async def test_finishing_under_ones_own_writer(store: LocalStore) -> None:
    """The lease's holder may still have it open; nobody else may."""
    upload = make_upload(store)
    writer = await store.writer(upload, ALONE)
    await writer.write([b"1234567890"])
    upload = replace(upload, offset=10)
    other = LocalStore(store.root)
    await other.open()
    with pytest.raises(BytesBusyError):
        await other.finish(upload, ALONE, durable=False)
    await store.finish(upload, ALONE, durable=False)
    await writer.close()
    assert await read_all(other, upload) == b"1234567890"


async def test_deleted_while_it_is_finished(
    store: LocalStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = await append(store, make_upload(store), b"1234567890")
    original = os.link

    def link(source: str, target: str) -> None:
        os.unlink(source)
        original(source, target)

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(BytesMissingError, match="deleted meanwhile"):
        await store.finish(upload, ALONE, durable=True)
    assert files(root) == []
