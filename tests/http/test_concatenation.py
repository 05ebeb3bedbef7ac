"""Concatenation: of finished partials, of unfinished ones, behind the request; what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.support.each import each
from tests.support.exchange import path_of

from tidegate.engine.core import Settings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.support.exchange import Client

    Serve = Callable[..., Awaitable[Client]]

pytestmark = pytest.mark.anyio


async def partials(client: Client, *contents: bytes) -> list[str]:
    return [await client.whole(content, Upload_Concat="partial") for content in contents]


async def test_finished_partials_are_joined_at_once(client: Client) -> None:
    one, two = await partials(client, b"hello ", b"world")
    concat = f"final;{one} {two}"
    reply = await client.post(Upload_Concat=concat, Upload_Metadata="name aGk=")
    assert reply.status == 201
    final = path_of(reply)
    head = await client.head(final)
    assert head["Upload-Offset"] == head["Upload-Length"] == "11"
    assert head["Upload-Concat"] == concat
    assert head["Upload-Metadata"] == "name aGk="
    assert "Upload-Expires" not in head
    assert await client.content(final) == b"hello world"


async def test_a_partial_says_so(client: Client) -> None:
    path = await client.create(5, Upload_Concat="partial", Upload_Metadata="a aGk=")
    head = await client.head(path)
    assert head["Upload-Concat"] == "partial"
    assert head["Upload-Offset"] == "0"
    one = (await partials(client, b"x"))[0]
    final = path_of(await client.post(Upload_Concat=f"final;{one}"))
    assert "Upload-Metadata" not in await client.head(final)


async def test_the_order_counts_and_a_part_may_stand_twice(client: Client) -> None:
    a, b = await partials(client, b"a", b"b")
    final = path_of(await client.post(Upload_Concat=f"final;{b} {a} {b} {b}"))
    assert await client.content(final) == b"babb"
    again = path_of(await client.post(Upload_Concat=f"final;{a}"))
    assert await client.content(again) == b"a"


async def test_parts_are_named_by_path_whatever_host_and_scheme(client: Client) -> None:
    (part,) = await partials(client, b"hello")
    name = part.removeprefix("/files/")
    for url in (part, f"https://elsewhere.test:99{part}", f"http://u:p@x{part}?q#f", name):
        reply = await client.post(Upload_Concat=f"final;{url}")
        assert reply.status == 201, url
        assert await client.content(path_of(reply)) == b"hello"


async def test_empty_parts(client: Client) -> None:
    empty, some = await partials(client, b"", b"x")
    final = path_of(await client.post(Upload_Concat=f"final;{empty} {some} {empty}"))
    assert await client.content(final) == b"x"
    final = path_of(await client.post(Upload_Concat=f"final;{empty}"))
    assert await client.content(final) == b""


async def test_a_final_takes_no_bytes(client: Client) -> None:
    one, two = await partials(client, b"hello", b"world")
    unfinished = await client.create(5, Upload_Concat="partial")
    for parts in (f"{one} {two}", f"{one} {unfinished}"):
        final = path_of(await client.post(Upload_Concat=f"final;{parts}"))
        for offset in (0, 5, 10):
            assert (await client.patch(final, offset, b"x")).status == 403
        assert (await client.patch(final, 10, b"")).status == 403
    assert await client.content(one) == b"hello"


@each(
    "concat",
    ["", "final", "final;", "final; ", "Partial", "partial;", "partial;/a", "finale;/a", "x"],
)
async def test_what_is_malformed_is_refused(client: Client, concat: str) -> None:
    assert (await client.post(Upload_Concat=concat)).status == 400
    assert (await client.post(Upload_Concat=concat, Upload_Length="5")).status == 400


async def test_what_a_final_is_made_of(client: Client) -> None:
    (part,) = await partials(client, b"hello")
    regular = await client.whole(b"hello")
    final = path_of(await client.post(Upload_Concat=f"final;{part}"))
    refused = {
        f"final;{regular}": 400,
        f"final;{final}": 400,
        f"final;{part} {regular}": 400,
        f"final;{part}  {part}": 400,
        f"final; {part}": 400,
        "final;/files/none": 404,
        "final;/files/": 404,
        "final;/files/a/b": 404,
        "final;/elsewhere/none": 404,
        "final;http://[/x": 404,
        "final;/files/%ff": 404,
    }
    for concat, status in refused.items():
        assert (await client.post(Upload_Concat=concat)).status == status, concat
    assert (await client.post(Upload_Concat=f"final;{part}", Upload_Length="5")).status == 400
    assert (await client.post(Upload_Concat=f"final;{part}", Upload_Defer_Length="1")).status == 400
    assert (await client.post(b"x", Upload_Concat=f"final;{part}")).status == 400


async def test_a_final_over_the_maximum(serve: Serve) -> None:
    client = await serve(max_size=9)
    one, two = await partials(client, b"hello", b"world")
    assert (await client.post(Upload_Concat=f"final;{one} {two}")).status == 413
    assert (await client.post(Upload_Concat=f"final;{one}")).status == 201


async def test_unfinished_partials(client: Client) -> None:
    one = await client.create(6, Upload_Concat="partial")
    two = await client.create(Upload_Defer_Length="1", Upload_Concat="partial")
    reply = await client.post(Upload_Concat=f"final;{one} {two}")
    assert reply.status == 201
    final = path_of(reply)
    head = await client.head(final)
    assert head.status == 200
    for name in ("Upload-Offset", "Upload-Length", "Upload-Defer-Length"):
        assert name not in head
    assert head["Upload-Concat"] == f"final;{one} {two}"
    assert (await client.request("GET", final)).status == 403
    assert (await client.patch(two, 0, b"wor", Upload_Length="5")).status == 204
    head = await client.until(final, lambda head: "Upload-Length" in head)
    assert head["Upload-Length"] == "11"
    assert "Upload-Offset" not in head
    assert (await client.patch(one, 0, b"hello ")).status == 204
    assert (await client.patch(two, 3, b"ld")).status == 204
    head = await client.until(final, lambda head: "Upload-Offset" in head)
    assert head["Upload-Offset"] == head["Upload-Length"] == "11"
    assert await client.content(final) == b"hello world"


async def test_unfinished_partials_where_that_is_not_offered(serve: Serve) -> None:
    client = await serve(disable=["concatenation-unfinished"])
    part = await client.create(5, Upload_Concat="partial")
    assert (await client.post(Upload_Concat=f"final;{part}")).status == 403


async def test_a_long_assembly_goes_on_behind_the_request(serve: Serve) -> None:
    client = await serve(settings=Settings(assemble_within=0.0))
    one, two = await partials(client, b"hello ", b"world")
    final = path_of(await client.post(Upload_Concat=f"final;{one} {two}"))
    await client.until(final, lambda head: "Upload-Offset" in head)
    assert await client.content(final) == b"hello world"


async def test_a_final_has_its_own_bytes(client: Client) -> None:
    one, two = await partials(client, b"hello ", b"world")
    final = path_of(await client.post(Upload_Concat=f"final;{one} {two}"))
    assert (await client.delete(one)).status == 204
    assert (await client.head(one)).status == 410
    assert await client.content(final) == b"hello world"
    assert (await client.delete(final)).status == 204
    assert await client.content(two) == b"world"


async def test_a_deleted_partial_is_kept_for_the_final_that_needs_it(client: Client) -> None:
    (one,) = await partials(client, b"hello ")
    two = await client.create(5, Upload_Concat="partial")
    final = path_of(await client.post(Upload_Concat=f"final;{one} {two}"))
    assert (await client.delete(one)).status == 204
    assert (await client.head(one)).status == 410
    assert (await client.patch(two, 0, b"world")).status == 204
    await client.until(final, lambda head: "Upload-Offset" in head)
    assert await client.content(final) == b"hello world"


async def test_a_final_whose_part_will_never_be_whole_fails(client: Client) -> None:
    (one,) = await partials(client, b"hello ")
    two = await client.create(5, Upload_Concat="partial")
    final = path_of(await client.post(Upload_Concat=f"final;{one} {two}"))
    assert (await client.delete(two)).status == 204
    await client.until(final, lambda head: head.status == 410)
    assert (await client.post(Upload_Concat=f"final;{two}")).status == 410


@pytest.mark.timeout(120)
async def test_many_parts_fit_in_a_head(client: Client) -> None:
    (part,) = await partials(client, b"ab")
    final = path_of(await client.post(Upload_Concat="final;" + " ".join([part] * 500)))
    # Each of them is fetched, where parts are far away.
    await client.until(final, lambda head: "Upload-Offset" in head, within=60)
    assert await client.content(final) == b"ab" * 500
