"""tidegate as an ASGI application: on its own, or mounted in another."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol, Self
from urllib.parse import quote, unquote

import anyio
import anyio.lowlevel

from tidegate.engine.core import Settings
from tidegate.engine.engine import WEEK, Engine
from tidegate.events.callable import as_sinks
from tidegate.ports import DataError, Durability, MetadataError
from tidegate.protocol.capabilities import Capability
from tidegate.protocol.dialects.http import Request
from tidegate.protocol.errors import Code, Refusal
from tidegate.transports.access import Access, log_line
from tidegate.transports.body import PATIENT, AsgiBody, Patience
from tidegate.transports.monitoring import (
    HEALTH,
    METRICS,
    OPENAPI,
    SAY_EVERY,
    Pages,
    Readiness,
    say,
)
from tidegate.transports.service import Answer, Service, log
from tidegate.transports.slots import Slots

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping, Sequence

    from tidegate.events.callable import OnEvent
    from tidegate.hooks import Authorize, Hooks
    from tidegate.measures import Measures
    from tidegate.ports import Body, Clock, DataStore, EventSink, MetadataStore
    from tidegate.transports.access import Line, Sent

    Scope = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
    Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Give(Protocol):
    """Hands a piece of the response's body to the server."""

    async def __call__(self, chunk: bytes, *, more: bool = True) -> None:
        """Wait until the server takes it."""


class Tidegate:
    """A tus server as an ASGI 3 application (asyncio).

    Alone, the server's lifespan opens and closes it. Mounted in an application that does not pass
    its lifespan on, either give that application `lifespan=tidegate.lifespan`, or enter it with
    `async with tidegate:`; failing both it opens at the first request, and is closed by the end of
    the process (which loses nothing).

    `base_path` is below where the application is mounted. `public_url` is what clients see in front
    of it, when neither Host nor a trusted proxy tells. Sizes are bytes, times are seconds. With
    `accept_upgrade` a request that carries both an Upgrade field and a body is accepted: safe on
    every server but uvicorn's httptools protocol, which would take the body for another request.
    `transport` is what a server of our own can do beyond ASGI.
    `on_event` is told of what happens to uploads: callables, which get a `Delivery` (a coroutine
    function on the event loop, any other in a thread), or sinks from `tidegate.events`. Each event
    is told at least once, those of one upload in order; what raises is told again.
    `authorize` says whose a request is, or refuses it, and `hooks` decide at the turning points of
    an upload: see `tidegate.hooks`. An upload is there for its owner alone. That holds also where
    there is no `authorize` (any more): then those that have an owner are there for nobody. Without
    `owners` nobody asks whose an upload is: whoever may come in may use it.
    `patience` is how long a client is waited for, `slots` is how many bodies are received at once.

    `measures` are counted for `monitoring`, an application of its own, to be mounted where only
    operators come: `/healthz`, `/readyz`, `/metrics`, `/openapi.json`. `pages` are those of them
    that this application itself answers at, whoever asks. `tell` is given a line about every
    request; by default it goes to the logger `tidegate.access`. With `log_metadata` it has what the
    client says of its file.
    """

    def __init__(
        self,
        data: DataStore,
        metadata: MetadataStore,
        *,
        base_path: str = "/",
        public_url: str | None = None,
        relative_location: bool = False,
        trusted_proxies: Sequence[str] = (),
        cors_origins: Sequence[str] = ("*",),
        max_size: int | None = None,
        expire_after: float | None = WEEK,
        disable: Sequence[str] = (),
        downloads: bool = True,
        durability: Durability = Durability.COMPLETE,
        settings: Settings | None = None,
        on_event: Sequence[EventSink | OnEvent] = (),
        authorize: Authorize | None = None,
        hooks: Hooks | None = None,
        owners: bool = True,
        accept_upgrade: bool = False,
        transport: Capability = Capability.NONE,
        patience: Patience = PATIENT,
        slots: Slots | None = None,
        clock: Clock | None = None,
        measures: Measures | None = None,
        pages: Sequence[str] = (),
        tell: Callable[[Line], None] | None = log_line,
        log_metadata: bool = False,
    ) -> None:
        """Do nothing but check. Raises ValueError, in words for the developer."""
        self.engine = Engine(
            data,
            metadata,
            settings=settings or Settings(durability=durability),
            max_size=max_size,
            expire_after=expire_after,
            disabled=disable,
            downloads=downloads,
            transport=transport,
            sinks=as_sinks(on_event),
            authorize=authorize,
            hooks=hooks,
            owners=owners,
            clock=clock,
            measures=measures,
        )
        self.service = Service(
            self.engine,
            base_path=base_path,
            public_url=public_url,
            relative_location=relative_location,
            trusted_proxies=trusted_proxies,
            cors_origins=cors_origins,
        )
        self._accept_upgrade = accept_upgrade
        self.patience = patience
        self.slots = slots or Slots()
        self.measures = measures
        self.access = Access(measures, tell=tell, metadata=log_metadata)
        self.queues: dict[str, Callable[[], int]] = {}
        """How much waits in front of what is not a store, by its name in `measures.QUEUES`."""
        self.readiness = Readiness(self)
        self._pages = Pages(self, tuple(pages), details=False)
        self.monitoring = Pages(self, (*HEALTH, METRICS, OPENAPI), details=True)
        self._runner: asyncio.Task[None] | None = None
        self._opening: asyncio.Future[None] | None = None
        self._closing = asyncio.Event()

    # -------------------------------------------------------------------------------- lifespan

    async def __aenter__(self) -> Self:
        """Open the stores. Raises DataError, MetadataError, in words for the operator."""
        await self._open()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop what goes on behind the requests, sync, close the stores."""
        await self._close()

    @asynccontextmanager
    async def lifespan(self, _app: object = None) -> AsyncIterator[None]:
        """The lifespan of an application that this one is mounted in."""
        async with self:
            yield

    @property
    def is_open(self) -> bool:
        """Whether the stores are."""
        opening = self._opening
        return opening is not None and opening.done() and opening.exception() is None

    def take_place(self, place: int) -> None:
        """Be the process number `place` of several that were forked after this was made."""
        self.slots.take_place(place)
        self.access.place = place
        if self.measures is not None:
            self.measures.take_place(place)

    def drain(self) -> None:
        """The server got the word to stop: ask every body that is being received to end.

        What arrived is kept, and such requests are refused with Retry-After, as are new bodies.
        """
        self.engine.drain()

    async def _open(self) -> None:
        if self._opening is None:
            self._closing = asyncio.Event()
            self._opening = asyncio.get_running_loop().create_future()
            self._runner = asyncio.create_task(self._run(self._opening), name="tidegate")
        if not self._opening.done():
            await asyncio.shield(self._opening)
        self._opening.result()

    async def _run(self, opened: asyncio.Future[None]) -> None:
        """The engine's life, in one task from its beginning to its end."""
        try:
            async with self.engine:
                opened.set_result(None)
                await self._until_closing()
        except Exception as error:
            if opened.done():
                log.exception("what goes on behind the requests has failed")
                raise
            opened.set_exception(error)
        finally:
            # Opened again by the next request: what is wrong may pass.
            if self._opening is opened:
                self._opening = None

    async def _until_closing(self) -> None:
        while self.measures is not None and not self._closing.is_set():
            say(self, self.measures)
            with anyio.move_on_after(SAY_EVERY):
                await self._closing.wait()
        await self._closing.wait()
        await self.readiness.close()

    async def _close(self) -> None:
        runner, self._runner, self._opening = self._runner, None, None
        if runner is not None:
            self._closing.set()
            await runner

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        # Whatever is raised here is taken by servers for an application without lifespan.
        try:
            await self._open()
        except Exception as error:  # noqa: BLE001
            await send({"type": "lifespan.startup.failed", "message": _why(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        try:
            await self._close()
        except Exception as error:  # noqa: BLE001
            await send({"type": "lifespan.shutdown.failed", "message": _why(error)})
            return
        await send({"type": "lifespan.shutdown.complete"})

    # -------------------------------------------------------------------------------- requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI 3. Speaks `http` and `lifespan`; a websocket is turned away."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        else:
            await receive()
            await send({"type": "websocket.close", "code": 1000})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        root_path = scope.get("root_path", "")
        path = _path(scope, root_path)
        peer = scope["client"][0] if scope.get("client") and scope["client"][0] else None
        headers = [(name.lower(), value) for name, value in scope["headers"]]
        origin = self.service.origin(scope.get("scheme", "http"), peer, headers)
        below = self.service.below_base(path)
        request = Request(
            method=scope["method"],
            path=below or "",
            headers=headers,
            base_path=root_path.rstrip("/") + self.service.base_path,
            base_url=self.service.base_url(origin, root_path),
            url=self.service.called(origin, _target(scope)),
            client=origin.client,
            scope=scope,
            may_omit_length=scope.get("http_version", "1.1") not in ("1.0", "1.1"),
        )
        body = AsgiBody(receive, self.patience)
        await self.access.see_through(
            request,
            body,
            path=path,
            client=origin.client,
            answering=self.answer(request, body, origin.client, path=path, known=below is not None),
            send=functools.partial(self._send, request, receive, send),
        )

    async def answer(
        self,
        request: Request,
        body: Body,
        client: str | None,
        *,
        path: str,
        known: bool,
        upgrade_is_safe: bool = False,
    ) -> Answer:
        """Answer a request, however it came in. Never raises what is not a cancellation.

        `path` is its own, `known`: it is under our base path. `upgrade_is_safe`: the transport
        keeps the body of a request that carries an Upgrade field.
        """
        if path in self._pages.paths:
            return await self._pages.answer(request, path)
        if not known:
            refusal = Refusal(Code.NOT_FOUND, f"uploads live under {request.base_path}")
            return self.service.refuse(refusal, request)
        safe = upgrade_is_safe or self._accept_upgrade
        if not safe and request.values(b"upgrade") and _has_body(request):
            refusal = Refusal(
                Code.BAD_REQUEST, "Upgrade: not on a request with a body; send it without"
            )
            return self.service.refuse(refusal, request)
        try:
            await self._open()
        except Exception as error:  # noqa: BLE001 - nothing goes past an answer
            log.error("cannot open: %s", _why(error))
            refusal = Refusal(Code.UNAVAILABLE, "the server is not ready; try again", retry_after=2)
            return self.service.refuse(refusal, request)
        if not _has_body(request):
            return await self.service.answer(request, body)
        try:
            with self.slots.taken(client):
                return await self.service.answer(request, body)
        except Refusal as refusal:
            return self.service.refuse(refusal, request)

    async def _send(
        self, request: Request, receive: Receive, send: Send, answer: Answer, sent: Sent
    ) -> None:
        """Send the answer; what is given to the server counts as sent."""
        await send(
            {"type": "http.response.start", "status": answer.status, "headers": answer.headers}
        )
        if not answer.pieces or request.method == "HEAD":
            body = b"" if request.method == "HEAD" else answer.body
            await send({"type": "http.response.body", "body": body})
            sent.bytes = len(body)
            return

        async def give(chunk: bytes, *, more: bool = True) -> None:
            # A client that has it all may be gone before `send` returns.
            sent.whole = not more
            await send({"type": "http.response.body", "body": chunk, "more_body": more})
            sent.bytes += len(chunk)

        sent.whole = False
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_until_gone, receive, tasks.cancel_scope)
            await self._send_pieces(answer, give)
            tasks.cancel_scope.cancel()

    async def _send_pieces(self, answer: Answer, give: Give) -> None:
        upload = answer.upload
        if upload is None:
            raise AssertionError
        try:
            for piece in answer.pieces:
                if piece.before:
                    await give(piece.before)
                async with _closing(self.engine.read(upload, piece.start, piece.stop)) as chunks:
                    async for chunk in chunks:
                        await give(chunk)
                        # Neither store nor server may have waited: see whether the client is gone.
                        await anyio.lowlevel.checkpoint()
        except DataError as error:
            # The head is sent: to break off is the only way left to say that this is not all.
            log.error("upload %s cannot be read: %s", upload.id, error)
            raise
        await give(answer.after, more=False)


async def _until_gone(receive: Receive, scope: anyio.CancelScope) -> None:
    """Cancel `scope` when the client goes away, so that nothing is read for nobody."""
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


@asynccontextmanager
async def _closing(chunks: AsyncIterator[bytes]) -> AsyncIterator[AsyncIterator[bytes]]:
    """Have the store close what it reads from also when the reading is broken off."""
    try:
        yield chunks
    finally:
        if isinstance(chunks, AsyncGenerator):
            with anyio.CancelScope(shield=True):
                await chunks.aclose()


def _path(scope: Scope, root_path: str) -> str:
    """The path below where the application is mounted, percent-encoded as it was sent.

    Servers and frameworks differ in whether it still begins with `root_path`, which is decoded.
    """
    raw = scope.get("raw_path")
    path = raw.decode("latin-1").partition("?")[0] if raw else quote(scope["path"])
    # "a server MUST accept the absolute-form in requests" (RFC 9112, 3.2.2).
    if path.startswith(("http://", "https://")):
        path = "/" + path.split("/", 3)[3] if path.count("/") > 2 else "/"
    root = root_path.rstrip("/")
    segments = path.split("/")
    depth = root.count("/") + 1
    head = "/".join(segments[:depth])
    if root and root in (head, unquote(head)):
        return "/" + "/".join(segments[depth:])
    return path


def _target(scope: Scope) -> str:
    """The path and the query as they were sent, as far as the server tells."""
    path, query = scope.get("raw_path"), scope.get("query_string", b"")
    target: str = path.decode("latin-1") if path else quote(scope["path"])
    return f"{target.partition('?')[0]}?{query.decode('latin-1')}" if query else target


def _why(error: Exception) -> str:
    """What went wrong, for the operator: in words, where it was foreseen."""
    if isinstance(error, (DataError, MetadataError)):
        return str(error)
    return f"{type(error).__name__}: {error}"


def _has_body(request: Request) -> bool:
    lengths = request.values(b"content-length")
    return bool(request.values(b"transfer-encoding")) or any(n != "0" for n in lengths)
