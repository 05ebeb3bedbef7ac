"""Small uploads on a local disk, stored ahead of their records."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import anyio
import pytest
from msgspec.structs import replace

from tidegate.ports import DataError, NoSpaceError, SyncFailedError
from tidegate.protocol.model import State, Upload
from tidegate.stores.local import LocalStore

from .conftest import make_upload, read_all
from .on_disk import fails, files, traced

pytestmark = pytest.mark.anyio


def _places(upload: Upload) -> list[str]:
    return [upload.storage["finished"], upload.storage["incoming"]]


async def _found(store: LocalStore) -> list[tuple[str, bool, bool]]:
    return [(stored.place, stored.whole, stored.marked) async for stored in store.stored()]


@pytest.mark.parametrize("name", ["{shard}/{id}", "{year}/{id}-{filename}", "{id}/{filename}"])
async def test_its_first_name_tells_that_there_may_be_no_record(root: Path, name: str) -> None:
    store = LocalStore(root, name=name)
    await store.open()
    upload = replace(make_upload(store, length=6), offset=6, state=State.COMPLETE)
    assert await store.store_ahead(upload, [b"abc", b"def"], durable=False)
    # The finished one first: told alone, it would be taken for what lost its record.
    finished, incoming = _places(upload)
    assert await _found(store) == [(finished, False, True), (incoming, False, True)]
    assert await read_all(store, upload) == b"abcdef"
    store.confirm(upload)
    with anyio.fail_after(10):
        while files(root) != [upload.storage["finished"]]:
            await anyio.sleep(0.001)
    assert await _found(store) == [(upload.storage["finished"], True, False)]
    assert await read_all(store, upload) == b"abcdef"
    await store.close()


async def test_a_sweep_deletes_both_names(store: LocalStore, root: Path) -> None:
    await store.store_ahead(make_upload(store, length=3), [b"abc"], durable=False)
    async for stored in store.stored():
        assert not stored.whole
        await store.discard(stored)
    assert files(root) == []


async def test_another_hard_link_is_no_mark(store: LocalStore, root: Path) -> None:
    """An operator's backup may hold one."""
    upload = make_upload(store, length=3)
    await store.store_whole(upload, [b"abc"], durable=False)
    os.link(root / upload.storage["finished"], root / "backup")
    assert await _found(store) == [(upload.storage["finished"], True, False)]


async def test_it_is_synced_before_its_finished_name_is(
    store: LocalStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = make_upload(store, length=3)
    finished, incoming = _places(upload)
    with traced(monkeypatch, "fdatasync", "link", "fsync") as calls:
        assert await store.store_ahead(upload, [b"abc"], durable=True)
    places = [
        (call, str(Path(path).relative_to(root))) for call, path in calls if path != str(root)
    ]
    assert [call for call, _ in places].count("fdatasync") == 1
    assert places[:2] == [("fdatasync", incoming), ("link", incoming)] or (
        # Its folder was not there at first.
        [place for place in places if place[0] == "link"] == [("link", incoming)] * 2
    )
    assert ("fsync", str(Path(finished).parent)) in places[2:]


@pytest.mark.parametrize("taken", ["incoming", "finished"])
async def test_it_never_takes_another_ones_place(store: LocalStore, root: Path, taken: str) -> None:
    upload = make_upload(store, length=3)
    place = root / upload.storage[taken]
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(b"other")
    assert not await store.store_ahead(upload, [b"abc"], durable=False)
    assert place.read_bytes() == b"other"
    assert files(root) == [upload.storage[taken]]


async def test_where_there_are_no_hard_links(
    store: LocalStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", fails(errno.EPERM))
    assert not await store.store_ahead(make_upload(store, length=3), [b"abc"], durable=False)
    assert files(root) == []


@pytest.mark.parametrize(
    ("call", "number", "error"),
    [
        ("open", errno.EACCES, DataError),
        ("pwritev", errno.ENOSPC, NoSpaceError),
        ("fdatasync", errno.EIO, SyncFailedError),
        ("link", errno.EDQUOT, NoSpaceError),
        ("fsync", errno.EIO, SyncFailedError),
    ],
)
async def test_what_fails_leaves_nothing(
    store: LocalStore,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    number: int,
    error: type[Exception],
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fails(number))
        with pytest.raises(error):
            await store.store_ahead(make_upload(store, length=3), [b"abc"], durable=True)
    assert files(root) == []


async def test_a_mark_that_cannot_be_taken_away_stays(
    store: LocalStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = make_upload(store, length=3)
    await store.store_ahead(upload, [b"abc"], durable=False)
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", fails(errno.EACCES))
        store.confirm(upload)
        with anyio.fail_after(10):
            # Told at the end of the loop's turn, done when it comes back.
            await anyio.lowlevel.checkpoint()
            while store.queued():
                await anyio.sleep(0.001)
    assert sorted(files(root)) == sorted(_places(upload))
