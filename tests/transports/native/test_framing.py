"""Heads and bodies that two servers could read in two ways: ours reads them in none."""

from __future__ import annotations

import re

import pytest
from tests.transports.native.conftest import Dial, create, head, offset, patch

from tidegate.transports.native.limits import Limits

pytestmark = pytest.mark.anyio

SMUGGLED = b"HEAD /files/smuggled HTTP/1.1\r\nHost: a\r\nTus-Resumable: 1.0.0\r\n\r\n"


@pytest.mark.parametrize(
    ("status", "raw"),
    [
        # RFC 9112, 3.2: Host.
        (400, b"OPTIONS /files/ HTTP/1.1\r\n\r\n"),
        (400, b"OPTIONS /files/ HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"),
        (400, b"OPTIONS /files/ HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n"),
        (400, b"OPTIONS /files/ HTTP/1.1\r\nHost: a b\r\n\r\n"),
        (400, b"OPTIONS /files/ HTTP/1.1\r\nHost: a/b\r\n\r\n"),
        # 6.1: a transfer coding together with a length, twice, in HTTP/1.0, or not understood.
        (400, b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n"),
        (400, b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"),
        (400, b"Transfer-Encoding: chunked, chunked\r\n"),
        (400, b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
        (400, b"PATCH /files/x HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"),
        (501, b"Transfer-Encoding: gzip\r\n"),
        (501, b"Transfer-Encoding: gzip, chunked\r\n"),
        (501, b"Transfer-Encoding: chunked, gzip\r\n"),
        (501, b"Transfer-Encoding: identity\r\n"),
        (501, b"Transfer-Encoding: xchunked\r\n"),
        (501, b"Transfer-Encoding: chunked;q=1\r\n"),
        (501, b'Transfer-Encoding: "chunked"\r\n'),
        # 6.3: lengths.
        (400, b"Content-Length: 5\r\nContent-Length: 6\r\n"),
        (400, b"Content-Length: 5\r\nContent-Length: 5\r\n"),
        (400, b"Content-Length: 5, 5\r\n"),
        (400, b"Content-Length: +5\r\n"),
        (400, b"Content-Length: -5\r\n"),
        (400, b"Content-Length: 0x5\r\n"),
        (400, b"Content-Length: 5 5\r\n"),
        (400, b"Content-Length: \r\n"),
        (400, b"Content-Length: 9223372036854775808\r\n"),
        (400, b"Content-Length: 99999999999999999999999999\r\n"),
        # 2.2 and 5: line ends, white space, folds, control characters.
        (400, b"OPTIONS /files/ HTTP/1.1\nHost: a\n\n"),
        (400, b"OPTIONS /files/ HTTP/1.1\r\nHost: a\n\r\n\r\n"),
        (400, b"A: b\n"),
        (400, b"A: b\r\n c\r\n"),
        (400, b"A: b\r\n\tContent-Length: 5\r\n"),
        (400, b"Content-Length : 5\r\n"),
        (400, b" Content-Length: 5\r\n"),
        (400, b"Content-Length\r\n"),
        (400, b": 5\r\n"),
        (400, b"A: b\rc\r\n"),
        (400, b"A: b\x00c\r\n"),
        (400, b"A\x00: b\r\n"),
        (400, b"OPTIONS  /files/ HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, b"OPTIONS /fi les/ HTTP/1.1\r\nHost: a\r\n\r\n"),
        # Versions and methods.
        (400, b"OPTIONS /files/\r\n\r\n"),
        (400, b"OPTIONS /files/ HTTP/1.2\r\nHost: a\r\n\r\n"),
        (505, b"OPTIONS /files/ HTTP/2.0\r\nHost: a\r\n\r\n"),
        (505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        (501, b"FOO /files/ HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
        (431, b"A: " + b"b" * 64 * 1024 + b"\r\n"),
        (431, b"OPTIONS /files/" + b"b" * 64 * 1024),
    ],
)
async def test_what_is_rejected(dial: Dial, status: int, raw: bytes) -> None:
    """The answer tells, and what follows is not read as a request."""
    whole = raw
    if not re.match(rb"[A-Z]+ |\x16", raw):
        whole = patch("/files/x", 0)[:-2] + raw + b"\r\n"
    wire = await dial()
    await wire.send(whole, SMUGGLED)
    answer = await wire.rest()
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert b"\r\nconnection: close\r\n" in answer
    assert answer.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize(
    "chunks",
    [
        b"5\nhello\r\n0\r\n\r\n",
        b"5\r\nhello0\r\n\r\n",
        b"5\r\nhelloXX0\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhello\r\n0\r\nA: b\nC: d\r\n\r\n",
        b"5;" + b"a" * 300 + b"\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhello\r\n0\r\nA: " + b"b" * 9000 + b"\r\n\r\n",
    ],
)
async def test_bad_chunks(dial: Dial, chunks: bytes) -> None:
    wire = await dial()
    path = await create(wire, 100)
    await wire.send(patch(path, 0, "Transfer-Encoding: chunked"), chunks, SMUGGLED)
    answer = await wire.rest()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1
    expected = 5 if chunks.startswith(b"5\r\n") else 0
    assert await offset(await dial(), path) == expected


async def test_a_body_with_upgrade_is_a_body(dial: Dial) -> None:
    wire = await dial()
    path = await create(wire, len(SMUGGLED))
    await wire.send(
        patch(path, 0, f"Content-Length: {len(SMUGGLED)}", "Connection: Upgrade", "Upgrade: h2c"),
        SMUGGLED,
    )
    assert (await wire.head()).startswith(b"HTTP/1.1 204 ")
    assert await offset(wire, path) == len(SMUGGLED)


async def test_trailers_bring_a_checksum(dial: Dial) -> None:
    wire = await dial()
    path = await create(wire, 10)
    fields = ("Transfer-Encoding: chunked", "Trailer: Upload-Checksum")
    good = b"Upload-Checksum: sha1 qvTGHdzF6KLavt4PO0gs2a6pQ00=\r\n"
    for trailer, status in (
        (b"", 400),
        (b"Upload-Checksum: sha1 AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\n", 460),
        (good + good, 400),
        (good, 204),
    ):
        await wire.send(patch(path, 0, *fields), b"5\r\nhello\r\n0\r\n", trailer, b"\r\n")
        answer = await wire.head()
        assert answer.startswith(b"HTTP/1.1 %d " % status), answer
        if status != 204:
            length = int(answer.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            while len(wire.buffer) < length:
                wire.buffer += await wire.stream.receive()
            wire.buffer = b""
        assert await offset(wire, path) == (5 if status == 204 else 0)


async def test_empty_lines_before_a_request(dial: Dial) -> None:
    wire = await dial()
    await wire.send(b"\r\n", head("OPTIONS", "/files/"))
    assert (await wire.head()).startswith(b"HTTP/1.1 204 ")


async def test_http_1_0(dial: Dial) -> None:
    wire = await dial()
    await wire.send(head("OPTIONS", "/files/", "Connection: keep-alive", version="1.0"))
    assert b"\r\nconnection: keep-alive" in await wire.head()
    await wire.send(head("OPTIONS", "/files/", version="1.0"))
    assert b"\r\nconnection: close" in await wire.rest()


async def test_a_head_that_does_not_end(dial: Dial) -> None:
    wire = await dial(Limits(head_timeout=0.05))
    await wire.send(b"OPTIONS /files/ HTTP/1.1\r\n")
    assert (await wire.rest()).startswith(b"HTTP/1.1 408 ")


async def test_a_connection_without_a_request(dial: Dial) -> None:
    wire = await dial(Limits(head_timeout=0.05))
    assert await wire.rest() == b""


async def test_an_idle_connection_is_closed(dial: Dial) -> None:
    wire = await dial(Limits(keep_alive=0.05))
    await wire.send(head("OPTIONS", "/files/"))
    assert (await wire.rest()).startswith(b"HTTP/1.1 204 ")
