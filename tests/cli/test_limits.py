"""`tidegate serve` refuses bodies that are too many, before it reads them; and gets what it needs."""

from __future__ import annotations

import logging
import resource
import socket
import subprocess
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

import httpx
import pytest
from tests.support.server import ServerProcess

from tidegate.cli import descriptors

if TYPE_CHECKING:
    from pathlib import Path

TUS = {"Tus-Resumable": "1.0.0"}


def create(server: ServerProcess, length: int = 10) -> str:
    answer = httpx.post(server.url, headers=TUS | {"Upload-Length": str(length)})
    assert answer.status_code == 201
    return httpx.URL(answer.headers["Location"]).path


def begin(server: ServerProcess, path: str, *fields: str) -> tuple[socket.socket, bytes]:
    """Ask to send 10 bytes; the connection, and the first answer."""
    lines = [
        f"PATCH {path} HTTP/1.1",
        "Host: x",
        "Origin: https://a.example",
        "Tus-Resumable: 1.0.0",
        "Content-Type: application/offset+octet-stream",
        "Upload-Offset: 0",
        "Content-Length: 10",
        "Expect: 100-continue",
        *fields,
    ]
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    connection.sendall("\r\n".join([*lines, "", ""]).encode())
    return connection, connection.recv(65536)


@pytest.mark.parametrize("workers", ["1", "3"])
def test_bodies_that_are_too_many_are_refused_until_one_is_over(
    workers: str, tmp_path: Path
) -> None:
    flags = ("--max-concurrent", "4", "--workers", workers)
    with ServerProcess(tmp_path / "data", *flags) as server, ExitStack() as stack:
        paths = [create(server) for _ in range(5)]
        taken = []
        for path in paths[:4]:
            connection, answer = begin(server, path)
            taken.append(stack.enter_context(closing(connection)))
            assert answer.startswith(b"HTTP/1.1 100 ")
        connection, answer = begin(server, paths[4])
        connection.close()
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nretry-after: 5\r\n" in answer
        assert b"\r\naccess-control-allow-origin: *\r\n" in answer
        # What has no body is answered all the same.
        url = httpx.URL(server.url).join(paths[4])
        assert httpx.head(url, headers=TUS).status_code == 200
        taken[0].sendall(b"0123456789")
        assert taken[0].recv(65536).startswith(b"HTTP/1.1 204 ")
        connection, answer = begin(server, paths[4])
        connection.close()
        assert answer.startswith(b"HTTP/1.1 100 ")


def test_a_client_is_who_the_proxy_says(tmp_path: Path) -> None:
    flags = ("--max-concurrent-per-client", "1", "--behind-proxy", "127.0.0.1")
    with ServerProcess(tmp_path / "data", *flags) as server, ExitStack() as stack:
        for address, status in (
            ("192.0.2.1", b"100"),
            ("192.0.2.2", b"100"),
            ("192.0.2.1", b"503"),
            ("2001:db8::1", b"100"),
            ("2001:db8::2", b"503"),
        ):
            fields = f"X-Forwarded-For: {address}"
            connection, answer = begin(server, create(server), fields)
            stack.enter_context(closing(connection))
            assert answer.startswith(b"HTTP/1.1 %s " % status), address


def test_room_for_unfinished_uploads_is_limited(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data", "--max-unfinished", "1KB") as server:
        create(server, 900)
        answer = httpx.post(server.url, headers=TUS | {"Upload-Length": "101"})
        assert answer.status_code == 507
        create(server, 100)


def test_room_on_the_disk_is_left_free(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data", "--reserve-disk", "1000TB") as server:
        answer = httpx.post(server.url, headers=TUS | {"Upload-Length": "1"})
        assert answer.status_code == 507


# -------------------------------------------------------------------------- open files at most


class Limits:
    """The system's limits, as a test wants them."""

    def __init__(self, patch: pytest.MonkeyPatch, soft: int, hard: int) -> None:
        self.now = (soft, hard)
        patch.setattr(resource, "getrlimit", lambda _: self.now)
        patch.setattr(resource, "setrlimit", self.set)

    def set(self, _: int, limits: tuple[int, int]) -> None:
        self.now = limits


ANY = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("uploads", "soft", "hard", "after"),
    [
        (2000, 1024, 1_000_000, 7024),
        (2000, 1024, ANY, 7024),
        (2000, 10_000, 1_000_000, 10_000),
        (2000, ANY, ANY, ANY),
        (None, 1024, 4096, 4096),
        (None, 1024, ANY, ANY),
    ],
)
def test_as_many_files_as_uploads_need_may_be_open(
    uploads: int | None,
    soft: int,
    hard: int,
    after: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    limits = Limits(monkeypatch, soft, hard)
    descriptors.allow(uploads)
    assert limits.now == (after, hard)
    assert caplog.records == []


def test_a_limit_that_is_too_low_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    limits = Limits(monkeypatch, 1024, 4096)
    with caplog.at_level(logging.WARNING):
        descriptors.allow(2000)
    assert limits.now == (4096, 4096)
    (record,) = caplog.records
    assert record.getMessage() == (
        "2000 uploads at once need 7024 open files, and this process may have 4096: raise the limit"
        " (ulimit -Hn, LimitNOFILE=), or lower --max-concurrent to 1024"
    )


def test_a_server_gets_what_it_needs(tmp_path: Path) -> None:
    soft = ("sh", "-c", 'ulimit -Sn 256 && exec "$@"', "sh")
    with ServerProcess(tmp_path / "data", "--max-concurrent", "100") as server:
        command = (*soft, *server.command)
    with ServerProcess(tmp_path / "data", "--max-concurrent", "100", command=command) as server:
        said = subprocess.run(
            ["cat", f"/proc/{server.pid}/limits"], capture_output=True, text=True, check=True
        ).stdout
    (line,) = (line for line in said.splitlines() if line.startswith("Max open files"))
    assert line.split()[3] == "1324"
