"""Several workers: one address, one answer, one end; and what happens when one of them dies."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import psutil
import pytest
from tests.support.server import ServerProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TUS = {"Tus-Resumable": "1.0.0"}
STREAM = {"Content-Type": "application/offset+octet-stream"}
PATIENCE = 20.0
"""Seconds after which what is waited for will not come any more."""
pytestmark = pytest.mark.blocking_ok


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path / "data", "--workers", "3") as started:
        yield started


def workers(server: ServerProcess) -> list[psutil.Process]:
    return psutil.Process(server.pid).children()


def wait_for(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def create(server: ServerProcess, length: int) -> str:
    answer = httpx.post(server.url, headers=TUS | {"Upload-Length": str(length)})
    assert answer.status_code == 201
    return answer.headers["Location"]


def patch(url: str, offset: int, content: bytes) -> int:
    headers = TUS | STREAM | {"Upload-Offset": str(offset)}
    return httpx.patch(url, headers=headers, content=content).status_code


def offset(url: str) -> int:
    answer = httpx.head(url, headers=TUS)
    assert answer.status_code == 200
    return int(answer.headers["Upload-Offset"])


def half_sent(server: ServerProcess, url: str) -> socket.socket:
    """A PATCH of 100 bytes of which 50 are sent, and stored."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)
    path = httpx.URL(url).path
    connection.sendall(
        f"PATCH {path} HTTP/1.1\r\nHost: x\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: 0\r\n"
        "Content-Type: application/offset+octet-stream\r\nContent-Length: 100\r\n\r\n".encode()
        + b"x" * 50
    )
    stored = Path(server.data)
    wait_for(
        lambda: any(f.stat().st_size == 50 for f in stored.glob("incoming/**/*") if f.is_file())
    )
    return connection


def reap(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


# ------------------------------------------------------------------------------------- starting


def test_any_worker_serves_any_upload(server: ServerProcess) -> None:
    assert len(workers(server)) == 3
    urls = [create(server, 10) for _ in range(10)]
    for start in range(0, 10, 5):
        for url in urls:
            assert offset(url) == start
            assert patch(url, start, b"12345") == 204
    for url in urls:
        assert httpx.get(url).content == b"1234512345"
    assert server.tail(1000).count("listening on") == 1


def test_workers_share_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    command = [sys.executable, "-m", "tidegate", "serve", "--data", str(tmp_path / "data")]
    with subprocess.Popen(
        [*command, "--workers", "2", "--unix-socket", str(path)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stderr is not None
            assert f"listening on unix:{path}" in process.stderr.readline()
            with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
                assert client.options("http://x/files/").status_code == 204
            victim = psutil.Process(process.pid).children()[0]
            victim.kill()
            assert any("was killed by SIGKILL" in line for line in process.stderr)
            assert path.exists()
            process.terminate()
            assert process.wait(PATIENCE) == 0
            assert not path.exists()
        finally:
            reap(process.pid)


def run(*flags: str) -> tuple[int, list[str]]:
    ended = subprocess.run(
        [sys.executable, "-m", "tidegate", "serve", "--port", "0", "--workers", "3", *flags],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return ended.returncode, ended.stderr.splitlines()


def test_stores_that_cannot_be_opened_are_told_once(tmp_path: Path) -> None:
    (tmp_path / "tidegate.db").write_text("no database")
    code, said = run("--data", str(tmp_path))
    assert (code, said) == (1, [f"tidegate: {tmp_path}/tidegate.db: not a SQLite database"])


def test_what_is_in_memory_is_for_one_process() -> None:
    code, said = run("--data", "memory:")
    assert code == 2
    assert len(said) == 1
    assert "expected --workers 1, or a folder" in said[0]


# ------------------------------------------------------------------------- the death of a worker


def test_a_worker_that_dies_is_replaced_and_its_upload_goes_on(server: ServerProcess) -> None:
    url = create(server, 100)
    before = workers(server)
    with half_sent(server, url) as connection:
        holder = next(w for w in before if peer_of(connection) in w.net_connections())
        holder.kill()
        assert connection.recv(1) == b""
    assert offset(url) == 50
    assert patch(url, 50, b"y" * 50) == 204
    assert httpx.get(url).content == b"x" * 50 + b"y" * 50
    wait_for(lambda: len(workers(server)) == 3)
    assert {w.pid for w in before} - {w.pid for w in workers(server)} == {holder.pid}
    wait_for(lambda: f"worker {holder.pid} was killed by SIGKILL; another" in server.tail())


class peer_of:  # noqa: N801 - compared, not made
    """A process's end of a connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.ends = (connection.getpeername(), connection.getsockname())

    def __eq__(self, other: object) -> bool:
        return self.ends == (getattr(other, "laddr", None), getattr(other, "raddr", None))

    __hash__ = None  # type: ignore[assignment]


def test_a_worker_that_sleeps_is_left_alone(server: ServerProcess) -> None:
    asleep, *_ = before = workers(server)
    url = create(server, 5)
    asleep.suspend()
    for _ in range(20):
        assert offset(url) == 0
    assert patch(url, 0, b"12345") == 204
    assert workers(server) == before
    assert asleep.status() == psutil.STATUS_STOPPED
    asleep.resume()
    for _ in range(20):
        assert offset(url) == 5
    assert server.stop() == 0


# ------------------------------------------------------------- what workers do, as `supervised` plays it


def supervise(*plan: str) -> list[str]:
    """What a supervisor of two workers says, of whom the first does the first thing, and so on."""
    with (
        tempfile.TemporaryDirectory() as marks,
        subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("supervised.py")), marks, *plan],
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process,
    ):
        try:
            said = process.communicate(timeout=PATIENCE)[1]
        finally:
            reap(process.pid)
    return [re.sub(r"worker [0-9]+", "worker", line) for line in said.splitlines()]


def test_workers_that_die_at_once_are_replaced_ever_more_slowly() -> None:
    assert supervise("serve", "die", "exit", "exit", "stop") == [
        "announced",
        "worker was killed by SIGKILL; another follows",
        "worker ended with 3; another follows in 0.1 s",
        "worker ended with 3; another follows in 0.5 s",
        "ended with 0",
    ]


def test_workers_that_die_before_any_served_end_the_server() -> None:
    assert supervise("serve", "exit")[-1] == (
        "failed: workers die before they serve: the last of 3 ended with 3"
    )


def test_a_worker_that_raises_is_told_of_and_replaced() -> None:
    said = supervise("serve", "die", "raise", "stop")
    assert "RuntimeError: astray" in said
    assert said[-1] == "ended with 0"


def test_a_worker_that_cannot_serve_leaves_the_others_at_work() -> None:
    assert supervise("serve", "die", "fail", "stop")[2:] == [
        "worker cannot serve: no room; another follows in 0.1 s",
        "ended with 0",
    ]


def test_workers_of_which_none_can_serve_end_the_server() -> None:
    assert supervise("die", "die", "fail")[-1] == "failed: no room"


# -------------------------------------------------------------------- the death of the supervisor


@pytest.mark.parametrize("asleep", [False, True])
def test_a_supervisor_that_is_killed_takes_its_workers_with_it(
    server: ServerProcess, *, asleep: bool
) -> None:
    if asleep and sys.platform != "linux":
        pytest.skip("only Linux kills them; elsewhere they see to it themselves")
    url = create(server, 100)
    left = workers(server)
    with half_sent(server, url):
        for worker in left[: 2 * asleep]:
            worker.suspend()
        server.terminate_and_wait(signal.SIGKILL, PATIENCE)
        _, alive = psutil.wait_procs(left, timeout=PATIENCE)
        assert alive == []
        port = server.port
        server.start()
    assert server.port == port
    assert offset(url) == 50


NOT_KILLED = """
import sys
from tidegate.cli import main, workers
workers._die_with = lambda parent: None
main(["serve", *sys.argv[1:]])
"""


def test_workers_that_the_kernel_does_not_kill_end_themselves(tmp_path: Path) -> None:
    command = (sys.executable, "-c", NOT_KILLED)
    with ServerProcess(tmp_path / "data", "--workers", "3", command=command) as server:
        left = workers(server)
        url = create(server, 100)
        with half_sent(server, url):
            server.terminate_and_wait(signal.SIGKILL, PATIENCE)
            assert psutil.wait_procs(left, timeout=PATIENCE)[1] == []
        server.start()
        assert offset(url) == 50


# ---------------------------------------------------------------------------------------- the end


@pytest.mark.parametrize("everyone", [False, True])
def test_all_end_when_the_supervisor_is_asked_to(server: ServerProcess, *, everyone: bool) -> None:
    """`everyone`: as systemd does, which asks each process."""
    url = create(server, 100)
    left = workers(server)
    with half_sent(server, url) as connection:
        for worker in left if everyone else []:
            worker.terminate()
        assert server.terminate_and_wait(signal.SIGTERM, PATIENCE) == 0
        assert connection.recv(4096).startswith(b"HTTP/1.1 503 ")
    assert not any(worker.is_running() for worker in left)
    server.start()
    assert offset(url) == 50


def test_a_worker_that_sleeps_does_not_keep_the_others_from_ending(tmp_path: Path) -> None:
    flags = ("--workers", "2", "--shutdown-timeout", "0.1")
    with ServerProcess(tmp_path / "data", *flags) as server:
        asleep, _ = workers(server)
        asleep.suspend()
        assert server.stop() == 0
        assert f"worker {asleep.pid} does not stop: killed" in server.tail()
        assert not asleep.is_running()


def test_a_second_signal_waits_for_nobody(tmp_path: Path) -> None:
    flags = ("--workers", "2", "--shutdown-timeout", "never")
    content = bytes(32 * 1024 * 1024)  # more than sockets hold
    with ServerProcess(tmp_path / "data", *flags) as server:
        url = create(server, len(content))
        assert patch(url, 0, content) == 204
        with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as connection:
            path = httpx.URL(url).path
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert connection.recv(9) == b"HTTP/1.1 "
            os.kill(server.pid, signal.SIGTERM)
            wait_for(lambda: refused(server.port))
            wait_for(lambda: len(workers(server)) == 1)
            code = server.terminate_and_wait(signal.SIGINT, PATIENCE)
            assert code == 128 + signal.SIGINT


def refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE).close()
    except ConnectionError:
        return True
    return False


def test_a_worker_that_is_asked_to_end_ends_in_order_and_is_replaced(
    server: ServerProcess,
) -> None:
    url = create(server, 100)
    before = workers(server)
    with half_sent(server, url) as connection:
        holder = next(w for w in before if peer_of(connection) in w.net_connections())
        holder.terminate()
        assert connection.recv(4096).startswith(b"HTTP/1.1 503 ")
    wait_for(lambda: len({w.pid for w in workers(server)} - {w.pid for w in before}) == 1)
    wait_for(lambda: f"worker {holder.pid} ended with 0; another follows" in server.tail())
    assert offset(url) == 50
