"""Webhooks: events as signed HTTP requests, by the scheme of Standard Webhooks 1.0.0."""

from __future__ import annotations

import email.utils
import hashlib
import logging
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Final

import anyio.to_thread
import httpx

from tidegate import __version__
from tidegate.clock import SystemClock
from tidegate.events.callable import TIMEOUT
from tidegate.events.payload import payload
from tidegate.events.signing import parse_secret, sign
from tidegate.ports import Delivery, DeliveryError
from tidegate.protocol.model import STORED_EVENTS, EventType

if TYPE_CHECKING:
    from tidegate.ports import Clock, EventSink

ANSWER_BYTES: Final = 64 * 1024
"""How much of an answer is read, for the sake of its connection."""
CONNECTIONS: Final = 32
"""At a time, to one receiver."""

log = logging.getLogger("tidegate.events")


class WebhookSink:
    """POSTs each event to a URL; see `payload` for the body, `sign` for the header.

    Any 2xx takes the event. Redirects are not followed: they are a failure, as is every other
    status, after which Retry-After is heeded. After 410 nothing more is sent until the next start,
    and what was to be sent is given up at once, to be replayed when the receiver is back.
    `secrets` are `whsec_…`, the newest first: each of them signs, so that a receiver can change
    from one to the next. `timeout` is in seconds. Raises ValueError for a secret that is none.
    """

    def __init__(
        self,
        url: str,
        secrets: Sequence[str],
        *,
        name: str | None = None,
        types: Collection[EventType] = STORED_EVENTS,
        timeout: float = TIMEOUT,
        clock: Clock | None = None,
    ) -> None:
        if not secrets:
            raise ValueError("a webhook needs a secret that signs it")
        self.name = name or webhook_name(url)
        self.types = frozenset(types)
        self.timeout = timeout
        self._url = url
        self._keys = [parse_secret(secret) for secret in secrets]
        self._clock = clock or SystemClock()
        self._client: httpx.AsyncClient | None = None
        self._gone = False

    async def open(self) -> None:
        """Make a client; nothing is sent."""
        self._gone = False
        # In a thread: it reads the certificates that are trusted.
        self._client = await anyio.to_thread.run_sync(self._make_client)

    def _make_client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            timeout=self.timeout,
            follow_redirects=False,
            limits=httpx.Limits(max_connections=CONNECTIONS),
            headers={"user-agent": f"tidegate/{__version__}"},
        )

    async def close(self) -> None:
        """Close its connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def deliver(self, delivery: Delivery) -> None:
        """Send it once. Raises DeliveryError."""
        if self._client is None:
            raise AssertionError
        if self._gone:
            raise DeliveryError("is gone (410): nothing is sent until a restart", final=True)
        body = payload(delivery)
        headers = sign(self._keys, delivery.key, int(self._clock.now()), body)
        headers["content-type"] = "application/json"
        try:
            async with self._client.stream(
                "POST", self._url, content=body, headers=headers
            ) as answer:
                await _read(answer)
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise DeliveryError(f"{type(error).__name__}: {error}".rstrip(": ")) from error
        if not answer.is_success:
            self._refused(answer)

    def _refused(self, answer: httpx.Response) -> None:
        # "410 Gone: […] no longer interested in receiving webhooks from this source. Sender should
        # disable the webhook endpoint, and stop sending it messages."
        if answer.status_code == httpx.codes.GONE:
            self._gone = True
            log.error(
                "%s answered 410: nothing more is sent to it until a restart. If it is to be told"
                " no more, take it out of the settings",
                self.name,
            )
            raise DeliveryError("answered 410", final=True)
        after = _seconds(answer.headers.get("retry-after", ""), self._clock.now())
        raise DeliveryError(f"answered {answer.status_code}", retry_after=after)


def webhook_name(url: str) -> str:
    """What a webhook is called unless it has a name: its host, and what tells it from others.

    The URL itself may hold a password.
    """
    digest = hashlib.sha256(url.encode()).hexdigest()[:8]
    host = "".join(c if c.isalnum() and c.isascii() else "-" for c in httpx.URL(url).host)
    return f"webhook-{host[:60]}-{digest}"


async def _read(answer: httpx.Response) -> None:
    """Read an answer to its end, so that its connection can be used again; unless it is long."""
    left = ANSWER_BYTES
    async for chunk in answer.aiter_raw():
        left -= len(chunk)
        if left < 0:
            return


def _seconds(retry_after: str, now: float) -> float | None:
    """Retry-After, a number of seconds or a date; None where there is none that can be read."""
    if retry_after.isascii() and retry_after.isdecimal():
        return float(retry_after[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - now)
    except ValueError:
        return None


if TYPE_CHECKING:
    _: type[EventSink] = WebhookSink
