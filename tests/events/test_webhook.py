"""Webhooks, sent to a real server."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from tests.events.samples import delivery
from tests.support.receiver import OTHER_SECRET, SECRET, Answer, Receiver

import tidegate
from tidegate.events import webhook
from tidegate.events.webhook import WebhookSink, webhook_name
from tidegate.ports import DeliveryError
from tidegate.testing import FakeClock

pytestmark = pytest.mark.anyio
NOW = 1_700_000_000


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as started:
        yield started


@asynccontextmanager
async def opened(url: str, *secrets: str, **options: Any) -> AsyncIterator[WebhookSink]:
    sink = WebhookSink(url, secrets or [SECRET], clock=FakeClock(NOW + 0.9), **options)
    await sink.open()
    try:
        yield sink
    finally:
        await sink.close()
        await sink.close()


async def test_an_event_is_posted_and_signed(receiver: Receiver) -> None:
    async with opened(receiver.url, OTHER_SECRET, SECRET) as sink:
        await sink.deliver(delivery())
        await sink.deliver(delivery(attempts=3))
    first, again = receiver.received
    assert (first.method, first.path) == ("POST", "/hook")
    assert first.headers["content-type"] == "application/json"
    assert first.headers["user-agent"] == f"tidegate/{tidegate.__version__}"
    assert first.headers["webhook-timestamp"] == str(NOW)
    assert first.headers["webhook-id"] == again.headers["webhook-id"] == "7-abc-1"
    for each in (first, again):
        assert each.signed_by(OTHER_SECRET, SECRET)
        assert not each.signed_by(SECRET)
    assert first.payload["type"] == "upload.completed"
    assert again.payload["data"]["attempt"] == 4
    # One connection does for both.
    assert first.connection == again.connection
    assert SECRET.encode() not in first.body


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
async def test_any_success_takes_it(receiver: Receiver, status: int) -> None:
    receiver.answer = lambda _: Answer(status)
    async with opened(receiver.url) as sink:
        await sink.deliver(delivery())


@pytest.mark.parametrize("status", [300, 301, 307, 400, 404, 429, 500, 502, 504])
async def test_any_other_status_is_a_failure(receiver: Receiver, status: int) -> None:
    """Also a redirect, which is not followed."""
    receiver.answer = lambda _: Answer(status, {"location": f"{receiver.url}/other"})
    async with opened(receiver.url) as sink:
        with pytest.raises(DeliveryError, match=f"answered {status}") as raised:
            await sink.deliver(delivery())
        assert (raised.value.final, raised.value.retry_after) == (False, None)
    assert len(receiver.received) == 1


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120),
        ("0", 0),
        ("9" * 30, 999_999_999),
        ("Tue, 14 Nov 2023 22:15:20 GMT", 119.1),
        ("Tue, 14 Nov 2022 22:15:20 GMT", 0),
        ("soon", None),
        ("-5", None),
    ],
)
async def test_retry_after(receiver: Receiver, value: str, seconds: float | None) -> None:
    receiver.answer = lambda _: Answer(503, {"retry-after": value})
    async with opened(receiver.url) as sink:
        with pytest.raises(DeliveryError) as raised:
            await sink.deliver(delivery())
    assert raised.value.retry_after == pytest.approx(seconds)


async def test_a_receiver_that_is_gone_is_sent_nothing_more(receiver: Receiver) -> None:
    """Until the next start."""
    receiver.answer = lambda _: Answer(410)
    sink = WebhookSink(receiver.url, [SECRET])
    for starts in (1, 2):
        await sink.open()
        for _ in range(2):
            with pytest.raises(DeliveryError) as raised:
                await sink.deliver(delivery())
            assert raised.value.final
        await sink.close()
        assert len(receiver.received) == starts


async def test_a_receiver_that_breaks_off(receiver: Receiver) -> None:
    receiver.answer = lambda _: Answer(broken=True)
    async with opened(receiver.url) as sink:
        with pytest.raises(DeliveryError, match="RemoteProtocolError"):
            await sink.deliver(delivery())
        receiver.answer = lambda _: Answer()
        await sink.deliver(delivery())


async def test_nobody_listens() -> None:
    with Receiver() as away:
        url = away.url
    async with opened(url) as sink:
        with pytest.raises(DeliveryError, match="ConnectError"):
            await sink.deliver(delivery())


async def test_a_long_answer_is_not_read(receiver: Receiver) -> None:
    receiver.answer = lambda _: Answer(200, body=b"x" * (webhook.ANSWER_BYTES * 40))
    async with opened(receiver.url) as sink:
        for _ in range(2):
            await sink.deliver(delivery())
    # What was left of the first would have come before the second.
    assert receiver.received[0].connection != receiver.received[1].connection


async def test_a_receiver_that_hangs_is_left(receiver: Receiver) -> None:
    """It is the outbox that measures the time; what was cancelled leaves the sink usable."""
    go = threading.Event()
    receiver.answer = lambda _: Answer(wait=go)
    async with opened(receiver.url) as sink:
        with anyio.move_on_after(0.2) as scope:
            await sink.deliver(delivery())
        assert scope.cancelled_caught
        go.set()
        receiver.answer = lambda _: Answer()
        await sink.deliver(delivery())


async def test_it_needs_a_secret() -> None:
    with pytest.raises(ValueError, match="needs a secret"):
        WebhookSink("http://127.0.0.1/", [])


async def test_names_tell_webhooks_apart_and_no_secrets() -> None:
    names = [
        webhook_name(url)
        for url in (
            "https://u:pw@e.org/a?k=pw",
            "https://e.org/b",
            "https://e.org/b",
            "http://[::1]/",
        )
    ]
    assert names[0].startswith("webhook-e-org-")
    assert names[0] != names[1] == names[2]
    assert names[3].startswith("webhook---1-")
    assert not any("pw" in name for name in names)
