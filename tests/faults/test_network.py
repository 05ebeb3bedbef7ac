"""Clients that stall, reset, close their half, trickle or pipeline, over real sockets.

Each is answered as it should be, or cut; what it sent is kept, and nothing of it stays behind: no
descriptor, and no lease, for the upload goes on at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import select
import socket
import struct
import time
from base64 import b64encode
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
CONTENT = bytes(range(256)) * 40
HALF = len(CONTENT) // 2
PATIENCE = 20.0
"""Seconds after which what is waited for will not come any more."""
HTTP = httpx.Client(timeout=PATIENCE, limits=httpx.Limits(max_keepalive_connections=0))


@pytest.fixture(scope="module", params=["native", "asgi"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    flags = ["--idle-timeout", "1", "--head-timeout", "1", "--disable", "expiration"]
    flags += ["--transport", request.param]
    with ServerProcess(tmp_path_factory.mktemp("network") / "data", *flags) as started:
        yield started
        assert "Traceback" not in started.tail(2000)
        assert started.stop() == 0


@pytest.fixture(autouse=True)
def nothing_stays_open(server: ServerProcess) -> Iterator[None]:
    process = psutil.Process(server.pid)
    # Files of the pools of threads that read and write appear when they are first used.
    upload = create(server)
    assert patch(upload, 0, CONTENT).status_code == 204
    wait_for(lambda: process.net_connections() == listening(process))
    before = process.num_fds()
    yield
    wait_for(lambda: process.net_connections() == listening(process))
    wait_for(lambda: process.num_fds() <= before)


def listening(process: psutil.Process) -> list[object]:
    return [c for c in process.net_connections() if c.status == psutil.CONN_LISTEN]


def wait_for(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def create(server: ServerProcess, length: int = len(CONTENT)) -> str:
    answer = HTTP.post(server.url, headers=TUS | {"Upload-Length": str(length)})
    assert answer.status_code == 201
    location: str = answer.headers["Location"]
    return location


def patch(upload: str, offset: int, content: bytes) -> httpx.Response:
    headers = TUS | STREAM | {"Upload-Offset": str(offset)}
    return HTTP.patch(upload, headers=headers, content=content)


def goes_on(upload: str, offset: int) -> None:
    """The upload stands at `offset`, nobody holds it, and it can be brought to its end."""
    began = time.monotonic()
    answer = HTTP.head(upload, headers=TUS)
    assert (answer.status_code, answer.headers["Upload-Offset"]) == (200, str(offset))
    assert patch(upload, offset, CONTENT[offset:]).status_code == 204
    # One that nobody lets go is given up after five seconds.
    assert time.monotonic() - began < 4.5
    assert HTTP.get(upload).content == CONTENT


def head(upload: str, *lines: str, method: str = "PATCH", offset: int = 0) -> bytes:
    """The head of a request; a PATCH of all of CONTENT, when nothing else is said."""
    given = [f"{method} {httpx.URL(upload).path} HTTP/1.1", "Host: x", "Tus-Resumable: 1.0.0"]
    if method == "PATCH":
        given += ["Content-Type: application/offset+octet-stream", f"Upload-Offset: {offset}"]
        if not any(line.startswith(("Content-Length", "Transfer-Encoding")) for line in lines):
            given.append(f"Content-Length: {len(CONTENT) - offset}")
    return "\r\n".join([*given, *lines, "", ""]).encode()


@contextlib.contextmanager
def connected(server: ServerProcess, data: bytes) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as connection:
        connection.sendall(data)
        yield connection


def rest(connection: socket.socket) -> bytes:
    """All that comes until the server closes."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(65536):
            found += data
    return found


def statuses(answers: bytes) -> list[int]:
    return [int(found) for found in re.findall(rb"HTTP/1\.1 (\d{3}) ", answers)]


def stored(server: ServerProcess, upload: str) -> int:
    """How many bytes of an upload are in its file."""
    name = upload.rpartition("/")[2]
    files = [f for f in Path(server.data).glob("incoming/**/*") if name in f.name and f.is_file()]
    return max((f.stat().st_size for f in files), default=0)


# ------------------------------------------------------------------------------------- stalled


def test_a_client_that_stalls_is_answered_and_cut_and_what_it_sent_is_kept(
    server: ServerProcess,
) -> None:
    upload = create(server)
    with connected(server, head(upload) + CONTENT[:HALF]) as connection:
        answer = rest(connection)
    assert statuses(answer) == [503]
    assert b"retry-after: " in answer.lower()
    goes_on(upload, HALF)


def test_a_client_that_stalls_when_it_was_told_to_go_on(server: ServerProcess) -> None:
    upload = create(server)
    with connected(server, head(upload, "Expect: 100-continue")) as connection:
        assert statuses(rest(connection)) == [100, 503]
    goes_on(upload, 0)


def test_a_client_that_stalls_before_its_checksum_could_be_tried_has_sent_nothing(
    server: ServerProcess,
) -> None:
    upload = create(server)
    digest = b64encode(hashlib.sha1(CONTENT).digest()).decode()
    request = head(upload, f"Upload-Checksum: sha1 {digest}") + CONTENT[:HALF]
    with connected(server, request) as connection:
        assert statuses(rest(connection)) == [503]
    goes_on(upload, 0)


def test_a_client_that_stalls_in_a_chunk(server: ServerProcess) -> None:
    upload = create(server)
    request = head(upload, "Transfer-Encoding: chunked") + b"1000\r\n" + CONTENT[:100]
    with connected(server, request) as connection:
        assert statuses(rest(connection)) == [503]
    goes_on(upload, 100)


# --------------------------------------------------------------------------------------- reset


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def test_a_connection_that_is_reset_keeps_what_came(server: ServerProcess) -> None:
    upload = create(server)
    with connected(server, head(upload) + CONTENT[:HALF]) as connection:
        wait_for(lambda: stored(server, upload) == HALF)
        reset(connection)
    goes_on(upload, HALF)


def test_a_connection_that_is_reset_before_its_checksum_could_be_tried_keeps_nothing(
    server: ServerProcess,
) -> None:
    upload = create(server)
    digest = b64encode(hashlib.sha1(CONTENT).digest()).decode()
    request = head(upload, f"Upload-Checksum: sha1 {digest}") + CONTENT[:HALF]
    with connected(server, request) as connection:
        wait_for(lambda: stored(server, upload) == HALF)
        reset(connection)
    goes_on(upload, 0)


def test_many_connections_that_are_reset_leave_nothing(server: ServerProcess) -> None:
    uploads = [create(server) for _ in range(30)]
    connections = []
    for number, upload in enumerate(uploads):
        request = head(upload) + CONTENT
        connection = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)
        connection.sendall(request[: len(request) * number // len(uploads)])
        connections.append(connection)
    for connection in connections:
        reset(connection)
    for upload in uploads:
        answer = HTTP.head(upload, headers=TUS)
        goes_on(upload, int(answer.headers["Upload-Offset"]))


# --------------------------------------------------------------------------------- half-closed


def test_a_half_closed_connection_in_the_middle_of_a_body_keeps_what_came(
    server: ServerProcess, request: pytest.FixtureRequest
) -> None:
    upload = create(server)
    with connected(server, head(upload) + CONTENT[:HALF]) as connection:
        if request.node.callspec.params["server"] == "asgi":
            # uvicorn's own protocols hand nothing on once a connection has ended.
            wait_for(lambda: stored(server, upload) == HALF)
        connection.shutdown(socket.SHUT_WR)
        assert statuses(rest(connection)) == []
    goes_on(upload, HALF)


def test_a_half_closed_connection_is_answered_when_its_request_is_whole(
    server: ServerProcess,
) -> None:
    upload = create(server)
    with connected(server, head(upload) + CONTENT) as connection:
        connection.shutdown(socket.SHUT_WR)
        assert statuses(rest(connection)) == [204]
    assert HTTP.get(upload).content == CONTENT


def test_a_half_closed_connection_in_the_middle_of_a_head(server: ServerProcess) -> None:
    with connected(server, b"OPTIONS /files/ HTTP/1.1\r\nHo") as connection:
        connection.shutdown(socket.SHUT_WR)
        assert rest(connection) == b""


# ------------------------------------------------------------------------------------ trickling


def trickle(connection: socket.socket, data: bytes) -> int:
    """Send byte after byte, until there is an answer; how many were sent."""
    for sent in range(len(data)):
        if select.select([connection], [], [], 0.01)[0]:
            return sent
        connection.send(data[sent : sent + 1])
    return len(data)


def test_a_head_that_trickles_in_is_cut(server: ServerProcess) -> None:
    with connected(server, b"OPTIONS /files/ HTTP/1.1\r\nHost: x\r\nX: ") as connection:
        assert trickle(connection, b"x" * 2000) < 2000
        assert statuses(rest(connection)) == [408]


def test_a_second_head_that_trickles_in_is_cut(server: ServerProcess) -> None:
    whole = b"OPTIONS /files/ HTTP/1.1\r\nHost: x\r\n\r\n"
    with connected(server, whole) as connection:
        assert statuses(connection.recv(65536)) == [204]
        trickle(connection, b"OPTIONS /files/ HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 2000)
        assert statuses(rest(connection)) == [408]
    # Also when its beginning came with the first.
    with connected(server, whole + whole[:20]) as connection:
        assert statuses(rest(connection)) == [204, 408]


def test_a_connection_that_says_nothing_is_closed(server: ServerProcess) -> None:
    with connected(server, b"") as connection:
        assert rest(connection) == b""


def test_a_body_that_trickles_in_arrives(server: ServerProcess) -> None:
    upload = create(server, 20)
    request = head(upload, "Content-Length: 20")
    with connected(server, request) as connection:
        # Later altogether than the clock for silence allows.
        for byte in CONTENT[:20]:
            assert not select.select([connection], [], [], 0.1)[0]
            connection.sendall(bytes([byte]))
        assert statuses(connection.recv(65536)) == [204]
    assert HTTP.get(upload).content == CONTENT[:20]


# ------------------------------------------------------------------------------------ pipelined


def test_pipelined_requests_are_answered_in_order(server: ServerProcess) -> None:
    upload = create(server)
    requests = (
        head(upload, f"Content-Length: {HALF}")
        + CONTENT[:HALF]
        + head(upload, method="HEAD")
        + head(upload, offset=7)  # refused, with its body on its heels
        + CONTENT[7:]
        + head(upload, offset=HALF)
        + CONTENT[HALF:]
        + head(upload, "Connection: close", method="HEAD")
    )
    with connected(server, requests) as connection:
        answers = rest(connection)
    assert statuses(answers) == [204, 200, 409, 204, 200]
    offsets = [int(found) for found in re.findall(rb"upload-offset: (\d+)\r\n", answers.lower())]
    assert offsets == [HALF, HALF, HALF, len(CONTENT), len(CONTENT)]
    assert HTTP.get(upload).content == CONTENT


def test_hundreds_of_pipelined_requests(server: ServerProcess) -> None:
    upload = create(server)
    request = head(upload, method="HEAD")
    with connected(server, request * 500 + head(upload, "Connection: close", method="HEAD")) as c:
        assert statuses(rest(c)) == [200] * 501


# ---------------------------------------------------------------------- bodies that nobody wants


def test_a_refused_body_is_never_taken_for_a_request(server: ServerProcess) -> None:
    victim, upload = create(server), create(server)
    smuggled = head(victim, "Content-Length: 0", method="DELETE")
    request = head(upload, f"Content-Length: {len(smuggled)}", offset=5)
    last = head(upload, "Connection: close", method="HEAD")
    with connected(server, request + smuggled + last) as connection:
        assert statuses(rest(connection)) == [409, 200]
    # One that waits to be told to go on may leave the body out: nothing can follow its refusal.
    request = head(upload, "Expect: 100-continue", f"Content-Length: {len(smuggled)}", offset=5)
    with connected(server, request) as connection:
        answer = connection.recv(65536)
        connection.sendall(last)
        answer += rest(connection)
    assert statuses(answer) == [409]
    assert b"connection: close" in answer.lower()
    goes_on(victim, 0)


@pytest.mark.parametrize("framing", ["Content-Length: 1000000000000", "Transfer-Encoding: chunked"])
def test_a_client_that_goes_on_sending_a_refused_body_sees_the_answer_and_is_cut(
    framing: str, server: ServerProcess
) -> None:
    upload = create(server)
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    with (
        connected(server, head(upload, framing, offset=5)) as connection,
        pytest.raises(ConnectionError),
    ):
        connection.sendall(chunk * 5000)
    with connected(server, head(upload, framing, offset=5)) as connection:
        for _ in range(100):
            connection.sendall(chunk)
        answer = rest(connection)
    assert statuses(answer) in ([409], [413])
    assert b"connection: close" in answer.lower()
    goes_on(upload, 0)


# -------------------------------------------------------------------------------- what is not HTTP


def test_a_head_that_is_too_long_is_refused_briefly(server: ServerProcess) -> None:
    request = b"OPTIONS /files/ HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 200_000 + b"\r\n\r\n"
    with connected(server, request) as connection:
        answer = rest(connection)
    assert statuses(answer) == [431]
    assert answer.endswith(b"\r\n\r\nthe head of the request is longer than 65536 bytes\n")


def test_what_is_not_http_is_refused_briefly(server: ServerProcess) -> None:
    with connected(server, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n") as connection:
        answer = rest(connection)
    assert statuses(answer) == [400]
    assert len(answer) < 500


def test_a_chunk_that_is_none_ends_the_body_and_what_came_is_kept(server: ServerProcess) -> None:
    upload = create(server)
    request = (
        head(upload, "Transfer-Encoding: chunked") + b"64\r\n" + CONTENT[:100] + b"\r\nxyz\r\n"
    )
    with connected(server, request) as connection:
        assert statuses(rest(connection)) == [400]
    # It is answered as soon as it is seen, which may be before the application got what came.
    wait_for(lambda: HTTP.head(upload, headers=TUS).headers["Upload-Offset"] == "100")
    goes_on(upload, 100)


def test_a_transfer_coding_that_is_not_known(server: ServerProcess) -> None:
    upload = create(server)
    with connected(server, head(upload, "Transfer-Encoding: gzip, chunked")) as connection:
        assert statuses(rest(connection)) == [501]
    goes_on(upload, 0)
