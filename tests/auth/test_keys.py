"""Keys that are fetched: kept, fetched again, and what happens when they can't be."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import anyio
import pytest
from tests.auth.requests import asking, judged, status
from tests.auth.signing import KEYS, OTHER, jwk, jwks, signed
from tests.support.exchange import PATIENCE
from tests.support.logs import logs_kept
from tests.support.services import Service, service

from tidegate.auth import keys
from tidegate.auth.jwt import Tokens
from tidegate.auth.keys import FETCH_EVERY, FRESH_FOR, KEEP_FOR, LARGEST_SET, FetchedKeys
from tidegate.protocol.errors import Code, Refusal

pytestmark = pytest.mark.anyio

OLD, NEW = KEYS["RS256"], OTHER["RS256"]
BY_OLD = asking(f"Bearer {signed('RS256', OLD, kid='old')}")
BY_NEW = asking(f"Bearer {signed('RS256', NEW, kid='new')}")
BY_NOBODY = asking(f"Bearer {signed('RS256', NEW, kid='nobody')}")


@pytest.fixture(autouse=True)
def logged() -> Iterator[list[logging.LogRecord]]:
    with logs_kept() as records:
        yield records


class Time:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def issuer() -> AsyncIterator[tuple[Service, Tokens, Time]]:
    async with service() as endpoint:
        endpoint.body = jwks(jwk("RS256", OLD, kid="old"))
        time = Time()
        async with Tokens(FetchedKeys(f"{endpoint.url}/keys", now=time)) as tokens:
            yield endpoint, tokens, time


async def test_keys_are_fetched_once() -> None:
    async with issuer() as (endpoint, tokens, time):
        assert not endpoint.asked
        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(status, tokens, BY_OLD)
        assert [path for _, path, _ in endpoint.asked] == ["/keys"]
        time.now += FRESH_FOR - 1
        assert await status(tokens, BY_OLD) == 200
        assert len(endpoint.asked) == 1


async def test_keys_are_rotated() -> None:
    async with issuer() as (endpoint, tokens, time):
        assert await status(tokens, BY_OLD) == 200
        endpoint.body = jwks(jwk("RS256", OLD, kid="old"), jwk("RS256", NEW, kid="new"))
        # Asked a moment ago: whoever makes up key ids does not make us ask again.
        for _ in range(5):
            assert await status(tokens, BY_NEW) == 401
        assert len(endpoint.asked) == 1
        time.now += FETCH_EVERY
        assert await status(tokens, BY_NEW) == 200
        assert await status(tokens, BY_OLD) == 200
        assert len(endpoint.asked) == 2
        time.now += FETCH_EVERY
        for _ in range(5):
            assert await status(tokens, BY_NOBODY) == 401
        assert len(endpoint.asked) == 3


async def test_a_key_that_was_withdrawn() -> None:
    async with issuer() as (endpoint, tokens, time):
        assert await status(tokens, BY_OLD) == 200
        endpoint.body = jwks(jwk("RS256", NEW, kid="new"))
        time.now += FRESH_FOR
        assert await status(tokens, BY_OLD) == 401
        assert await status(tokens, BY_NEW) == 200


async def test_an_endpoint_that_was_never_there() -> None:
    async with issuer() as (endpoint, tokens, time):
        endpoint.status = 500
        answer = await judged(tokens, BY_OLD)
        assert isinstance(answer, Refusal)
        assert (answer.code, answer.retry_after) == (Code.UNAVAILABLE, 5)
        assert await status(tokens, BY_OLD) == 503
        assert len(endpoint.asked) == 1
        endpoint.status = 200
        time.now += FETCH_EVERY
        assert await status(tokens, BY_OLD) == 200


async def test_an_endpoint_that_is_down_for_a_while() -> None:
    """What was fetched goes on, until it is too old; what it does not know nobody can tell."""
    async with issuer() as (endpoint, tokens, time):
        assert await status(tokens, BY_OLD) == 200
        endpoint.status = 503
        time.now += FRESH_FOR
        assert await status(tokens, BY_OLD) == 200
        assert await status(tokens, BY_NEW) == 503
        time.now += KEEP_FOR - FRESH_FOR - 1
        assert await status(tokens, BY_OLD) == 200
        time.now += 1
        assert await status(tokens, BY_OLD) == 503
        endpoint.status = 200
        time.now += FETCH_EVERY
        assert await status(tokens, BY_OLD) == 200
        assert await status(tokens, BY_NOBODY) == 401


@pytest.mark.parametrize(
    ("status_", "body"),
    [
        (200, b"<html>"),
        (200, jwks()),
        (200, b"[" * (LARGEST_SET + 1)),
        (302, jwks(jwk("RS256", NEW, kid="new"))),
        (404, jwks(jwk("RS256", NEW, kid="new"))),
    ],
)
async def test_what_is_no_set_of_keys_changes_nothing(
    status_: int, body: bytes, logged: list[logging.LogRecord]
) -> None:
    async with issuer() as (endpoint, tokens, time):
        assert await status(tokens, BY_OLD) == 200
        endpoint.status, endpoint.body = status_, body
        endpoint.headers = [("Location", f"{endpoint.url}/elsewhere")]
        time.now += FRESH_FOR
        assert await status(tokens, BY_OLD) == 200
        assert await status(tokens, BY_NEW) == 503
        assert [path for _, path, _ in endpoint.asked] == ["/keys"] * 2
    assert any("not fetched" in record.getMessage() for record in logged)


async def test_an_endpoint_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only who fetches waits for it; the others go on with what there is."""
    monkeypatch.setattr(keys, "FETCH_WITHIN", PATIENCE)
    async with issuer() as (endpoint, tokens, time):
        assert await status(tokens, BY_OLD) == 200
        endpoint.go = anyio.Event()
        endpoint.reached = anyio.Event()
        time.now += FRESH_FOR
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(status, tokens, BY_OLD)
            await endpoint.reached.wait()
            assert await status(tokens, BY_OLD) == 200
            endpoint.go.set()


async def test_an_endpoint_that_hangs_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "FETCH_WITHIN", 0.05)
    async with issuer() as (endpoint, tokens, _):
        endpoint.go = anyio.Event()
        assert await status(tokens, BY_OLD) == 503


async def test_nobody_listens_there(logged: list[logging.LogRecord]) -> None:
    async with Tokens(FetchedKeys("http://127.0.0.1:9/keys")) as tokens:
        assert await status(tokens, BY_OLD) == 503
    assert any("ConnectError" in record.getMessage() for record in logged)
