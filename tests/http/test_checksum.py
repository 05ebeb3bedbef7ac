"""Checksums: all algorithms, right, wrong, malformed; what fails leaves no trace."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import pytest
from tests.support.each import each
from tests.support.exchange import STREAM, TUS

from tidegate.protocol.checksums import algorithms

if TYPE_CHECKING:
    from tests.support.exchange import Client

pytestmark = pytest.mark.anyio

ALGORITHMS = algorithms()


def checksum(name: str, content: bytes) -> str:
    digest = ALGORITHMS[name].start()
    digest.update(content)
    return f"{name} {base64.b64encode(digest.digest()).decode()}"


def test_the_examples_of_others() -> None:
    """Values computed elsewhere: the specification, and the RFCs' test vectors."""
    assert checksum("sha1", b"hello world") == "sha1 Kq5sNclPz7QV2+lfQIuc6R7oRu0="
    assert checksum("crc32", b"123456789") == "crc32 y/Q5Jg=="
    assert checksum("crc32c", b"123456789") == "crc32c 4waSgw=="


@each("name", ALGORITHMS)
async def test_each_algorithm(client: Client, name: str) -> None:
    path = await client.create(11)
    wrong = await client.patch(path, 0, b"hello", Upload_Checksum=checksum(name, b"hellO"))
    assert wrong.status == 460
    assert await client.offset(path) == 0
    right = await client.patch(path, 0, b"hello", Upload_Checksum=checksum(name, b"hello"))
    assert (right.status, right["Upload-Offset"]) == (204, "5")
    wrong = await client.patch(path, 5, b" world", Upload_Checksum=checksum(name, b"hello world"))
    assert wrong.status == 460
    assert await client.offset(path) == 5
    assert (await client.patch(path, 5, b" w0rld")).status == 204
    assert await client.content(path) == b"hello w0rld"


async def test_a_large_body_is_discarded_whole(client: Client) -> None:
    content = b"0123456789abcdef" * 200_000
    path = await client.create(len(content))
    wrong = await client.patch(path, 0, content, Upload_Checksum=checksum("sha256", b""))
    assert wrong.status == 460
    assert await client.offset(path) == 0
    right = await client.patch(path, 0, content, Upload_Checksum=checksum("sha256", content))
    assert right.status == 204
    assert await client.content(path) == content


@each(
    "value",
    [
        *("sha1", "sha1 ", " ", "", "sha1 !!!!", "sha1 AAAA", "SHA1 Kq5sNclPz7QV2+lfQIuc6R7oRu0="),
        *("sha1 Kq5sNclPz7QV2-lfQIuc6R7oRu0=", "sha1 Kq5sNclPz7QV2+lfQIuc6R7oRu0"),
        *("sha1  Kq5sNclPz7QV2+lfQIuc6R7oRu0=", "sha3 AAAA", "crc32 y/Q5JgAA", "sha1,md5 AAAA"),
    ],
)
async def test_what_can_not_be_verified_is_refused(client: Client, value: str) -> None:
    path = await client.create(11)
    reply = await client.patch(path, 0, b"hello world", Upload_Checksum=value)
    assert reply.status == 400
    assert await client.offset(path) == 0


async def test_a_dropped_body_with_a_checksum_keeps_nothing(client: Client) -> None:
    path = await client.create(10)
    exchange = await client.start_patch(
        path, 0, 10, Upload_Checksum=checksum("sha1", b"helloworld")
    )
    await exchange.send(b"hello")
    await exchange.drop()
    assert await client.offset(path) == 0
    assert (await client.patch(path, 0, b"helloworld")).status == 204
    assert await client.content(path) == b"helloworld"


async def test_head_does_not_interrupt_a_checksummed_append(client: Client) -> None:
    path = await client.create(10)
    exchange = await client.start_patch(
        path, 0, 10, Upload_Checksum=checksum("sha1", b"helloworld"), Expect="100-continue"
    )
    await exchange.asked_for()
    await exchange.send(b"hello")
    assert await client.offset(path) == 0
    await exchange.send(b"world")
    await exchange.end()
    assert (await exchange.reply()).status == 204
    assert await client.content(path) == b"helloworld"


async def test_creation_with_a_checksum(client: Client) -> None:
    right = await client.post(
        b"hello", Upload_Length="5", Upload_Checksum=checksum("sha256", b"hello")
    )
    assert (right.status, right["Upload-Offset"]) == (201, "5")
    wrong = await client.post(
        b"hello", Upload_Length="5", Upload_Checksum=checksum("sha256", b"hellO")
    )
    assert wrong.status == 460
    assert "Location" not in wrong


async def test_an_empty_body_with_a_checksum(client: Client) -> None:
    path = await client.create(5)
    right = await client.patch(path, 0, b"", Upload_Checksum=checksum("sha1", b""))
    assert right.status == 204
    wrong = await client.patch(path, 0, b"", Upload_Checksum=checksum("sha1", b"x"))
    assert wrong.status == 460


async def test_a_chunked_body_with_a_checksum(client: Client) -> None:
    path = await client.create(10)
    for content, status, offset in ((b"hellO", 460, 0), (b"hello", 204, 5)):
        exchange = await client.start_patch(
            path, 0, None, Upload_Checksum=checksum("sha512", b"hello")
        )
        await exchange.send(content)
        await exchange.end()
        assert (await exchange.reply()).status == status
        assert await client.offset(path) == offset


async def test_trailers_are_not_offered_and_not_ignored(
    client: Client, combination: tuple[str, str]
) -> None:
    if combination[0] == "native":
        assert "checksum-trailer" in (await client.request("OPTIONS", client.base))["Tus-Extension"]
        return
    assert "checksum-trailer" not in (await client.request("OPTIONS", client.base))["Tus-Extension"]
    path = await client.create(5)
    headers = TUS | {"Content-Type": STREAM, "Upload-Offset": "0", "Trailer": "Upload-Checksum"}
    reply = await client.withheld("PATCH", path, headers, length=None)
    assert reply.status == 400
    assert await client.offset(path) == 0
