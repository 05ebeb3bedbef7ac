"""`tidegate serve` as a process: that it starts, says why it doesn't, and stops in order."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from tests.cli.process import COMMAND, run, started
from tests.support.server import ServerProcess

import tidegate

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

TUS = {"Tus-Resumable": "1.0.0"}
LISTENING = f"tidegate {tidegate.__version__} listening on "


def create(url: str, length: int, client: httpx.Client | None = None) -> str:
    send = client.post if client else httpx.post
    answer = send(url, headers={**TUS, "Upload-Length": str(length)})
    assert answer.status_code == 201
    location: str = answer.headers["Location"]
    return location


def offset(url: str) -> int:
    answer = httpx.head(url, headers=TUS)
    assert answer.status_code == 200
    return int(answer.headers["Upload-Offset"])


# -------------------------------------------------------------------------------------- it starts


def test_with_defaults_everything_is_in_one_folder(clean_place: Path) -> None:
    with started("--port", "0") as (process, line):
        found = re.fullmatch(re.escape(LISTENING) + r"http://127\.0\.0\.1:[1-9]\d*/files/", line)
        assert found
        answer = httpx.options(line.removeprefix(LISTENING))
        assert answer.status_code == 204
        assert "Tus-Max-Size" not in answer.headers
        assert "server" not in answer.headers
        assert "date" in answer.headers
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert {path.name for path in clean_place.iterdir()} == {"tidegate-data"}
    assert (clean_place / "tidegate-data" / "tidegate.db").is_file()


def test_settings_arrive(clean_place: Path) -> None:
    Path("tidegate.toml").write_text('max-size = "1KiB"\ndownloads = false\n')
    flags = (
        "--data memory: --base-path up --disable termination --cors-origin https://a.example"
        " --relative-location --expire-after 1h --log-format json --behind-proxy 127.0.0.1"
    ).split()
    with started("--port", "0", *flags) as (process, line):
        url = json.loads(line)["event"].removeprefix(LISTENING)
        assert url.endswith("/up/")
        answer = httpx.options(url, headers={"Origin": "https://b.example"})
        assert answer.headers["Tus-Max-Size"] == "1024"
        assert "termination" not in answer.headers["Tus-Extension"]
        assert "expiration" in answer.headers["Tus-Extension"]
        assert "access-control-allow-origin" not in answer.headers
        location = create(url, 5)
        assert location.startswith("/up/")
        headers = {**TUS, "Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
        upload = httpx.URL(url).join(location)
        assert httpx.patch(upload, headers=headers, content=b"12345").status_code == 204
        assert httpx.get(upload).status_code == 405
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert process.stderr is not None
        lines = [json.loads(text) for text in process.stderr]
    requests = [line for line in lines if line["logger"] == "tidegate.access"]
    assert [line["method"] for line in requests] == ["OPTIONS", "POST", "PATCH", "GET"]
    assert {line["client"] for line in requests} == {"127.0.0.1"}
    assert list(clean_place.iterdir()) == [Path("tidegate.toml").absolute()]


def test_a_body_that_comes_with_upgrade_is_whole(tmp_path: Path) -> None:
    """uvicorn's other parser would lose the body, and take it for the next request."""
    with ServerProcess(tmp_path / "data") as server:
        upload = create(server.url, 5)
        headers = {**TUS, "Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
        headers |= {"Upgrade": "h2c", "Connection": "Upgrade, HTTP2-Settings"}
        assert httpx.patch(upload, headers=headers, content=b"12345").status_code == 204
        assert httpx.get(upload).content == b"12345"
        assert server.stop() == 0


# ----------------------------------------------------------------------------- unix sockets


def test_a_unix_socket_serves_and_a_stale_one_is_replaced(clean_place: Path) -> None:
    flags = ("--data", "memory:", "--unix-socket", "gate")
    with started(*flags) as (process, line):
        assert line == f"{LISTENING}unix:gate"
        with httpx.Client(transport=httpx.HTTPTransport(uds="gate")) as client:
            assert create("http://gate.example/files/", 5, client).startswith(
                "http://gate.example/files/"
            )
        code, said = run(*flags)
        assert code == 1
        assert len(said) == 1
        assert said[0].startswith("tidegate: --unix-socket gate is in use by another server: stop")
        process.kill()
        process.wait(20)
    assert os.path.lexists("gate")
    with started(*flags) as (process, line):
        assert line == f"{LISTENING}unix:gate"
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    assert not os.path.lexists("gate")


# -------------------------------------------------------------------------------- it does not start


def fails(*flags: str, command: Sequence[str] = COMMAND) -> str:
    """What a server says that can't start: one line, and exit code 1."""
    code, said = run("--port", "0", *flags, command=command)
    assert code == 1, said
    assert len(said) == 1, said
    return said[0]


def test_a_port_in_use(clean_place: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as other:
        port = other.getsockname()[1]
        code, said = run("--port", str(port))
    assert code == 1
    assert len(said) == 1
    assert said[0].startswith(f"tidegate: 127.0.0.1:{port} is in use by another program: stop it")
    assert not (clean_place / "tidegate-data").exists()


def test_a_port_that_another_takes_between_binding_and_listening(clean_place: Path) -> None:
    """Two servers that start at once can both bind: only one can listen."""
    with closing(socket.socket()) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        with closing(socket.socket()) as ours:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            ours.bind(("127.0.0.1", port))
            other.listen()
            # A server that inherits the socket that was bound, as one that lost the race.
            program = (
                "import socket, sys; from tidegate import cli; from tidegate.cli import listen;"
                "bound = socket.socket(fileno=int(sys.argv[1]));"
                "listen._tcp = lambda *_: [bound];"
                "sys.exit(cli.run(['serve', *sys.argv[2:]]))"
            )
            ended = subprocess.run(
                [sys.executable, "-c", program, str(ours.fileno()), "--data", "memory:"],
                capture_output=True,
                check=False,
                text=True,
                timeout=30,
                pass_fds=[ours.fileno()],
            )
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"tidegate: 127.0.0.1:{port} is in use by another program")
    assert ended.stderr.count("\n") == 1


def test_a_place_that_cannot_be_written(clean_place: Path) -> None:
    Path("file").write_text("")
    assert re.fullmatch(r"tidegate: \S+/file: .*folder.*", fails("--data", "file"))
    assert "parent folder" in fails("--data", "no/such")
    # Not even root may make a folder here.
    assert "/sys/kernel/tidegate: is not writable" in fails("--data", "/sys/kernel/tidegate")
    assert "the directory of the database" in fails("--metadata", "no/such.db")
    assert "is a directory" in fails("--metadata", str(clean_place))
    Path("noise.db").write_bytes(b"noise" * 1000)
    assert "noise.db: not a SQLite database" in fails("--metadata", "noise.db")


NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount")


def mounts_are_allowed() -> bool:
    """Whether this user may mount a file system, in a name space of its own."""
    if shutil.which(NAMESPACE[0]) is None:
        return False
    trial = [*NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(trial, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("pages", [4, 8, 12, 16, 20])
def test_a_full_disk(pages: int, clean_place: Path) -> None:
    """Wherever it runs full, from the first folder to the last table."""
    room = pages * 4096
    if mounts_are_allowed():
        Path("disk").mkdir()
        script = f'mount -t tmpfs -o size={room} tmpfs disk && exec "$@"'
        said = fails("--data", "disk/d", command=[*NAMESPACE, "sh", "-c", script, "sh", *COMMAND])
        assert "the disk is full" in said
    else:
        # The nearest thing that needs no mount: no file may grow beyond a size.
        limit = (
            f"import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))"
        )
        program = f"{limit}; os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
        said = fails("--data", "d", command=[sys.executable, "-c", program, *COMMAND[1:]])
    assert said.startswith(f"tidegate: {clean_place}/")


def test_files_that_may_not_grow_at_all(clean_place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("COVERAGE")]:
        monkeypatch.delenv(name)  # its own file could not grow either
    program = (
        "import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0));"
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    )
    said = fails("--data", "d", command=[sys.executable, "-c", program, *COMMAND[1:]])
    assert said == f"tidegate: {clean_place}/d: cannot be used: File too large"


# ----------------------------------------------------------------------------------- it stops


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_is_orderly(number: signal.Signals, tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data") as server:
        # An idle connection does not hold it up.
        with httpx.Client() as client:
            upload = create(server.url, 5, client)
            assert server.terminate_and_wait(number, 20) == 0
        assert "Traceback" not in server.tail()
        server.start()
        assert offset(upload) == 0
        assert server.stop() == 0


@contextmanager
def uploading(
    server: ServerProcess, sent: bytes, length: int
) -> Iterator[tuple[str, socket.socket]]:
    """An upload of `length` bytes of which the server is reading, and `sent` were sent."""
    upload = create(server.url, length)
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(
            f"PATCH {httpx.URL(upload).path} HTTP/1.1\r\nHost: x\r\nTus-Resumable: 1.0.0\r\n"
            "Content-Type: application/offset+octet-stream\r\nUpload-Offset: 0\r\n"
            f"Expect: 100-continue\r\nContent-Length: {length}\r\n\r\n".encode()
        )
        # Only said once the body is being read.
        assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")
        connection.sendall(sent)
        yield upload, connection


def wait_until_refused(port: int) -> None:
    """Return once the server accepts no more connections."""
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=20).close()
        except ConnectionError:  # refused, or taken from the queue of those not yet accepted
            return


def rest(connection: socket.socket) -> bytes:
    """What the server still sends until it closes, or resets, the connection."""
    found = b""
    try:
        while data := connection.recv(65536):
            found += data
    except ConnectionResetError:
        pass
    return found


def test_a_body_is_cut_short_answered_and_kept(tmp_path: Path) -> None:
    """However slow its client is: nothing waits for it."""
    with (
        ServerProcess(tmp_path / "data", "--shutdown-timeout", "never") as server,
        uploading(server, b"12345", 10) as (upload, connection),
    ):
        os.kill(server.pid, signal.SIGTERM)
        answer = rest(connection)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nretry-after: " in answer.lower()
        assert server.terminate_and_wait(signal.SIGCONT, 20) == 0
        assert "Traceback" not in server.tail()
        server.start()
        assert offset(upload) == 5
        assert server.stop() == 0


@contextmanager
def downloading(server: ServerProcess) -> Iterator[socket.socket]:
    """A connection over which the server sends DOWNLOAD, of which nothing was read yet."""
    upload = create(server.url, len(DOWNLOAD))
    headers = {**TUS, "Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
    assert httpx.patch(upload, headers=headers, content=DOWNLOAD).status_code == 204
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(f"GET {httpx.URL(upload).path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert connection.recv(9) == b"HTTP/1.1 "
        yield connection


DOWNLOAD = b"0123456789abcdef" * 2 * 1024 * 1024
"""More than sockets hold."""


def test_a_request_may_finish(tmp_path: Path) -> None:
    with (
        ServerProcess(tmp_path / "data", "--shutdown-timeout", "30") as server,
        downloading(server) as connection,
    ):
        os.kill(server.pid, signal.SIGTERM)
        wait_until_refused(server.port)
        assert rest(connection).endswith(b"\r\n\r\n" + DOWNLOAD)
        assert server.terminate_and_wait(signal.SIGCONT, 20) == 0


def test_a_request_that_takes_too_long_is_cut_off(tmp_path: Path) -> None:
    with (
        ServerProcess(tmp_path / "data", "--shutdown-timeout", "0.2") as server,
        downloading(server) as connection,
    ):
        assert server.terminate_and_wait(signal.SIGTERM, 20) == 0
        assert len(rest(connection)) < len(DOWNLOAD)
        assert "requests cut off: 1" in server.tail()
        assert "Traceback" not in server.tail()


def test_a_second_signal_waits_for_nobody(tmp_path: Path) -> None:
    with (
        ServerProcess(tmp_path / "data", "--shutdown-timeout", "never") as server,
        downloading(server) as connection,
    ):
        os.kill(server.pid, signal.SIGTERM)
        wait_until_refused(server.port)
        assert server.terminate_and_wait(signal.SIGINT, 20) == 128 + signal.SIGINT
        assert len(rest(connection)) < len(DOWNLOAD)
