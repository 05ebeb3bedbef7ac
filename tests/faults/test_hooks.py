"""A process that is killed while a hook decides: the next one asks again, and nothing was shown.

On one machine, and on two that share a PostgreSQL and a bucket.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from tests.support import postgres
from tests.support.s3_server import ENVIRONMENT
from tests.support.server import ServerProcess
from tests.support.swift import swift

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.s3_server import S3Server

COMMAND = (sys.executable, "-m", "tests.faults.hooked")
TUS = {"Tus-Resumable": "1.0.0"}
PATCH = TUS | {"Content-Type": "application/offset+octet-stream", "Upload-Offset": "0"}
PATIENCE = 20.0
pytestmark = pytest.mark.timeout(180)


@pytest.fixture(params=["native", "asgi"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServerProcess]:
    flags = ("--transport", request.param)
    with ServerProcess(tmp_path / "data", *flags, command=COMMAND) as started:
        yield started


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def asked(server: ServerProcess) -> list[list[str]]:
    path = server.data / "asked"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def killed_in_the_middle(server: ServerProcess, checksum: dict[str, str]) -> str:
    """An upload whose last byte came, and whose server was killed while its hook decided."""
    (server.data / "wait").touch()
    created = httpx.post(server.url, headers=TUS | {"Upload-Length": "5"})
    url: str = created.headers["Location"]
    answers: list[httpx.Response] = []

    def send() -> None:
        with contextlib.suppress(httpx.HTTPError):
            answers.append(httpx.patch(url, headers=PATCH | checksum, content=b"hello"))

    thread = threading.Thread(target=send)
    thread.start()
    until(lambda: len(asked(server)) == 1)
    server.kill()
    thread.join(PATIENCE)
    assert not answers
    (server.data / "wait").unlink()
    return url


SHA1 = {"Upload-Checksum": "sha1 qvTGHdzF6KLavt4PO0gs2a6pQ00="}


@pytest.mark.parametrize("checksum", [{}, SHA1], ids=["plain", "checksum"])
def test_the_next_process_asks_again(server: ServerProcess, checksum: dict[str, str]) -> None:
    url = killed_in_the_middle(server, checksum)
    server.start()
    answer = httpx.head(url, headers=TUS)
    assert (answer.status_code, answer.headers["Upload-Offset"]) == (200, "5")
    assert httpx.get(url).content == b"hello"
    upload_id = url.rpartition("/")[2]
    assert asked(server) == [[upload_id, "hello", "request"], [upload_id, "hello", "nobody"]]


def test_who_has_no_hook_does_not_complete_it(server: ServerProcess) -> None:
    """The record says that somebody is to be asked: a server that can't answers 503."""
    url = killed_in_the_middle(server, {})
    server.flags = (*server.flags, "--no-hook")
    server.start()
    assert httpx.head(url, headers=TUS).status_code == 503
    assert httpx.get(url).status_code in {403, 503}
    server.flags = server.flags[:-1]
    server.restart(kill=True)
    assert httpx.head(url, headers=TUS).headers["Upload-Offset"] == "5"
    assert httpx.get(url).content == b"hello"
    assert len(asked(server)) == 2


def test_and_is_told_another_thing(server: ServerProcess) -> None:
    """Without a request as well: the upload is whole, and nobody comes for it."""
    url = killed_in_the_middle(server, {})
    (server.data / "refuse").touch()
    server.start()
    until(lambda: len(asked(server)) == 2)
    until(lambda: httpx.head(url, headers=TUS).status_code == 410)
    assert httpx.get(url).status_code == 410
    assert not [path for path in (server.data / "finished").rglob("*") if path.is_file()]
    server.restart(kill=True)
    assert httpx.head(url, headers=TUS).status_code == 410
    assert len(asked(server)) == 2


# ------------------------------------------------------------------------------------ a cluster


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with swift(tmp_path_factory.mktemp("swift")) as started:
        yield started.make_bucket()


@pytest.fixture
def cluster(tmp_path: Path, bucket: S3Server) -> Iterator[list[ServerProcess]]:
    """Two servers; what they say of their hooks is in one place. Who is silent for 1.5 s is dead."""
    url = postgres.server().url(ttl=1.5, heartbeat=0.3)
    flags = ("--records", url, "--bucket", bucket.endpoint)
    servers = [
        ServerProcess(tmp_path / "data", *flags, command=COMMAND, env=ENVIRONMENT) for _ in range(2)
    ]
    with servers[0], servers[1]:
        yield servers


def elsewhere(url: str, server: ServerProcess) -> str:
    """The upload at another server."""
    return f"{server.url}{url.rpartition('/')[2]}"


@pytest.mark.parametrize("checksum", [{}, SHA1], ids=["plain", "checksum"])
def test_another_server_asks_again(cluster: list[ServerProcess], checksum: dict[str, str]) -> None:
    one, other = cluster
    url = elsewhere(killed_in_the_middle(one, checksum), other)
    until(lambda: _offset(url) == "5")
    assert httpx.get(url, follow_redirects=True).content == b"hello"
    upload_id = url.rpartition("/")[2]
    assert asked(one) == [[upload_id, "hello", "request"], [upload_id, "hello", "nobody"]]
    one.start()
    assert _offset(elsewhere(url, one)) == "5"
    assert len(asked(one)) == 2


def test_another_server_is_told_another_thing(cluster: list[ServerProcess]) -> None:
    """And who comes back knows it."""
    one, other = cluster
    (one.data / "refuse").touch()
    url = elsewhere(killed_in_the_middle(one, {}), other)
    until(lambda: _offset(url) is None and len(asked(one)) == 2)
    assert httpx.head(url, headers=TUS).status_code == 410
    one.start()
    assert httpx.head(elsewhere(url, one), headers=TUS).status_code == 410
    assert len(asked(one)) == 2


def test_another_server_without_a_hook_does_not_complete_it(cluster: list[ServerProcess]) -> None:
    """As while the servers are replaced one by one, by such as have a hook and such as have none."""
    one, other = cluster
    other.flags = (*other.flags, "--no-hook")
    other.restart(kill=True)
    url = killed_in_the_middle(one, {})
    there = elsewhere(url, other)
    until(lambda: httpx.head(there, headers=TUS).status_code == 503)
    assert httpx.get(there).status_code in {403, 503}
    one.start()
    until(lambda: _offset(url) == "5")
    assert _offset(there) == "5"
    assert len(asked(one)) == 2


def _offset(url: str) -> str | None:
    """None: it is not known by now."""
    answer = httpx.head(url, headers=TUS, timeout=PATIENCE)
    assert answer.status_code in {200, 410, 423, 503, 422}
    offset: str | None = answer.headers.get("Upload-Offset")
    return offset
