"""Pages for those who run the server: whether it lives, whether it can work, what it measured."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from typing import TYPE_CHECKING, Any, Final

from tidegate.measures import (
    EVENTS_GIVEN_UP,
    EVENTS_PENDING,
    IN_FLIGHT,
    OLDEST_EVENT,
    QUEUED,
    UPLOADS,
    Measures,
)
from tidegate.ports import DataError, MetadataError
from tidegate.protocol.dialects.http import Header, Request, header
from tidegate.protocol.model import State
from tidegate.transports import openapi
from tidegate.transports.service import Answer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from tidegate.transports.asgi import Receive, Scope, Send, Tidegate
    from tidegate.transports.metrics import Metrics

HEALTH: Final = ("/healthz", "/readyz")
METRICS: Final = "/metrics"
OPENAPI: Final = "/openapi.json"
PROBE_WITHIN: Final = 2.0
"""Seconds that a store has to answer; less than the time-outs of those who ask are."""
LOOK_AGAIN: Final = 1.0
"""Seconds for which what a look showed is told to whoever asks."""
COUNT_AGAIN: Final = 15.0
"""Seconds for which counts hold: they read an entry of an index for each upload."""
COUNT_WITHIN: Final = 8.0
"""Seconds that they may take; Prometheus waits for 10."""
SAY_EVERY: Final = 2.0
"""Seconds between two words of a process about itself."""

log = logging.getLogger("tidegate.server")


class Readiness:
    """Whether the server can do its work, and each of the stores that it depends on."""

    def __init__(self, app: Tidegate) -> None:
        self._app = app
        engine = app.engine
        self._stores: dict[str, Callable[[], Awaitable[None]]] = {
            "data": engine.probe_data,
            "metadata": engine.probe_metadata,
        }
        self._probes: dict[str, asyncio.Task[str]] = {}
        """Those that were not answered yet; never two of one store."""
        self._found: dict[str, str] = {}
        """Why not, by store; empty: it is."""
        self._looked_at = -math.inf
        self._looking: asyncio.Task[dict[str, str]] | None = None

    async def why_not(self) -> dict[str, str]:
        """What is not as it should be, by what it is; empty where all is well."""
        if not self._app.is_open:
            return {"server": "is not open"}
        if self._app.engine.draining:
            return {"server": "is about to stop"}
        if time.monotonic() - self._looked_at < LOOK_AGAIN:
            return self._found
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look(), name="tidegate-readiness")
        return await asyncio.shield(self._looking)

    async def close(self) -> None:
        """Wait no longer for what was not answered."""
        tasks = [task for task in (self._looking, *self._probes.values()) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            # A store that hangs does not let go of who waits for it.
            await asyncio.wait(tasks, timeout=LOOK_AGAIN)
        self._looking = None
        self._probes.clear()

    async def _look(self) -> dict[str, str]:
        for store, probe in self._stores.items():
            if store not in self._probes:
                self._probes[store] = asyncio.create_task(_why(probe()), name=f"probe-{store}")
        await asyncio.wait(self._probes.values(), timeout=PROBE_WITHIN)
        found: dict[str, str] = {}
        for store in self._stores:
            task = self._probes[store]
            if task.done():
                del self._probes[store]
            why = task.result() if task.done() else f"no answer within {PROBE_WITHIN:g} s"
            if why:
                found[store] = why
            if found.get(store) != self._found.get(store):
                log.warning("the %s store %s", store, f"is not ready: {why}" if why else "is ready")
        self._found = found
        self._looked_at = time.monotonic()
        return found


class Pages:
    """Answers at fixed paths, to whoever asks.

    `names` are those of HEALTH, METRICS and OPENAPI. Only with `details` they tell why a store is
    not ready: that is for operators.
    """

    def __init__(self, app: Tidegate, names: tuple[str, ...], *, details: bool) -> None:
        self._app = app
        self._details = details
        known: Mapping[str, Callable[[Request], Awaitable[Answer]]] = {
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            METRICS: self._metrics,
            OPENAPI: self._openapi,
        }
        self._pages = {name: known[name] for name in names}
        self.paths = frozenset(names)
        self._metrics_of: Metrics | None = None
        self._document = b""

    async def answer(self, request: Request, path: str) -> Answer:
        """The answer to a request for one of them; 404 for others."""
        page = self._pages.get(path)
        if page is None:
            return _answer(404, b"there is no such page\n", "text/plain; charset=utf-8")
        if request.method not in ("GET", "HEAD"):
            return _answer(
                405, b"expected GET\n", "text/plain; charset=utf-8", ("allow", "GET, HEAD")
            )
        return await page(request)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The pages alone, as an ASGI application."""
        if scope["type"] != "http":
            raise NotImplementedError(scope["type"])
        del receive
        headers = [(name.lower(), value) for name, value in scope["headers"]]
        request = Request(method=scope["method"], path="", headers=headers)
        path = scope["path"].removeprefix(scope.get("root_path", "").rstrip("/"))
        answer = await self.answer(request, path)
        await send(
            {"type": "http.response.start", "status": answer.status, "headers": answer.headers}
        )
        body = b"" if request.method == "HEAD" else answer.body
        await send({"type": "http.response.body", "body": body})

    async def _healthz(self, _: Request) -> Answer:
        return _json(200, {"status": "ok"})

    async def _readyz(self, _: Request) -> Answer:
        why_not = await self._app.readiness.why_not()
        dependencies: dict[str, dict[str, Any]] = {}
        for name in ("data", "metadata"):
            dependencies[name] = {"ok": name not in why_not}
        for name, why in why_not.items():
            dependencies[name] = {"ok": False} | ({"why": why} if self._details else {})
        status = "not ready" if why_not else "ready"
        return _json(503 if why_not else 200, {"status": status, "dependencies": dependencies})

    async def _metrics(self, request: Request) -> Answer:
        app = self._app
        if app.measures is None:
            return _answer(404, b"nothing is measured\n", "text/plain; charset=utf-8")
        await count(app, app.measures)
        say(app, app.measures)
        if self._metrics_of is None:
            # Imported when it is asked for: it takes longer than all the rest here.
            from tidegate.transports.metrics import Metrics  # noqa: PLC0415

            self._metrics_of = Metrics(app.measures, app.slots.in_use)
        accept = ",".join(request.values(b"accept"))
        body, content_type = self._metrics_of.render(accept)
        return _answer(200, body, content_type)

    async def _openapi(self, _: Request) -> Answer:
        if not self._document:
            app = self._app
            found = openapi.document(app.engine.offer, app.service.base_path, self._pages)
            self._document = json.dumps(found).encode()
        return _answer(200, self._document, "application/json")


def say(app: Tidegate, measures: Measures) -> None:
    """Let the other processes know what this one has under way."""
    queued = app.engine.queued() if app.is_open else {}
    for name, depth in app.queues.items():
        queued[name] = depth()
    values: dict[int, float] = {IN_FLIGHT.start: app.access.in_flight}
    values |= {QUEUED.cell(name): depth for name, depth in queued.items()}
    measures.say(values)


async def count(app: Tidegate, measures: Measures) -> None:
    """See how many uploads and events there are, unless some process has just done so."""
    if measures.noted_for() < COUNT_AGAIN or not app.is_open:
        return
    try:
        async with asyncio.timeout(COUNT_WITHIN):
            counts = await app.engine.counts()
    except (MetadataError, TimeoutError) as error:
        log.warning("uploads cannot be counted: %s", error if str(error) else "no answer")
        return
    values = {UPLOADS.cell(state): float(counts.uploads.get(state, 0)) for state in State}
    values[EVENTS_PENDING.start] = counts.pending_events
    values[EVENTS_GIVEN_UP.start] = counts.given_up_events
    values[OLDEST_EVENT.start] = counts.oldest_event_at or 0.0
    measures.note(values)


async def _why(probe: Awaitable[None]) -> str:
    """What is wrong, in words for the operator; empty: nothing."""
    try:
        await probe
    except (DataError, MetadataError) as error:
        return str(error) or type(error).__name__
    except Exception as error:
        log.exception("a probe failed")
        return type(error).__name__
    return ""


def _json(status: int, value: object) -> Answer:
    return _answer(status, json.dumps(value).encode() + b"\n", "application/json")


def _answer(status: int, body: bytes, content_type: str, *more: tuple[str, str]) -> Answer:
    headers: list[Header] = [
        header(b"content-type", content_type),
        header(b"content-length", str(len(body))),
        header(b"cache-control", "no-store"),
        *(header(name.encode(), value) for name, value in more),
    ]
    return Answer(status=status, headers=headers, body=body, quiet=True)
