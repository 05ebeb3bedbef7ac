"""Requests near the vocabulary of tus, and bytes near HTTP: nothing gives a 5xx, hangs, or moves an
offset otherwise than the answer said.
"""

from __future__ import annotations

import base64
import hashlib
import re
from typing import TYPE_CHECKING, Any

import anyio
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.exchange import STREAM, AsgiClient, Reply, SocketClient, path_of
from tests.support.logs import logs_kept
from tests.support.serving import in_memory, listening

from tidegate.engine.core import Settings
from tidegate.testing import FakeClock

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.anyio

LENGTH = 12
CONTENT = b"0123456789ab"
MAX_SIZE = 1000

# ------------------------------------------------------------------------------ the vocabulary

# What may stand in a header: no control characters, for those a server has refused before.
noise = st.text(
    st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_categories=["Cc"]), max_size=12
).map(str.strip)
integers = st.one_of(
    st.sampled_from(["0", "5", "7", "12", "00", "-1", "+5", "", "5.0", "0x5", "²", str(2**63)]),
    st.integers(0, 20).map(str),
    noise,
)
bodies = st.one_of(st.sampled_from([b"", CONTENT[5:], CONTENT]), st.binary(max_size=20))
urls = st.sampled_from(
    ["{0}", "{1}", "{2}", "{3}", "{4}", "{5}", "http://a{3}", "/files/", "/files/x", "", "//", "%"]
)


def digest(name: str, body: bytes) -> str:
    return f"{name} {base64.b64encode(hashlib.new(name, body).digest()).decode()}"


HEADERS: dict[str, st.SearchStrategy[str]] = {
    "Tus-Resumable": st.one_of(*[st.just("1.0.0")] * 9, st.sampled_from(["0.2.2", ""]), noise),
    "Upload-Offset": integers,
    "Content-Type": st.one_of(*[st.just(STREAM)] * 9, st.sampled_from(["text/plain", ""]), noise),
}
OPTIONAL: dict[str, st.SearchStrategy[str]] = {
    "Upload-Length": integers,
    "Upload-Defer-Length": st.one_of(st.just("1"), integers),
    "Upload-Metadata": st.one_of(
        st.sampled_from(["", "a", "a aGk=", "a aGk=,b", "a aGk=,a aGk=", "filename Li4vLi4v", ","]),
        noise,
        noise.map(lambda name: f"filename {base64.b64encode(name.encode()).decode()}"),
    ),
    "Upload-Concat": st.one_of(
        st.just("partial"),
        st.lists(urls, max_size=4).map(lambda listed: "final;" + " ".join(listed)),
        noise,
    ),
    "Upload-Checksum": st.one_of(
        bodies.map(lambda body: digest("sha1", body)),
        st.sampled_from(["sha1 AAAA", "crc32 AAAAAA==", "md5", "x y", digest("md5", CONTENT[5:])]),
        noise,
    ),
    "X-HTTP-Method-Override": st.sampled_from(["PATCH", "HEAD", "DELETE", "GET", "", "x", "post"]),
    "Content-Encoding": st.sampled_from(["gzip", "identity", ""]),
    "Trailer": st.sampled_from(["Upload-Checksum", "x, upload-checksum", ""]),
    "Range": st.one_of(st.sampled_from(["bytes=0-1", "bytes=-3,0-0,5-", "bytes=99-"]), noise),
    "If-Range": noise,
    "If-None-Match": st.sampled_from(["*", '"x"', ""]),
    "Accept": st.sampled_from(["application/problem+json", "*/*"]),
    "Origin": st.one_of(st.just("https://a.test"), noise),
    "Access-Control-Request-Method": st.sampled_from(["PATCH", ""]),
    "Host": st.one_of(st.sampled_from(["a", "a:1", "[::1]", "", "a/b"]), noise),
    "Forwarded": st.one_of(st.sampled_from(["proto=https;host=x", 'for="[::1]:1"']), noise),
    "X-Forwarded-Host": noise,
    "X-Forwarded-Proto": noise,
    "Upgrade": st.sampled_from(["h2c", "websocket"]),
    "Expect": st.sampled_from(["100-continue", "x"]),
    "X-Request-ID": noise,
}
TRANSFER_CODINGS = st.sampled_from(["gzip", "chunked, gzip", "identity", "", "Chunked"])


class Fuzzed(msgspec.Struct, frozen=True):
    """A request; `{n}` in it stands for the path of upload n."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    framing: str
    transfer_coding: str = ""


requests = st.builds(
    Fuzzed,
    method=st.one_of(
        *[st.sampled_from(["PATCH", "POST", "HEAD", "GET", "DELETE", "OPTIONS"])] * 4,
        st.sampled_from(["PUT", "TRACE", "CONNECT", "x", "patch"]),
    ),
    path=st.one_of(
        *[st.sampled_from(["{0}", "{1}", "{2}", "{3}", "{4}", "{5}", "/files/", "/files"])] * 4,
        st.text(st.sampled_from("/%.~aF0?é:@"), max_size=8).map(lambda t: f"/files/{t}"),
        noise,
    ),
    headers=st.builds(
        lambda needed, more: needed | dict(more),
        st.fixed_dictionaries(HEADERS),
        st.lists(
            st.one_of([st.tuples(st.just(name), value) for name, value in OPTIONAL.items()]),
            max_size=5,
        ),
    ),
    body=bodies,
    framing=st.sampled_from(["length", "length", "chunked", "cut short", "coding", "both"]),
    transfer_coding=TRANSFER_CODINGS,
)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with logs_kept():
        yield


# -------------------------------------------------------------------------------- in process


class Model:
    """What the uploads of one server hold, as far as its answers told."""

    def __init__(self, client: AsgiClient) -> None:
        self.client = client
        self.paths: list[str] = []
        self.held: dict[str, bytes] = {}
        self.states: dict[str, tuple[int, str | None]] = {}

    async def add(self, path: str, held: bytes) -> None:
        self.paths.append(path)
        self.held[path] = held
        self.states[path] = await self.look(path)

    async def look(self, path: str) -> tuple[int, str | None]:
        reply = await self.client.head(path)
        assert reply.status in (200, 410), reply
        offsets = reply.all("Upload-Offset")
        return reply.status, offsets[0] if offsets else None

    async def prepare(self) -> None:
        client = self.client
        await self.add(await client.create(LENGTH), b"")
        some = await client.create(LENGTH)
        await client.patch(some, 0, CONTENT[:5])
        await self.add(some, CONTENT[:5])
        deferred = await client.create(Upload_Defer_Length="1")
        await client.patch(deferred, 0, CONTENT[:5])
        await self.add(deferred, CONTENT[:5])
        part = await client.whole(CONTENT, Upload_Concat="partial")
        await self.add(part, CONTENT)
        unfinished = await client.create(LENGTH, Upload_Concat="partial")
        await self.add(unfinished, b"")
        final = await client.post(Upload_Concat=f"final;{part}")
        await self.add(path_of(final), CONTENT)

    async def send(self, fuzzed: Fuzzed) -> Reply:
        def filled(text: str) -> str:
            return re.sub(r"\{(\d)\}", lambda match: self.paths[int(match[1])], text)

        headers = [(name, filled(value)) for name, value in fuzzed.headers.items()]
        chunked = ("Transfer-Encoding", "chunked")
        sized = ("Content-Length", str(len(fuzzed.body)))
        headers += {
            "length": [sized],
            "chunked": [chunked],
            "cut short": [("Content-Length", str(len(fuzzed.body) + 3))],
            "coding": [("Transfer-Encoding", fuzzed.transfer_coding)],
            "both": [sized, chunked],
        }[fuzzed.framing]
        path = filled(fuzzed.path)
        # Nothing more is sent to a reader who went away.
        override = fuzzed.headers.get("X-HTTP-Method-Override", "")
        exchange = self.client.exchange(fuzzed.method, path, headers)
        exchange.begin(self.client.app)
        if fuzzed.body:
            await exchange.send(fuzzed.body)
        if fuzzed.framing == "cut short" and "GET" not in (fuzzed.method, override.upper()):
            exchange._leave()
        else:
            await exchange.end()
        reply = await exchange.reply()
        await self.check(fuzzed, path.partition("?")[0], reply)
        return reply

    async def check(self, fuzzed: Fuzzed, path: str, reply: Reply) -> None:
        context = f"{fuzzed} -> {reply}"
        odd_coding = fuzzed.framing == "coding" and fuzzed.transfer_coding.lower() != "chunked"
        assert reply.status < 500 or (reply.status == 501 and odd_coding), context
        if "Location" in reply:
            assert reply.status == 201, context
            new = path_of(reply)
            assert new not in self.paths, context
            offset = int(reply["Upload-Offset"]) if "Upload-Offset" in reply else 0
            if "final;" not in fuzzed.headers.get("Upload-Concat", ""):
                assert offset <= len(fuzzed.body), context
                await self.add(new, fuzzed.body[:offset])
                assert self.states[new] == (200, str(offset)), context
        for known, before in self.states.items():
            after = await self.look(known)
            if after != before:
                assert known == path, context
                assert reply.status == 204, context
                self.moved(known, before, after, fuzzed.body, reply, context)
            self.states[known] = after

    def moved(
        self,
        path: str,
        before: tuple[int, str | None],
        after: tuple[int, str | None],
        body: bytes,
        reply: Reply,
        context: str,
    ) -> None:
        assert before[0] == 200, context
        if after[0] == 410:
            assert "Upload-Offset" not in reply, context
            return
        assert before[1] is not None, context
        assert after[1] == reply["Upload-Offset"], context
        grown = int(reply["Upload-Offset"]) - int(before[1])
        assert 0 < grown <= len(body), context
        self.held[path] += body[:grown]

    async def finish(self) -> None:
        """Complete what can be, and compare every byte."""
        for path, (status, offset) in self.states.items():
            if status == 410 or offset is None:
                continue
            assert int(offset) == len(self.held[path])
            head = await self.client.head(path)
            if "Upload-Length" not in head:
                reply = await self.client.patch(path, int(offset), b"", Upload_Length=offset)
                assert reply.status == 204, reply
                length = int(offset)
            else:
                length = int(head["Upload-Length"])
            rest = b"." * (length - int(offset))
            if rest:
                assert (await self.client.patch(path, int(offset), rest)).status == 204
            assert await self.client.content(path) == self.held[path] + rest


@given(st.lists(requests, min_size=1, max_size=6))
@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
async def test_requests_near_the_protocol(fuzzed: list[Fuzzed]) -> None:
    app = in_memory(
        base_path="/files/",
        max_size=MAX_SIZE,
        trusted_proxies=["*"],
        clock=FakeClock(),
        settings=Settings(assemble_within=10.0),
    )
    async with app:
        model = Model(AsgiClient(app))
        await model.prepare()
        for each in fuzzed:
            await model.send(each)
        await model.finish()


# ------------------------------------------------------------------------------- on a socket

SEEDS = (
    (
        b"PATCH {path} HTTP/1.1\r\nHost: a\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: 5\r\n"
        b"Content-Type: application/offset+octet-stream\r\nContent-Length: 3\r\n\r\n567"
    ),
    (
        b"PATCH {path} HTTP/1.1\r\nHost: a\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: 5\r\n"
        b"Content-Type: application/offset+octet-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"2\r\n56\r\n1;x=y\r\n7\r\n0\r\nA: b\r\n\r\n"
    ),
    (
        b"POST /files/ HTTP/1.1\r\nHost: a\r\nTus-Resumable: 1.0.0\r\nUpload-Length: 5\r\n"
        b"Upload-Metadata: filename aGk=,x\r\nExpect: 100-continue\r\n"
        b"Content-Type: application/offset+octet-stream\r\nContent-Length: 5\r\n\r\nhello"
    ),
    (
        b"HEAD {path} HTTP/1.1\r\nHost: a\r\nTus-Resumable: 1.0.0\r\n\r\n"
        b"GET {path} HTTP/1.1\r\nHost: a\r\nRange: bytes=0-1\r\n\r\n"
    ),
    (
        b"OPTIONS /files/ HTTP/1.1\r\nHost: a\r\nOrigin: https://a\r\n"
        b"Access-Control-Request-Method: PATCH\r\n\r\n"
    ),
)

edits = st.lists(
    st.tuples(
        st.integers(0, 400),
        st.integers(0, 12),
        st.one_of(
            st.binary(max_size=4),
            st.sampled_from(
                [b"\r\n", b"\r\n\r\n", b"\0", b":", b" ", b"0", b"-", b"\xff", b"9" * 30]
            ),
        ),
    ),
    max_size=3,
)


def edited(seed: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    for at, cut, put in changes:
        at %= len(seed) + 1  # noqa: PLW2901
        seed = seed[:at] + put + seed[at + cut :]
    return seed


@given(st.lists(st.tuples(st.sampled_from(SEEDS), edits), min_size=1, max_size=10))
@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@pytest.mark.parametrize("http", ["h11", "httptools", "native"])
async def test_bytes_near_http(http: str, sent: list[tuple[bytes, Any]]) -> None:
    app = in_memory(base_path="/files/", max_size=MAX_SIZE, accept_upgrade=http != "httptools")
    async with app, listening(app, http) as port:
        client = SocketClient("127.0.0.1", port)
        for seed, changes in sent:
            path = await client.create(LENGTH)
            assert (await client.patch(path, 0, CONTENT[:5])).status == 204
            raw = edited(seed.replace(b"{path}", path.encode()), changes)
            data = await _converse(client, raw)
            for status in re.findall(rb"HTTP/1.1 (\d{3}) ", data):
                assert int(status) < 500 or status in {b"501", b"505"}, (raw, data)
            after = await client.head(path)
            assert after.status in (200, 410), (raw, data)
            if after.status == 200:
                offset = int(after["Upload-Offset"])
                answered = [int(n) for n in re.findall(rb"(?i)upload-offset: (\d+)\r\n", data)]
                gone = b"PATCH" in raw and not answered
                # Either nothing moved, or the answer says so, or the body was cut short.
                assert offset in {5, *answered} or (gone and 5 < offset <= LENGTH), (raw, data)
                assert offset >= 5
        await client.aclose()


async def _converse(client: SocketClient, raw: bytes) -> bytes:
    """Send it, say that this is all, and read until the server closes."""
    data = b""
    async with await client.connect() as stream:
        with anyio.fail_after(10):
            try:
                await stream.send(raw)
                await stream.send_eof()
                while True:
                    data += await stream.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError, OSError):
                return data
