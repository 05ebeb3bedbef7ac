"""What an application's own tests are given: a server, in memory or of the application."""

from __future__ import annotations

import asyncio
import io
from typing import TYPE_CHECKING, Any

import anyio.to_thread
import httpx
import pytest
from examples.fastapi_app import create_app
from tests.support.exchange import STREAM, TUS
from tests.support.logs import logs_kept
from tusclient.client import TusClient

from tidegate.asgi import Tidegate
from tidegate.hooks import Denied
from tidegate.metadata.memory import MemoryMetadataStore
from tidegate.ports import Delivery
from tidegate.protocol.model import EventType
from tidegate.stores.memory import MemoryStore
from tidegate.testing import served, told

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

pytestmark = pytest.mark.anyio


@pytest.fixture
def fastapi_stats(blocking_calls: list[str]) -> Iterator[None]:
    """FastAPI looks for the source of what it calls: at nothing but the file's state."""
    yield
    assert {call.split()[0] for call in blocking_calls} <= {"os.stat"}
    blocking_calls.clear()


async def upload(url: str, content: bytes, headers: Mapping[str, str]) -> str:
    """With tuspy, which blocks."""

    def run() -> str:
        client = TusClient(url, headers=dict(headers))
        uploader = client.uploader(file_stream=io.BytesIO(content), chunk_size=5)
        uploader.upload()
        return str(uploader.url)

    return await anyio.to_thread.run_sync(run)


async def test_a_server_in_memory() -> None:
    """With the settings of a Tidegate, and no event forgotten."""
    seen: list[EventType] = []

    async def on_event(delivery: Delivery) -> None:
        await asyncio.sleep(0)
        seen.append(delivery.event.type)

    async with served(on_event=[on_event], max_size=100) as server:
        assert isinstance(server.app, Tidegate)
        url = await upload(server.url, b"tide and time", {})
        await told(server.app)
        assert seen == [EventType.CREATED, EventType.COMPLETED]
        async with httpx.AsyncClient() as client:
            assert (await client.get(url)).content == b"tide and time"
            large = await client.post(server.url, headers=TUS | {"Upload-Length": "101"})
            assert large.status_code == 413
    with pytest.raises(OSError, match=r"refused|failed"):
        await anyio.connect_tcp("127.0.0.1", int(server.url.rsplit(":", 1)[1].rstrip("/")))


@pytest.mark.usefixtures("fastapi_stats")
async def test_an_application_is_tested_with_stores_in_memory() -> None:
    """The FastAPI example's own test, as its author would write it."""
    app = create_app(MemoryStore(), MemoryMetadataStore())
    async with served(app) as server, httpx.AsyncClient(base_url=server.url) as client:
        form = {"user": "alice", "password": "wonderland"}
        token = (await client.post("/sign-in", json=form)).json()["token"]
        alice = {"Authorization": f"Bearer {token}"}
        url = await upload(f"{server.url}files/", b"tide and time", alice)
        while not (files := (await client.get("/my-files", headers=alice)).json()):
            await asyncio.sleep(0.01)
        assert url.endswith(files[0]["id"])
        refused = await client.post("/files/", headers=TUS | {"Upload-Length": "5"})
        assert refused.status_code == 401


@pytest.mark.usefixtures("fastapi_stats")
async def test_settings_of_the_server_beside_an_application() -> None:
    app = create_app(MemoryStore(), MemoryMetadataStore())
    async with served(app, root_path="/api") as server, httpx.AsyncClient() as client:
        form = {"user": "bob", "password": "builder"}
        signed_in = await client.post(f"{server.url}sign-in", json=form)
        user = {"Authorization": f"Bearer {signed_in.json()['token']}"}
        created = await client.post(
            f"{server.url}files/", headers=TUS | user | {"Upload-Length": "5"}
        )
        assert created.headers["Location"].startswith(f"{server.url}api/files/")


async def test_an_application_that_does_not_start() -> None:
    async def broken(scope: Any, _receive: Any, _send: Any) -> None:
        assert scope["type"] == "lifespan"
        raise OSError("no disk")

    with pytest.raises(RuntimeError, match="did not start"):
        async with served(broken):
            pytest.fail("it did")


async def test_a_listener_that_never_takes_it() -> None:
    async def on_event(_delivery: Delivery) -> None:
        raise OSError("not now")

    with logs_kept():
        async with served(on_event=[on_event]) as server:
            await upload(server.url, b"tidal", {})
            with pytest.raises(TimeoutError):
                await told(server.app, within=0.05)


async def test_a_test_that_fails_ends_the_server() -> None:
    """Also while a request waits for something that does not come."""
    asked = asyncio.Event()

    async def authorize(_request: object, _upload: object) -> Any:
        asked.set()
        await asyncio.sleep(3600)
        raise Denied(401)

    async def post(url: str) -> None:
        headers = TUS | {"Upload-Length": "5", "Content-Type": STREAM}
        async with httpx.AsyncClient() as client:
            await client.post(url, headers=headers, content=b"tidal")

    async def failing() -> None:
        async with anyio.create_task_group() as tasks, served(authorize=authorize) as server:
            tasks.start_soon(post, server.url)
            await asked.wait()
            raise AssertionError("what the test is about")

    with pytest.raises(ExceptionGroup) as caught:
        await failing()
    assert "what the test is about" in repr(caught.value)
