"""What is particular to bytes on a local disk."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from msgspec.structs import replace

from tidegate.ports import (
    BytesBusyError,
    BytesMissingError,
    DataError,
    NoSpaceError,
    Stored,
    SyncFailedError,
)
from tidegate.protocol.model import State, UploadId
from tidegate.stores import disk, local
from tidegate.stores.local import LocalStore, LocalWriter
from tidegate.testing.data import ALONE

from .conftest import append, make_upload, read_all

pytestmark = pytest.mark.anyio


def files(root: Path) -> list[str]:
    """Every file but the list of templates."""
    found = (path for path in root.rglob("*") if path.is_file() or path.is_symlink())
    return sorted(str(path.relative_to(root)) for path in found if path.name != "templates")


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def fails(number: int) -> Callable[..., Any]:
    def call(*_: object, **__: object) -> Any:
        raise OSError(number, os.strerror(number))

    return call


@contextmanager
def traced(monkeypatch: pytest.MonkeyPatch, *names: str) -> Iterator[list[tuple[str, str]]]:
    """The calls of `os` functions with the path, or the descriptor's path, that each was given."""
    calls: list[tuple[str, str]] = []
    with monkeypatch.context() as patch:
        for name in names:
            original = getattr(os, name)

            def call(what: Any, *args: Any, name: str = name, original: Any = original) -> Any:
                path = os.readlink(f"/proc/self/fd/{what}") if isinstance(what, int) else str(what)
                calls.append((name, path))
                return original(what, *args)

            patch.setattr(os, name, call)
        yield calls


# ----------------------------------------------------------------------------------- opening


async def test_opening_makes_the_folders_and_cleans_nothing(root: Path) -> None:
    first = LocalStore(root)
    await first.open()
    await append(first, make_upload(first), b"12345")
    (root / "finished" / "note.txt").write_text("an operator's")
    again = LocalStore(root)
    await again.open()
    assert files(root) == [first.place(make_upload(first))["incoming"], "finished/note.txt"] or (
        files(root) == ["finished/note.txt", first.place(make_upload(first))["incoming"]]
    )
    assert again.boot_id == Path(local.BOOT_ID).read_text().strip()
    assert stat.S_IMODE(root.stat().st_mode) & 0o007 == 0


async def test_constructing_does_nothing(root: Path) -> None:
    store = LocalStore(root)
    assert not root.exists()
    assert store.place(make_upload(store))["incoming"].endswith("/one")
    with pytest.raises(DataError, match="not open"):
        await store.measure(make_upload(store))
    with pytest.raises(DataError, match="not open"):
        await store.run_sync(lambda: None)


async def test_a_name_that_was_given(root: Path) -> None:
    """By a hook, say: it is where the finished file is, and whose it is can still be told."""
    store = LocalStore(root, name="{id}")
    await store.open()
    upload = replace(make_upload(store), name="alice/2026/report one.pdf")
    upload = replace(upload, storage=store.place(upload))
    done = await append(store, upload, b"1234567890")
    storage = await store.finish(done, ALONE, durable=True)
    assert files(root) == ["finished/alice/2026/report one.pdf"]
    done = replace(done, storage=storage, state=State.COMPLETE)
    assert await read_all(store, done) == b"1234567890"
    # No template gave this name: nobody's, as far as a sweep knows, and so it stays.
    assert [found async for found in store.stored()] == []
    await store.delete(done)
    assert files(root) == []
    await store.close()


async def test_a_bad_template_is_told_at_construction(root: Path) -> None:
    with pytest.raises(ValueError, match=r"lacks \{id\}"):
        LocalStore(root, name="{filename}")


async def refused(root: Path) -> str:
    with pytest.raises(DataError) as refusal:
        await LocalStore(root).open()
    message = str(refusal.value)
    assert message.startswith(f"{root}")
    assert "\n" not in message
    return message


async def test_a_missing_parent_is_told(tmp_path: Path) -> None:
    assert "its parent folder" in await refused(tmp_path / "no" / "where")


async def test_a_file_in_its_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "is not a folder" in await refused(tmp_path / "file")
    assert "its parent folder" in await refused(tmp_path / "file" / "below")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    assert "is not a folder" in await refused(tmp_path / "dangling")


@pytest.mark.parametrize(
    ("call", "number", "message"),
    [
        ("mkdir", errno.EACCES, "is not writable for this user"),
        ("open", errno.EACCES, "is not writable for this user"),
        ("mkdir", errno.EROFS, "is on a read-only file system"),
        ("open", errno.EROFS, "is on a read-only file system"),
        ("mkdir", errno.EIO, "cannot be used: Input/output error"),
        ("fsync", errno.EIO, "Input/output error"),
    ],
)
async def test_what_the_system_says_is_told_in_a_line(
    root: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, message: str
) -> None:
    if call == "fsync":
        root.parent.joinpath("store").mkdir()
        monkeypatch.setattr(os, call, fails(number))
        with pytest.raises(DataError, match=message):
            await LocalStore(root).open()
        return
    monkeypatch.setattr(os, call, fails(number))
    assert message in await refused(root)


async def test_a_file_system_without_locks_is_told(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fcntl.flock", fails(errno.ENOLCK))
    assert "cannot be locked" in await refused(root)


async def test_two_file_systems_are_told(root: Path) -> None:
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == root.parent.stat().st_dev:
        pytest.skip("needs a second file system")
    root.mkdir()
    (root / "finished").symlink_to(other)
    assert "must be on one file system" in await refused(root)


async def test_without_a_boot_id_there_is_none(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "BOOT_ID", "/nowhere/boot_id")
    store = LocalStore(root)
    await store.open()
    assert store.boot_id == ""


# ------------------------------------------------------------------------------------- places


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


# ------------------------------------------------------------------------------------ writing


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


# ------------------------------------------------------------------------------------ syncing


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


# ---------------------------------------------------------------------------------- finishing


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


# ------------------------------------------------------------------------------------- copying


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


# ------------------------------------------------------------------------ reading and sweeping


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


# ------------------------------------------------------------------------- locks and processes

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


# --------------------------------------------------------------------- cancellation and leaks


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
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()
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


async def test_free_space(store: LocalStore, root: Path) -> None:
    found = os.statvfs(root)
    free = await store.free_space()
    assert free is not None
    assert abs(free - found.f_bavail * found.f_frsize) < 1 << 30


@pytest.mark.parametrize("missing", ["O_TMPFILE", "unnamed", "link", "proc"])
async def test_stores_a_whole_upload_where_files_need_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    """Other systems and file systems can't make a file that has no name yet, or name it later."""
    real_open, real_link = os.open, os.link

    def no_unnamed(path: Any, flags: int, *args: Any, **options: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "injected")
        return real_open(path, flags, *args, **options)

    def no_link(source: Any, target: Any, **options: Any) -> None:
        if missing == "link" or str(source).startswith("/proc"):
            raise OSError(errno.EPERM if missing == "link" else errno.ENOENT, "injected")
        real_link(source, target, **options)

    if missing == "O_TMPFILE":
        monkeypatch.delattr(os, "O_TMPFILE")
    else:
        name, fake = ("open", no_unnamed) if missing == "unnamed" else ("link", no_link)
        monkeypatch.setattr(os, name, fake)
    store = LocalStore(tmp_path)
    await store.open()
    upload = make_upload(store, length=6)
    await store.store_whole(upload, [b"abc", b"def"], durable=True)
    assert (tmp_path / upload.storage["finished"]).read_bytes() == b"abcdef"
    assert not (tmp_path / upload.storage["incoming"]).exists()
    await store.close()


async def test_a_whole_upload_never_takes_another_ones_place(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    await store.open()
    upload = make_upload(store, length=3)
    place = tmp_path / upload.storage["finished"]
    place.parent.mkdir(parents=True)
    place.write_bytes(b"other")
    with pytest.raises(DataError, match="another file is in its place"):
        await store.store_whole(upload, [b"abc"], durable=False)
    assert place.read_bytes() == b"other"
    await store.close()
