"""A process that is killed while a hook decides: the next one asks again, and nothing was shown."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from tests.support.server import ServerProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

COMMAND = (sys.executable, "-m", "tests.faults.hooked")
TUS = {"Tus-Resumable": "1.0.0"}
PATCH = TUS | {"Content-Type": "application/offset+octet-stream", "Upload-Offset": "0"}
PATIENCE = 20.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path / "data", command=COMMAND) as started:
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
