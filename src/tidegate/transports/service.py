"""What every transport does with a request: parse, carry out, render, and write one line about it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING
from urllib.parse import quote

import msgspec

from tidegate.hooks import UploadRequest
from tidegate.ports import Shown
from tidegate.protocol.commands import Command, Discover
from tidegate.protocol.dialects import downloads, tus1
from tidegate.protocol.dialects.cors import Cors
from tidegate.protocol.dialects.http import Header, Request
from tidegate.protocol.errors import Code, Refusal
from tidegate.protocol.model import Upload
from tidegate.protocol.results import Readable
from tidegate.transports.origin import Origin, Proxies

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tidegate.engine.engine import Engine
    from tidegate.ports import Body

log = logging.getLogger("tidegate.transport")


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A response, ready to be sent: its body is `body`, or pieces of an upload and `after`."""

    status: int
    headers: list[Header]
    body: bytes = b""
    upload: Upload | None = None
    pieces: tuple[downloads.Piece, ...] = ()
    after: bytes = b""
    outcome: str = "ok"
    """What came of the request, in a word: `ok`, or the code of the refusal."""
    quiet: bool = False
    """Nobody wants to read of it: it is asked for every few seconds."""


class Service:
    """The HTTP interface of an engine, without the connections."""

    def __init__(
        self,
        engine: Engine,
        *,
        base_path: str,
        public_url: str | None,
        relative_location: bool,
        trusted_proxies: Sequence[str],
        cors_origins: Sequence[str],
    ) -> None:
        self.engine = engine
        self.base_path = f"/{_encoded(base_path.strip('/'))}/" if base_path.strip("/") else "/"
        self._public_url = public_url.rstrip("/") if public_url else None
        self._relative = relative_location
        self._proxies = Proxies(trusted_proxies)
        self._cors = Cors(
            origins=tuple(cors_origins),
            methods=tus1.METHODS,
            request_headers=tus1.REQUEST_HEADERS,
            response_headers=tus1.RESPONSE_HEADERS,
        )

    def origin(self, scheme: str, peer: str | None, headers: Sequence[Header]) -> Origin:
        """Where a request came from, as far as the trusted proxies tell."""
        return self._proxies.origin(scheme, peer, headers)

    def called(self, origin: Origin, target: str) -> str:
        """The URL that was called, with a target (a path and a query) as it was sent."""
        if target.startswith(("http://", "https://")):
            return target
        return f"{origin.scheme}://{origin.host or 'localhost'}{target}"

    def base_url(self, origin: Origin, root_path: str) -> str:
        """What Location begins with."""
        if self._public_url is not None:
            return self._public_url + self.base_path
        path = _encoded(root_path.rstrip("/")) + self.base_path
        if self._relative or origin.host is None:
            return path
        return f"{origin.scheme}://{origin.host}{path}"

    def below_base(self, path: str) -> str | None:
        """What follows the base path; None when `path` is not under it."""
        if path.startswith(self.base_path):
            return path[len(self.base_path) :]
        return "" if path == self.base_path.rstrip("/") else None

    async def answer(self, request: Request, body: Body) -> Answer:
        """Carry out a request. Never raises what is not a cancellation."""
        try:
            answer = await self._answer(request, body)
        except Refusal as refusal:
            answer = _refused(refusal, request)
        except Exception:
            log.exception("%s %s failed", request.method, request.path)
            internal = Refusal(Code.INTERNAL, "something went wrong here; try again")
            answer = _refused(internal, request)
        return self._shared(answer, request)

    def refuse(self, refusal: Refusal, request: Request) -> Answer:
        """The answer to a request that is refused by the transport itself."""
        return self._shared(_refused(refusal, request), request)

    def _shared(self, answer: Answer, request: Request) -> Answer:
        """An answer that a page of another site may read, if it may."""
        answer.headers.extend(self._cors.headers(request))
        return answer

    async def _answer(self, request: Request, body: Body) -> Answer:
        command = tus1.parse(request)
        asked = _asked(command, request) if self.engine.asks else None
        result = await self.engine.handle(command, body, asked)
        if isinstance(result, Readable):
            link = await self._link(result.upload, request)
            if link is not None:
                reading = downloads.redirect(link)
            else:
                reading = downloads.reading(result.upload, request)
            return Answer(
                status=reading.status,
                headers=[(b"tus-resumable", tus1.VERSION.encode()), *reading.headers],
                upload=result.upload,
                pieces=reading.pieces,
                after=reading.after,
            )
        response = tus1.render(result, request)
        upload = None if isinstance(command, Discover) else getattr(result, "upload", None)
        return Answer(
            status=response.status, headers=response.headers, body=response.body, upload=upload
        )

    async def _link(self, upload: Upload, request: Request) -> str | None:
        """Where the store would rather have an upload read; never a HEAD, for which it is not."""
        if request.method != "GET":
            return None
        return await self.engine.link(upload, Shown(*downloads.presentation(upload)))


def _refused(refusal: Refusal, request: Request) -> Answer:
    response = tus1.render_refusal(refusal, request)
    return Answer(
        status=response.status,
        headers=response.headers,
        body=response.body,
        outcome=refusal.code.label,
    )


def _asked(command: Command, request: Request) -> UploadRequest | None:
    """The request as those see it who decide; "preflights carry no credentials" (Fetch, 4.8)."""
    if isinstance(command, Discover):
        return None
    return UploadRequest(command, tus1.VERBS[type(command)], request)


def _encoded(path: str) -> str:
    """A path as it stands in a URL; what is percent-encoded already stays."""
    return quote(path, safe="/%:@!$&'()*+,;=~")
