"""Expiration and termination."""

from __future__ import annotations

from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

import pytest
from tests.support.exchange import Client, Reply, path_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tidegate.testing import FakeClock

    Serve = Callable[..., Awaitable[Client]]

pytestmark = pytest.mark.anyio

HOUR = 3600.0


def expires(reply: Reply) -> float:
    value = reply["Upload-Expires"]
    assert value.endswith(" GMT")
    return parsedate_to_datetime(value).timestamp()


async def statuses(client: Client, path: str) -> set[int]:
    """What every method answers, bytes sent with PATCH."""
    replies = [
        await client.head(path),
        await client.patch(path, 0, b"hello"),
        await client.delete(path),
        await client.request("GET", path),
    ]
    assert not any("Upload-Offset" in reply for reply in replies)
    return {reply.status for reply in replies}


# ----------------------------------------------------------------------------------- expiration


async def test_the_time_of_expiry_is_told_and_slides(serve: Serve, clock: FakeClock) -> None:
    client = await serve(expire_after=HOUR)
    created = await client.post(Upload_Length="10")
    path = path_of(created)
    assert expires(created) == clock.now() + HOUR
    clock.advance(1000)
    patched = await client.patch(path, 0, b"hello")
    assert expires(patched) == clock.now() + HOUR
    clock.advance(1000)
    assert expires(await client.head(path)) == clock.now() + HOUR - 1000
    finished = await client.patch(path, 5, b"world")
    assert "Upload-Expires" not in finished
    assert "Upload-Expires" not in await client.head(path)


async def test_an_unfinished_upload_is_gone_after_its_time(serve: Serve, clock: FakeClock) -> None:
    client = await serve(expire_after=HOUR)
    path = await client.create(10)
    clock.advance(HOUR - 1)
    assert await client.offset(path) == 0
    clock.advance(1)
    assert await statuses(client, path) == {410}


async def test_a_complete_upload_never_expires(serve: Serve, clock: FakeClock) -> None:
    client = await serve(expire_after=HOUR)
    path = await client.whole(b"hello")
    clock.advance(100 * 365 * 24 * HOUR)
    assert await client.content(path) == b"hello"


async def test_a_complete_partial_expires(serve: Serve, clock: FakeClock) -> None:
    client = await serve(expire_after=HOUR)
    path = await client.whole(b"hello", Upload_Concat="partial")
    assert expires(await client.head(path)) == clock.now() + HOUR
    clock.advance(HOUR)
    assert (await client.head(path)).status == 410
    final = await client.post(Upload_Concat=f"final;{path}")
    assert final.status == 410


async def test_a_pending_final_keeps_its_partials(serve: Serve, clock: FakeClock) -> None:
    client = await serve(expire_after=HOUR)
    whole = await client.whole(b"hello", Upload_Concat="partial")
    clock.advance(HOUR / 2)
    unfinished = await client.create(5, Upload_Concat="partial")
    final = path_of(await client.post(Upload_Concat=f"final;{whole} {unfinished}"))
    clock.advance(HOUR / 2)
    assert await client.offset(whole) == 5
    assert (await client.patch(unfinished, 0, b"world")).status == 204
    await client.until(final, lambda head: "Upload-Offset" in head)
    assert await client.content(final) == b"helloworld"


async def test_nothing_expires_when_that_is_turned_off(serve: Serve, clock: FakeClock) -> None:
    client = await serve(expire_after=None)
    created = await client.post(Upload_Length="10")
    assert "Upload-Expires" not in created
    clock.advance(100 * 365 * 24 * HOUR)
    assert await client.offset(path_of(created)) == 0


# ---------------------------------------------------------------------------------- termination


async def test_an_unfinished_upload_is_terminated(client: Client) -> None:
    path = await client.create(10)
    assert (await client.patch(path, 0, b"hello")).status == 204
    reply = await client.delete(path)
    assert reply.status == 204
    assert reply["Tus-Resumable"] == "1.0.0"
    assert await statuses(client, path) == {410}


async def test_a_complete_upload_is_terminated(client: Client) -> None:
    path = await client.whole(b"hello")
    assert (await client.delete(path)).status == 204
    assert await statuses(client, path) == {410}


async def test_a_writer_at_work_is_ended(client: Client) -> None:
    path = await client.create(10)
    exchange = await client.start_patch(path, 0, 10, Expect="100-continue")
    await exchange.asked_for()
    await exchange.send(b"hello")
    assert (await client.delete(path)).status == 204
    assert (await exchange.reply()).status in (404, 410, 423)
    assert await statuses(client, path) == {410}


async def test_what_was_never_there_is_not_gone_but_not_found(client: Client) -> None:
    assert await statuses(client, "/files/AAAAAAAAAAAAAAAAAAAAAA") == {404}
