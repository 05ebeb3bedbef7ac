"""Forward-auth: what the service is told, and what becomes of its answers."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import anyio
import pytest
from tests.auth.requests import asking, judged
from tests.support.logs import logs_kept
from tests.support.services import service

from tidegate.auth.forward import LONGEST_BODY, ForwardAuth
from tidegate.protocol.errors import Code, Denied, Refusal
from tidegate.protocol.model import Principal

pytestmark = pytest.mark.anyio

TOKEN = "secret-0123456789"


@pytest.fixture(autouse=True)
def logged() -> Iterator[list[logging.LogRecord]]:
    with logs_kept() as records:
        yield records
    assert not [record for record in records if TOKEN in record.getMessage()]


async def test_what_the_service_is_told() -> None:
    request = asking(
        f"Bearer {TOKEN}",
        url="https://tus.test:8443/files/a%2Fb?c=d&e",
        cookie="session=1",
        x_other="not for it",
        content_length="1000",
        host="tus.test",
    )
    async with service() as asked:
        asked.headers = [("Remote-User", "alice")]
        async with ForwardAuth(f"{asked.url}/auth?for=tus") as forward:
            assert await judged(forward, request) == Principal(id="alice")
    ((method, path, headers),) = asked.asked
    assert (method, path, asked.bodies) == ("GET", "/auth", [0])
    told = {name: value for name, value in headers.items() if name.startswith("x-")}
    assert told == {
        "x-forwarded-method": "POST",
        "x-forwarded-proto": "https",
        "x-forwarded-host": "tus.test:8443",
        "x-forwarded-uri": "/files/a%2Fb?c=d&e",
        "x-forwarded-for": "192.0.2.1",
    }
    assert headers["authorization"] == f"Bearer {TOKEN}"
    assert headers["cookie"] == "session=1"
    assert "content-length" not in headers
    assert headers["host"] == asked.url.removeprefix("http://")


async def test_other_headers() -> None:
    async with service() as asked:
        asked.headers = [("X-User", "alice")]
        async with ForwardAuth(asked.url, principal="x-user", send=["X-Key"]) as forward:
            assert await judged(forward, asking("Bearer x", x_key="5")) == Principal(id="alice")
    headers = asked.asked[0][2]
    assert headers["x-key"] == "5"
    assert "authorization" not in headers


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (401, [("WWW-Authenticate", 'Basic realm="x"'), ("X-Inside", "db-7")]),
        (401, []),
        (403, [("Content-Type", "application/json")]),
        (429, [("Retry-After", "7")]),
        (302, [("Location", "https://sign.in/?next=x")]),
        (307, [("Location", "/relative")]),
    ],
)
async def test_a_refusal_is_passed_on(status: int, headers: list[tuple[str, str]]) -> None:
    async with service() as asked:
        asked.status, asked.headers, asked.body = status, headers, b"not you"
        async with ForwardAuth(asked.url) as forward:
            denied = await judged(forward, asking(f"Bearer {TOKEN}"))
        assert len(asked.asked) == 1, "no redirect is followed"
    assert isinstance(denied, Denied)
    assert (denied.status, denied.body) == (status, b"not you")
    told = dict(denied.headers)
    for name, value in headers:
        assert told.get(name.lower().encode()) == (None if name == "X-Inside" else value.encode())
    assert (b"www-authenticate" in told) == (status == 401)


async def test_a_long_answer_is_cut() -> None:
    async with service() as asked:
        asked.status, asked.body = 403, b"x" * (LONGEST_BODY * 20)
        async with ForwardAuth(asked.url) as forward:
            denied = await judged(forward, asking())
    assert isinstance(denied, Denied)
    assert denied.body == b"x" * LONGEST_BODY


@pytest.mark.parametrize("status", [500, 502, 503, 304, 300, 101])
async def test_an_answer_that_is_none(status: int) -> None:
    async with service() as asked:
        asked.status = status
        async with ForwardAuth(asked.url) as forward:
            refusal = await judged(forward, asking(f"Bearer {TOKEN}"))
    assert isinstance(refusal, Refusal)
    assert (refusal.code, refusal.retry_after) == (Code.UNAVAILABLE, 5)


@pytest.mark.parametrize("headers", [[], [("Remote-User", "")]])
async def test_yes_to_nobody_is_no(
    headers: list[tuple[str, str]], logged: list[logging.LogRecord]
) -> None:
    async with service() as asked:
        asked.headers = headers
        async with ForwardAuth(asked.url) as forward:
            refusal = await judged(forward, asking(f"Bearer {TOKEN}"))
    assert isinstance(refusal, Refusal)
    assert refusal.code is Code.UNAVAILABLE
    assert "named nobody in Remote-User" in logged[-1].getMessage()


@pytest.mark.parametrize(("status", "told"), [(403, 403), (302, 403)])
async def test_a_refusal_that_cannot_be_passed_on(status: int, told: int) -> None:
    """A redirect to nowhere; a header that is the server's own."""
    async with service() as asked:
        asked.status = status
        asked.headers = [("Upload-Offset", "5")]
        async with ForwardAuth(asked.url, pass_back=["Upload-Offset"]) as forward:
            denied = await judged(forward, asking())
    assert isinstance(denied, Denied)
    assert (denied.status, denied.headers) == (told, [])


async def test_a_service_that_hangs(logged: list[logging.LogRecord]) -> None:
    async with service() as asked:
        asked.go = anyio.Event()
        async with ForwardAuth(asked.url, timeout=0.05) as forward:
            refusal = await judged(forward, asking(f"Bearer {TOKEN}"))
    assert isinstance(refusal, Refusal)
    assert refusal.code is Code.UNAVAILABLE
    assert "ReadTimeout" in logged[-1].getMessage()


async def test_a_header_that_cannot_be_sent_is_not_logged() -> None:
    """Some libraries say in their error what they could not send."""
    async with service() as asked, ForwardAuth(asked.url) as forward:
        refusal = await judged(forward, asking(f"Bearer {TOKEN}\n."))
    assert isinstance(refusal, Refusal)
    assert refusal.code is Code.UNAVAILABLE
    assert TOKEN not in str(refusal)
