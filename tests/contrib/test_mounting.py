"""Where a mounted application is, however the server and the framework say it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import httpx
import pytest
from litestar import Litestar, Router
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Mount
from tests.support.exchange import STREAM, TUS, AsgiClient
from tests.support.serving import in_memory

from tidegate.contrib.django import dispatch
from tidegate.contrib.litestar import mount
from tidegate.contrib.mounting import is_below, whole
from tidegate.testing import served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tidegate.asgi import Tidegate

pytestmark = pytest.mark.anyio

ROOTS = ["", "/api", "/a/b/", "/my%20app", "/%C3%A9t%C3%A9"]


@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("raw", [False, True])
def test_a_path_is_made_whole(root: str, *, cut: bool, raw: bool) -> None:
    path = "/files/x%2Fy"
    sent = path if cut else root.rstrip("/") + path
    scope = {"path": unquote(sent), "root_path": unquote(root)}
    if raw:
        scope["raw_path"] = f"{sent}?a=/b".encode()  # type: ignore[assignment]
    found = whole(scope)
    assert found["root_path"] == unquote(root).rstrip("/")
    assert found["path"] == unquote(root.rstrip("/") + path)
    expected = root.rstrip("/") + (f"{path}?a=/b" if raw else unquote(path))
    assert found["raw_path"] == expected.encode()
    assert scope["root_path"] == unquote(root)


def test_what_is_below() -> None:
    assert is_below("/files", "/files")
    assert is_below("/files", "/files/x")
    assert is_below("", "/x")
    assert not is_below("/files", "/files-more")
    assert not is_below("/files", "/")


async def other(_scope: Any, _receive: Any, send: Any) -> None:
    """The application around the uploads."""
    await send(
        {"type": "http.response.start", "status": 299, "headers": [(b"content-length", b"0")]}
    )
    await send({"type": "http.response.body", "body": b""})


def django(uploads: Tidegate) -> Any:
    return dispatch(other, "/up/files/", uploads)


def litestar(uploads: Tidegate) -> Any:
    router = Router("/up", route_handlers=[mount("/files", uploads)])
    return Litestar([router], openapi_config=None)


@pytest.mark.parametrize("make", [django, litestar])
@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.parametrize("cut", [False, True])
async def test_location_says_where_it_is_mounted(
    make: Callable[[Tidegate], Any], root: str, *, cut: bool
) -> None:
    async with in_memory() as uploads:
        app = make(uploads)
        prefix = root.rstrip("/")

        async def request(method: str, path: str, body: bytes | None = None, **headers: str) -> Any:
            sent = path if cut else prefix + path
            scope = {"path": unquote(sent), "raw_path": sent.encode(), "root_path": unquote(root)}
            client = AsgiClient(app, **scope)
            return await client.tus(method, "", body, **headers)

        for path in ("/up/files", "/up/files/"):
            created = await request("POST", path, Upload_Length="5")
            assert created.status == 201, created
        assert created["Location"].startswith(f"http://tus.test{prefix}/up/files/")
        below = created["Location"].removeprefix(f"http://tus.test{prefix}")
        appended = await request("PATCH", below, b"tidal", Content_Type=STREAM, Upload_Offset="0")
        assert appended.status == 204
        assert (await request("GET", below)).body == b"tidal"
        for elsewhere in ("/up/files-more", "/up/files-more/x", "/up", "/"):
            reply = await request("OPTIONS", elsewhere)
            assert reply.status == (299 if make is django else 404)
            assert "Tus-Resumable" not in reply


@pytest.mark.parametrize("framework", ["starlette", "django", "litestar"])
async def test_location_as_the_proxy_tells(framework: str) -> None:
    """As the README says: uvicorn leaves what the proxy tells alone, and tidegate takes its word."""
    uploads = in_memory(trusted_proxies=["127.0.0.0/8"])
    if framework == "starlette":
        app: Any = Starlette(routes=[Mount("/up/files", uploads)])
    else:
        app = django(uploads) if framework == "django" else litestar(uploads)
    told = {"X-Forwarded-Host": "uploads.example", "X-Forwarded-Proto": "https"}
    told |= {"X-Forwarded-For": "192.0.2.7"}
    async with (
        uploads,
        served(app, root_path="/app", proxy_headers=False) as server,
        httpx.AsyncClient(headers=TUS | told) as client,
    ):
        created = await client.post(f"{server.url}up/files/", headers={"Upload-Length": "5"})
    assert created.headers["Location"].startswith("https://uploads.example/app/up/files/")


@pytest.mark.parametrize("own", [True, False])
async def test_cors_by_the_framework_or_by_tidegate(own: bool) -> None:
    """One of them, so that each field is there once."""
    origin = "https://page.example"
    uploads = in_memory(cors_origins=[origin] if own else [])
    app: Any = Starlette(routes=[Mount("/files", uploads)])
    if not own:
        app = CORSMiddleware(
            app, [origin], allow_methods=["*"], allow_headers=["*"], expose_headers=["Location"]
        )
    async with uploads:
        client = AsgiClient(app)
        page = [("Origin", origin)]
        asked = [*page, ("Access-Control-Request-Method", "POST")]
        asked.append(("Access-Control-Request-Headers", "upload-length"))
        preflight = await client.request("OPTIONS", "/files/", asked)
        created = await client.request(
            "POST", "/files/", [*page, *TUS.items(), ("Upload-Length", "5")]
        )
        refused = await client.request("POST", "/files/", [*page, *TUS.items()])
    assert (created.status, refused.status) == (201, 400)
    for reply in (preflight, created, refused):
        assert reply.all("Access-Control-Allow-Origin") == [origin]
    assert "upload-length" in preflight["Access-Control-Allow-Headers"].lower()
    assert "Location" in created["Access-Control-Expose-Headers"]


async def lifespan(app: Any) -> list[dict[str, Any]]:
    """What a server is told, from a start to a stop."""
    told: list[dict[str, Any]] = []
    messages = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        told.append(message)

    try:
        await app({"type": "lifespan"}, receive, send)
    except OSError as error:
        told.append({"raised": str(error)})
    return told


COMPLETE = [{"type": "lifespan.startup.complete"}, {"type": "lifespan.shutdown.complete"}]


async def test_beside_django_the_servers_lifespan_is_theirs() -> None:
    assert await lifespan(django(in_memory())) == COMPLETE


async def test_a_lifespan_for_more_than_uploads() -> None:
    uploads = in_memory()
    seen: list[str] = []

    @asynccontextmanager
    async def around(app: Any) -> AsyncIterator[None]:
        assert app is dispatched
        seen.append("before")
        async with uploads:
            yield
        seen.append("after")

    dispatched = dispatch(other, "/files", uploads, lifespan=around)
    assert await lifespan(dispatched) == COMPLETE
    assert seen == ["before", "after"]


@pytest.mark.parametrize("when", ["startup", "shutdown"])
async def test_a_lifespan_that_fails(when: str) -> None:
    @asynccontextmanager
    async def failing(_app: Any) -> AsyncIterator[None]:
        if when == "startup":
            raise OSError("no disk")
        yield
        raise OSError("no disk")

    told = await lifespan(dispatch(other, "/files", in_memory(), lifespan=failing))
    assert told[-2:] == [
        {"type": f"lifespan.{when}.failed", "message": "OSError: no disk"},
        {"raised": "no disk"},
    ]
