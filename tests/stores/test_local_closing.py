"""No descriptor of a local disk's files is left open, whatever is cancelled or fails."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from msgspec.structs import replace

from tidegate.ports import BytesBusyError, BytesMissingError, DataError
from tidegate.stores import disk
from tidegate.stores.local import LocalStore
from tidegate.testing.data import ALONE

from .conftest import append, make_upload, read_all
from .on_disk import open_descriptors

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("what", ["writer", "read", "copy"])
async def test_a_file_that_is_opened_for_nobody_is_closed(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, what: str, native: bool
) -> None:
    """Cancelled while a thread is opening it, by a scope or by task.cancel()."""
    import asyncio

    whole = await append(store, make_upload(store), b"1234567890")
    if what != "writer":
        await store.finish(whole, ALONE, durable=False)
    final = await store.writer(make_upload(store, "final"), ALONE)
    attempts: dict[str, Callable[[], Any]] = {
        "writer": lambda: store.writer(whole, ALONE),
        "read": lambda: read_all(store, whole),
        "copy": lambda: final.copy(whole, 0, 10),
    }
    original, opening, go_on = disk.open_file, threading.Event(), threading.Event()

    def open_file(path: str, flags: int) -> disk.Descriptor:
        opening.set()
        assert go_on.wait(10)
        return original(path, flags)

    before = open_descriptors()
    monkeypatch.setattr(disk, "open_file", open_file)
    if native:
        task = asyncio.ensure_future(attempts[what]())
        await anyio.to_thread.run_sync(opening.wait)
        task.cancel()
        await checkpoint()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
    else:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:

                async def attempt() -> None:
                    # What was opened, and can't be handed over, is dropped here.
                    await attempts[what]()

                tasks.start_soon(attempt)
                await anyio.to_thread.run_sync(opening.wait)
                scope.cancel()
                go_on.set()
    with anyio.fail_after(10):
        while open_descriptors() != before:
            await checkpoint()
    monkeypatch.undo()
    await final.close()
    if what == "writer":
        await store.delete(whole)


async def test_a_file_is_closed_after_its_last_write(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A system call can't be cancelled: until it returns, neither the number of the descriptor nor
    the lock may be given to anyone else."""
    import asyncio

    upload = make_upload(store, length=20)
    writer = await store.writer(upload, ALONE)
    original, writing, go_on = os.pwritev, threading.Event(), threading.Event()

    def pwritev(fd: int, *args: Any) -> int:
        writing.set()
        assert go_on.wait(10)
        return original(fd, *args)

    monkeypatch.setattr(os, "pwritev", pwritev)
    task = asyncio.ensure_future(writer.write([b"1234567890"]))
    await anyio.to_thread.run_sync(writing.wait)
    task.cancel()
    await writer.close()
    with pytest.raises(BytesBusyError):
        await store.writer(upload, ALONE)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    with anyio.fail_after(10):
        while True:
            try:
                again = await store.writer(replace(upload, offset=10), ALONE)
                break
            except (BytesBusyError, BytesMissingError):
                await checkpoint()
    await again.write([b"1234567890"])
    await again.close()
    await store.finish(replace(upload, offset=20), ALONE, durable=False)
    assert await read_all(store, replace(upload, offset=20)) == b"1234567890" * 2


async def test_a_writer_is_closed_although_it_is_cancelled(store: LocalStore) -> None:
    import asyncio

    upload = make_upload(store)
    with anyio.CancelScope() as scope:
        writer = await store.writer(upload, ALONE)
        scope.cancel()
        await writer.close()
    writer = await store.writer(upload, ALONE)
    task = asyncio.ensure_future(writer.close())
    await checkpoint()
    task.cancel()
    with anyio.fail_after(10):
        while True:
            try:
                writer = await store.writer(upload, ALONE)
                break
            except BytesBusyError:
                await checkpoint()
    await asyncio.gather(task, return_exceptions=True)
    await writer.close()


async def test_a_write_waits_its_turn_and_can_be_cancelled_there(root: Path) -> None:
    """With one thread that is busy, a write that is cancelled has written nothing."""
    store = LocalStore(root, threads=1)
    await store.open()
    writer = await store.writer(make_upload(store), ALONE)
    busy, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        busy.set()
        assert go_on.wait(10)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(store.run, hold)
        with anyio.fail_after(10):
            while not busy.is_set():
                await checkpoint()
        with anyio.move_on_after(0.01) as scope:
            await writer.write([b"12345"])
        assert scope.cancelled_caught
        assert writer.offset == 0
        go_on.set()
    await writer.write([b"1234567890"])
    assert writer.offset == 10
    await writer.close()


async def test_errors_close_what_they_opened(store: LocalStore, root: Path) -> None:
    upload = await append(store, make_upload(store), b"12345")
    before = open_descriptors()
    failures = []
    for attempt in (
        lambda: store.writer(replace(upload, offset=6), ALONE),
        lambda: store.finish(replace(upload, offset=10), ALONE, durable=True),
        lambda: read_all(store, upload),
    ):
        with pytest.raises(BytesMissingError) as failure:
            await attempt()
        failures.append(failure)  # with its traceback, whose frames refer to what was open
    assert open_descriptors() == before
    assert (await append(store, upload, b"x")).offset == 6


def test_a_descriptor_survives_a_failed_close(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root.mkdir()
    file = disk.open_file(str(root / "file"), os.O_RDWR | os.O_CREAT)
    original = os.close

    def close(fd: int) -> None:
        original(fd)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "close", close)
    file.close()
    file.close()
    with pytest.raises(DataError, match="closed"), file.use():
        pass
