"""The client for large bodies: blocking, the body by sendfile, so that it is never what is measured."""

from __future__ import annotations

import hashlib
import os
import select
import socket
import struct
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import urlsplit

from bench.process import BenchError

if TYPE_CHECKING:
    from bench.process import Server

PATIENCE: Final = 120.0
"""Seconds without a byte after which a measurement is void."""
STUCK: Final = 20
"""... or without being read."""
METADATA: Final = "filename YmVuY2guYmlu,filetype YXBwbGljYXRpb24vb2N0ZXQtc3RyZWFt"
"""The Python peer answers no HEAD without both."""
OFFSET_TYPE: Final = "application/offset+octet-stream"
SWALLOW: Final = 4 * 1024 * 1024


@dataclass(frozen=True)
class Answer:
    """The head of a response; field names are in lower case."""

    status: int
    fields: dict[str, str]


def request(
    server: Server, method: str, path: str, fields: dict[str, str], body: bytes = b""
) -> bytes:
    """The bytes of a request."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{server.port}", "Tus-Resumable: 1.0.0"]
    lines += [f"{name}: {value}" for name, value in fields.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


class Connection:
    """One connection, kept alive."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.sock = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", STUCK, 0))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def ask(
        self,
        method: str,
        path: str,
        expected: int,
        fields: dict[str, str] | None = None,
    ) -> Answer:
        """Send a request without a body, and read its answer."""
        self.sock.sendall(request(self.server, method, path, fields or {}))
        answer, rest = self.head()
        length = 0 if method == "HEAD" else int(answer.fields.get("content-length", 0))
        while len(rest) < length:
            if not (more := self.sock.recv(65536)):
                break
            rest += more
        return self.expect(answer, expected, f"{method} {path}", rest)

    def expect(self, answer: Answer, status: int, what: str, body: bytes = b"") -> Answer:
        """Raise BenchError unless the answer has `status`."""
        if answer.status != status:
            raise BenchError(
                f"{self.server.name}: {what}: {answer.status} instead of {status}: {body[:200]!r}"
            )
        return answer

    def head(self) -> tuple[Answer, bytes]:
        """Read the head of an answer, and perhaps the beginning of its body."""
        data = bytearray()
        while b"\r\n\r\n" not in data:
            if not (more := self.sock.recv(65536)):
                raise BenchError(f"{self.server.name} closed the connection: {bytes(data)!r}")
            data += more
        text, _, rest = bytes(data).partition(b"\r\n\r\n")
        line, *lines = text.decode("latin-1").split("\r\n")
        pairs = (field.partition(":") for field in lines)
        fields = {name.lower(): value.strip() for name, _, value in pairs}
        return Answer(int(line.split(" ")[1]), fields), rest

    def create(self, length: int, fields: dict[str, str] | None = None) -> str:
        """Create an upload; the path of its URL."""
        answer = self.ask(
            "POST",
            self.server.path,
            201,
            {
                "Upload-Length": str(length),
                "Upload-Metadata": METADATA,
                "Content-Length": "0",
                **(fields or {}),
            },
        )
        return urlsplit(answer.fields["location"]).path

    def offset(self, path: str) -> int:
        """What HEAD says."""
        return int(self.ask("HEAD", path, 200).fields["upload-offset"])

    def delete(self, path: str) -> bool:
        """Delete an upload; False where the server can't."""
        self.sock.sendall(request(self.server, "DELETE", path, {}))
        return self.head()[0].status == 204

    def patch(self, path: str, source: Source, length: int, checksum: str = "") -> None:
        """Send `length` bytes of `source`, again from its start when it is shorter."""
        fields = {
            "Upload-Offset": "0",
            "Content-Type": OFFSET_TYPE,
            "Content-Length": str(length),
        }
        if checksum:
            fields["Upload-Checksum"] = checksum
        self.sock.sendall(request(self.server, "PATCH", path, fields))
        sent = 0
        try:
            self.sock.setblocking(True)  # sendfile waits in the kernel, up to SO_SNDTIMEO
            while sent < length:
                at = sent % source.size
                sent += os.sendfile(
                    self.sock.fileno(), source.fd, at, min(source.size - at, length - sent)
                )
        except OSError as error:
            # It may have answered, and not read on.
            self.sock.settimeout(1)
            said = self.sock.recv(200) if select.select([self.sock], [], [], 1)[0] else b""
            raise BenchError(
                f"{self.server.name}: PATCH: {error} after {sent} bytes: {said!r}"
            ) from error
        self.sock.settimeout(PATIENCE)
        answer, rest = self.head()
        self.expect(answer, 204, "PATCH", rest)
        if answer.fields.get("upload-offset") != str(length):
            raise BenchError(f"{self.server.name}: PATCH: {answer.fields}")

    def download(self, path: str, length: int) -> None:
        """GET, and let the kernel throw the body away: no copy to us."""
        self.sock.sendall(request(self.server, "GET", path, {}))
        answer, rest = self.head()
        self.expect(answer, 200, "GET", rest)
        if answer.fields.get("content-length") != str(length):
            raise BenchError(f"{self.server.name}: GET: {answer.fields}")
        left = length - len(rest)
        buffer = bytearray(SWALLOW)
        while left:
            count = self.sock.recv_into(buffer, min(SWALLOW, left), socket.MSG_TRUNC)
            if not count:
                raise BenchError(f"{self.server.name}: GET ended {left} bytes early")
            left -= count

    def digest(self, path: str) -> bytes:
        """GET, and the SHA-256 of the body."""
        self.sock.sendall(request(self.server, "GET", path, {}))
        answer, rest = self.head()
        self.expect(answer, 200, "GET", rest)
        found = hashlib.sha256(rest)
        left = int(answer.fields["content-length"]) - len(rest)
        while left:
            if not (more := self.sock.recv(min(SWALLOW, left))):
                raise BenchError(f"{self.server.name}: GET ended {left} bytes early")
            found.update(more)
            left -= len(more)
        return found.digest()


class Source:
    """The file that bodies come from."""

    def __init__(self, path: str, size: int) -> None:
        """Make it: random, no two blocks alike, but made fast."""
        self.path = path
        self.size = size
        block = os.urandom(1 << 20)
        with open(path, "wb") as file:
            left, number = size, 0
            while left:
                piece = (number.to_bytes(8, "big") + block[8:])[: min(left, len(block))]
                file.write(piece)
                left -= len(piece)
                number += 1
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Let go of it, and delete it."""
        os.close(self.fd)
        os.unlink(self.path)


@dataclass(frozen=True)
class Spent:
    """What something took."""

    seconds: float
    cpu: float

    def rates(self, size: int) -> dict[str, float]:
        """MB/s, and the server's CPU seconds per GiB."""
        return {"MB/s": size / 1e6 / self.seconds, "cpu/GiB": self.cpu / (size / 2**30)}


def upload(
    server: Server, source: Source, length: int, *, at_once: int = 1, checksum: str = ""
) -> tuple[Spent, list[str]]:
    """Create uploads, send all of each in one PATCH, and see that they are there.

    Only the PATCH requests are timed. Returns the paths of the uploads, too.
    """
    connections = [Connection(server) for _ in range(at_once)]
    failures: list[BaseException] = []

    def send(connection: Connection, path: str) -> None:
        try:
            connection.patch(path, source, length, checksum)
        except BaseException as error:  # noqa: BLE001  (raised below)
            failures.append(error)

    try:
        paths = [connection.create(length) for connection in connections]
        pairs = list(zip(connections, paths, strict=True))
        threads = [threading.Thread(target=send, args=pair, daemon=True) for pair in pairs[1:]]
        cpu, start = server.cpu(), time.perf_counter()
        for thread in threads:
            thread.start()
        send(*pairs[0])
        for thread in threads:
            thread.join()
        spent = Spent(time.perf_counter() - start, server.cpu() - cpu)
        if failures:
            raise failures[0]
        for connection, path in pairs:
            if (offset := connection.offset(path)) != length:
                raise BenchError(f"{server.name}: the offset is {offset}, not {length}")
    finally:
        for connection in connections:
            connection.sock.close()
    return spent, paths
