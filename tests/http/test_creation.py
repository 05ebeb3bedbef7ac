"""Creation, with and without bytes, with and without a length."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import pytest
from tests.support.each import each
from tests.support.exchange import STREAM, TUS, path_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.support.exchange import Client

    Serve = Callable[..., Awaitable[Client]]

pytestmark = pytest.mark.anyio


async def test_creation_answers_with_a_location(client: Client) -> None:
    reply = await client.post(Upload_Length="100")
    assert reply.status == 201
    assert reply["Tus-Resumable"] == "1.0.0"
    assert reply["Location"].startswith("http://")
    assert "Upload-Offset" not in reply
    assert reply["Content-Length"] == "0"
    assert await client.offset(path_of(reply)) == 0


async def test_an_empty_upload_is_complete_at_once(client: Client) -> None:
    path = await client.create(0)
    head = await client.head(path)
    assert (head["Upload-Offset"], head["Upload-Length"]) == ("0", "0")
    assert "Upload-Expires" not in head
    assert await client.content(path) == b""
    assert (await client.patch(path, 0, b"")).status == 204


async def test_an_empty_body_is_no_body(client: Client) -> None:
    reply = await client.tus("POST", client.base, b"", Upload_Length="5")
    assert reply.status == 201


@each("length", ["", "-1", "+5", "1e3", "0x1", "5.0", "five", str(2**63), "5, 5", "\xb2", "\xa05"])
async def test_a_length_that_is_no_integer_is_malformed(client: Client, length: str) -> None:
    assert (await client.post(Upload_Length=length)).status == 400


async def test_the_longest_length(client: Client) -> None:
    offered = await client.request("OPTIONS", client.base)
    largest = int(offered["Tus-Max-Size"]) if "Tus-Max-Size" in offered else 2**63 - 1
    assert (await client.post(Upload_Length=f"000{largest}")).status == 201
    assert (await client.post(Upload_Length=str(largest + 1))).status in (400, 413)


async def test_neither_or_both_lengths(client: Client) -> None:
    assert (await client.post()).status == 400
    assert (await client.post(Upload_Length="5", Upload_Defer_Length="1")).status == 400


async def test_over_the_maximum(serve: Serve) -> None:
    client = await serve(max_size=10)
    assert (await client.post(Upload_Length="11")).status == 413
    assert (await client.post(Upload_Length="10")).status == 201


# --------------------------------------------------------------------------------- Upload-Metadata

ODD = base64.b64encode(bytes(range(256))).decode()


@each(
    "metadata",
    [
        "filename d29ybGRfZG9taW5hdGlvbl9wbGFuLnBkZg==,is_confidential",
        "empty ,x ",
        "flag",
        f"binary {ODD}",
        "kéy aGk=",
        "a/b aGk=,c;d aGk=",
    ],
)
async def test_metadata_is_echoed_to_the_letter(client: Client, metadata: str) -> None:
    path = await client.create(5, Upload_Metadata=metadata)
    # White space around a header's value is not part of it.
    assert (await client.head(path))["Upload-Metadata"] == metadata.strip()


async def test_an_empty_metadata_header_is_none(client: Client) -> None:
    path = await client.create(5, Upload_Metadata="")
    assert "Upload-Metadata" not in await client.head(path)


@each(
    "metadata",
    [
        *(",", "a aGk=,", ",a aGk=", "a aGk=, b aGk=", "a aGk=,,b aGk=", "a a b", "a aGk"),
        *("a aGk=,a aGk=", "a,a", "a a_-=", "a a=Gk", "a \xff", "a aGk==", "a  aGk="),
        "a " + "QUFB" * 6000,
    ],
)
async def test_metadata_that_is_malformed_is_refused(client: Client, metadata: str) -> None:
    assert (await client.post(Upload_Length="5", Upload_Metadata=metadata)).status == 400


# ------------------------------------------------------------------------------ deferred lengths


async def test_a_deferred_length(client: Client) -> None:
    path = await client.create(Upload_Defer_Length="1")
    head = await client.head(path)
    assert head["Upload-Defer-Length"] == "1"
    assert head["Upload-Offset"] == "0"
    assert "Upload-Length" not in head
    assert (await client.patch(path, 0, b"hello")).status == 204
    assert (await client.head(path))["Upload-Defer-Length"] == "1"
    assert (await client.patch(path, 5, b" wor", Upload_Length="11")).status == 204
    head = await client.head(path)
    assert "Upload-Defer-Length" not in head
    assert head["Upload-Length"] == "11"
    assert (await client.patch(path, 9, b"ld", Upload_Length="11")).status == 204
    assert await client.content(path) == b"hello world"


async def test_an_empty_patch_may_set_the_length_and_complete(client: Client) -> None:
    path = await client.create(Upload_Defer_Length="1")
    assert (await client.patch(path, 0, b"hello")).status == 204
    reply = await client.patch(path, 5, b"", Upload_Length="5")
    assert (reply.status, reply["Upload-Offset"]) == (204, "5")
    assert await client.content(path) == b"hello"


async def test_a_length_once_set_stays(client: Client) -> None:
    path = await client.create(Upload_Defer_Length="1")
    assert (await client.patch(path, 0, b"hello", Upload_Length="10")).status == 204
    for length in ("9", "11", "5", "x"):
        assert (await client.patch(path, 5, b"x", Upload_Length=length)).status == 400
    head = await client.head(path)
    assert (head["Upload-Offset"], head["Upload-Length"]) == ("5", "10")


async def test_a_length_below_what_is_there(client: Client) -> None:
    path = await client.create(Upload_Defer_Length="1")
    assert (await client.patch(path, 0, b"hello")).status == 204
    assert (await client.patch(path, 5, b"", Upload_Length="4")).status == 400
    assert (await client.patch(path, 5, b"abc", Upload_Length="7")).status == 413
    assert (await client.head(path))["Upload-Defer-Length"] == "1"


@each("value", ["0", "2", "true", "", "1,1", "01"])
async def test_any_deferral_but_1(client: Client, value: str) -> None:
    assert (await client.post(Upload_Defer_Length=value)).status == 400


async def test_a_deferred_upload_is_bounded_too(serve: Serve) -> None:
    client = await serve(max_size=10)
    path = await client.create(Upload_Defer_Length="1")
    assert (await client.patch(path, 0, b"12345678901")).status == 413
    assert (await client.patch(path, 0, b"1234567")).status == 204
    assert (await client.patch(path, 7, b"1234")).status == 413
    assert (await client.patch(path, 7, b"", Upload_Length="11")).status == 413
    exchange = await client.start_patch(path, 7, None)
    await exchange.send(b"1234")
    await exchange.end()
    assert (await exchange.reply()).status == 413
    assert await client.offset(path) == 7


# --------------------------------------------------------------------------- creation-with-upload


async def test_creation_with_all_bytes(client: Client) -> None:
    reply = await client.post(b"hello", Upload_Length="5")
    assert reply.status == 201
    assert reply["Upload-Offset"] == "5"
    assert "Upload-Expires" not in reply
    assert await client.content(path_of(reply)) == b"hello"


async def test_creation_with_some_bytes(client: Client) -> None:
    reply = await client.post(b"hello", Upload_Length="10", Upload_Metadata="a aGk=")
    assert (reply.status, reply["Upload-Offset"]) == (201, "5")
    assert "Upload-Expires" in reply
    path = path_of(reply)
    assert (await client.patch(path, 5, b"world")).status == 204
    assert await client.content(path) == b"helloworld"


async def test_creation_with_chunked_bytes(client: Client) -> None:
    headers = [*TUS.items(), ("Content-Type", STREAM), ("Upload-Defer-Length", "1")]
    exchange = await client.start("POST", client.base, [*headers, ("Transfer-Encoding", "chunked")])
    await exchange.send(b"hello")
    await exchange.end()
    reply = await exchange.reply()
    assert (reply.status, reply["Upload-Offset"]) == (201, "5")
    assert (await client.head(path_of(reply)))["Upload-Defer-Length"] == "1"


@each("content_type", ["-", "text/plain", "application/octet-stream"])
async def test_creation_with_bytes_of_another_type(client: Client, content_type: str) -> None:
    reply = await client.post(b"hello", Upload_Length="5", Content_Type=content_type)
    assert reply.status == 415


async def test_creation_with_too_many_bytes(client: Client) -> None:
    assert (await client.post(b"hello!", Upload_Length="5")).status == 413


async def test_creation_with_a_dropped_body_is_found_by_nobody_or_true(client: Client) -> None:
    """The client has no Location; what is left is an unfinished upload that expires."""
    headers = [*TUS.items(), ("Content-Type", STREAM), ("Upload-Length", "10")]
    exchange = await client.start("POST", client.base, [*headers, ("Content-Length", "10")])
    await exchange.send(b"hello")
    await exchange.drop()
    assert (await client.post(Upload_Length="5")).status == 201
