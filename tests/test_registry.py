"""Which store a URL or a path names, and what is said of one that names none."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path

import pytest

from tidegate import registry
from tidegate.metadata.memory import MemoryMetadataStore
from tidegate.metadata.postgres.store import PostgresMetadataStore
from tidegate.metadata.redis.store import RedisMetadataStore
from tidegate.metadata.sqlite.store import SQLiteMetadataStore
from tidegate.protocol.model import Upload, UploadId
from tidegate.registry import StoreURLError, data_store, default_metadata, metadata_store
from tidegate.stores.local import LocalStore
from tidegate.stores.memory import MemoryStore


@pytest.mark.parametrize(
    ("url", "root"),
    [
        ("uploads", "uploads"),
        ("./with:colon", "with:colon"),
        ("/var/lib/uploads", "/var/lib/uploads"),
        ("100%25", "100%25"),  # a path is taken as it is
        ("~/uploads", os.path.expanduser("~/uploads")),
        ("file:uploads/here", "uploads/here"),
        ("file:/abs", "/abs"),
        ("file:///abs/a%20b%3F", "/abs/a b?"),
        ("FILE:x", "x"),
    ],
)
def test_a_folder_is_named_by_a_path_or_a_file_url(url: str, root: str) -> None:
    store = data_store(url)
    assert isinstance(store, LocalStore)
    assert store.root == Path(root)


@pytest.mark.parametrize("url", ["memory:", "memory://"])
def test_memory_has_no_path(url: str) -> None:
    assert isinstance(data_store(url), MemoryStore)
    assert isinstance(metadata_store(url), MemoryMetadataStore)


@pytest.mark.parametrize(
    ("url", "path"),
    [("a.db", "a.db"), ("sqlite:a.db", "a.db"), ("sqlite:///var/a.db", "/var/a.db")],
)
def test_a_database_is_named_by_a_path_or_a_sqlite_url(url: str, path: str) -> None:
    store = metadata_store(url)
    assert isinstance(store, SQLiteMetadataStore)
    assert store._path == Path(path)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("gs://bucket/prefix", ["no store gs:", "a folder", "file:PATH", "s3://BUCKET", "memory:"]),
        ("s3:bucket", ["has no bucket"]),
        ("s3://key:secret@bucket", ["has no bucket"]),
        ("s3://bucket/a?b", ["%3F", "--s3-"]),
        ("fil:x", ["did you mean file:", "./fil:"]),
        ("", ["has no path"]),
        ("file:", ["has no path"]),
        ("file://host/x", ["has a host, host", "three slashes"]),
        ("file:a?b", ["%3F"]),
        ("memory:x", ["memory: alone"]),
        ("a\0b", ["has no path"]),
    ],
)
def test_a_wrong_data_url_says_what_would_be_right(url: str, said: list[str]) -> None:
    with pytest.raises(StoreURLError) as caught:
        data_store(url)
    assert [words for words in said if words not in str(caught.value)] == []


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "PostgreSQL"])
def test_a_database_is_named_by_a_postgresql_url(scheme: str) -> None:
    store = metadata_store(f"{scheme}://user:secret@host/db?schema=here&pool=3")
    assert isinstance(store, PostgresMetadataStore)
    assert store.address.dsn == "postgresql://user:secret@host/db"
    assert (store.address.schema, store.address.pool) == ("here", 3)


def test_a_wrong_metadata_url_says_what_would_be_right_and_tells_no_password() -> None:
    with pytest.raises(StoreURLError, match=r"no store postgrsql: \(did you mean") as caught:
        metadata_store("postgrsql://user:secret@host/db")
    assert "sqlite:PATH or postgresql://USER@HOST/DB or" in str(caught.value)
    assert "secret" not in str(caught.value)
    with pytest.raises(StoreURLError, match=r"//…@host/db\?pool=x' has pool=x: expec") as caught:
        registry.check_metadata("postgresql://user:secret@host/db?pool=x")
    assert "secret" not in str(caught.value)
    with pytest.raises(StoreURLError, match="no store file:"):
        metadata_store("file:x.db")


def test_a_driver_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("tidegate.metadata.postgres")]:
        if name != "tidegate.metadata.postgres.address":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    registry.check_metadata("postgresql://host/db")  # needs none
    with pytest.raises(StoreURLError, match=r"needs asyncpg.*tidegate\[postgresql\]"):
        metadata_store("postgresql://host/db")


def test_metadata_goes_beside_the_data_unless_told_otherwise() -> None:
    assert default_metadata("/data") == "/data/tidegate.db"
    assert default_metadata("file:///a%3Ab") == "/a:b/tidegate.db"
    assert default_metadata("sub/folder") == f"{os.getcwd()}/sub/folder/tidegate.db"
    assert default_metadata("memory:") == "memory:"


def test_what_lasts_is_not_paired_with_what_does_not() -> None:
    registry.check_pair("data", "x.db")
    registry.check_pair("memory:", "memory:")
    registry.check_pair("data", "postgresql://host/db")
    with pytest.raises(StoreURLError, match="files without records are deleted"):
        registry.check_pair("data", "memory:")
    with pytest.raises(StoreURLError, match="bytes in memory: are lost"):
        registry.check_pair("memory:", "x.db")
    with pytest.raises(StoreURLError, match="bytes in memory: are lost"):
        registry.check_pair("memory:", "postgresql://host/db")


def test_folders_are_where_stores_write() -> None:
    assert registry.folders("d", "m/x.db") == [Path("d"), Path("m")]
    assert registry.folders("memory:", "memory:") == []


def test_the_name_of_finished_files_is_passed_on() -> None:
    store = data_store("d", registry.Options(file_name="{year}/{id}"))
    upload = Upload(id=UploadId("u"), length=1, created_at=0.0, active_at=0.0)
    assert store.place(upload)["finished"] == "finished/1970/u"
    with pytest.raises(ValueError, match=r"lacks \{id\}"):
        data_store("d", registry.Options(file_name="{filename}"))


def test_every_import_string_names_a_class() -> None:
    for target in (*registry.DATA_STORES.values(), *registry.METADATA_STORES.values()):
        module, _, name = target.partition(":")
        assert isinstance(getattr(import_module(module), name), type)


@pytest.mark.anyio
async def test_the_database_beside_the_data_is_no_upload(tmp_path: Path) -> None:
    """A sweep asks the store for all its files: only what is below its own two folders counts."""
    root = tmp_path / "data"
    data, metadata = data_store(str(root)), metadata_store(default_metadata(str(root)))
    await data.open()
    await metadata.open()
    try:
        assert [stored.place async for stored in data.stored()] == []
    finally:
        await metadata.close()
        await data.close()
    assert {registry.DATABASE, "incoming", "finished"} <= {path.name for path in root.iterdir()}


@pytest.mark.parametrize("scheme", ["redis", "rediss", "valkey", "valkeys"])
def test_a_redis_is_named_by_its_url(scheme: str) -> None:
    store = metadata_store(f"{scheme}://user:secret@host:7000/1?prefix=here")
    assert isinstance(store, RedisMetadataStore)
    assert registry.folders("d", f"{scheme}://host") == [Path("d")]
    registry.check_pair("data", f"{scheme}://host")


def test_a_wrong_url_of_a_redis_tells_no_password() -> None:
    with pytest.raises(StoreURLError, match=r"'redis://…@host/x' has a path that is not") as c:
        metadata_store("redis://user:secret@host/x")
    assert "secret" not in str(c.value)
    with pytest.raises(StoreURLError, match="would speak of them for ever") as c:
        registry.check_pair("memory:", "redis://user:secret@host")
    with pytest.raises(StoreURLError, match="ends its host too soon") as c:
        metadata_store("redis://user:se/cret@host")
    assert "cret" not in str(c.value)


def test_a_driver_that_is_missing_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("tidegate.metadata.redis")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "redis", None)
    monkeypatch.setitem(sys.modules, "redis.exceptions", None)
    with pytest.raises(StoreURLError, match=r"needs redis.*tidegate\[redis\]"):
        metadata_store("redis://host")
