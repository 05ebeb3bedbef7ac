"""GET of a complete upload."""

from __future__ import annotations

import base64
import email.parser
import email.policy
from typing import TYPE_CHECKING

import pytest
from tests.support.each import each
from tests.support.exchange import STREAM

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.support.exchange import Client

    Serve = Callable[..., Awaitable[Client]]

pytestmark = pytest.mark.anyio

CONTENT = bytes(range(256)) * 4


def metadata(**pairs: str | bytes) -> str:
    return ",".join(
        f"{k} {base64.b64encode(v if isinstance(v, bytes) else v.encode()).decode()}"
        for k, v in pairs.items()
    )


async def test_the_bytes_and_what_is_said_of_them(client: Client) -> None:
    path = await client.whole(CONTENT)
    reply = await client.request("GET", path)
    assert reply.status == 200
    assert reply.body == CONTENT
    assert reply["Content-Length"] == str(len(CONTENT))
    assert reply["Content-Type"] == "application/octet-stream"
    assert reply["Content-Disposition"] == "attachment"
    assert reply["Accept-Ranges"] == "bytes"
    assert reply["X-Content-Type-Options"] == "nosniff"
    assert "sandbox" in reply["Content-Security-Policy"]
    assert reply["ETag"].startswith('"')
    assert reply["Last-Modified"].endswith("GMT")
    assert reply["Cache-Control"] == "private, no-cache"


async def test_an_unfinished_upload_is_not_read(client: Client) -> None:
    path = await client.create(10)
    assert (await client.patch(path, 0, b"hello")).status == 204
    assert (await client.request("GET", path)).status == 403


async def test_where_reading_is_turned_off(serve: Serve) -> None:
    client = await serve(downloads=False)
    path = await client.whole(b"hello")
    reply = await client.request("GET", path)
    assert reply.status == 405
    assert "GET" not in reply["Allow"]


async def test_head_is_of_tus(client: Client) -> None:
    path = await client.whole(CONTENT)
    assert (await client.request("HEAD", path)).status == 412
    reply = await client.head(path, Range="bytes=0-1")
    assert reply.status == 200
    assert reply["Upload-Offset"] == str(len(CONTENT))


@each(
    "value, start, stop",
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-", 0, 1024),
        ("bytes=1000-", 1000, 1024),
        ("bytes=10-19", 10, 20),
        ("bytes=1020-9999", 1020, 1024),
        ("bytes=-4", 1020, 1024),
        ("bytes=-9999", 0, 1024),
        ("Bytes = 5-5", 5, 6),
    ],
)
async def test_one_range(client: Client, value: str, start: int, stop: int) -> None:
    path = await client.whole(CONTENT)
    reply = await client.request("GET", path, {"Range": value})
    assert reply.status == 206
    assert reply.body == CONTENT[start:stop]
    assert reply["Content-Range"] == f"bytes {start}-{stop - 1}/1024"


@each("value", ["bytes=1024-", "bytes=9999-99999", "bytes=-0", "bytes=2000-2001,-0"])
async def test_a_range_past_the_end(client: Client, value: str) -> None:
    path = await client.whole(CONTENT)
    reply = await client.request("GET", path, {"Range": value})
    assert reply.status == 416
    assert reply["Content-Range"] == "bytes */1024"


@each(
    "value",
    [
        *("bytes", "bytes=", "bytes=,", "bytes=a-b", "bytes=5-4", "bytes=-", "lines=1-2", "=0-1"),
        *("bytes=0-1-2", "bytes=--1", "bytes=+1-2", "bytes=" + "0-0," * 200 + "1-1"),
        *("bytes=0-,0-", "bytes=\xb2-", "bytes=" + "9" * 50 + "-"),
    ],
)
async def test_a_range_that_is_none_gets_it_all(client: Client, value: str) -> None:
    path = await client.whole(CONTENT)
    reply = await client.request("GET", path, {"Range": value})
    assert (reply.status, reply.body) == (200, CONTENT)


async def test_several_ranges(client: Client) -> None:
    path = await client.whole(CONTENT, Upload_Metadata=metadata(type="text/plain"))
    reply = await client.request("GET", path, {"Range": "bytes=0-3, 100-109,-2"})
    assert reply.status == 206
    assert "Content-Range" not in reply
    head = f"Content-Type: {reply['Content-Type']}\r\n\r\n".encode()
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + reply.body)
    parts = [part for part in message.walk() if not part.is_multipart()]
    assert [part["Content-Range"] for part in parts] == [
        "bytes 0-3/1024",
        "bytes 100-109/1024",
        "bytes 1022-1023/1024",
    ]
    assert {part.get_content_type() for part in parts} == {"text/plain"}
    boundary = reply["Content-Type"].partition("boundary=")[2].encode()
    pieces = reply.body.split(b"\r\n--" + boundary)
    assert [piece.partition(b"\r\n\r\n")[2] for piece in pieces[1:-1]] == [
        CONTENT[:4],
        CONTENT[100:110],
        CONTENT[-2:],
    ]


async def test_conditions(client: Client) -> None:
    path = await client.whole(CONTENT)
    whole = await client.request("GET", path)
    tag, modified = whole["ETag"], whole["Last-Modified"]
    ranged = {"Range": "bytes=0-3"}
    for validator, status in ((tag, 206), (modified, 206), ('"x"', 200), (f"W/{tag}", 200)):
        reply = await client.request("GET", path, {**ranged, "If-Range": validator})
        assert reply.status == status, validator
    for tags, status in ((tag, 304), (f'"x", W/{tag}', 304), ("*", 304), ('"x"', 200)):
        reply = await client.request("GET", path, {"If-None-Match": tags})
        assert reply.status == status, tags
        assert reply["ETag"] == tag
    reply = await client.request("GET", path, {"If-Modified-Since": modified})
    assert reply.status == 304
    other = await client.whole(CONTENT)
    assert (await client.request("GET", other))["ETag"] != tag


async def test_an_empty_upload(client: Client) -> None:
    path = await client.create(0)
    reply = await client.request("GET", path)
    assert (reply.status, reply.body, reply["Content-Length"]) == (200, b"", "0")
    assert (await client.request("GET", path, {"Range": "bytes=0-0"})).status in (200, 416)


HOSTILE_NAMES = [
    "../../etc/passwd",
    'a"; filename=evil.html; x="',
    "a\r\nSet-Cookie: x=1",
    "line\u2028separator\u202egpj.exe",
    "C:\\windows\\x",
    "\x00\x01\x7f\x85",
    "naïve 日本.txt",
    "%2e%2e%2f",
    "\udcff".encode("utf-8", "surrogateescape"),
    "n" * 5000,
]


@each("name", HOSTILE_NAMES)
async def test_a_hostile_file_name_is_harmless(client: Client, name: str | bytes) -> None:
    path = await client.whole(b"x", Upload_Metadata=metadata(filename=name))
    reply = await client.request("GET", path)
    assert reply.status == 200
    value = reply["Content-Disposition"]
    assert value.startswith("attachment")
    assert value.isprintable()
    assert value.isascii()
    assert len(value) < 3000
    quoted = value.partition('filename="')[2].partition('"')[0]
    rest = value.replace(f'attachment; filename="{quoted}"', "", 1)
    assert not rest or (rest.startswith("; filename*=UTF-8''") and rest.count(";") == 1)
    assert not set(quoted) & set('/\\"%')
    assert "Set-Cookie" not in [n for n, _ in reply.headers]


@each(
    "media_type, answered, inline",
    [
        ("image/png", "image/png", True),
        ("IMAGE/PNG; charset=x", "image/png", True),
        ("text/plain", "text/plain; charset=utf-8", True),
        ("text/html", "application/octet-stream", False),
        ("application/xhtml+xml", "application/octet-stream", False),
        ("image/svg+xml", "application/octet-stream", False),
        ("text/javascript", "application/octet-stream", False),
        ("application/pdf", "application/octet-stream", False),
        ("image/png\r\nX-Evil: 1", "application/octet-stream", False),
        ("image/png,text/html", "application/octet-stream", False),
        ("", "application/octet-stream", False),
    ],
)
async def test_only_harmless_types_are_shown(
    client: Client, media_type: str, answered: str, inline: bool
) -> None:
    path = await client.whole(b"<script>", Upload_Metadata=metadata(filetype=media_type))
    reply = await client.request("GET", path)
    assert reply["Content-Type"] == answered
    assert reply["Content-Disposition"] == ("inline" if inline else "attachment")
    assert reply["X-Content-Type-Options"] == "nosniff"
    assert "X-Evil" not in reply


async def test_a_reader_who_goes_away(client: Client) -> None:
    content = b"x" * 8_000_000
    path = await client.whole(content)
    exchange = await client.start("GET", path, [("Content-Type", STREAM)])
    await exchange.drop()
    assert (await client.delete(path)).status == 204
