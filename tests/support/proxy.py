"""A TCP proxy on loopback that watches the requests, and cuts or holds the line on demand.

It knows no HTTP but the look of a head: what goes by is searched for request and status lines,
so that a test can tell what a client really sent, whatever the client says of itself.
"""

from __future__ import annotations

import contextlib
import re
import select
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Self
from urllib.parse import urlsplit, urlunsplit

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

Cut = Literal["reset", "close", "abandon"]
"""How a line ends.

- `reset`: both sides see a reset (RST).
- `close`: both sides see an orderly end (FIN), in the middle of a message.
- `abandon`: the client sees a reset; the server hears nothing at all, as when a phone leaves
  the network. The server's side stays open until the proxy is closed.
"""

_Event = Literal["reset", "close", "abandon", "hold", "flip"]

_FIELDS = rb"((?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\r\n]*\r\n)*)\r\n"
# The methods by name: what goes before is a body, which may end in a capital.
_REQUEST = re.compile(rb"(DELETE|GET|HEAD|OPTIONS|PATCH|POST|PUT) (\S+) HTTP/1\.1\r\n" + _FIELDS)
_RESPONSE = re.compile(rb"HTTP/1\.1 (\d{3})[^\r\n]*\r\n" + _FIELDS)
_KEPT = 64 * 1024  # a head may be split over reads; no test sends a longer one
_NOW = struct.pack("ii", 1, 0)  # SO_LINGER: close() sends a reset


@dataclass(frozen=True)
class Request:
    """A request head as it went by. Names of fields are in lower case."""

    method: str
    target: str
    fields: dict[str, str]
    connection: int
    at: float

    @property
    def offset(self) -> int:
        """Its Upload-Offset; -1 when there is none."""
        return int(self.fields.get("upload-offset", "-1"))


@dataclass(frozen=True)
class Response:
    """A status line and its fields as they went by. Names of fields are in lower case."""

    status: int
    fields: dict[str, str]
    connection: int
    at: float


@dataclass
class _Line:
    """One connection: its two sockets, and what was not searched yet of either direction."""

    number: int
    client: socket.socket
    server: socket.socket
    up: bytes = b""
    down: bytes = b""
    open: bool = True
    finished: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class CuttingProxy:
    """Stands between clients and one server.

    Args:
        url: the server's address. It may not run yet, and may go and come back.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._upstream = (parts.hostname, parts.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        host, port = self._listener.getsockname()[:2]
        self.url = urlunsplit(parts._replace(netloc=f"{host}:{port}"))
        self.requests: list[Request] = []
        self.responses: list[Response] = []
        self._state = threading.Condition()
        self._lines: list[_Line] = []
        self._threads: list[threading.Thread] = []
        self._closing = False
        self._plan: list[tuple[int, _Event]] = []
        self._held = False
        self._done: list[Cut] = []
        self._counter = 0

    def __enter__(self) -> Self:
        self._spawn(self._accept)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._state:
            self._closing = True
            self._plan.clear()
            self._held = False
            self._state.notify_all()
            lines = list(self._lines)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for line in lines:
            self._end(line, "reset")
            self._shut(line.server, reset=True)
        for thread in list(self._threads):
            thread.join(5)

    # ------------------------------------------------------------ what a test asks for

    def cut_after(self, count: int, how: Cut = "reset", *, times: int = 1) -> None:
        """Let `count` more bytes of clients through, then cut the line that brought the last one.

        With `times`, again after as many bytes more. Counted over all connections, heads included.
        """
        with self._state:
            self._plan = [(count, how)] * times

    def flip_after(self, count: int) -> None:
        """Let `count` more bytes of clients through, and flip a bit of the one after them."""
        with self._state:
            self._plan = [(count, "flip")]

    def hold_after(self, count: int) -> None:
        """Let `count` more bytes of clients through, then pass nothing on from that connection.

        Others pass. The line ends when its client or its server goes, or at `release`.
        """
        with self._state:
            self._plan = [(count, "hold")]

    def wait_held(self, timeout: float = 20.0) -> None:
        """Wait until a line is held."""
        self._wait(lambda: self._held, timeout, "no line was held")

    def wait_cut(self, timeout: float = 20.0, times: int = 1) -> None:
        """Wait until so many lines were cut."""
        self._wait(lambda: len(self._done) >= times, timeout, "no line was cut")

    def release(self) -> None:
        """Let the line that is held go on."""
        self._let_go()

    @property
    def cuts(self) -> int:
        """How many lines were cut."""
        return len(self._done)

    def sent(self, method: str) -> list[Request]:
        """The requests of this method that went by, in order."""
        return [request for request in list(self.requests) if request.method == method]

    def log(self) -> str:
        """What went by, one line each: for the message of a failure."""
        names = ("upload-offset", "upload-length", "upload-concat", "x-http-method-override")
        rows: list[tuple[float, str]] = []

        def note(item: Request | Response, text: str) -> None:
            shown = " ".join(f"{n}={item.fields[n]}" for n in names if n in item.fields)
            rows.append((item.at, f"[{item.connection}] {text} {shown}"))

        for request in list(self.requests):
            note(request, f"> {request.method} {request.target}")
        for response in list(self.responses):
            note(response, f"< {response.status}")
        return "\n".join(text for _, text in sorted(rows)[-60:])

    # ------------------------------------------------------------ the moving parts

    def _wait(self, happened: Callable[[], bool], timeout: float, otherwise: str) -> None:
        with self._state:
            if not self._state.wait_for(happened, timeout):
                raise AssertionError(f"{otherwise} in {timeout:g} s\n{self.log()}")

    def _spawn(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._upstream, timeout=5)
            except OSError:  # the server is down: so is the line
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NOW)
                client.close()
                continue
            server.settimeout(None)
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._state:
                self._counter += 1
                line = _Line(self._counter, client, server)
                self._lines.append(line)
            self._spawn(self._upwards, line)
            self._spawn(self._downwards, line)

    def _upwards(self, line: _Line) -> None:
        """From the client to the server."""
        while True:
            try:
                data = line.client.recv(64 * 1024)
            except OSError:
                self._end(line, "reset")
                return
            if not data:
                self._finish(line, line.server)
                return
            while data:
                allowed, then = self._allowance(len(data))
                if allowed:
                    self._note_requests(line, data[:allowed])
                    try:
                        line.server.sendall(data[:allowed])
                    except OSError:
                        self._end(line, "reset")
                        return
                data = data[allowed:]
                if then == "flip":
                    data = data or line.client.recv(1)
                    data = bytes([data[0] ^ 1]) + data[1:]
                elif then == "hold":
                    if (more := self._wait_while_held(line)) is None:
                        self._end(line, "close")
                        return
                    data += more
                elif then is not None:
                    self._end(line, then)
                    with self._state:
                        self._done.append(then)
                        self._state.notify_all()
                    return

    def _downwards(self, line: _Line) -> None:
        """From the server to the client."""
        while True:
            try:
                data = line.server.recv(64 * 1024)
            except OSError:
                self._end(line, "reset")
                return
            if not data:
                self._finish(line, line.client)
                return
            self._note_responses(line, data)
            try:
                line.client.sendall(data)
            except OSError:
                self._end(line, "reset")
                return

    def _allowance(self, size: int) -> tuple[int, _Event | None]:
        """How many of these bytes may pass, and what to do after them."""
        with self._state:
            if not self._plan:
                return size, None
            left, then = self._plan[0]
            if size < left:
                self._plan[0] = (left - size, then)
                return size, None
            del self._plan[0]
            return left, then

    def _wait_while_held(self, line: _Line) -> bytes | None:
        """Sit on the line until it is released: what came meanwhile, or None if its client left.

        It goes on reading, for the end of a connection arrives behind all that was sent.
        """
        came = bytearray()
        poll = select.poll()
        poll.register(line.client, select.POLLIN)
        with self._state:
            self._held = True
            self._state.notify_all()
        while self._held and line.open:
            if not poll.poll(10):
                continue
            try:
                data = line.client.recv(64 * 1024)
            except OSError:
                data = b""
            if not data:
                if self._let_go():
                    return None
                break  # it was released first, and the next read will find the end again
            came += data
        return bytes(came) if line.open else None

    def _let_go(self) -> bool:
        """Hold nothing any more; whether something was held."""
        with self._state:
            held, self._held = self._held, False
            self._state.notify_all()
            return held

    def _finish(self, line: _Line, receiver: socket.socket) -> None:
        """One direction is over: pass its end on. The other may still have something to say."""
        with line.lock:
            if not line.open:
                return
            line.finished += 1
            if line.finished == 1:
                with contextlib.suppress(OSError):
                    receiver.shutdown(socket.SHUT_WR)
                return
        self._end(line, "close")

    def _end(self, line: _Line, how: Cut) -> None:
        with line.lock:
            if not line.open:
                return
            line.open = False
        self._shut(line.client, reset=how != "close")
        if how != "abandon":  # the abandoned side falls silent, and is closed with the proxy
            self._shut(line.server, reset=how == "reset")

    @staticmethod
    def _shut(end: socket.socket, *, reset: bool) -> None:
        if reset:
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NOW)
        else:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_WR)
        # wakes the thread that reads from it, which close() alone does not
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RD)
        end.close()

    def _note_requests(self, line: _Line, data: bytes) -> None:
        found, line.up = _heads(_REQUEST, line.up + data)
        for head in found:
            request = Request(
                head[1].decode("latin-1"),
                head[2].decode("latin-1"),
                _fields(head[3]),
                line.number,
                time.monotonic(),
            )
            self.requests.append(request)

    def _note_responses(self, line: _Line, data: bytes) -> None:
        found, line.down = _heads(_RESPONSE, line.down + data)
        for head in found:
            self.responses.append(
                Response(int(head[1]), _fields(head[2]), line.number, time.monotonic())
            )


def _heads(pattern: re.Pattern[bytes], data: bytes) -> tuple[list[re.Match[bytes]], bytes]:
    """The heads in this piece, and what must be looked at again with the next."""
    found = list(pattern.finditer(data))
    rest = data[found[-1].end() :] if found else data
    return found, rest[-_KEPT:]


def _fields(raw: bytes) -> dict[str, str]:
    fields: dict[str, str] = {}
    for row in raw.decode("latin-1").splitlines():
        name, _, value = row.partition(":")
        fields[name.strip().lower()] = value.strip()
    return fields
