"""The core protocol: OPTIONS, HEAD, PATCH, versions, methods and paths, as a client sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.support.each import each
from tests.support.exchange import STREAM, TUS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.support.exchange import Client

    Serve = Callable[..., Awaitable[Client]]

pytestmark = pytest.mark.anyio

ALL = (
    "creation,creation-with-upload,creation-defer-length,expiration,checksum,termination,"
    "concatenation,concatenation-unfinished"
)


# ------------------------------------------------------------------------------------ discovery


@each("path", ["/files/", "/files", "/files/anything", "/files/?a=b"])
async def test_options_tells_what_the_server_can_do(
    client: Client, combination: tuple[str, str], path: str
) -> None:
    reply = await client.request("OPTIONS", path)
    assert reply.status == 204
    assert reply["Tus-Version"] == "1.0.0"
    assert reply["Tus-Resumable"] == "1.0.0"
    offered = ALL
    if combination[0] == "native":
        offered = ALL.replace("checksum,", "checksum,checksum-trailer,")
    assert reply["Tus-Extension"] == offered
    assert reply["Tus-Checksum-Algorithm"].split(",")[:5] == [
        *("sha1", "sha256", "sha512", "md5", "crc32")
    ]


@each("version", ["0.2.2", "", "1.0.0, 1.0.0", "nonsense"])
async def test_options_ignores_tus_resumable(client: Client, version: str) -> None:
    reply = await client.request("OPTIONS", client.base, {"Tus-Resumable": version})
    assert reply.status == 204


async def test_the_largest_size_is_told(serve: Serve) -> None:
    client = await serve(max_size=1000)
    reply = await client.request("OPTIONS", client.base)
    assert reply["Tus-Max-Size"] == "1000"


async def test_what_is_turned_off_is_not_offered_and_refused(serve: Serve) -> None:
    off = ["creation-with-upload", "checksum", "termination", "creation-defer-length"]
    client = await serve(disable=[*off, "concatenation"], expire_after=None)
    reply = await client.request("OPTIONS", client.base)
    assert reply["Tus-Extension"] == "creation"
    assert "Tus-Checksum-Algorithm" not in reply
    path = await client.create(5)
    assert (await client.post(b"hello", Upload_Length="5")).status == 400
    assert (await client.post(Upload_Defer_Length="1")).status == 400
    assert (await client.post(Upload_Length="5", Upload_Concat="partial")).status == 400
    assert (await client.patch(path, 0, b"a", Upload_Checksum="crc32 AAAAAA==")).status == 400
    refused = await client.delete(path)
    assert refused.status == 405
    assert "DELETE" not in refused["Allow"]
    head = await client.head(path)
    assert head["Upload-Offset"] == "0"
    assert "Upload-Expires" not in head


async def test_without_extensions_the_header_is_left_out(serve: Serve) -> None:
    client = await serve(disable=["creation", "checksum", "termination"], expire_after=None)
    reply = await client.request("OPTIONS", client.base)
    assert "Tus-Extension" not in reply
    assert (await client.post(Upload_Length="5")).status == 405


# -------------------------------------------------------------------------------- Tus-Resumable


@each("version", ["-", "0.2.2", "1.0", "1.0.0.0", "1.0.1", ""])
@each("method", ["POST", "HEAD", "PATCH", "DELETE"])
async def test_another_version_is_refused_and_nothing_done(
    client: Client, method: str, version: str
) -> None:
    path = await client.create(5)
    url = client.base if method == "POST" else path
    reply = await client.tus(
        method,
        url,
        b"hello" if method in ("POST", "PATCH") else None,
        Tus_Resumable=version,
        Content_Type=STREAM,
        Upload_Offset="0",
        Upload_Length="5",
    )
    assert reply.status == 412
    assert reply["Tus-Version"] == "1.0.0"
    assert reply["Tus-Resumable"] == "1.0.0"
    assert await client.offset(path) == 0


async def test_the_version_is_checked_before_the_upload_is_looked_for(client: Client) -> None:
    assert (await client.tus("HEAD", "/files/none", Tus_Resumable="0.1")).status == 412


async def test_white_space_around_a_value_is_not_part_of_it(client: Client) -> None:
    headers = [("Tus-Resumable", "1.0.0"), ("Upload-Length", "5")]
    reply = await client.request("POST", client.base, headers)
    assert reply.status == 201


async def test_two_versions_are_refused(client: Client) -> None:
    headers = [("Tus-Resumable", "1.0.0"), ("Tus-Resumable", "0.2.2"), ("Upload-Length", "5")]
    assert (await client.request("POST", client.base, headers)).status == 412


# ----------------------------------------------------------------------------------------- HEAD


async def test_head_tells_offset_and_length(client: Client) -> None:
    path = await client.create(11)
    for offset, piece in ((0, b""), (0, b"hello "), (6, b"world")):
        assert (await client.patch(path, offset, piece)).status == 204
        reply = await client.head(path)
        assert reply.status == 200
        assert reply["Upload-Offset"] == str(offset + len(piece))
        assert reply["Upload-Length"] == "11"
        assert reply["Cache-Control"] == "no-store"
        assert reply["Tus-Resumable"] == "1.0.0"
        assert "Upload-Defer-Length" not in reply
        assert "Upload-Metadata" not in reply
        assert "Upload-Concat" not in reply
    assert await client.content(path) == b"hello world"


@each("path", ["/files/none", "/files/%ff", "/files/a/b", "/files/%00"])
async def test_what_is_not_there_is_not_found(client: Client, path: str) -> None:
    for method in ("HEAD", "PATCH", "DELETE", "GET"):
        reply = await client.tus(method, path, Content_Type=STREAM, Upload_Offset="0")
        assert reply.status == 404, method
        assert "Upload-Offset" not in reply


@each("path", ["/", "/file", "/filesX", "/other/x", "/files%2Fx", "//files/"])
async def test_outside_of_the_base_path_there_is_nothing(client: Client, path: str) -> None:
    for method in ("HEAD", "PATCH", "DELETE", "GET", "POST", "PUT"):
        reply = await client.tus(method, path, Upload_Length="5")
        assert reply.status == 404, method
        assert reply["Tus-Resumable"] == "1.0.0"


# ---------------------------------------------------------------------------------------- PATCH


async def test_patch_acknowledges_what_it_stored(client: Client) -> None:
    path = await client.create(10)
    reply = await client.patch(path, 0, b"12345")
    assert reply.status == 204
    assert reply["Upload-Offset"] == "5"
    assert reply["Tus-Resumable"] == "1.0.0"
    assert (await client.patch(path, 5, b"67890"))["Upload-Offset"] == "10"
    assert await client.content(path) == b"1234567890"


@each("offset", ["0", "4", "6", "10", "11", str(2**63 - 1)])
async def test_another_offset_is_a_conflict(client: Client, offset: str) -> None:
    path = await client.create(10)
    assert (await client.patch(path, 0, b"12345")).status == 204
    reply = await client.patch(path, 0, b"x", Upload_Offset=offset)
    assert reply.status == 409
    assert reply["Upload-Offset"] == "5"
    assert await client.offset(path) == 5
    assert (await client.patch(path, 5, b"67890")).status == 204
    assert await client.content(path) == b"1234567890"


@each(
    "offset", ["-", "", "-1", "+5", "1e3", "0x1", "5.0", "5 5", "5,5", "²", str(2**63), "9" * 400]
)
async def test_an_offset_that_is_no_integer_is_malformed(client: Client, offset: str) -> None:
    path = await client.create(10)
    assert (await client.patch(path, 0, b"x", Upload_Offset=offset)).status == 400
    assert await client.offset(path) == 0


async def test_repeated_headers_must_agree(client: Client) -> None:
    path = await client.create(10)
    headers = [*TUS.items(), ("Content-Type", STREAM), ("Upload-Offset", "0")]
    reply = await client.request("PATCH", path, [*headers, ("Upload-Offset", "1")], b"x")
    assert reply.status == 400
    reply = await client.request("PATCH", path, [*headers, ("Upload-Offset", "0")], b"x")
    assert reply.status == 204


@each(
    "content_type, status",
    [
        ("-", 415),
        ("", 415),
        ("application/octet-stream", 415),
        ("application/offset+octet-streams", 415),
        ("Application/Offset+Octet-Stream", 204),
        ("application/offset+octet-stream; charset=utf-8", 204),
    ],
)
async def test_the_content_type_of_a_patch(client: Client, content_type: str, status: int) -> None:
    path = await client.create(10)
    reply = await client.patch(path, 0, b"hello", Content_Type=content_type)
    assert reply.status == status
    assert await client.offset(path) == (5 if status == 204 else 0)


async def test_an_encoded_body_is_refused(client: Client) -> None:
    path = await client.create(10)
    assert (await client.patch(path, 0, b"hello", Content_Encoding="gzip")).status == 415
    assert (await client.patch(path, 0, b"hello", Content_Encoding="identity")).status == 204


async def test_a_chunked_patch(client: Client) -> None:
    path = await client.create(10)
    exchange = await client.start_patch(path, 0, None)
    await exchange.send(b"hello")
    await exchange.send(b"world")
    await exchange.end()
    assert (await exchange.reply())["Upload-Offset"] == "10"
    assert await client.content(path) == b"helloworld"


async def test_an_empty_patch_at_the_end_of_a_complete_upload(client: Client) -> None:
    path = await client.whole(b"hello")
    reply = await client.patch(path, 5, b"")
    assert (reply.status, reply["Upload-Offset"]) == (204, "5")
    assert (await client.patch(path, 5, b"x")).status == 413
    assert await client.content(path) == b"hello"


async def test_a_chunked_patch_at_the_end_of_a_complete_upload(client: Client) -> None:
    path = await client.whole(b"hello")
    exchange = await client.start_patch(path, 5, None)
    await exchange.send(b"x")
    await exchange.end()
    assert (await exchange.reply()).status == 413
    assert await client.content(path) == b"hello"


async def test_a_chunked_body_past_the_length_never_completes(client: Client) -> None:
    path = await client.create(10)
    exchange = await client.start_patch(path, 0, None)
    for _ in range(3):
        await exchange.send(b"12345")
    await exchange.end()
    assert (await exchange.reply()).status == 413
    assert await client.offset(path) < 10
    assert (await client.request("GET", path)).status == 403


async def test_a_large_body_arrives_as_it_was_sent(client: Client) -> None:
    content = bytes(range(256)) * 16 * 1024  # 4 MiB
    path = await client.create(len(content))
    assert (await client.patch(path, 0, content[:3_000_001])).status == 204
    assert (await client.patch(path, 3_000_001, content[3_000_001:])).status == 204
    assert await client.content(path) == content


async def test_a_dropped_body_keeps_what_arrived(client: Client) -> None:
    path = await client.create(10)
    exchange = await client.start_patch(path, 0, 10, Expect="100-continue")
    # Or HEAD might end the writer before it got the first byte.
    await exchange.asked_for()
    await exchange.send(b"hello")
    await exchange.drop()
    await client.until(path, lambda head: head["Upload-Offset"] == "5")
    assert (await client.patch(path, 5, b"world")).status == 204
    assert await client.content(path) == b"helloworld"


async def test_head_makes_the_writer_let_go(client: Client) -> None:
    path = await client.create(10)
    exchange = await client.start_patch(path, 0, 10, Expect="100-continue")
    await exchange.asked_for()
    await exchange.send(b"hello")
    await client.until(path, lambda head: head["Upload-Offset"] == "5")
    reply = await exchange.reply()
    assert reply.status == 423
    assert reply["Retry-After"] == "1"
    assert (await client.patch(path, 5, b"world")).status == 204
    assert await client.content(path) == b"helloworld"


# ------------------------------------------------- 413, and all else that needs no body, unread


async def test_more_than_is_missing_is_refused_unread(client: Client) -> None:
    path = await client.create(10)
    assert (await client.patch(path, 0, b"12345")).status == 204
    patch = TUS | {"Content-Type": STREAM, "Upload-Offset": "5"}
    reply = await client.withheld("PATCH", path, patch, length=6)
    assert reply.status == 413
    assert not reply.continued
    assert await client.offset(path) == 5


@each(
    "changed, length, status",
    [
        ({"Tus-Resumable": "0.2.2"}, 5, 412),
        ({"Content-Type": "text/plain"}, 5, 415),
        ({"Content-Encoding": "gzip"}, 5, 415),
        ({"Upload-Offset": "1"}, 5, 409),
        ({"Upload-Offset": "x"}, 5, 400),
        ({"Upload-Length": "11"}, 5, 400),
        ({"Upload-Checksum": "sha0 AAAA"}, 5, 400),
        ({"Upload-Checksum": "sha1 AAAA"}, 5, 400),
        ({"Upload-Checksum": "sha1"}, None, 400),
        ({"Trailer": "Upload-Checksum", "Upload-Checksum": "sha1 AAAA"}, None, 400),
        ({"X-HTTP-Method-Override": "PUT"}, 5, 405),
    ],
)
async def test_a_refused_patch_is_never_asked_for_its_body(
    client: Client, changed: dict[str, str], length: int | None, status: int
) -> None:
    path = await client.create(10)
    patch = TUS | {"Content-Type": STREAM, "Upload-Offset": "0"} | changed
    reply = await client.withheld("PATCH", path, patch, length=length)
    assert reply.status == status
    assert not reply.continued
    assert await client.offset(path) == 0


@each(
    "changed, status",
    [
        ({"Tus-Resumable": "0.2.2"}, 412),
        ({"Content-Type": "text/plain"}, 415),
        ({"Upload-Length": "4"}, 413),
        ({"Upload-Length": "x"}, 400),
        ({"Upload-Defer-Length": "1"}, 400),
        ({"Upload-Metadata": ","}, 400),
        ({"Upload-Concat": "final;/files/a"}, 400),
        ({"Upload-Checksum": "sha1 x"}, 400),
    ],
)
async def test_a_refused_post_is_never_asked_for_its_body(
    client: Client, changed: dict[str, str], status: int
) -> None:
    post = TUS | {"Content-Type": STREAM, "Upload-Length": "5"} | changed
    reply = await client.withheld("POST", client.base, post, length=5)
    assert reply.status == status
    assert not reply.continued


async def test_an_accepted_body_is_asked_for(client: Client) -> None:
    path = await client.create(5)
    exchange = await client.start_patch(path, 0, 5, Expect="100-continue")
    await exchange.send(b"hello")
    await exchange.end()
    reply = await exchange.reply()
    assert reply.status == 204
    assert reply.continued


# ----------------------------------------------------------------------------- methods and paths


async def test_a_method_in_a_header_counts(client: Client) -> None:
    path = await client.create(5)
    override = {"X_HTTP_Method_Override": "PATCH"}
    reply = await client.tus(
        "POST", path, b"hello", Content_Type=STREAM, Upload_Offset="0", **override
    )
    assert (reply.status, reply["Upload-Offset"]) == (204, "5")
    reply = await client.tus("POST", path, X_HTTP_Method_Override="head")
    assert (reply.status, reply["Upload-Offset"]) == (200, "5")
    assert (await client.tus("GET", path, X_HTTP_Method_Override="DELETE")).status == 204
    assert (await client.head(path)).status == 410


async def test_the_method_itself_does_not_count_then(client: Client) -> None:
    path = await client.create(5)
    reply = await client.tus("DELETE", path, X_HTTP_Method_Override="HEAD")
    assert (reply.status, reply["Upload-Offset"]) == (200, "0")
    assert await client.offset(path) == 0


async def test_an_overridden_head_carries_no_body(client: Client) -> None:
    path = await client.whole(b"hello")
    reply = await client.request("HEAD", path, {"X-HTTP-Method-Override": "GET"})
    assert reply.status == 200
    assert reply["Content-Length"] == "5"


async def test_an_overridden_method_that_is_none(client: Client) -> None:
    assert (await client.tus("POST", client.base, X_HTTP_Method_Override="BREW")).status == 405
    headers = [*TUS.items(), ("X-HTTP-Method-Override", "PATCH")]
    headers.append(("X-HTTP-Method-Override", "DELETE"))
    assert (await client.request("POST", client.base, headers)).status == 400


@each("method", ["GET", "HEAD", "PATCH", "DELETE", "PUT", "TRACE", "post"])
async def test_methods_of_the_creation_url(client: Client, method: str) -> None:
    if method == "post" and client.__class__.__name__ == "SocketClient":
        method = "PROPFIND"  # a parser may know upper case only
    for path in ("/files/", "/files"):
        reply = await client.tus(method, path)
        assert reply.status == 405
        assert reply["Allow"] == "OPTIONS, POST"


@each("method", ["POST", "PUT", "TRACE", "PROPFIND"])
async def test_methods_of_an_upload(client: Client, method: str) -> None:
    path = await client.create(5)
    reply = await client.tus(method, path)
    assert reply.status == 405
    assert reply["Allow"] == "OPTIONS, HEAD, PATCH, DELETE, GET"


@each("base", ["/files", "/files/", "/files?x=1"])
async def test_the_creation_url_with_and_without_its_last_slash(client: Client, base: str) -> None:
    reply = await client.tus("POST", base, Upload_Length="5")
    assert reply.status == 201
    assert "/files/" in reply["Location"]


@pytest.mark.parametrize("base", ["/", "/a/b/c/", "a"])
async def test_any_base_path(serve: Serve, base: str) -> None:
    client = await serve(base_path=base)
    client.base = f"/{base.strip('/')}/".replace("//", "/")
    path = await client.whole(b"hello")
    assert path.startswith(client.base)
    assert await client.content(path) == b"hello"
    assert (await client.delete(path)).status == 204


async def test_an_id_is_hard_to_guess_and_safe_in_a_url(client: Client) -> None:
    ids = {(await client.create(1)).removeprefix("/files/") for _ in range(5)}
    assert len(ids) == 5
    for upload_id in ids:
        assert len(upload_id) >= 22
        assert upload_id.replace("-", "").replace("_", "").isalnum()
