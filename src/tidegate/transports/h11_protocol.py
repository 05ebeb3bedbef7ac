"""uvicorn's h11 protocol, with an end to what a client may make the server wait for.

uvicorn waits for ever for a head that trickles in, and for ever for the body of a request that it
has answered already; and it closes under the hands of a client that still sends, which then sees a
reset in place of the answer.
"""

from __future__ import annotations

import asyncio
import http
import sys
from typing import TYPE_CHECKING, Any, Final, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    from uvicorn.config import Config
    from uvicorn.protocols.http.h11_impl import RequestResponseCycle
    from uvicorn.server import ServerState

    Message = MutableMapping[str, Any]

HEAD_TIMEOUT: Final = 20.0
"""Seconds for a head to arrive: what Apache's mod_reqtimeout begins with (header=20-40)."""
DISCARD: Final = 256 * 1024
"""Bytes of an unread body that are read for the sake of keeping the connection: Go's
maxPostHandlerReadBytes."""
LINGER_BYTES: Final = 64 * 1024 * 1024
"""Bytes that are read for the sake of an answer being read: what 100 Mbit/s bring in LINGER."""
LINGER: Final = 5.0
"""Seconds for the same: nginx's lingering_timeout."""
GONE: Final = {"type": "http.disconnect"}
LINGER_AT_STOP: Final = 1.0
"""... when the server stops: a round trip or two."""


class Protocol(H11Protocol):
    """One connection.

    A head has HEAD_TIMEOUT to arrive, from when the connection is made or from its first byte; what
    came of a late one is answered 408. A request that is answered before its body was read keeps
    its connection if not much of that is left; else the answer says `Connection: close`, and what
    still comes is read and thrown away, within bounds, until the client has seen that:

    "If a server performs an immediate close of a TCP connection, there is a significant risk that
    the client will not be able to read the last HTTP response. [...] To avoid the TCP reset
    problem, servers typically close a connection in stages." (RFC 9112, 9.6)
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        head_timeout: float | None = HEAD_TIMEOUT,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._head_timeout = head_timeout
        self.app = cast("Any", self._answering)
        self._wrapped = config.loaded_app
        self._socket: asyncio.Transport
        """What `self.transport` stands before."""
        self._head_timer: asyncio.TimerHandle | None = None
        self._unread = 0
        """Bytes that came after the answer to their request."""
        self._linger_timer: asyncio.TimerHandle | None = None
        self._linger_for = LINGER
        self._closing = False
        """Nothing more will be said: the client has still to notice."""
        self._came = 0
        """Bytes that came since the last request began, about."""

    # --------------------------------------------------------------------------- the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio.Protocol."""
        super().connection_made(transport)
        self._socket = transport
        self.transport = cast("asyncio.Transport", _Closing(transport, self._close))
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._closing = True
        self._stop_timers()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self._closing:
            self._throw_away(data)
            return
        began = self.conn.their_state is h11.IDLE
        self._came = len(data) if began else self._came + len(data)
        if began and self._head_timer is None:
            self._expect_head()
        draining = self._draining
        super().data_received(data)
        if draining:
            self._drain(len(data))
        self._look()

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client sends no more; whether it is still to be answered."""
        if self._closing:
            self._socket.close()
            return False
        whole = self.conn.their_state in {h11.DONE, h11.MUST_CLOSE}
        if whole and self._answering_now and not self._socket.get_extra_info("sslcontext"):
            # It may have closed its half only. If it is gone, sending will tell.
            self.cycle.keep_alive = False
            return True
        return False

    @property
    def _answering_now(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.response_complete

    def shutdown(self) -> None:
        """The server stops: end when the request at work is answered."""
        self._linger_for = LINGER_AT_STOP
        if self._closing:
            self._linger()
        elif self.conn.our_state is not h11.ERROR:
            super().shutdown()
        else:
            self._socket.close()

    def on_response_complete(self) -> None:
        """A response was sent."""
        super().on_response_complete()
        if self._closing:
            return
        if self._draining:
            self._unread = 0
            self._unset_keepalive_if_required()
            self._linger()
        self._look()

    def _look(self) -> None:
        """Set the clocks by what is waited for."""
        if self._closing or self._socket.is_closing():
            return
        idle = self.conn.their_state is h11.IDLE
        if not idle:
            self._stop_head_timer()
        elif self.conn.trailing_data[0]:
            self._expect_head()
        if not self._draining and self._linger_timer is not None:
            # The body is over, and the connection is as good as new.
            self._linger_timer.cancel()
            self._linger_timer = None
            if idle and self.timeout_keep_alive_task is None and not self.conn.trailing_data[0]:
                self.timeout_keep_alive_task = self.loop.call_later(
                    self.timeout_keep_alive, self.timeout_keep_alive_handler
                )

    # --------------------------------------------------------------------------------- the head

    def _expect_head(self) -> None:
        if self._head_timer is None and self._head_timeout is not None:
            self._head_timer = self.loop.call_later(self._head_timeout, self._head_is_late)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self._closing or self.conn.their_state is not h11.IDLE:
            return
        if self.conn.our_state is h11.IDLE and self.conn.trailing_data[0]:
            self._refuse(408, "the head of the request took too long")
        else:
            self._socket.close()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, called while the error is handled."""
        error = sys.exception()
        status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        if status == 431:
            msg = f"the head of the request is longer than {self._most()} bytes"
        elif isinstance(error, h11.RemoteProtocolError):
            msg = f"not a valid request: {error!s:.200}"
        self._refuse(status, msg)

    def _most(self) -> int:
        return self.config.h11_max_incomplete_event_size or 16 * 1024

    def _refuse(self, status: int, message: str) -> None:
        self._stop_timers()
        if self.conn.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            # Something was said already.
            self._socket.close()
            return
        body = f"{message}\n".encode()
        head = h11.Response(
            status_code=status,
            headers=[
                *self.server_state.default_headers,
                (b"content-type", b"text/plain; charset=utf-8"),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
            ],
            reason=http.HTTPStatus(status).phrase.encode(),
        )
        for event in (head, h11.Data(data=body), h11.EndOfMessage()):
            self._socket.write(self.conn.send(event) or b"")
        if self._answering_now:
            # The application reads a body that has gone wrong.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._close_in_stages()

    # ------------------------------------------------------------------------------- the answer

    async def _answering(
        self,
        scope: Any,
        receive: Callable[[], Awaitable[Any]],
        send: Callable[[Any], Awaitable[None]],
    ) -> None:
        """Call the application.

        What had come of a body when its connection broke is handed over, which uvicorn would drop;
        `Connection: close` is added to the answer where that is right.
        """
        cycle = self.cycle

        async def listen() -> Any:
            message = await receive() if not cycle.disconnected else GONE
            if message["type"] == "http.disconnect" and cycle.body and not cycle.response_complete:
                message = {"type": "http.request", "body": bytes(cycle.body), "more_body": True}
                cycle.body = bytearray()
            return message

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start" and self._ends_with(message, scope):
                message = {
                    **message,
                    "headers": [*message.get("headers", ()), (b"connection", b"close")],
                }
            await send(message)

        await self._wrapped(scope, listen, answer)

    def _ends_with(self, answer: Message, scope: Any) -> bool:
        """Whether the rest of the request's body is not worth waiting for.

        A client that waits for `100 Continue` may send the body, or leave it out: what follows it
        could not be told from it. One that stalled is answered 503, as are all when the server
        stops or has too much to do.
        """
        cycle = self.cycle
        if not cycle.more_body or cycle.scope is not scope:
            return False
        if cycle.waiting_for_100_continue or not cycle.keep_alive or answer["status"] >= 500:
            return True
        length = next((v for n, v in scope["headers"] if n == b"content-length"), None)
        return length is None or int(length) - self._came > DISCARD

    @property
    def _draining(self) -> bool:
        """Whether the request was answered, and its body is still coming."""
        return self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY

    def _drain(self, size: int) -> None:
        self._unread += size
        if self._draining and self._unread > 2 * DISCARD:
            self._close_in_stages()

    # ---------------------------------------------------------------------------------- the end

    def _close(self) -> None:
        """What uvicorn means by closing."""
        if not self._closing and self.conn.their_state is h11.SEND_BODY:
            self._close_in_stages()
        elif not self._closing:
            self._closing = True
            self._stop_timers()
            self._socket.close()

    def _close_in_stages(self) -> None:
        self._closing = True
        self._stop_timers()
        self._unset_keepalive_if_required()
        if self._socket.is_closing():
            return
        if self._socket.can_write_eof():
            self._socket.write_eof()
        self._unread = 0
        self._linger()
        self.flow.resume_reading()

    def _linger(self) -> None:
        """Close, if need be, in a while."""
        if self._linger_timer is not None:
            self._linger_timer.cancel()
        self._linger_timer = self.loop.call_later(self._linger_for, self._socket.abort)

    def _throw_away(self, data: bytes) -> None:
        self._unread += len(data)
        if self._unread > LINGER_BYTES:
            self._socket.abort()

    def _stop_timers(self) -> None:
        self._stop_head_timer()
        if self._linger_timer is not None:
            self._linger_timer.cancel()
            self._linger_timer = None


class _Closing:
    """A transport whose `close` is ours."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self._transport = transport
        self._close = close
        self._asked = False

    def close(self) -> None:
        self._asked = True
        self._close()

    def is_closing(self) -> bool:
        return self._asked or self._transport.is_closing()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
