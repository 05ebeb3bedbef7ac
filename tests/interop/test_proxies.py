"""What tidegate promises holds behind the proxies of `deploy/`, as they are configured there."""

from __future__ import annotations

import base64
import hashlib
import http.client
import random
import select
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
import trustme
from tests.interop.proxies import KINDS, NGINX, PATIENCE, Kind, Proxy, wait_until
from tests.support.server import ServerProcess

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

MIB = 1024 * 1024
HOST = "uploads.example.org:8443"
HEAD = {"Host": HOST, "Tus-Resumable": "1.0.0"}
STREAM = {"Content-Type": "application/offset+octet-stream"}
CONTINUE = b"HTTP/1.1 100 Continue\r\n"
WAKES = 128 * 1024
"""Bytes that the server may let stand in a socket before it looks (DESIGN: SO_RCVLOWAT)."""
BETWEEN = 512 * 1024
"""Bytes that may stand in a proxy's own buffers and in sockets, beside that."""


class Answer:
    """An answer, whole."""

    def __init__(self, connection: socket.socket, method: str) -> None:
        with http.client.HTTPResponse(connection, method=method) as response:
            response.begin()
            self.status = response.status
            self.headers = response.headers
            self.body = response.read()

    def __repr__(self) -> str:
        return f"{self.status} {dict(self.headers)} {self.body[:200]!r}"


class Cluster:
    """Three servers that share a folder, as they would share a bucket, behind a proxy."""

    def __init__(self, servers: list[ServerProcess], proxy: Proxy, data: Path) -> None:
        self.servers = servers
        self.proxy = proxy
        self.data = data

    def head(self, method: str, path: str, fields: Mapping[str, str]) -> bytes:
        lines = [f"{method} {path} HTTP/1.1", *(f"{k}: {v}" for k, v in {**HEAD, **fields}.items())]
        return "\r\n".join([*lines, "", ""]).encode()

    def ask(
        self,
        method: str,
        path: str,
        fields: Mapping[str, str] | None = None,
        body: bytes = b"",
        *,
        tls: bool = False,
    ) -> Answer:
        """One request on a connection of its own, and the answer."""
        length = {"Content-Length": str(len(body))} if body or method in ("POST", "PATCH") else {}
        with self.proxy.connect(tls=tls) as connection:
            connection.sendall(self.head(method, path, length | dict(fields or {})) + body)
            return Answer(connection, method)

    def create(self, length: int, **more: str) -> str:
        """The path of a new upload."""
        made = self.ask("POST", "/files/", {"Upload-Length": str(length), **more})
        assert made.status == 201, made
        return urlsplit(made.headers["Location"]).path

    def patching(self, path: str, length: int, offset: int = 0) -> socket.socket:
        """A connection on which a body of so many bytes is awaited."""
        fields = {"Content-Length": str(length), "Upload-Offset": str(offset), **STREAM}
        connection = self.proxy.connect()
        connection.sendall(self.head("PATCH", path, fields))
        return connection

    def wait_arrived(self, path: str, sent: int) -> None:
        """Wait until the servers have stored so many bytes, but for the last few."""

        def arrived() -> int:
            found = (self.data / "incoming").rglob(f"*{path.rpartition('/')[2]}*")
            return max((file.stat().st_size for file in found), default=0)

        wait_until(
            lambda: arrived() >= sent - WAKES - BETWEEN,
            lambda: f"{arrived()} of {sent} bytes arrived\n{self.story()}",
        )

    def story(self) -> str:
        """What a failure has to tell."""
        tails = "\n".join(server.tail(20) for server in self.servers)
        return f"{self.proxy.tail()}\n--- servers\n{tails}"


@pytest.fixture(scope="session")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate with its key, in one file."""
    path = tmp_path_factory.mktemp("tls") / "localhost.pem"
    trustme.CA().issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(path)
    return path


@pytest.fixture(scope="module", params=KINDS, ids=[kind.name for kind in KINDS])
def lasting(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, pem: Path
) -> Iterator[Cluster]:
    """Three servers behind each of the proxies, for all tests that leave them running."""
    with clustered(request.param, tmp_path_factory.mktemp("cluster"), pem) as cluster:
        yield cluster


@pytest.fixture
def cluster(lasting: Cluster) -> Cluster:
    """The same."""
    return lasting


@contextmanager
def clustered(kind: Kind, folder: Path, pem: Path, *flags: str) -> Iterator[Cluster]:
    """Three servers behind a proxy."""
    data, place = folder / "data", folder / "proxy"
    place.mkdir()
    flags = ("--behind-proxy", "127.0.0.1", "--shutdown-timeout", "1s", *flags)
    servers = [ServerProcess(data, *flags) for _ in range(3)]
    try:
        for server in servers:
            server.start()
        with Proxy(kind, place, [server.port for server in servers], pem) as proxy:
            yield Cluster(servers, proxy, data)
    finally:
        for server in servers:
            server.kill()


def test_bytes_are_stored_while_more_are_being_sent(cluster: Cluster) -> None:
    """The proxy hands a body on as it comes."""
    content = random.Random(1).randbytes(8 * MIB)
    path = cluster.create(len(content))
    with cluster.patching(path, len(content)) as connection:
        connection.sendall(content[: 4 * MIB])
        cluster.wait_arrived(path, 4 * MIB)
        connection.sendall(content[4 * MIB :])
        answer = Answer(connection, "PATCH")
    assert (answer.status, answer.headers["Upload-Offset"]) == (204, str(len(content)))
    got = cluster.ask("GET", path)
    assert hashlib.sha256(got.body).digest() == hashlib.sha256(content).digest()


def test_a_chunked_body_is_stored_while_more_is_being_sent(cluster: Cluster) -> None:
    """Of unknown length, too: clients that stream send such bodies."""
    path = cluster.create(6 * MIB)
    fields = {"Transfer-Encoding": "chunked", "Upload-Offset": "0", **STREAM}
    with cluster.proxy.connect() as connection:
        connection.sendall(cluster.head("PATCH", path, fields))
        for _ in range(4):
            connection.sendall(b"%x\r\n%b\r\n" % (MIB, bytes(MIB)))
        cluster.wait_arrived(path, 4 * MIB)
        for _ in range(2):
            connection.sendall(b"%x\r\n%b\r\n" % (MIB, bytes(MIB)))
        connection.sendall(b"0\r\n\r\n")
        answer = Answer(connection, "PATCH")
    assert (answer.status, answer.headers["Upload-Offset"]) == (204, str(6 * MIB))


def test_what_a_dropped_connection_sent_is_kept(cluster: Cluster) -> None:
    """A client that declares 600 MiB is not refused; it goes away, comes back, and goes on."""
    length = 600 * MIB
    path = cluster.create(length)
    with cluster.patching(path, length) as connection:
        connection.sendall(bytes(4 * MIB))
        cluster.wait_arrived(path, 4 * MIB)
    told = cluster.ask("HEAD", path)
    assert told.status == 200, told
    offset = int(told.headers["Upload-Offset"])
    assert 4 * MIB - WAKES - BETWEEN <= offset <= 4 * MIB
    more = cluster.ask("PATCH", path, {"Upload-Offset": str(offset), **STREAM}, bytes(MIB))
    assert (more.status, more.headers["Upload-Offset"]) == (204, str(offset + MIB))


def test_a_client_takes_over_from_its_own_hanging_connection(cluster: Cluster) -> None:
    """The old connection stays open at the proxy, and sends nothing."""
    path = cluster.create(8 * MIB)
    with cluster.patching(path, 8 * MIB) as hanging:
        hanging.sendall(bytes(4 * MIB))
        cluster.wait_arrived(path, 4 * MIB)
        told = cluster.ask("HEAD", path)
        assert told.status == 200, told
        offset = int(told.headers["Upload-Offset"])
        rest = bytes(8 * MIB - offset)
        done = cluster.ask("PATCH", path, {"Upload-Offset": str(offset), **STREAM}, rest)
        assert (done.status, done.headers["Upload-Offset"]) == (204, str(8 * MIB))


def test_a_refusal_reaches_who_is_still_sending(cluster: Cluster) -> None:
    """409 for a wrong offset, though most of the body never went anywhere."""
    path = cluster.create(64 * MIB)
    with cluster.patching(path, 32 * MIB, offset=32 * MIB) as connection:
        _send_until_answered(connection, 32 * MIB)
        answer = Answer(connection, "PATCH")
    assert answer.status == 409, answer
    assert cluster.ask("HEAD", path).headers["Upload-Offset"] == "0"


def _send_until_answered(connection: socket.socket, most: int) -> None:
    """Send as real clients do: until something comes back, or until nobody takes more."""
    piece, sent = bytes(64 * 1024), 0
    while sent < most:
        readable, writable, _ = select.select([connection], [connection], [], PATIENCE)
        if readable:
            return
        assert writable, f"the proxy takes no more after {sent} bytes, and says nothing"
        try:
            sent += connection.send(piece)
        except (BrokenPipeError, ConnectionResetError):
            return  # what was said before that is still there to be read


def test_it_is_known_who_asks_for_the_body(cluster: Cluster) -> None:
    """With `Expect`, a refusal comes through; which proxies say 100 before is written down."""
    path = cluster.create(MIB)
    fields = {"Content-Length": str(MIB), "Upload-Offset": "77", "Expect": "100-continue"}
    with cluster.proxy.connect() as connection:
        connection.sendall(cluster.head("PATCH", path, fields | STREAM))
        asked = _asked_for(connection)
        if cluster.proxy.kind.asks is not None:
            assert asked is cluster.proxy.kind.asks
        if asked:
            _send_until_answered(connection, MIB)
        assert Answer(connection, "PATCH").status == 409


def test_a_body_that_is_asked_for_arrives(cluster: Cluster) -> None:
    """`Expect: 100-continue` on a request that is accepted."""
    path = cluster.create(MIB)
    fields = {"Content-Length": str(MIB), "Upload-Offset": "0", "Expect": "100-continue"}
    with cluster.proxy.connect() as connection:
        connection.sendall(cluster.head("PATCH", path, fields | STREAM))
        assert _asked_for(connection)
        connection.sendall(bytes(MIB))
        assert Answer(connection, "PATCH").status == 204


def _asked_for(connection: socket.socket) -> bool:
    """Whether 100 comes first; it is read, and not a byte of what stands behind it."""
    start = connection.recv(len(CONTINUE), socket.MSG_PEEK | socket.MSG_WAITALL)
    if start != CONTINUE:
        assert start.startswith(b"HTTP/1.1 "), start
        return False
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += connection.recv(1)
    return True


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_location_is_what_the_client_called(cluster: Cluster, tls: bool) -> None:
    """Scheme, host and port are the proxy's, whatever a client says in the proxy's name."""
    lies = {
        "Forwarded": "for=203.0.113.9;host=evil.example;proto=ftp",
        "X-Forwarded-Host": "evil.example",
        "X-Forwarded-Proto": "ftp",
        "X-Forwarded-For": "203.0.113.9",
    }
    for fields in ({}, lies):
        made = cluster.ask("POST", "/files/", {"Upload-Length": "1", **fields}, tls=tls)
        assert made.status == 201, made
        scheme = "https" if tls else "http"
        assert made.headers["Location"].startswith(f"{scheme}://{HOST}/files/"), made
    assert "203.0.113.9" not in cluster.story()


def test_every_method_passes(cluster: Cluster) -> None:
    """Also those that proxies know less well, and what stands in their headers."""
    offer = cluster.ask("OPTIONS", "/files/")
    assert offer.status in (200, 204)
    assert "creation" in offer.headers["Tus-Extension"]
    path = cluster.create(10, **{"Upload-Metadata": "filename dGlkZQ=="})
    instead = {"X-HTTP-Method-Override": "PATCH", "Upload-Offset": "0", **STREAM}
    assert cluster.ask("POST", path, instead, b"01234").status == 204
    assert cluster.ask("PATCH", path, {"Upload-Offset": "5", **STREAM}, b"56789").status == 204
    told = cluster.ask("HEAD", path)
    assert (told.status, told.headers["Upload-Offset"]) == (200, "10")
    assert told.headers["Upload-Metadata"] == "filename dGlkZQ=="
    piece = cluster.ask("GET", path, {"Range": "bytes=2-4"})
    assert (piece.status, piece.body) == (206, b"234")
    assert cluster.ask("DELETE", path).status == 204
    assert cluster.ask("HEAD", path).status == 410


def test_a_long_head_passes(cluster: Cluster) -> None:
    """A final upload names all of its parts: here in some 30 KiB."""
    part = {"Upload-Concat": "partial", **STREAM}
    made = cluster.ask("POST", "/files/", {"Upload-Length": "1", **part}, b"x")
    assert made.status == 201, made
    path = urlsplit(made.headers["Location"]).path
    count = 30 * 1024 // len(path)
    final = cluster.ask("POST", "/files/", {"Upload-Concat": f"final;{' '.join([path] * count)}"})
    assert final.status == 201, final
    whole = cluster.ask("GET", urlsplit(final.headers["Location"]).path)
    assert whole.body == b"x" * count


def test_which_proxies_pass_trailers_is_known(cluster: Cluster) -> None:
    """A checksum in the trailer: verified where it arrives, refused in words where it is lost."""
    path = cluster.create(5)
    answer = _with_trailer(cluster, path)
    if cluster.proxy.kind.trailers:
        assert (answer.status, answer.headers["Upload-Offset"]) == (204, "5"), answer
    else:
        assert answer.status == 400, answer
        assert cluster.ask("HEAD", path).headers["Upload-Offset"] == "0"


def test_checksum_trailers_need_not_be_offered(tmp_path: Path, pem: Path) -> None:
    """Behind a proxy that loses them: clients are told by `--disable checksum-trailer`."""
    with clustered(NGINX, tmp_path, pem, "--disable", "checksum-trailer") as cluster:
        extensions = cluster.ask("OPTIONS", "/files/").headers["Tus-Extension"].split(",")
        assert "checksum" in extensions
        assert "checksum-trailer" not in extensions


def _with_trailer(cluster: Cluster, path: str) -> Answer:
    digest = base64.b64encode(hashlib.sha1(b"tidal").digest()).decode()
    fields = {
        "Transfer-Encoding": "chunked",
        "Trailer": "Upload-Checksum",
        "TE": "trailers",
        "Upload-Offset": "0",
        **STREAM,
    }
    body = f"5\r\ntidal\r\n0\r\nUpload-Checksum: sha1 {digest}\r\n\r\n".encode()
    with cluster.proxy.connect() as connection:
        connection.sendall(cluster.head("PATCH", path, fields) + body)
        return Answer(connection, "PATCH")


@pytest.mark.parametrize("kind", KINDS, ids=[kind.name for kind in KINDS])
def test_requests_go_to_any_server_also_when_one_is_gone(
    kind: Kind, tmp_path: Path, pem: Path
) -> None:
    """No request needs the server that the one before it went to."""
    with clustered(kind, tmp_path, pem) as cluster:
        _upload_while_one_dies(cluster)


def _upload_while_one_dies(cluster: Cluster) -> None:
    content = random.Random(2).randbytes(24 * 1000)
    path = cluster.create(len(content))
    offset = failed = 0
    while offset < len(content):
        if offset >= 12_000:
            cluster.servers[0].kill()
        fields = {"Upload-Offset": str(offset), **STREAM}
        answer = cluster.ask("PATCH", path, fields, content[offset : offset + 1000])
        if answer.status in (502, 503):
            # It was on its way to the one that died. A client asks how far it came, and goes on.
            failed += 1
            assert failed < 5, cluster.story()
            wait_until(lambda: cluster.ask("HEAD", path).status == 200, cluster.story)
            answer = cluster.ask("HEAD", path)
        else:
            assert answer.status == 204, f"{answer}\n{cluster.story()}"
        assert int(answer.headers["Upload-Offset"]) >= offset
        offset = int(answer.headers["Upload-Offset"])
    assert cluster.ask("GET", path).body == content
    # A server's lines come a moment after its answers.
    wait_until(
        lambda: sum("method=PATCH" in server.tail(200) for server in cluster.servers) > 1,
        cluster.story,
    )
