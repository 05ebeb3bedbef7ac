"""Cross-origin requests, and the words of a refusal."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
from tests.support.exchange import STREAM, TUS, path_of

from tidegate.metadata.memory import MemoryMetadataStore
from tidegate.ports import DataError, UnavailableError
from tidegate.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.support.exchange import Client

    Serve = Callable[..., Awaitable[Client]]

pytestmark = pytest.mark.anyio

PAGE = {"Origin": "https://page.test"}
PREFLIGHT = PAGE | {
    "Access-Control-Request-Method": "PATCH",
    "Access-Control-Request-Headers": "tus-resumable,upload-offset,content-type",
}


async def test_a_preflight(client: Client) -> None:
    reply = await client.request("OPTIONS", "/files/any", PREFLIGHT)
    assert reply.status == 204
    assert reply["Access-Control-Allow-Origin"] == "*"
    assert reply["Access-Control-Allow-Methods"] == "OPTIONS, POST, HEAD, PATCH, DELETE, GET"
    allowed = reply["Access-Control-Allow-Headers"].lower().split(", ")
    for name in ("tus-resumable", "upload-length", "upload-offset", "upload-metadata"):
        assert name in allowed
    for name in ("content-type", "upload-checksum", "upload-concat", "x-http-method-override"):
        assert name in allowed
    assert int(reply["Access-Control-Max-Age"]) > 0
    assert "Access-Control-Allow-Credentials" not in reply


async def test_a_page_sees_the_headers(client: Client) -> None:
    reply = await client.request("POST", client.base, {**TUS, **PAGE, "Upload-Length": "5"})
    assert reply.status == 201
    assert reply["Access-Control-Allow-Origin"] == "*"
    exposed = reply["Access-Control-Expose-Headers"].split(", ")
    for name in ("Location", "Upload-Offset", "Upload-Length", "Tus-Resumable", "Tus-Extension"):
        assert name in exposed
    path = path_of(reply)
    for reply in (
        await client.request("HEAD", path, TUS | PAGE),
        await client.request("GET", await client.whole(b"x"), PAGE),
        await client.request("DELETE", path, TUS | PAGE),
    ):
        assert reply.status < 300
        assert reply["Access-Control-Allow-Origin"] == "*"


async def test_a_page_sees_refusals_too(client: Client) -> None:
    path = await client.create(5)
    patch = TUS | PAGE | {"Content-Type": STREAM, "Upload-Offset": "3"}
    for reply, status in (
        (await client.request("PATCH", path, patch, b"x"), 409),
        (await client.request("POST", client.base, PAGE), 412),
        (await client.request("PUT", path, PAGE), 405),
        (await client.request("HEAD", "/files/none", TUS | PAGE), 404),
        (await client.request("GET", "/elsewhere", PAGE), 404),
    ):
        assert reply.status == status
        assert reply["Access-Control-Allow-Origin"] == "*"
        assert "Upload-Offset" in reply["Access-Control-Expose-Headers"].split(", ")


async def test_without_an_origin_nothing_is_added(client: Client) -> None:
    reply = await client.request("OPTIONS", client.base)
    assert not [name for name, _ in reply.headers if name.startswith("access-control")]


async def test_chosen_origins(serve: Serve) -> None:
    client = await serve(cors_origins=["https://page.test", "https://other.test"])
    for headers in (PREFLIGHT, PAGE):
        reply = await client.request("OPTIONS", client.base, headers)
        assert reply["Access-Control-Allow-Origin"] == "https://page.test"
        assert reply["Vary"] == "Origin"
    for origin in ("https://page.test.evil", "http://page.test", "null", "https://PAGE.test"):
        reply = await client.request("OPTIONS", client.base, {"Origin": origin})
        assert "Access-Control-Allow-Origin" not in reply
        assert reply["Vary"] == "Origin"


async def test_no_origins(serve: Serve) -> None:
    client = await serve(cors_origins=[])
    reply = await client.request("OPTIONS", client.base, PREFLIGHT)
    assert reply.status == 204
    assert "Access-Control-Allow-Origin" not in reply


# ------------------------------------------------------------------------------------- refusals


async def test_a_refusal_says_what_was_wrong(client: Client) -> None:
    reply = await client.post(Upload_Length="five")
    assert reply["Content-Type"] == "text/plain; charset=utf-8"
    assert "Upload-Length" in reply.text
    assert "five" in reply.text
    assert reply["Cache-Control"] == "no-store"


async def test_a_refusal_as_a_problem(client: Client) -> None:
    accept = "text/html, application/problem+json;q=0.9"
    reply = await client.post(Upload_Length="five", Accept=accept)
    assert reply["Content-Type"] == "application/problem+json"
    problem = json.loads(reply.body)
    assert problem["status"] == reply.status == 400
    assert problem["code"] == "bad_header"
    assert problem["title"] == "Bad Request"
    assert "Upload-Length" in problem["detail"]
    path = await client.create(5)
    reply = await client.patch(
        path, 0, b"x", Upload_Checksum="crc32 AAAAAA==", Accept="application/problem+json"
    )
    assert json.loads(reply.body)["title"] == "Checksum Mismatch"


async def test_what_a_client_sent_is_shown_bounded_and_plain(client: Client) -> None:
    reply = await client.post(Upload_Length="<script>\xe9" + "9" * 5000)
    assert reply.status == 400
    assert len(reply.body) < 300
    assert reply.text.isascii() or "…" in reply.text
    assert reply["X-Content-Type-Options"] == "nosniff"


async def test_a_refused_head_has_no_body_but_a_type(client: Client) -> None:
    reply = await client.head("/files/none")
    assert reply.status == 404
    assert int(reply["Content-Length"]) > 0


SECRET = "/srv/secret.db"


def _fail(*_: object, **__: object) -> NoReturn:
    raise RuntimeError(SECRET)


class Broken(MemoryStore):
    """Fails in a way that nobody foresaw, or in one that is foreseen."""

    error: type[Exception] = RuntimeError

    async def writer(self, upload: Any, fence: Any) -> Any:
        raise self.error(SECRET)

    async def read(self, upload: Any, start: int, stop: int) -> AsyncIterator[bytes]:
        if self.error:
            raise self.error(SECRET)
        yield b""


class Unreadable(Broken):
    error = DataError


class Unreachable(MemoryMetadataStore):
    async def load(self, upload_id: Any) -> NoReturn:
        raise UnavailableError(SECRET)

    async def insert(self, *_: Any, **__: Any) -> NoReturn:
        raise UnavailableError(SECRET)


@pytest.mark.parametrize(("store", "status"), [(Broken, 500), (Unreadable, 503)])
async def test_a_failing_data_store_is_not_spoken_of(
    serve: Serve, store: type[Broken], status: int, logged: list[logging.LogRecord]
) -> None:
    client = await serve(data=store(), metadata=MemoryMetadataStore())
    path = await client.create(5)
    for accept in ("text/plain", "application/problem+json"):
        reply = await client.patch(path, 0, b"hello", Accept=accept, Origin="https://a")
        assert reply.status == status
        assert SECRET not in reply.text + str(reply.headers)
        assert reply["Tus-Resumable"] == "1.0.0"
        assert "Access-Control-Allow-Origin" in reply
    created = await client.post(b"hello", Upload_Length="5")
    assert created.status == status
    assert SECRET not in created.text
    assert any(SECRET in (record.exc_text or record.getMessage()) for record in logged)


async def test_a_failing_metadata_store_is_not_spoken_of(serve: Serve) -> None:
    client = await serve(data=MemoryStore(), metadata=Unreachable())
    for reply in (
        await client.head("/files/a"),
        await client.patch("/files/a", 0, b"x"),
        await client.delete("/files/a"),
        await client.request("GET", "/files/a"),
        await client.post(Upload_Length="5"),
        await client.post(b"x", Upload_Length="5"),
    ):
        assert reply.status == 503
        assert reply["Retry-After"] == "2"
        assert SECRET not in str(reply)


async def test_no_room_keeps_what_fitted(serve: Serve) -> None:
    client = await serve(data=MemoryStore(100), metadata=MemoryMetadataStore())
    one, two = await client.create(80), await client.create(80)
    assert (await client.patch(one, 0, b"1" * 80)).status == 204
    reply = await client.patch(two, 0, b"2" * 80)
    assert reply.status == 507
    assert reply["Retry-After"] == "60"
    assert await client.offset(two) == 20
    assert (await client.delete(one)).status == 204
    assert (await client.patch(two, 20, b"2" * 60)).status == 204
