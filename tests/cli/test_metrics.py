"""`tidegate serve --metrics-listen`: one or several workers, from start to stop, across deaths."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from typing import TYPE_CHECKING

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.support.exchange import STREAM, TUS
from tests.support.server import ServerProcess

from tidegate import cli

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PATIENCE = 20.0


def place(server: ServerProcess) -> str:
    """Where the server says that its metrics are."""
    found = re.search(r"metrics: (http://\S+)/metrics\)", server.tail())
    assert found
    return found[1]


def value(client: httpx.Client, url: str, name: str, **labels: str) -> float:
    """The sum of all samples of a name that have these labels."""
    families = text_string_to_metric_families(client.get(f"{url}/metrics").text)
    return sum(
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == f"tidegate_{name}" and labels.items() <= sample.labels.items()
    )


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def patiently(url: str) -> httpx.Response:
    """Ask again when the worker that took the connection has just ended."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return httpx.get(url, timeout=10)
        except httpx.TransportError:
            assert time.monotonic() < end


def upload(server: ServerProcess, count: int) -> None:
    """Small uploads, each over a connection of its own, so that every worker gets some."""
    headers = TUS | {"Upload-Length": "5", "Content-Type": STREAM}
    for _ in range(count):
        assert httpx.post(server.url, headers=headers, content=b"hello").status_code == 201


@pytest.mark.parametrize("workers", ["1", "3"])
def test_they_are_right_over_all_workers(tmp_path: Path, workers: str) -> None:
    """Whichever is asked; and a worker that is killed takes nothing of what it counted along."""
    flags = ("--workers", workers, "--metrics-listen", "127.0.0.1:0", "--log-level", "warning")
    with ServerProcess(tmp_path / "data", *flags) as server, httpx.Client() as client:
        url = place(server)
        upload(server, 30)
        until(lambda: value(client, url, "workers") == int(workers))
        for _ in range(2 * int(workers)):
            # A connection of its own, so that others are asked, too.
            with httpx.Client() as another:
                ok = {"method": "POST", "outcome": "ok", "status": "201"}
                assert value(another, url, "requests_total", **ok) == 30
                assert value(another, url, "uploads_completed_total") == 30
                assert value(another, url, "received_bytes_total") == 150
                assert another.get(f"{url}/readyz").status_code == 200
                assert another.get(f"{url}/files/").status_code == 404
        client.close()
        if workers == "1":
            return
        children = psutil.Process(server.pid).children()
        assert len(children) == 3
        for child in children:
            child.send_signal(signal.SIGKILL)
        until(lambda: len(psutil.Process(server.pid).children()) == 3)

        def others_follow() -> bool:
            try:
                with httpx.Client() as another:
                    return value(another, url, "uploads_created_total") == 30
            except httpx.TransportError:
                return False

        until(others_follow)
        upload(server, 3)
        with httpx.Client() as another:
            assert value(another, url, "uploads_created_total") == 33


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_page_stays_to_the_end_and_says_that_it_ends(tmp_path: Path, workers: str) -> None:
    """A client that reads slowly keeps the server a while: it is not ready then, and says so."""
    flags = ("--metrics-listen", "127.0.0.1:0", "--log-level", "warning", "--workers", workers)
    size = 64 * 2**20  # more than the kernel holds for a client that does not read
    with ServerProcess(tmp_path / "data", *flags) as server:
        url = place(server)
        headers = TUS | {"Upload-Length": str(size), "Content-Type": STREAM}
        made = httpx.post(server.url, headers=headers, content=bytes(size), timeout=30)
        assert httpx.get(f"{url}/readyz").status_code == 200
        with socket.create_connection(("127.0.0.1", server.port)) as reader:
            path = made.headers["Location"].partition("/files/")[2]
            reader.sendall(f"GET /files/{path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            assert reader.recv(1000).startswith(b"HTTP/1.1 200 ")
            os.kill(server.pid, signal.SIGTERM)

            def not_ready() -> bool:
                answer = patiently(f"{url}/readyz")
                return (
                    answer.status_code == 503
                    and answer.json()["dependencies"]["server"]["why"] == "is about to stop"
                )

            until(not_ready)
            assert patiently(f"{url}/healthz").status_code == 200
            # Told by the one of them that has it, from time to time.
            until(lambda: "\ntidegate_requests_in_flight 1.0\n" in patiently(f"{url}/metrics").text)


def test_by_default_nobody_sees_them(tmp_path: Path) -> None:
    """Behind a proxy on the same machine everyone comes from it: that is no permission."""
    with ServerProcess(tmp_path / "data", "--log-level", "warning") as server:
        root = server.url.removesuffix("/files/")
        assert httpx.get(f"{root}/metrics").status_code == 404
        assert httpx.get(f"{root}/healthz").json() == {"status": "ok"}
        assert httpx.get(f"{root}/readyz").status_code == 200


def test_under_the_address_of_uploads_when_asked_for(tmp_path: Path) -> None:
    flags = ("--metrics-listen", "main", "--no-health", "--log-level", "warning")
    with ServerProcess(tmp_path / "data", *flags) as server:
        root = server.url.removesuffix("/files/")
        assert httpx.get(f"{root}/metrics").status_code == 200
        assert httpx.get(f"{root}/healthz").status_code == 404


@pytest.mark.parametrize("wrong", ["there", "host:99999", "ho st:80", "[::1", ""])
def test_a_place_that_is_none(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["serve", f"--metrics-listen={wrong}"]) == 2
    assert "expected ADDRESS:PORT" in capsys.readouterr().err


def test_a_place_that_uploads_have(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["serve", "--port", "1080", "--metrics-listen", "127.0.0.1:1080"]) == 2
    assert "where uploads go" in capsys.readouterr().err


def test_a_place_that_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ServerProcess(tmp_path / "data", "--log-level", "warning") as server:
        taken = f"127.0.0.1:{server.port}"
        code = cli.run(
            ["serve", "--port=0", f"--data={tmp_path / 'other'}", f"--metrics-listen={taken}"]
        )
        assert code == 1
        assert f"{taken} is in use" in capsys.readouterr().err
