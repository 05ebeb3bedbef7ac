"""Asking a service of the operator's own about every request: forward-auth, as proxies do it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import urlsplit

import httpx
from anyio import to_thread

from tidegate.protocol.errors import Code, Denied, Refusal
from tidegate.protocol.model import Principal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tidegate.hooks import Authorize, UploadRequest
    from tidegate.protocol.model import Upload

log = logging.getLogger("tidegate.auth")

PRINCIPAL_HEADER: Final = "Remote-User"
SEND: Final = ("Authorization", "Cookie")
RETURN: Final = ("WWW-Authenticate", "Location", "Retry-After")
LONGEST_BODY: Final = 64 * 1024
"""Bytes of an answer that are passed on: a page that says what is wrong."""
REDIRECTS: Final = (301, 302, 303, 307, 308)


class ForwardAuth:
    """Sends the head of each request, never its body, to `url`, and does what the answer says.

    2xx: the request is made by whom the header `principal` names. A redirect and any 4xx are passed
    on, with their body (its first 64 KiB) and the headers in `pass_back`; all else, and a time-out
    after `timeout` seconds, is answered with 503. The service gets a GET with the headers in `send`
    and X-Forwarded-Method, -Proto, -Host, -Uri and -For. A context, for its connections.
    """

    def __init__(
        self,
        url: str,
        *,
        principal: str = PRINCIPAL_HEADER,
        send: Sequence[str] = SEND,
        pass_back: Sequence[str] = RETURN,
        timeout: float | None = 5.0,
    ) -> None:
        self._url = url
        self._header = principal
        self._send = tuple(send)
        self._pass_back = tuple(pass_back)
        self._timeout = timeout
        self._client: httpx.AsyncClient

    async def __aenter__(self) -> Self:
        # In a thread: it reads certificates. Without what the environment says of proxies and
        # passwords: the service is the operator's own, and gets what the client sent.
        self._client = await to_thread.run_sync(
            lambda: httpx.AsyncClient(timeout=self._timeout, trust_env=False)
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def __call__(self, request: UploadRequest, upload: Upload | None) -> Principal:
        """Whom the service names. Raises Denied, in its words; Refusal (503) without an answer."""
        del upload
        try:
            async with self._client.stream(
                "GET", self._url, headers=self._about(request)
            ) as answer:
                if answer.is_success:
                    return self._principal(answer)
                if 400 <= answer.status_code < 500 or answer.status_code in REDIRECTS:
                    raise await self._denied(answer)
                log.error("forward-auth: %s answered %d", self._url, answer.status_code)
        except httpx.HTTPError as error:
            # Not its message, which may repeat a header that we sent.
            log.error("forward-auth: %s: no answer: %s", self._url, type(error).__name__)
        raise _unavailable()

    def _about(self, request: UploadRequest) -> list[tuple[bytes, bytes]]:
        url = urlsplit(request.url)
        about = {
            "X-Forwarded-Method": request.method,
            "X-Forwarded-Proto": url.scheme,
            "X-Forwarded-Host": url.netloc,
            "X-Forwarded-Uri": url.path + (f"?{url.query}" if url.query else ""),
            "X-Forwarded-For": request.client or "",
        }
        sent = [(name, value) for name, value in about.items() if value]
        sent += [(name, value) for name in self._send for value in request.headers.all(name)]
        return [(name.encode("ascii"), value.encode("latin-1")) for name, value in sent]

    def _principal(self, answer: httpx.Response) -> Principal:
        try:
            return Principal(id=answer.headers.get(self._header, ""))
        except ValueError:
            log.error(
                "forward-auth: %s answered %d, and named nobody in %s",
                self._url,
                answer.status_code,
                self._header,
            )
            raise _unavailable() from None

    async def _denied(self, answer: httpx.Response) -> Denied:
        body = b""
        async for chunk in answer.aiter_bytes():
            body += chunk
            if len(body) > LONGEST_BODY:
                break
        headers = {name: answer.headers[name] for name in self._pass_back if name in answer.headers}
        headers["Content-Type"] = answer.headers.get("Content-Type", "text/plain; charset=utf-8")
        try:
            return Denied(answer.status_code, headers=headers, body=body[:LONGEST_BODY])
        except ValueError as error:
            log.error("forward-auth: %s: an answer that can't be passed on: %s", self._url, error)
            return Denied(answer.status_code if answer.status_code >= 400 else 403)


def _unavailable() -> Refusal:
    return Refusal(
        Code.UNAVAILABLE,
        "it cannot be asked now whether you may do this; try again",
        retry_after=5,
    )


if TYPE_CHECKING:

    def _guard(forward: ForwardAuth) -> Authorize:
        return forward
