"""Uploads that a local disk takes whole, at once."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from tidegate.ports import DataError
from tidegate.stores.local import LocalStore

from .conftest import make_upload

pytestmark = pytest.mark.anyio


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
