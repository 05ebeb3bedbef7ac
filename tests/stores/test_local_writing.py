"""Writing to a local disk, and copying on it, when the disk is full or does half of what it should."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any

import anyio
import pytest
from msgspec.structs import replace

from tidegate.ports import BytesMissingError, DataError, NoSpaceError
from tidegate.protocol.model import State
from tidegate.stores import disk, local
from tidegate.stores.local import LocalStore, LocalWriter
from tidegate.testing.data import ALONE

from .conftest import append, make_upload, read_all
from .on_disk import fails

pytestmark = pytest.mark.anyio


async def test_a_full_disk_keeps_what_fitted(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk has room for 7 bytes; there is room again later."""
    upload = make_upload(store)
    writer = await store.writer(upload, ALONE)
    original, room = os.pwritev, 7

    def pwritev(fd: int, buffers: list[Any], offset: int) -> int:
        left = room - offset
        if left <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(fd, [b"".join(buffers)[:left]], offset)

    monkeypatch.setattr(os, "pwritev", pwritev)
    with pytest.raises(NoSpaceError, match="No space left"):
        await writer.write([b"123", b"4567", b"890"])
    assert writer.offset == 7
    assert (await writer.flush()).offset == 7
    assert await writer.sync() == 7
    room = 10
    await writer.write([b"890"])
    await writer.close()
    upload = replace(upload, offset=10)
    await store.finish(upload, ALONE, durable=True)
    assert await read_all(store, upload) == b"1234567890"


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.EFBIG])
async def test_a_quota_is_no_space_either(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    writer = await store.writer(make_upload(store), ALONE)
    monkeypatch.setattr(os, "pwritev", fails(number))
    with pytest.raises(NoSpaceError):
        await writer.write([b"123"])
    assert writer.offset == 0
    await writer.close()


async def test_no_room_for_the_file_itself(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = os.open

    def full(path: Any, flags: int, *args: Any) -> int:
        if flags & os.O_CREAT:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(path, flags, *args)

    monkeypatch.setattr(os, "open", full)
    with pytest.raises(NoSpaceError):
        await store.writer(make_upload(store), ALONE)


@pytest.mark.parametrize("result", ["error", "nothing"])
async def test_a_failed_write_is_told(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, result: str
) -> None:
    writer = await store.writer(make_upload(store), ALONE)
    monkeypatch.setattr(os, "pwritev", fails(errno.EIO) if result == "error" else lambda *_: 0)
    with pytest.raises(DataError, match="cannot write") as failure:
        await writer.write([b"123"])
    assert not isinstance(failure.value, NoSpaceError)
    assert writer.offset == 0
    await writer.close()


async def test_short_writes_are_carried_on(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system takes 1 to 5 bytes at a time, whatever it is given."""
    data = bytes(range(256)) * 2
    original, calls = os.pwritev, 0

    def pwritev(fd: int, buffers: list[Any], offset: int) -> int:
        nonlocal calls
        calls += 1
        assert len(buffers) <= disk.IOV_MAX
        return original(fd, [b"".join(buffers)[: calls % 5 + 1]], offset)

    monkeypatch.setattr(os, "pwritev", pwritev)
    upload = make_upload(store, length=len(data))
    sizes = [0, 1, 2, 3, 100, 0, 150, 256]
    chunks, at = [], 0
    for size in sizes:
        chunks.append(data[at : at + size])
        at += size
    upload = await append(store, upload, *chunks)
    assert upload.offset == len(data) == at
    await store.finish(upload, ALONE, durable=False)
    assert await read_all(store, upload) == data


async def test_buffers_of_other_shapes(store: LocalStore) -> None:
    import array

    numbers = array.array("I", [1, 2, 3])
    upload = make_upload(store, length=12)
    writer = await store.writer(upload, ALONE)
    await writer.write([memoryview(numbers)])
    assert writer.offset == 12
    await writer.close()
    upload = replace(upload, offset=12)
    await store.finish(upload, ALONE, durable=False)
    assert await read_all(store, upload) == numbers.tobytes()


async def test_writing_from_a_thread_of_ones_own(store: LocalStore) -> None:
    """What a transport that pumps in its own threads does."""
    upload = make_upload(store, length=300)
    writer = await store.writer(upload, ALONE)
    assert isinstance(writer, LocalWriter)

    def pump() -> None:
        for number in range(30):
            writer.write_blocking([b"%010d" % number])

    thread = threading.Thread(target=pump)
    thread.start()
    await anyio.to_thread.run_sync(thread.join)
    assert await writer.sync() == writer.offset == 300
    await writer.close()
    with pytest.raises(DataError, match="closed"):
        writer.write_blocking([b"late"])


async def test_a_complete_upload_is_not_written(store: LocalStore) -> None:
    upload = replace(make_upload(store), state=State.COMPLETE)
    with pytest.raises(DataError, match="is complete"):
        await store.writer(upload, ALONE)


@pytest.mark.parametrize(
    "number", [errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, 0, None]
)
async def test_copying_where_the_kernel_can_not(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, number: int | None
) -> None:
    """It says so in many ways; 0 bytes is one; None: it can."""
    data = os.urandom(200_000)
    part = await append(store, make_upload(store, "part", len(data)), data)
    await store.finish(part, ALONE, durable=False)
    if number is not None:
        monkeypatch.setattr(os, "copy_file_range", fails(number) if number else lambda *_: 0)
    monkeypatch.setattr(disk, "COPY_CHUNK", 30_000)
    monkeypatch.setattr(local, "COPY_STEP", 70_000)
    final = make_upload(store, "final", 199_990)
    writer = await store.writer(final, ALONE)
    await writer.copy(part, 10, len(data))
    assert writer.offset == 199_990
    await writer.close()
    final = replace(final, offset=199_990)
    await store.finish(final, ALONE, durable=False)
    assert await read_all(store, final) == data[10:]


@pytest.mark.parametrize(
    ("number", "error"), [(errno.ENOSPC, NoSpaceError), (errno.EIO, DataError)]
)
async def test_a_failed_copy_is_told(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, number: int, error: type[DataError]
) -> None:
    part = await append(store, make_upload(store, "part"), b"1234567890")
    await store.finish(part, ALONE, durable=False)
    writer = await store.writer(make_upload(store, "final"), ALONE)
    monkeypatch.setattr(os, "copy_file_range", fails(number))
    with pytest.raises(error, match="cannot copy"):
        await writer.copy(part, 0, 10)
    assert writer.offset == 0
    await writer.close()


async def test_a_part_that_shrinks_while_it_is_copied(
    store: LocalStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = await append(store, make_upload(store, "part"), b"1234567890")
    await store.finish(part, ALONE, durable=False)
    monkeypatch.setattr(local, "COPY_STEP", 4)
    original = os.copy_file_range

    def copy(*args: Any) -> int:
        os.truncate(root / part.storage["finished"], 6)
        return original(*args)

    monkeypatch.setattr(os, "copy_file_range", copy)
    writer = await store.writer(make_upload(store, "final"), ALONE)
    with pytest.raises(BytesMissingError, match="ends at 6"):
        await writer.copy(part, 0, 10)
    assert writer.offset == 6
    await writer.close()
