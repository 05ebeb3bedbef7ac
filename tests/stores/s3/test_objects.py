"""What is in a bucket for whoever else reads it, and the link that clients are sent on to."""

from __future__ import annotations

import base64
from pathlib import Path

import httpx
import pytest
from tests.stores.s3.conftest import PART, Kept
from tests.support.exchange import AsgiClient
from tests.support.s3_server import BUCKET, S3Server

from tidegate import cli, registry
from tidegate.asgi import Tidegate
from tidegate.config import Config, ConfigError
from tidegate.metadata.memory import MemoryMetadataStore
from tidegate.stores.s3.options import MIB
from tidegate.stores.s3.store import S3Store

pytestmark = pytest.mark.anyio


def metadata(**pairs: str) -> str:
    return ",".join(f"{key} {base64.b64encode(v.encode()).decode()}" for key, v in pairs.items())


@pytest.mark.parametrize(
    ("told", "kept"),
    [
        ("video/mp4", "video/mp4"),
        ("Text/HTML; charset=x", "text/html"),
        ("text/html\r\nX-Evil: 1", "application/octet-stream"),
        ("nonsense", "application/octet-stream"),
    ],
)
async def test_an_object_says_what_it_is(
    told: str, kept: str, store: S3Store, moto_server: S3Server
) -> None:
    fields = {"metadata": metadata(filename="schöne datei.mp4", filetype=told)}
    for length in (0, PART + 1):
        upload = Kept(store, length, f"of-{length}", **fields)
        await upload.append(b"x" * length)
        await upload.finish()
        async with moto_server.client() as client:
            head = await client.head_object(Bucket=BUCKET, Key=upload.record.storage["key"])
        assert head["ContentType"] == kept
        assert head["ContentDisposition"].startswith("attachment; filename=")
        assert head["Metadata"] == {"tidegate-upload": f"of-{length}"}


@pytest.mark.parametrize("redirects", [True, False])
async def test_a_download_is_sent_on(
    redirects: bool, moto_server: S3Server, request: pytest.FixtureRequest
) -> None:
    """To an address that is good for what it names only, and for a while; a HEAD is not."""
    store = moto_server.store(request.node.name, redirect_downloads=redirects)
    app = Tidegate(store, MemoryMetadataStore(), base_path="/files/")
    async with app:
        client = AsgiClient(app)
        told = metadata(filename="a.txt", filetype="text/plain")
        path = await client.whole(b"hello", Upload_Metadata=told)
        assert await client.offset(path) == 5
        if not redirects:
            assert await client.content(path) == b"hello"
            return
        reply = await client.request("GET", path)
        assert (reply.status, reply["Cache-Control"]) == (307, "no-store")
        async with httpx.AsyncClient(trust_env=False) as other:
            found = await other.get(reply["Location"], headers={"Range": "bytes=1-2"})
        assert (found.status_code, found.content) == (206, b"el")
        assert found.headers["content-type"] == "text/plain; charset=utf-8"
        assert found.headers["content-disposition"] == 'inline; filename="a.txt"'


# ------------------------------------------------------------------------------------- settings


def test_a_bucket_is_named_by_a_url_and_its_settings() -> None:
    config = Config(
        data="s3://bucket/a%20prefix/",
        metadata="records.db",
        file_name="{year}/{id}",
        s3_endpoint="http://127.0.0.1:1",
        s3_memory=512 * MIB,
        s3_uniform_parts=True,
    )
    store = registry.data_store(config.data, config.data_options)
    assert isinstance(store, S3Store)
    assert (store.client.bucket, store.layout.prefix) == ("bucket", "a prefix/")
    assert store.options.endpoint == "http://127.0.0.1:1"
    assert store.options.uniform_parts
    assert store.max_size == store.options.max_size == 5000 * 128 * MIB


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "expected --metadata"),
        ({"metadata": "memory:"}, "metadata that lasts"),
        ({"metadata": "a.db", "s3_part_size": MIB}, "--s3-part-size.*5242880"),
        ({"metadata": "a.db", "s3_memory": MIB}, "room for two parts"),
    ],
)
def test_settings_that_do_not_fit_together(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Config(data="s3://bucket", **settings)  # type: ignore[arg-type]


def test_settings_are_flags(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--s3-memory", "9MiB", "--s3-path-style", "--s3-checksum", "md5"]
    assert cli.run(["serve", "--data", "s3://bucket", "--metadata", "a.db", *flags]) == 2
    assert "9437184 bytes of memory: expected room for two parts" in capsys.readouterr().err
    assert cli.run(["serve", "--s3-memory", "unlimited"]) == 2
    assert "expected a limit" in capsys.readouterr().err


def test_a_missing_sdk_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> object:
        raise ModuleNotFoundError(f"No module named {name}", name="aiobotocore")

    monkeypatch.setattr(registry, "import_module", missing)
    with pytest.raises(registry.StoreURLError, match=r"aiobotocore.*tidegate\[s3\]"):
        registry.data_store("s3://bucket")


def test_no_folder_is_needed() -> None:
    assert registry.folders("s3://bucket", "/var/records.db") == [Path("/var")]
