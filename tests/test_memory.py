"""One large upload costs the server no memory to speak of (DESIGN, promise 6).

1 GiB by default; `UPLOAD_GIB=10` in the environment asks for another size. The disk must hold it.
"""

from __future__ import annotations

import http.client
import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import psutil
import pytest
from tests.support.exchange import STREAM, TUS
from tests.support.server import ServerProcess

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GIB = 1024**3
MIB = 1024**2
SIZE = int(float(os.environ.get("UPLOAD_GIB", "1")) * GIB)
MAY_GROW = 64 * MIB
PIECE = bytes(4 * MIB)
# At 20 MiB/s, on a machine that has other things to do.
TIMEOUT = 60 + SIZE / (20 * MIB)


class Sampler:
    """The most resident memory of a process and its children, looked at all the time."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self.first = self.peak = self.now()

    def now(self) -> int:
        total: int = self._process.memory_info().rss
        for child in self._process.children(recursive=True):
            try:
                total += child.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        return total

    @contextmanager
    def sampling(self) -> Iterator[None]:
        done = threading.Event()

        def sample() -> None:
            while not done.wait(0.02):
                self.peak = max(self.peak, self.now())

        thread = threading.Thread(target=sample)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    @property
    def growth(self) -> int:
        return self.peak - self.first


def _upload(server: ServerProcess, size: int, *, chunked: bool, piece: bytes = PIECE) -> str:
    """Send zeros in one PATCH; the path of the upload."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("POST", "/files/", headers=TUS | {"Upload-Length": str(size)})
    created = connection.getresponse()
    created.read()
    assert created.status == 201
    path = urlsplit(created.headers["Location"]).path

    framing = {"Transfer-Encoding": "chunked"} if chunked else {"Content-Length": str(size)}
    headers = TUS | {"Content-Type": STREAM, "Upload-Offset": "0"} | framing
    connection.putrequest("PATCH", path)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    left = size
    while left:
        data = memoryview(piece)[: min(len(piece), left)]
        left -= len(data)
        connection.sock.sendall(b"%x\r\n" % len(data) if chunked else b"")
        connection.sock.sendall(data)
        connection.sock.sendall(b"\r\n" if chunked else b"")
    connection.sock.sendall(b"0\r\n\r\n" if chunked else b"")
    reply = connection.getresponse()
    reply.read()
    assert (reply.status, reply.headers["Upload-Offset"]) == (204, str(size))
    connection.close()
    return path


def _delete(server: ServerProcess, path: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("DELETE", path, headers=TUS)
    assert connection.getresponse().status == 204
    connection.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path / "data") as server:
        yield server


def _report(what: str, sampler: Sampler) -> None:
    print(
        f"{what}: resident memory {sampler.first / MIB:.1f} MiB before,"
        f" {sampler.peak / MIB:.1f} MiB at most: {sampler.growth / MIB:.1f} MiB more"
    )


@pytest.mark.timeout(TIMEOUT)
def test_one_large_upload(server: ServerProcess) -> None:
    sampler = Sampler(server.pid)
    with sampler.sampling():
        path = _upload(server, SIZE, chunked=False)
    _report(f"{SIZE / GIB:g} GiB in one PATCH", sampler)
    _delete(server, path)
    assert sampler.growth < MAY_GROW


@pytest.mark.timeout(TIMEOUT)
def test_a_large_chunk_is_not_held_whole(server: ServerProcess) -> None:
    """A chunk of a chunked body has the size that the client likes."""
    sampler = Sampler(server.pid)
    with sampler.sampling():
        path = _upload(server, 256 * MIB, chunked=True, piece=bytes(128 * MIB))
    _report("256 MiB in two chunks", sampler)
    _delete(server, path)
    assert sampler.growth < MAY_GROW


@pytest.mark.timeout(TIMEOUT)
def test_a_large_download(server: ServerProcess) -> None:
    path = _upload(server, 256 * MIB, chunked=False)
    sampler = Sampler(server.pid)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    with sampler.sampling():
        connection.request("GET", path)
        reply = connection.getresponse()
        received = 0
        while data := reply.read(MIB):
            received += len(data)
    connection.close()
    _report("256 MiB downloaded", sampler)
    _delete(server, path)
    assert received == 256 * MIB
    assert sampler.growth < MAY_GROW
