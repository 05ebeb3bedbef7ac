"""Locks on files, between processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import anyio
import pytest
from msgspec.structs import replace

from tidegate.ports import BytesBusyError, DataError
from tidegate.stores import disk
from tidegate.stores.local import LocalStore
from tidegate.testing.data import ALONE

from .conftest import append, make_upload
from .on_disk import files, open_descriptors

pytestmark = pytest.mark.anyio

HOLD = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
fcntl.flock(fd, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""


async def test_another_process_is_not_overtaken(store: LocalStore, root: Path) -> None:
    """As long as it lives, paused or not; once it is killed, at once."""
    upload = await append(store, make_upload(store), b"12345")
    path = root / upload.storage["incoming"]

    def start() -> subprocess.Popen[bytes]:
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        return holder

    holder = await anyio.to_thread.run_sync(start)
    with holder:
        try:
            for attempt in (
                lambda: store.writer(upload, ALONE),
                lambda: store.truncate(upload, 0, ALONE),
                lambda: store.finish(replace(upload, length=5), ALONE, durable=True),
            ):
                with pytest.raises(BytesBusyError):
                    await attempt()
            assert await store.measure(upload) == 5
        finally:
            holder.kill()
            await anyio.to_thread.run_sync(holder.wait)
    upload = await append(store, upload, b"67890")
    await store.delete(upload)
    assert files(root) == []


async def test_a_file_that_is_replaced_before_it_is_locked(
    store: LocalStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock must be that of the file that has the name, or two writers could have one each."""
    import fcntl

    upload = make_upload(store)
    await append(store, upload, b"old")
    path = root / upload.storage["incoming"]
    original, times = fcntl.flock, 0

    def flock(fd: int, operation: int) -> None:
        nonlocal times
        times += 1
        if times <= 3:
            path.unlink()
        original(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    upload = await append(store, upload, b"1234567890")
    assert times == 4
    assert path.read_bytes() == b"1234567890"


async def test_a_file_that_never_holds_still(
    store: LocalStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "same_file", lambda *_: False)
    before = open_descriptors()
    with pytest.raises(DataError, match="does not hold still"):
        await store.writer(make_upload(store), ALONE)
    assert open_descriptors() == before
