"""What is synced on a local disk, when, and what a failed sync means."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import anyio
import pytest
from msgspec.structs import replace

from tidegate.ports import SyncFailedError
from tidegate.stores.local import LocalStore
from tidegate.testing.data import ALONE

from .conftest import append, make_upload, read_all
from .on_disk import fails, traced

pytestmark = pytest.mark.anyio


async def test_the_first_sync_makes_the_name_last_too(
    store: LocalStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = make_upload(store)
    incoming = root / upload.storage["incoming"]
    writer = await store.writer(upload, ALONE)
    await writer.write([b"12345"])
    with traced(monkeypatch, "fdatasync", "fsync") as calls:
        assert await writer.sync() == 5
    assert calls == [
        ("fdatasync", str(incoming)),
        ("fsync", str(incoming.parent)),
        ("fsync", str(root / "incoming")),
    ]
    await writer.write([b"67890"])
    with traced(monkeypatch, "fdatasync", "fsync") as calls:
        assert await writer.sync() == 10
    assert calls == [("fdatasync", str(incoming))]
    await writer.close()
    # In a later session, too, the name is known to last.
    writer = await store.writer(replace(upload, offset=10, synced_offset=10), ALONE)
    with traced(monkeypatch, "fdatasync", "fsync") as calls:
        assert await writer.sync() == 10
    assert calls == [("fdatasync", str(incoming))]
    await writer.close()


async def test_a_sync_covers_what_was_written_before_it(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes that come in while the disk is at work are not said to be synced."""
    writer = await store.writer(make_upload(store, length=100), ALONE)
    await writer.write([b"x" * 40])
    original, at_work, go_on = os.fdatasync, threading.Event(), threading.Event()

    def fdatasync(fd: int) -> None:
        at_work.set()
        assert go_on.wait(10)
        original(fd)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    synced = []

    async def sync() -> None:
        synced.append(await writer.sync())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(sync)
        await anyio.to_thread.run_sync(at_work.wait)
        await writer.write([b"x" * 60])
        go_on.set()
    assert synced == [40]
    assert writer.offset == 100
    await writer.close()


@pytest.mark.parametrize("call", ["fdatasync", "fsync"])
async def test_a_failed_sync_is_never_taken_back(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Not by another sync, nor by finish, in this session or the next, until it goes back."""
    upload = make_upload(store)
    writer = await store.writer(upload, ALONE)
    await writer.write([b"12345"])
    assert await writer.sync() == 5 or call == "fsync"
    if call == "fsync":  # only the first sync of a file syncs names
        await writer.close()
        await store.delete(upload)
        writer = await store.writer(upload, ALONE)
        await writer.write([b"12345"])
    await writer.write([b"67890"])
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fails(errno.EIO))
        with pytest.raises(SyncFailedError, match="Input/output error"):
            await writer.sync()
    with pytest.raises(SyncFailedError, match="an earlier sync"):
        await writer.sync()
    await writer.close()
    sure = 0 if call == "fsync" else 5
    whole = replace(upload, offset=10, synced_offset=sure)
    with pytest.raises(SyncFailedError, match="an earlier sync"):
        await store.finish(whole, ALONE, durable=True)
    writer = await store.writer(whole, ALONE)
    with pytest.raises(SyncFailedError, match="an earlier sync"):
        await writer.sync()
    await writer.close()
    await store.truncate(whole, sure, ALONE)
    again = await append(store, replace(whole, offset=sure), b"1234567890"[sure:])
    await store.finish(again, ALONE, durable=True)
    assert await read_all(store, again) == b"1234567890"


@pytest.mark.parametrize("call", ["fdatasync", "fsync"])
async def test_a_failed_sync_at_the_end_is_never_taken_back(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    upload = await append(store, make_upload(store), b"1234567890")
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fails(errno.EIO))
        with pytest.raises(SyncFailedError, match="Input/output error"):
            await store.finish(upload, ALONE, durable=True)
    with pytest.raises(SyncFailedError, match="an earlier sync"):
        await store.finish(upload, ALONE, durable=True)
    again = await append(store, replace(upload, offset=0), b"1234567890")
    await store.finish(again, ALONE, durable=True)
    assert await read_all(store, again) == b"1234567890"


async def test_folders_that_cannot_be_synced(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some network file systems refuse it, and need not be asked."""
    monkeypatch.setattr(os, "fsync", fails(errno.EINVAL))
    upload = await append(store, make_upload(store), b"1234567890")
    await store.finish(upload, ALONE, durable=True)


async def test_only_so_many_folders_are_remembered(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tidegate.stores.tree.MANY_FOLDERS", 2)
    for number in range(6):
        upload = await append(store, make_upload(store, f"upload-{number}"), b"1234567890")
        await store.finish(upload, ALONE, durable=True)
    assert len(store._tree._synced_folders) == 2
