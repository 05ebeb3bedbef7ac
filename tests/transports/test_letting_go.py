"""A writer that is asked to let go keeps what had been sent by then, whatever it was busy with."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import trustme
import uvloop
from anyio.streams.tls import TLSStream
from tests.support.exchange import PATIENCE, Reply, SocketClient
from tests.support.serving import in_memory, listening

from tidegate.metadata.memory import MemoryMetadataStore
from tidegate.stores.memory import MemoryStore, MemoryWriter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from anyio.abc import SocketStream

    from tidegate.ports import Buffer, Digest, Fence, Writer
    from tidegate.protocol.model import Upload, UploadId

# It opens a descriptor for good when it is first used.
uvloop.new_event_loop().close()

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


class Slow(MemoryStore):
    """Takes its time to open an upload, as one far away does."""

    def __init__(self) -> None:
        super().__init__(1024 * 1024)
        self.opening = anyio.Event()
        self.may_open = anyio.Event()

    async def writer(self, upload: Upload, fence: Fence) -> Writer:
        self.opening.set()
        await self.may_open.wait()
        return await super().writer(upload, fence)


class Asked(MemoryMetadataStore):
    """Shows that somebody asked for an upload."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = anyio.Event()

    async def request_release(self, upload_id: UploadId) -> None:
        await super().request_release(upload_id)
        self.asked.set()


class Secret(SocketClient):
    """Speaks TLS."""

    def __init__(self, port: int, authority: trustme.CA) -> None:
        super().__init__("localhost", port)
        self._context = ssl.create_default_context()
        authority.configure_trust(self._context)

    async def connect(self) -> SocketStream:
        tcp = await anyio.connect_tcp("127.0.0.1", self.port)
        stream: Any = await TLSStream.wrap(
            tcp, hostname=self.host, ssl_context=self._context, standard_compatible=False
        )
        self._streams.append(stream)
        return stream  # type: ignore[no-any-return]


@asynccontextmanager
async def client(app: Any, way: str, *, tls: bool) -> AsyncIterator[SocketClient]:
    authority = trustme.CA() if tls else None
    context = None
    if authority is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost").configure_cert(context)
    async with app, listening(app, way, tls=context) as port:
        found = SocketClient("127.0.0.1", port)
        if authority is not None:
            found = Secret(port, authority)
        try:
            yield found
        finally:
            await found.aclose()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("way", ["native", "h11", "httptools"])
@pytest.mark.parametrize("method", ["HEAD", "PATCH"])
async def test_what_was_sent_while_the_store_opened_is_kept(
    way: str, tls: bool, method: str
) -> None:
    data, metadata = Slow(), Asked()
    app = in_memory(data=data, metadata=metadata, base_path="/files/")
    async with client(app, way, tls=tls) as user, asyncio.timeout(PATIENCE):
        path = await user.create(100_000)
        patch = await user.start_patch(path, 0, 100_000, Expect="100-continue")
        await patch.asked_for()
        await patch.send(b"hello")
        await data.opening.wait()
        await patch.send(b" world" * 1000)
        answers: list[Reply] = []

        async def ask() -> None:
            if method == "HEAD":
                answers.append(await user.head(path))
            else:
                answers.append(await user.patch(path, 6005, b"!"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            await metadata.asked.wait()
            data.may_open.set()
        assert (await patch.reply()).status == 423
        assert answers[0]["Upload-Offset"] == ("6005" if method == "HEAD" else "6006")


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("way", ["native", "h11", "httptools"])
async def test_a_client_that_never_stops_sending_is_stopped(
    way: str, tls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although there is more of it whenever something was stored."""
    metadata = Asked()
    writes = 0
    plain = MemoryWriter.write

    async def write(
        writer: MemoryWriter, chunks: Sequence[Buffer], digest: Digest | None = None
    ) -> None:
        nonlocal writes
        writes += metadata.asked.is_set()
        for _ in range(50):
            await asyncio.sleep(0)
        await plain(writer, chunks, digest)

    monkeypatch.setattr(MemoryWriter, "write", write)
    app = in_memory(metadata=metadata, base_path="/files/")
    async with client(app, way, tls=tls) as user, asyncio.timeout(PATIENCE):
        path = await user.create(2**25)
        patch = await user.start_patch(path, 0, 2**25)

        async def send() -> None:
            while True:
                await patch.send(b"hello")
                await asyncio.sleep(0)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send)
            await user.until(path, lambda head: head["Upload-Offset"] != "0")
            tasks.cancel_scope.cancel()
        assert writes <= 3
