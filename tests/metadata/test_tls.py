"""Records behind TLS: who has the right certificate is trusted, and nobody else.

The servers of the tests are built without TLS, so it ends in front of them.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest
import trustme
from tests.support import postgres
from tests.support.tls import ASKED, terminating
from tests.support.valkey import Valkey

from tidegate.metadata.postgres.store import PostgresMetadataStore
from tidegate.metadata.redis.store import RedisMetadataStore
from tidegate.ports import MetadataError, MetadataStore
from tidegate.protocol.model import Upload, UploadId

pytestmark = pytest.mark.anyio


class Secured:
    """A server behind TLS, whose certificate is for `localhost`."""

    def __init__(self, kind: str, port: int, url: str) -> None:
        self.kind = kind
        self.port = port
        self.url = url

    def store(self, authority: Path | None, *, host: str = "localhost") -> MetadataStore:
        """A store that trusts an authority, or none but those of the machine; not opened yet."""
        place = self.url.partition("@")[2] or self.url.partition("//")[2]
        where = f"{host}:{self.port}/{place.partition('/')[2]}"
        if self.kind == "postgresql":
            root = "" if authority is None else f"&sslrootcert={authority}"
            url = f"postgresql://postgres@{where}&sslmode=verify-full{root}&patience=1"
            return PostgresMetadataStore(url)
        root = "" if authority is None else f"&ssl_ca_certs={authority}"
        return RedisMetadataStore(f"rediss://{where}{root}", patience=1.0)


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    return tmp_path / "authority.pem"


@pytest.fixture(params=["postgresql", "redis"])
async def secured(
    request: pytest.FixtureRequest, valkey: Valkey, authority: Path
) -> AsyncIterator[Secured]:
    issuing = trustme.CA()
    issuing.cert_pem.write_to_path(str(authority))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issuing.issue_cert("localhost").configure_cert(context)
    url = postgres.server().url() if request.param == "postgresql" else valkey.url()
    port = postgres.server().port if request.param == "postgresql" else valkey.port
    asked = ASKED if request.param == "postgresql" else b""
    async with terminating(port, context, asked=asked) as secure:
        yield Secured(request.param, secure, url)


async def test_whose_certificate_is_right_is_used(secured: Secured, authority: Path) -> None:
    store = secured.store(authority)
    await store.open()
    try:
        await store.insert(Upload(id=UploadId("one"), length=1, created_at=1.0, active_at=1.0))
        assert await store.load(UploadId("one")) is not None
    finally:
        await store.close()


async def refusal(store: MetadataStore) -> str:
    with anyio.fail_after(10), pytest.raises(MetadataError) as caught:
        await store.open()
    await store.close()
    return str(caught.value)


async def test_whose_certificate_is_of_somebody_else_is_refused(
    secured: Secured, tmp_path: Path
) -> None:
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    assert "certificate verify failed" in await refusal(secured.store(other))


async def test_nobody_is_trusted_who_was_not_named(secured: Secured) -> None:
    """By libpq's rule; the machine's own authorities are what Redis is held against."""
    said = await refusal(secured.store(None))
    assert ("root.crt" if secured.kind == "postgresql" else "certificate verify failed") in said


async def test_whose_certificate_is_for_another_name_is_refused(
    secured: Secured, authority: Path
) -> None:
    said = await refusal(secured.store(authority, host="127.0.0.1"))
    assert "127.0.0.1" in said
    assert "certificate" in said


async def test_an_authority_that_is_no_file(secured: Secured, tmp_path: Path) -> None:
    said = await refusal(secured.store(tmp_path / "absent.pem"))
    assert "absent.pem: No such file or directory" in said
