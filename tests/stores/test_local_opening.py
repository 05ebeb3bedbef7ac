"""Opening a store on a local disk: what it makes, and what it tells of what is wrong."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest
from msgspec.structs import replace

from tidegate.ports import DataError
from tidegate.protocol.model import State
from tidegate.stores import local
from tidegate.stores.local import LocalStore
from tidegate.testing.data import ALONE

from .conftest import append, make_upload, read_all
from .on_disk import fails, files

pytestmark = pytest.mark.anyio


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


async def test_free_space(store: LocalStore, root: Path) -> None:
    found = os.statvfs(root)
    free = await store.free_space()
    assert free is not None
    assert abs(free - found.f_bavail * found.f_frsize) < 1 << 30
