"""One connection: heads in, answers out, one request after the other."""

from __future__ import annotations

import asyncio
import enum
import functools
import re
import socket
from typing import TYPE_CHECKING, Any, Final, TypeVar, TypeVarTuple, cast

from tidegate.ports import BodyEnd
from tidegate.protocol.dialects.http import Request
from tidegate.transports.native import pump, response, sending
from tidegate.transports.native.body import NativeBody
from tidegate.transports.native.chunked import Chunked, Counted
from tidegate.transports.native.framing import framing
from tidegate.transports.native.parser import END, Rejected, parse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from uvicorn.config import Config
    from uvicorn.server import ServerState

    from tidegate.ports import OpenFile
    from tidegate.protocol.dialects.http import Header
    from tidegate.protocol.model import Upload
    from tidegate.transports.access import Sent
    from tidegate.transports.native.framing import Framing
    from tidegate.transports.native.native import Native
    from tidegate.transports.native.parser import Head
    from tidegate.transports.service import Answer

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_EMPTY_LINES: Final = b"\r\n"
_LONE_LF: Final = re.compile(rb"(?<!\r)\n")


class _State(enum.Enum):
    IDLE = enum.auto()
    """Between two requests, or within a head."""
    BUSY = enum.auto()
    """A request is at work."""
    LINGERING = enum.auto()
    """All is said; the client has still to notice."""
    CLOSED = enum.auto()


class Connection(asyncio.Protocol):
    """An HTTP/1.1 connection, as uvicorn makes one for each that it accepts.

    One task serves all of its requests. What is used of it by uvicorn and by `cli.server` is
    `shutdown`, `transport` and `abort`.
    """

    def __init__(self, shared: Native, config: Config, server_state: ServerState) -> None:
        self._shared = shared
        self.limits = shared.limits
        self._root_path = config.root_path.rstrip("/")
        self._server = server_state
        self._loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport
        self.descriptor: int | None = None
        """The socket's, where threads may use it."""
        self.low_water = 1
        """Bytes that must be there before the kernel tells that there are any."""
        self._scheme = "http"
        self._peer: str | None = None
        self._state = _State.IDLE
        self._stopping = False
        self._half_closed = False
        self._buffer = b""
        """What came and is not taken up yet: the beginning of a head, or requests ahead."""
        self._seen = 0
        """How much of it is known not to end a head."""
        self._request: tuple[Head, Framing] | None = None
        self._body: NativeBody | None = None
        self._task: asyncio.Task[None] | None = None
        self._next: asyncio.Future[None] | None = None
        self._reading = True
        self._writable: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._unread = 0
        self._old = False
        """The request at work is HTTP/1.0."""
        self._keep = False
        """Another may follow it."""

    # --------------------------------------------------------------------- what the loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self.transport = cast("asyncio.Transport", transport)
        self._server.connections.add(cast("Any", self))
        info = transport.get_extra_info
        peer = info("peername")
        self._peer = peer[0] if isinstance(peer, tuple) else None
        if info("sslcontext") is not None:
            self._scheme = "https"
        else:
            self.descriptor = info("socket").fileno()
        self._expect(self.limits.head_timeout)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self._body is not None and not self._body.over:
            self._body.feed(data)
        elif self._state is _State.IDLE:
            self._buffer = self._buffer + data if self._buffer else data
            self._take_up()
        elif self._state is _State.BUSY:
            self._buffer += data
            if len(self._buffer) > self.limits.ahead:
                self.pause_reading()
        else:
            self._unread += len(data)
            if self._unread > self.limits.linger_bytes:
                self.abort()

    def eof_received(self) -> bool:
        """The client sends no more; whether it is still to be answered."""
        if self._state is not _State.BUSY:
            return False
        self._half_closed = True
        if self._body is not None:
            self._body.cut(BodyEnd.DROPPED)
        # It may have closed its half only. If it is gone, sending will tell.
        return self.descriptor is not None

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """See asyncio.Protocol."""
        self._state = _State.CLOSED
        self.descriptor = None
        self._server.connections.discard(cast("Any", self))
        if self._timer is not None:
            self._timer.cancel()
        if self._body is not None:
            self._body.cut(BodyEnd.DROPPED)
        for waiter in (self._next, self._writable):
            if waiter is not None and not waiter.done():
                waiter.set_result(None)

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        if self._writable is None:
            self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        waiter, self._writable = self._writable, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # ------------------------------------------------------------------ what the server calls

    def shutdown(self) -> None:
        """The server stops: end when the request at work is answered."""
        self._stopping = True
        if self._state is _State.IDLE:
            self.transport.close()
        elif self._state is _State.LINGERING:
            self._expect(self.limits.linger_at_stop)

    def abort(self) -> None:
        """End at once. A thread that is at work for it finds its own descriptor at its end."""
        if self.descriptor is not None and self._state is _State.BUSY:
            pump.shut_down(self.descriptor)
        self.transport.abort()

    # -------------------------------------------------------------------- what a body calls

    def pause_reading(self) -> None:
        """Leave what comes to the kernel."""
        if self._reading and self._state is not _State.CLOSED:
            self._reading = False
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Read what comes."""
        if not self._reading and self._state is not _State.CLOSED:
            self._reading = True
            self.transport.resume_reading()

    def unread(self) -> int:
        """Bytes, also encrypted ones, that came and that nobody has taken from the kernel."""
        if self._state is _State.CLOSED:
            return 0
        return pump.there(self.transport.get_extra_info("socket").fileno())

    def duplicate(self) -> int:
        """A descriptor for a thread to own; -1: the connection is gone."""
        return -1 if self.descriptor is None else pump.duplicate(self.descriptor)

    def set_low_water(self, count: int) -> None:
        """Be told of what comes when it is so much."""
        self.low_water = count
        if self.descriptor is not None:
            self.transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_RCVLOWAT, count
            )

    def send_continue(self) -> None:
        """Ask for the body."""
        self.transport.write(response.CONTINUE)

    def send_informational(self, status: int, headers: Sequence[Header] = ()) -> None:
        """An interim response (1xx), before the answer to the request at work."""
        self.transport.write(response.informational(status, headers))

    # ------------------------------------------------------------------------------- heads

    def _take_up(self) -> None:
        """Look for a head in what came."""
        buffer = self._buffer
        # "a server that is expecting to receive and parse a request-line SHOULD ignore at least one
        # empty line (CRLF) received prior to the request-line" (RFC 9112, 2.2).
        if buffer.startswith(_EMPTY_LINES) and not self._seen:
            buffer = self._buffer = buffer[2:]
        end = buffer.find(END, max(0, self._seen - 3))
        limit = self.limits.head_bytes
        if end > limit or (end < 0 and len(buffer) > limit):
            self._reject_head(431, f"the head of the request is longer than {limit} bytes")
            return
        if end < 0:
            if not buffer:
                return
            if not self._seen and self._task is not None:
                self._expect(self.limits.head_timeout)
            # It would wait for an end that does not come.
            if _LONE_LF.search(buffer, self._seen):
                self._reject_head(400, "a line feed without a carriage return")
                return
            self._seen = len(buffer)
            return
        try:
            head = parse(buffer[: end + 4])
            frame = framing(head)
        except Rejected as rejected:
            self._reject_head(rejected.status, rejected.message)
            return
        self._seen = 0
        rest = buffer[end + 4 :]
        framer = Chunked() if frame.length is None else Counted(frame.length)
        self._body = body = NativeBody(
            self,
            framer,
            self._shared.threads,
            self.limits,
            expects_continue=frame.expects_continue,
        )
        self._buffer = b""
        if framer.done:
            self._buffer = rest
        else:
            if rest:
                body.feed(rest)
            if not body.is_here:
                # Until somebody wants it.
                self.pause_reading()
        self._request = head, frame
        self._state = _State.BUSY
        self._due = 0.0
        if self._task is None:
            self._task = self._loop.create_task(self._serve())
            self._server.tasks.add(self._task)
        else:
            self._server.tasks.add(self._task)
            if self._next is not None and not self._next.done():
                self._next.set_result(None)

    def _reject_head(self, status: int, message: str) -> None:
        """Refuse what is not the head of a request, of which nobody else will tell."""
        self._shared.app.access.reject(status, self._peer)
        self._reject(Rejected(status, message))

    def _reject(self, rejected: Rejected) -> None:
        """Answer what is not a request, and have done with the connection."""
        self._buffer = b""
        self._body = None
        text = f"{rejected.message}\n".encode()
        self.transport.write(
            b"%b%bcontent-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\n"
            b"connection: close\r\n\r\n%b"
            % (response.status_line(rejected.status), self._defaults(), len(text), text)
        )
        self._close_in_stages()

    def _defaults(self) -> bytes:
        return self._shared.defaults.render(self._server.default_headers)

    # ----------------------------------------------------------------------------- requests

    async def _serve(self) -> None:
        """Answer one request after the other. The connection's one task."""
        task = cast("asyncio.Task[None]", self._task)
        try:
            while self._request is not None:
                request, self._request = self._request, None
                going = await self._one(*request)
                self._server.total_requests += 1
                self._body = None
                if not going or self._state is not _State.BUSY:
                    return
                self._state = _State.IDLE
                self.resume_reading()
                if self._buffer:
                    self._take_up()
                if self._request is None:
                    if self._state is not _State.IDLE:
                        return
                    if not self._buffer:
                        self._expect(self.limits.keep_alive)
                    self._server.tasks.discard(task)
                    self._next = self._loop.create_future()
                    await self._next
        except BaseException:
            self.transport.abort()
            raise
        finally:
            self._server.tasks.discard(task)

    async def _one(self, head: Head, frame: Framing) -> bool:
        """Answer a request; whether another may follow."""
        body = cast("NativeBody", self._body)
        shared = self._shared
        app = shared.app
        service = app.service
        self._old = head.version == "1.0"
        path = _path(head.target)
        origin = service.origin(self._scheme, self._peer, head.headers)
        below = service.below_base(path)
        request = Request(
            method=head.method,
            path=below or "",
            headers=head.headers,
            base_path=self._root_path + service.base_path,
            base_url=service.base_url(origin, self._root_path),
            url=service.called(origin, head.target),
            client=origin.client,
        )
        sent = await app.access.see_through(
            request,
            body,
            path=path,
            client=origin.client,
            answering=app.answer(
                request,
                body,
                origin.client,
                path=path,
                known=below is not None,
                upgrade_is_safe=True,
            ),
            send=functools.partial(self._send, request, frame, body),
        )
        if sent.instead is not None:
            return False
        return await self._finish(body, keep=self._keep and sent.whole)

    def _may_keep(self, frame: Framing, body: NativeBody) -> bool:
        """Whether the connection is any good after this request."""
        if not frame.keep_alive or self._stopping or self._half_closed or body.dropped:
            return False
        if body.look_through():
            return True
        # A client that waits for `100 Continue` may send the body, or leave it out: what follows it
        # could not be told from it.
        left = body.left()
        return not body.waits_for_continue and left is not None and left <= self.limits.discard

    async def _finish(self, body: NativeBody, *, keep: bool) -> bool:
        """Make ready for the next request, or close; whether there may be one."""
        if self._state is not _State.BUSY:
            return False
        if keep and not body.over:
            timer = self._loop.call_later(self.limits.linger, body.cut, BodyEnd.STALLED)
            try:
                keep = await body.skip()
            finally:
                timer.cancel()
        # Either side may have come to its end since it was decided to keep it.
        if keep and not (self._stopping or self._half_closed):
            self._buffer = body.framer.rest + self._buffer
            return True
        if (body.over and not self._buffer) or body.dropped:
            self._state = _State.LINGERING
            self._expect(self.limits.unread)
            self.transport.close()
        else:
            self._close_in_stages()
        return False

    async def _send(
        self, request: Request, frame: Framing, body: NativeBody, answer: Answer, sent: Sent
    ) -> None:
        """Send an answer, unless the client is gone; or another, if what came was not HTTP."""
        if body.rejected is not None:
            sent.instead = body.rejected.status
            self._reject(body.rejected)
            return
        self._keep = self._may_keep(frame, body)
        # To a request that was cut short whatever is said could be taken for an answer to all of it.
        if self._state is not _State.BUSY or body.cut_short:
            sent.whole = False
            return
        parts = [
            response.status_line(answer.status),
            self._defaults(),
            response.fields(answer.headers),
        ]
        if not self._keep:
            parts.append(b"connection: close\r\n")
        elif self._old:
            parts.append(b"connection: keep-alive\r\n")
        parts.append(b"\r\n")
        if answer.pieces and request.method != "HEAD":
            await sending.send(self, b"".join(parts), answer, sent)
            return
        content = b"" if request.method == "HEAD" else answer.body
        parts.append(content)
        self.transport.write(b"".join(parts))
        if self._writable is not None:
            await self.drained()
        sent.bytes = len(content)

    async def open_file(self, upload: Upload, stop: int) -> OpenFile | None:
        """A complete upload's file, where there is one and the kernel can send it."""
        if self.descriptor is None:
            return None
        return await self._shared.app.engine.open_file(upload, stop)

    def read(self, upload: Upload, start: int, stop: int) -> AsyncIterator[bytes]:
        """A complete upload's bytes."""
        return self._shared.app.engine.read(upload, start, stop)

    async def in_thread(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """Call a blocking function, and wait for it, cancelled or not."""
        return await self._shared.threads.run(function, *args)

    async def flushed(self) -> None:
        """Wait until the kernel has all that was written."""
        if self.transport.get_write_buffer_size():
            self.transport.set_write_buffer_limits(0, 0)
            try:
                await self.drained()
            finally:
                self.transport.set_write_buffer_limits()

    async def drained(self) -> None:
        """Wait until the client has read most of what was written."""
        if self._writable is not None:
            timer = self._loop.call_later(self.limits.unread, self.abort)
            try:
                await self._writable
            finally:
                timer.cancel()

    # ------------------------------------------------------------------------------ the end

    def _close_in_stages(self) -> None:
        # "If a server performs an immediate close of a TCP connection, there is a significant risk
        # that the client will not be able to read the last HTTP response. [...] To avoid the TCP
        # reset problem, servers typically close a connection in stages." (RFC 9112, 9.6)
        self._state = _State.LINGERING
        self._body = None
        if self.transport.is_closing():
            return
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._expect(self.limits.linger_at_stop if self._stopping else self.limits.linger)
        self.resume_reading()

    def _expect(self, within: float | None) -> None:
        """End the connection unless what is waited for comes in time."""
        self._due = 0.0 if within is None else self._loop.time() + within
        if within is not None and (self._timer is None or self._timer.when() > self._due + 0.5):
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_later(within, self._time_is_up)

    def _time_is_up(self) -> None:
        # One timer, set again when it is due, costs less than one per request.
        self._timer = None
        if not self._due or self._state is _State.CLOSED:
            return
        late = self._due - self._loop.time()
        if late > 0.001:
            self._timer = self._loop.call_later(late, self._time_is_up)
        elif self._state is _State.LINGERING:
            self.transport.abort()
        elif self._state is _State.IDLE and self._buffer:
            self._reject_head(408, "the head of the request took too long")
        elif self._state is _State.IDLE:
            self.transport.close()


def _path(target: str) -> str:
    """The path of a request's target, percent-encoded as it was sent."""
    path = target.partition("?")[0]
    # "a server MUST accept the absolute-form in requests" (RFC 9112, 3.2.2).
    if path.startswith(("http://", "https://")):
        path = "/" + path.split("/", 3)[3] if path.count("/") > 2 else "/"
    return path
