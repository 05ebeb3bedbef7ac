"""Where a test plays: a client, a proxy that watches, a server, and the bytes on both ends."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

import httpx

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.interop.drivers import Driver, Drivers, Result
    from tests.interop.matrix import Client
    from tests.support.proxy import CuttingProxy, Request
    from tests.support.server import ServerProcess

CHUNK = 1024 * 1024
SIZE = 5 * CHUNK + 17
METADATA = {"filename": "Gezeiten – 潮.bin", "origin": "interop"}
TUS = {"Tus-Resumable": "1.0.0"}


@dataclass
class Stage:
    """One test's server, proxy, source file and scratch folder."""

    server: ServerProcess
    proxy: CuttingProxy
    drivers: Drivers
    source: Path
    folder: Path

    # ------------------------------------------------------------ the client's side

    @contextlib.contextmanager
    def uploading(self, client: Client, **options: Any) -> Iterator[Driver]:
        """Let a client begin; the upload goes on inside the block."""
        wanted = {
            "endpoint": self.proxy.url,
            "file": str(self.source),
            "metadata": METADATA,
            **client.asked,
            **options,
        }
        driver, ours = self.drivers.for_client(client, self.folder)
        try:
            driver.start(wanted)
            yield driver
        finally:
            if ours:
                driver.__exit__()

    def upload(self, client: Client, **options: Any) -> str:
        """Let a client upload to the end; the address of what it uploaded."""
        with self.uploading(client, **options) as driver:
            return self.success(driver)

    def success(self, driver: Driver) -> str:
        """Wait until the client says that all went well; the upload's address at the server."""
        result = driver.result()
        assert not result.error, self.story(result, driver)
        assert not result.aborted, self.story(result, driver)
        return self.located(result)

    def located(self, result: Result) -> str:
        """An upload's address at the server itself: the client knows it by the proxy's."""
        assert result.url, f"the client names no upload\n{self.proxy.log()}"
        return urljoin(self.server.url, urlsplit(result.url).path)

    def story(self, result: Result, driver: Driver) -> str:
        """What a failure has to tell."""
        return (
            f"{result}\n--- on the wire\n{self.proxy.log()}"
            f"\n--- the driver\n{driver.tail()}\n--- the server\n{self.server.tail(20)}"
        )

    # ------------------------------------------------------------ the server's side

    def head(self, url: str) -> httpx.Response:
        """Ask the server itself about an upload."""
        return httpx.head(url, headers=TUS, trust_env=False)

    def check_stored(self, url: str, source: Path | None = None) -> None:
        """The server has it whole: the same bytes, the offset at the length, the metadata."""
        content = (source or self.source).read_bytes()
        head = self.head(url)
        assert head.status_code == 200, self.proxy.log()
        assert head.headers["upload-length"] == str(len(content))
        assert head.headers["upload-offset"] == str(len(content))
        pairs = [pair.partition(" ") for pair in head.headers["upload-metadata"].split(",")]
        kept = {key: base64.b64decode(value).decode() for key, _, value in pairs}
        assert kept == kept | METADATA
        got = httpx.get(url, trust_env=False)
        assert got.status_code == 200
        assert len(got.content) == len(content)
        assert hashlib.sha256(got.content).digest() == hashlib.sha256(content).digest()

    def offers(self, extension: str) -> bool:
        """Whether the server says that it has this extension."""
        told = httpx.options(self.server.url, trust_env=False).headers["tus-extension"]
        return extension in told.split(",")

    def check_answers(self) -> None:
        """Whatever clients and lines did, the server never failed."""
        failed = [r for r in self.proxy.responses if r.status >= 500 and r.status != 503]
        assert not failed, f"{self.proxy.log()}\n--- the server\n{self.server.tail()}"

    def wait_until(self, happened: Callable[[], bool], otherwise: str, timeout: float = 10) -> None:
        """Wait for a condition of the server's, asking again and again."""
        end = time.monotonic() + timeout
        while not happened():
            assert time.monotonic() < end, f"{otherwise}\n{self.proxy.log()}\n{self.server.tail()}"
            time.sleep(0.05)

    # ------------------------------------------------------------ between the two

    def creations(self) -> list[Request]:
        """The requests that created uploads."""
        return [r for r in self.proxy.sent("POST") if "x-http-method-override" not in r.fields]

    def answers(self, method: str) -> list[int]:
        """The statuses of the answers to this method's requests, without interim ones."""
        answers = list(self.proxy.responses)
        found: list[int] = []
        for request in self.proxy.sent(method):
            later = [a for a in answers if a.connection == request.connection and a.at > request.at]
            found += [answer.status for answer in later if answer.status >= 200][:1]
        return found

    def patches(self) -> list[Request]:
        """The requests that carried bytes to an upload, under whatever method."""
        return [
            request
            for request in list(self.proxy.requests)
            if request.fields.get("x-http-method-override", request.method) == "PATCH"
        ]
