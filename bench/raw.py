"""The bounds: the least that receiving a file over HTTP costs, one blocking thread per connection.

    python -m bench.raw MODE DIRECTORY

MODE says how a body is received: `copy` (recv_into, write), `splice` (through a pipe, never in user
space), or an algorithm: `copy` that hashes what it wrote. A GET is answered with sendfile. It
speaks as much of tus as the harness does, keeps offsets in memory, and checks nothing.
"""

from __future__ import annotations

import hashlib
import os
import socket
import sys
import threading
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    Receive: TypeAlias = Callable[[socket.socket, int, bytes, int], None]

BUFFER: Final = 256 * 1024
"""Measured: 64 KiB to 1 MiB make no difference beyond the noise; more falls out of the cache."""
PIPE: Final = 1024 * 1024
"""The largest that an unprivileged process may ask for (fs.pipe-max-size)."""


class Hash(Protocol):
    """A running checksum."""

    def update(self, data: memoryview, /) -> None:
        """Add bytes."""


def hasher(mode: str) -> Hash | None:
    """What `mode` hashes with."""
    if mode == "copy":
        return None
    if mode == "crc32c":
        from crc32c import CRC32CHash  # noqa: PLC0415  (an extra of tidegate)

        return CRC32CHash()
    return hashlib.new(mode, usedforsecurity=False)


def copying(mode: str) -> Receive:
    """Receive by recv_into and write, hashing between the two when `mode` is an algorithm."""

    def receive(conn: socket.socket, file: int, begun: bytes, length: int) -> None:
        digest = hasher(mode)
        buffer = memoryview(bytearray(BUFFER))
        if begun:
            os.write(file, begun)
            if digest is not None:
                digest.update(memoryview(begun))
        left = length - len(begun)
        while left:
            count = conn.recv_into(buffer, min(BUFFER, left))
            if not count:
                raise ConnectionError("the body ended early")
            piece = buffer[:count]
            if digest is not None:
                digest.update(piece)
            while piece:
                piece = piece[os.write(file, piece) :]
            left -= count

    return receive


def splicing(conn: socket.socket, file: int, begun: bytes, length: int) -> None:
    """Receive by splice."""
    os.write(file, begun)
    left = length - len(begun)
    ready, full = os.pipe()
    try:
        set_pipe_size(full)
        while left:
            count = os.splice(conn.fileno(), full, min(PIPE, left))
            if not count:
                raise ConnectionError("the body ended early")
            left -= count
            while count:
                count -= os.splice(ready, file, count)
    finally:
        os.close(ready)
        os.close(full)


def set_pipe_size(pipe: int) -> None:
    """As large as may be."""
    import fcntl  # noqa: PLC0415

    fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE)


class Server:
    """One listening socket, a thread per connection."""

    def __init__(self, receive: Receive, directory: str) -> None:
        self.receive = receive
        self.directory = directory
        self.lengths: dict[str, int] = {}

    def run(self) -> None:
        """Serve until killed."""
        with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
            print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}/files/", flush=True)
            while True:
                conn, _ = listener.accept()
                threading.Thread(target=self.serve, args=(conn,), daemon=True).start()

    def serve(self, conn: socket.socket) -> None:
        """Answer one request after another."""
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        rest = b""
        with conn:
            try:
                while request := head(conn, rest):
                    rest = self.answer(conn, *request)
            except ConnectionError:
                return

    def answer(
        self, conn: socket.socket, method: str, path: str, fields: dict[str, str], begun: bytes
    ) -> bytes:
        """Answer one request; what was read of the next."""
        length = int(fields.get("content-length", 0))
        name = path.rpartition("/")[2]
        target = os.path.join(self.directory, name)
        if method == "POST":
            name = os.urandom(16).hex()
            target = os.path.join(self.directory, name)
            lines = [f"Location: /files/{name}", f"Upload-Offset: {length}"]
            status = "201 Created"
            self.lengths[name] = int(fields["upload-length"])
        elif method == "PATCH":
            status, lines = "204 No Content", [f"Upload-Offset: {length}"]
        elif method == "DELETE":
            os.unlink(target)
            status, lines = "204 No Content", []
        elif method == "GET":
            send(conn, target)
            return begun
        else:
            size = os.stat(target).st_size
            status = "200 OK"
            lines = [f"Upload-Offset: {size}", f"Upload-Length: {self.lengths[name]}"]
        if method in {"POST", "PATCH"}:
            file = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                self.receive(conn, file, begun[:length], length)
            finally:
                os.close(file)
        if not status.startswith("204"):
            lines.append("Content-Length: 0")
        conn.sendall("\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode())
        return begun[length:]


def send(conn: socket.socket, path: str) -> None:
    """The answer to a GET."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        conn.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode())
        offset = 0
        while offset < size:
            offset += os.sendfile(conn.fileno(), file.fileno(), offset, size - offset)


def head(conn: socket.socket, rest: bytes) -> tuple[str, str, dict[str, str], bytes] | None:
    """Read the head of a request: method, path, fields, what was read beyond; None at the end."""
    data = bytearray(rest)
    while b"\r\n\r\n" not in data:
        if not (more := conn.recv(16384)):
            return None
        data += more
    text, _, begun = bytes(data).partition(b"\r\n\r\n")
    line, *lines = text.decode("latin-1").split("\r\n")
    method, path, _ = line.split(" ")
    fields = {
        name.lower(): value.strip() for name, _, value in (field.partition(":") for field in lines)
    }
    return method, path, fields, begun


def main(mode: str, directory: str) -> None:
    """Serve."""
    Server(splicing if mode == "splice" else copying(mode), directory).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
