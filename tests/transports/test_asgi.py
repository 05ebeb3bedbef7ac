"""The application: its lifespan, where it is mounted, what Location says, what is no HTTP."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.each import each
from tests.support.exchange import STREAM, TUS, AsgiClient, Reply, path_of
from tests.support.serving import in_memory as tidegate
from tests.support.serving import stores

from tidegate.metadata.memory import MemoryMetadataStore
from tidegate.ports import DataError, MetadataError
from tidegate.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import MutableMapping
    from pathlib import Path

    from tidegate.asgi import Tidegate

pytestmark = pytest.mark.anyio


class Fragile(MemoryStore):
    """A data store that can fail to open, and says how often it was opened and closed."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.error = error
        self.opened = self.closed = 0

    async def open(self) -> None:
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        self.opened += 1

    async def close(self) -> None:
        if self.opened > self.closed:
            self.closed += 1


# ------------------------------------------------------------------------------------- lifespan


class Lifespan:
    """A server's side of the lifespan protocol."""

    def __init__(self, app: Tidegate) -> None:
        self._incoming: asyncio.Queue[MutableMapping[str, Any]] = asyncio.Queue()
        self._outgoing: asyncio.Queue[MutableMapping[str, Any]] = asyncio.Queue()
        scope = {"type": "lifespan", "asgi": {"version": "3.0"}}
        self.task = asyncio.create_task(app(scope, self._incoming.get, self._outgoing.put))

    async def say(self, what: str) -> MutableMapping[str, Any]:
        self._incoming.put_nowait({"type": f"lifespan.{what}"})
        async with asyncio.timeout(10):
            return await self._outgoing.get()


async def test_alone_the_server_opens_and_closes_it() -> None:
    store = Fragile()
    app = tidegate(data=store)
    lifespan = Lifespan(app)
    assert await lifespan.say("startup") == {"type": "lifespan.startup.complete"}
    assert (store.opened, store.closed) == (1, 0)
    assert (await AsgiClient(app).request("OPTIONS", "/")).status == 204
    assert await lifespan.say("shutdown") == {"type": "lifespan.shutdown.complete"}
    await lifespan.task
    assert (store.opened, store.closed) == (1, 1)


@pytest.mark.parametrize("error", [DataError("no such folder"), OSError("no such folder")])
async def test_a_server_is_told_why_it_cannot_start(error: Exception) -> None:
    lifespan = Lifespan(tidegate(data=Fragile(error)))
    message = await lifespan.say("startup")
    assert message["type"] == "lifespan.startup.failed"
    assert "no such folder" in message["message"]
    await lifespan.task


async def test_a_server_is_told_that_the_end_was_not_in_order() -> None:
    class Stuck(MemoryMetadataStore):
        async def close(self) -> None:
            raise MetadataError("cannot be closed")

    lifespan = Lifespan(tidegate(metadata=Stuck()))
    await lifespan.say("startup")
    message = await lifespan.say("shutdown")
    assert message["type"] == "lifespan.shutdown.failed"
    assert "cannot be closed" in message["message"]
    await lifespan.task


async def test_mounted_it_is_given_as_the_lifespan_of_the_application() -> None:
    store = Fragile()
    app = tidegate(data=store)
    async with app.lifespan(object()):
        assert (store.opened, store.closed) == (1, 0)
        await AsgiClient(app).request("OPTIONS", "/")
    assert (store.opened, store.closed) == (1, 1)


async def test_mounted_and_forgotten_it_opens_at_the_first_request() -> None:
    store = Fragile()
    app = tidegate(data=store)
    client = AsgiClient(app)
    client.base = "/"
    assert store.opened == 0
    replies = await asyncio.gather(*(client.post(Upload_Length="5") for _ in range(20)))
    assert {reply.status for reply in replies} == {201}
    assert store.opened == 1
    await app.__aexit__(None, None, None)
    assert store.closed == 1


async def test_opened_twice_it_is_open_once() -> None:
    store = Fragile()
    app = tidegate(data=store)
    async with app, app.lifespan():
        assert store.opened == 1
    assert store.closed == 1


async def test_closed_it_can_be_opened_again() -> None:
    store = Fragile()
    app = tidegate(data=store)
    client = AsgiClient(app)
    client.base = "/"
    for _ in range(2):
        async with app:
            assert (await client.post(Upload_Length="5")).status == 201
    assert (store.opened, store.closed) == (2, 2)


@pytest.mark.parametrize("error", [DataError("/srv/secret"), OSError("/srv/secret")])
async def test_a_store_that_cannot_open_is_tried_again(
    error: Exception, logged: list[logging.LogRecord]
) -> None:
    store = Fragile(error)
    app = tidegate(data=store)
    client = AsgiClient(app)
    client.base = "/"
    reply = await client.post(Upload_Length="5")
    assert reply.status == 503
    assert reply["Retry-After"] == "2"
    assert "secret" not in reply.text
    assert any("secret" in record.getMessage() for record in logged)
    store.error = None
    assert (await client.post(Upload_Length="5")).status == 201
    await app.__aexit__(None, None, None)


async def test_opening_raises_what_was_wrong() -> None:
    with pytest.raises(DataError, match="no such folder"):
        async with tidegate(data=Fragile(DataError("no such folder"))):
            raise AssertionError


async def test_a_request_that_gives_up_does_not_stop_the_opening() -> None:
    class Slow(Fragile):
        go_on = asyncio.Event()

        async def open(self) -> None:
            await self.go_on.wait()
            await super().open()

    store = Slow()
    app = tidegate(data=store)
    client = AsgiClient(app)
    client.base = "/"
    first = asyncio.create_task(client.post(Upload_Length="5"))
    second = asyncio.create_task(client.post(Upload_Length="5"))
    await asyncio.sleep(0.01)
    first.cancel()
    store.go_on.set()
    assert (await second).status == 201
    await asyncio.gather(first, return_exceptions=True)
    await app.__aexit__(None, None, None)


async def test_an_engine_that_failed_is_opened_again(logged: list[logging.LogRecord]) -> None:
    """What goes on behind the requests ran into something that its own guards let through."""

    async def fail() -> None:
        await asyncio.sleep(0)
        raise ZeroDivisionError

    store = Fragile()
    app = tidegate(data=store)
    client = AsgiClient(app)
    client.base = "/"
    assert (await client.post(Upload_Length="5")).status == 201
    runner = app._runner
    assert runner is not None
    app.engine._core.background.start_soon(fail)
    with pytest.raises(ExceptionGroup):
        await runner
    assert any("behind the requests" in record.getMessage() for record in logged)
    assert (await client.post(Upload_Length="5")).status == 201
    assert (store.opened, store.closed) == (2, 1)
    await app.__aexit__(None, None, None)


async def test_what_is_wrong_with_the_settings_is_said_at_once() -> None:
    for settings in ({"disable": ["creations"]}, {"trusted_proxies": ["localhost"]}):
        with pytest.raises(ValueError):
            tidegate(**settings)


# ------------------------------------------------------------------------------------ no HTTP


async def test_a_websocket_is_turned_away() -> None:
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    await tidegate()({"type": "websocket", "path": "/files/", "headers": []}, receive, send)
    assert [message["type"] for message in sent] == ["websocket.close"]


# ------------------------------------------------------------------------------ where it is mounted


def mounted(how: str, root: str, path: str) -> dict[str, Any]:
    """The scope of a request for `root + path`, as servers and frameworks make it."""
    from urllib.parse import unquote

    full = root + path
    scopes: dict[str, dict[str, Any]] = {
        # Starlette since 0.33, uvicorn's --root-path: the path is whole.
        "whole": {"path": unquote(full), "raw_path": full.encode(), "root_path": unquote(root)},
        # Starlette before: the path is what is left.
        "rest": {"path": unquote(path), "raw_path": full.encode(), "root_path": unquote(root)},
        # A server that knows of a root that its proxy has cut off, and takes it for no part.
        "cut": {"path": unquote(path), "raw_path": path.encode(), "root_path": unquote(root)},
        "whole, not raw": {"path": unquote(full), "raw_path": None, "root_path": unquote(root)},
        "rest, not raw": {"path": unquote(path), "root_path": unquote(root)},
        "encoded root": {"path": full, "raw_path": full.encode(), "root_path": root},
        "slash": {
            "path": unquote(full),
            "raw_path": full.encode(),
            "root_path": unquote(root) + "/",
        },
        "query": {
            "path": unquote(full),
            "raw_path": f"{full}?a=/b".encode(),
            "root_path": unquote(root),
        },
    }
    return scopes[how]


@pytest.mark.parametrize(
    "how",
    ["whole", "rest", "cut", "whole, not raw", "rest, not raw", "encoded root", "slash", "query"],
)
@each("root", ["/api", "/a/b/c", "/with%20space", "/%C3%A9t%C3%A9/%E6%97%A5", "/a+b,c"])
@each("base", ["/", "/files/", "/a/b/"])
async def test_mounted_below_a_root_path(how: str, root: str, base: str) -> None:
    app = tidegate(base_path=base)
    async with app:

        async def request(method: str, path: str, body: bytes | None = None) -> Reply:
            client = AsgiClient(app, **mounted(how, root, path))
            return await client.tus(
                method, "", body, Content_Type=STREAM, Upload_Length="5", Upload_Offset="0"
            )

        for path in (base, base.rstrip("/")):
            created = await request("POST", path)
            assert created.status == 201, created
        location = created["Location"]
        assert location.startswith(f"http://tus.test{root}{base}")
        below = location.removeprefix(f"http://tus.test{root}")
        assert (await request("PATCH", below, b"hello")).status == 204
        got = await request("GET", below)
        assert (got.status, got.body) == (200, b"hello")
        assert (await request("HEAD", "/elsewhere" + base + "x")).status == 404


async def test_parts_are_named_by_the_path_that_clients_see() -> None:
    async with tidegate(base_path="/up/") as app:
        client = AsgiClient(app, root_path="/my app")
        client.base = "/my%20app/up/"
        part = await client.whole(b"hello", Upload_Concat="partial")
        assert part.startswith(client.base)
        final = path_of(await client.post(Upload_Concat=f"final;{part}"))
        assert await client.content(final) == b"hello"


async def test_a_base_path_of_any_letters() -> None:
    async with tidegate(base_path="/été files/") as app:
        client = AsgiClient(app)
        client.base = "/%C3%A9t%C3%A9%20files/"
        path = await client.whole(b"hello")
        assert path.startswith(client.base)
        assert await client.content(path) == b"hello"


async def test_the_absolute_form_of_a_target() -> None:
    """A server MUST accept it (RFC 9112, 3.2.2); uvicorn passes it on as the path."""
    async with tidegate() as app:
        client = AsgiClient(app)
        client.base = "http://tus.test/"
        path = await client.whole(b"hello")
        assert await client.content("http://tus.test" + path) == b"hello"
        assert (await client.request("OPTIONS", "http://tus.test")).status == 204
        assert (await client.request("OPTIONS", "*")).status == 404


# ------------------------------------------------------------------------------------- Location


Where = "Callable[..., Any]"


async def location(
    app: Tidegate, peer: str = "127.0.0.1", scheme: str = "http", **headers: str
) -> str:
    client = AsgiClient(app, client=(peer, 1), scheme=scheme)
    client.base = "/files/"
    reply = await client.post(Upload_Length="5", **headers)
    assert reply.status == 201
    upload_id = reply["Location"].rpartition("/")[2]
    assert await client.offset(f"/files/{upload_id}") == 0
    return reply["Location"].removesuffix(upload_id)


async def test_location_is_what_the_client_called() -> None:
    async with tidegate(base_path="/files/") as app:
        assert await location(app) == "http://tus.test/files/"
        assert await location(app, Host="a.test:81") == "http://a.test:81/files/"
        assert await location(app, Host="[::1]:81") == "http://[::1]:81/files/"
        assert await location(app, scheme="https") == "https://tus.test/files/"
        for host in ("", "a b", "x/y", "u@h", "a,b"):
            assert await location(app, Host=host) == "/files/"


FORWARDED = {
    "Forwarded": "proto=https;host=f.test;for=9.9.9.9",
    "X_Forwarded_Host": "x.test",
    "X_Forwarded_Proto": "https",
}


async def test_location_as_a_trusted_proxy_tells() -> None:
    async with tidegate(base_path="/files/", trusted_proxies=["10.0.0.0/8"]) as app:
        older = {k: v for k, v in FORWARDED.items() if k != "Forwarded"}
        assert await location(app, "10.1.1.1", **FORWARDED) == "https://f.test/files/"
        assert await location(app, "10.1.1.1", **older) == "https://x.test/files/"
        assert await location(app, "11.1.1.1", **FORWARDED) == "http://tus.test/files/"
        assert (
            await location(app, "10.1.1.1", X_Forwarded_Proto="https") == "https://tus.test/files/"
        )


async def test_location_as_it_was_set() -> None:
    async with tidegate(base_path="/files/", public_url="https://p.test/x/") as app:
        assert await location(app, **FORWARDED) == "https://p.test/x/files/"
    async with tidegate(base_path="/files/", relative_location=True) as app:
        assert await location(app, **FORWARDED) == "/files/"


async def test_parts_below_a_public_url() -> None:
    async with tidegate(base_path="/files/", public_url="https://p.test/x") as app:
        client = AsgiClient(app)
        reply = await client.post(b"hi", Upload_Length="2", Upload_Concat="partial")
        for url in (reply["Location"], path_of(reply), path_of(reply).removeprefix("/x")):
            assert (await client.post(Upload_Concat=f"final;{url}")).status == 201


# -------------------------------------------------------------------------------- what is left


async def test_a_body_with_upgrade_is_refused_unless_the_server_keeps_it() -> None:
    upgrade = {"Upgrade": "h2c", "Connection": "Upgrade, HTTP2-Settings"}
    for accept in (False, True):
        async with tidegate(base_path="/files/", accept_upgrade=accept) as app:
            client = AsgiClient(app)
            path = await client.create(5)
            reply = await client.patch(path, 0, b"hello", **upgrade)
            assert reply.status == (204 if accept else 400)
            assert await client.offset(path) == (5 if accept else 0)
            # Nothing is lost where there is no body.
            assert (await client.tus("HEAD", path, **upgrade)).status == 200
            assert (
                await client.post(Upload_Length="5", Content_Length="0", **upgrade)
            ).status == 201


async def test_http_2_needs_no_length() -> None:
    async with tidegate(base_path="/files/") as app:
        client = AsgiClient(app, http_version="2")
        path = await client.create(10)
        exchange = client.exchange(
            "PATCH", path, [*TUS.items(), ("Content-Type", STREAM), ("Upload-Offset", "0")]
        )
        exchange.begin(app)
        await exchange.send(b"hello")
        await exchange.end()
        assert (await exchange.reply())["Upload-Offset"] == "5"


async def test_names_of_headers_in_any_case() -> None:
    async with tidegate(base_path="/files/") as app:
        exchange = AsgiClient(app).exchange("POST", "/files/")
        exchange.scope["headers"] = [(b"Tus-Resumable", b"1.0.0"), (b"UPLOAD-LENGTH", b" 5\t")]
        exchange.begin(app)
        assert (await exchange.reply()).status == 201


async def test_a_scope_with_no_more_than_it_must_have() -> None:
    async with tidegate() as app:
        exchange = AsgiClient(app).exchange("POST", "/")
        exchange.scope["headers"] = [(b"tus-resumable", b"1.0.0"), (b"upload-length", b"5")]
        for key in ("scheme", "client", "server", "root_path", "raw_path"):
            del exchange.scope[key]
        exchange.begin(app)
        reply = await exchange.reply()
        assert reply.status == 201
        assert reply["Location"].startswith("/")


async def test_one_line_about_each_request(caplog: pytest.LogCaptureFixture) -> None:
    lines: list[dict[str, Any]] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.__dict__["tidegate"])

    logger, handler = logging.getLogger("tidegate.access"), Keep()
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        async with tidegate(base_path="/files/") as app:
            client = AsgiClient(app)
            path = await client.create(5)
            await client.patch(path, 0, b"hello", X_Request_ID="r-1")
            await client.content(path)
            await client.head("/nowhere")
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    upload = path.removeprefix("/files/")
    shown = [
        (line["method"], line["status"], line["upload"], line["bytes_in"], line["bytes_out"])
        for line in lines
    ]
    assert shown[:3] == [
        ("POST", 201, upload, 0, 0),
        ("PATCH", 204, upload, 5, 0),
        ("GET", 200, upload, 0, 5),
    ]
    assert shown[3][:2] == ("HEAD", 404)
    assert lines[1]["request_id"] == "r-1"
    assert lines[1]["client"] == "127.0.0.1"
    assert all(line["seconds"] >= 0 for line in lines)


async def test_a_reader_who_goes_away_leaves_no_file_open(tmp_path: Path) -> None:
    """The guards fail this test if the store's file stays open."""
    data, metadata = stores("local+memory", tmp_path)
    async with tidegate(data=data, metadata=metadata, base_path="/files/") as app:
        client = AsgiClient(app)
        path = await client.whole(b"x" * 5_000_000)
        exchange = client.exchange("GET", path)
        exchange.begin(app)
        async with asyncio.timeout(10):
            while len(exchange.messages) < 2:
                await asyncio.sleep(0)
        await exchange.drop()
        assert len(exchange.messages) < 5
        assert sum(len(m.get("body", b"")) for m in exchange.messages) < 5_000_000


async def test_a_download_that_breaks_off_ends_the_connection(
    logged: list[logging.LogRecord],
) -> None:
    class Torn(MemoryStore):
        async def read(self, upload: Any, start: int, stop: int) -> Any:
            yield b"hel"
            raise DataError("the disk")

    async with tidegate(data=Torn(), base_path="/files/") as app:
        client = AsgiClient(app)
        path = await client.whole(b"hello")
        exchange = client.exchange("GET", path)
        exchange.begin(app)
        # What the server gets is an exception, so that it can't take this for all of it.
        with pytest.raises((DataError, ExceptionGroup)):
            await exchange.reply()
        assert exchange.messages[-1]["more_body"]
        assert any("cannot be read" in record.getMessage() for record in logged)
