"""Requests of tus 1.0.0 to commands."""

from __future__ import annotations

from typing import Any

import pytest
from tests.protocol.samples import NOW, OFFER, Headers, b64, request, upload

from tidegate.protocol import decide, fields
from tidegate.protocol.commands import (
    Append,
    Checksum,
    Command,
    Create,
    Discover,
    Download,
    Inspect,
    Payload,
    Terminate,
)
from tidegate.protocol.dialects import tus1
from tidegate.protocol.dialects.http import Request
from tidegate.protocol.errors import Code, Refusal
from tidegate.protocol.model import NOWHERE, Kind, Principal, UploadId

TUS: Headers = {"Tus-Resumable": "1.0.0"}
STREAM: Headers = {"Content-Type": "application/offset+octet-stream"}
BODY: Headers = TUS | STREAM | {"Content-Length": "30"}
PATCH: Headers = BODY | {"Upload-Offset": "70"}
POST: Headers = TUS | {"Upload-Length": "100"}
SHA1 = b64(bytes(20))
HTTP2: dict[str, Any] = {"may_omit_length": True}


def create(headers: Headers, **fields: Any) -> Create:
    command = tus1.parse(request("POST", "", headers, **fields))
    assert isinstance(command, Create)
    return command


def append(headers: Headers, **fields: Any) -> Append:
    command = tus1.parse(request("PATCH", "a", headers, **fields))
    assert isinstance(command, Append)
    assert command.id == "a"
    return command


def refused(command: Create | Append, code: Code, naming: str = "") -> None:
    """The command carries a refusal, in which nothing but the code and the header matter."""
    assert command.malformed is not None, command
    assert command.malformed.code is code, command.malformed
    assert command.malformed.message.startswith(naming)


# -------------------------------------------------------------------------- methods and paths


@pytest.mark.parametrize(
    ("method", "path", "command"),
    [
        ("OPTIONS", "", Discover()),
        ("OPTIONS", "/", Discover()),
        ("OPTIONS", "a", Discover()),
        ("OPTIONS", "a/b", Discover()),
        ("POST", "", Create(length=100)),
        ("POST", "/", Create(length=100)),
        ("HEAD", "a", Inspect(id=UploadId("a"))),
        ("DELETE", "a", Terminate(id=UploadId("a"))),
        ("GET", "a", Download(id=UploadId("a"))),
        (
            "HEAD",
            "24e533e02ec3bc40c387f1a0e460e216",
            Inspect(id=UploadId("24e533e02ec3bc40c387f1a0e460e216")),
        ),
        ("HEAD", "a%20b", Inspect(id=UploadId("a b"))),
        ("HEAD", "%C3%A9", Inspect(id=UploadId("é"))),
        ("HEAD", "a%2Fb", Inspect(id=UploadId("a/b"))),
        ("HEAD", "a+b~._-", Inspect(id=UploadId("a+b~._-"))),
    ],
)
def test_what_a_method_and_a_path_ask_for(method: str, path: str, command: Command) -> None:
    assert tus1.parse(request(method, path, POST)) == command


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        *((m, "", ("OPTIONS", "POST")) for m in ("GET", "HEAD", "PATCH", "DELETE", "PUT", "post")),
        *((m, "a", ("OPTIONS", "HEAD", "PATCH", "DELETE", "GET")) for m in ("POST", "PUT", "get")),
        ("\r\nX", "a/b", ("OPTIONS", "HEAD", "PATCH", "DELETE", "GET")),
    ],
)
def test_other_methods(method: str, path: str, allow: tuple[str, ...]) -> None:
    with pytest.raises(Refusal) as caught:
        tus1.parse(request(method, path))
    assert caught.value.code is Code.METHOD_NOT_ALLOWED
    assert caught.value.allow == allow
    assert caught.value.message.isprintable()


@pytest.mark.parametrize("method", ["HEAD", "PATCH", "DELETE", "GET"])
@pytest.mark.parametrize(
    "path",
    ["a/b", "a/", "//", "/a", "%ff", "%00", "a%0d%0a", "%E2%80%AE", "a\x00", "a/../b"],
)
def test_a_path_that_can_name_no_upload(method: str, path: str) -> None:
    """That it names none is told after who asks is known: as of one that names one."""
    command = tus1.parse(request(method, path, TUS))
    assert getattr(command, "id", None) == NOWHERE


@pytest.mark.parametrize(
    ("actual", "override", "path", "kind"),
    [
        ("POST", "PATCH", "a", Append),
        ("POST", "DELETE", "a", Terminate),
        ("POST", "HEAD", "a", Inspect),
        ("POST", "GET", "a", Download),
        ("PUT", "patch", "a", Append),
        ("POST", " PATCH ", "a", Append),
        # "The actual method of the request MUST be ignored."
        ("GET", "POST", "", Create),
        ("OPTIONS", "PATCH", "a", Append),
        ("PATCH", "OPTIONS", "a", Discover),
        # Said to be nothing: as if it were not said
        ("PATCH", "", "a", Append),
    ],
)
def test_method_override(actual: str, override: str, path: str, kind: type) -> None:
    command = tus1.parse(request(actual, path, PATCH | {"X-HTTP-Method-Override": override}))
    assert type(command) is kind


def test_method_override_counts_for_what_is_allowed() -> None:
    with pytest.raises(Refusal, match=r"^PUT is not a method of this URL") as caught:
        tus1.parse(request("PATCH", "a", PATCH | {"X-HTTP-Method-Override": "PUT"}))
    assert caught.value.code is Code.METHOD_NOT_ALLOWED


def test_method_override_said_twice() -> None:
    same: Headers = {"X-HTTP-Method-Override": ["PATCH", "PATCH"]}
    assert isinstance(tus1.parse(request("POST", "a", PATCH | same)), Append)
    with pytest.raises(Refusal, match="sent 2 times with different values") as caught:
        tus1.parse(request("POST", "a", PATCH | {"X-HTTP-Method-Override": ["PATCH", "DELETE"]}))
    assert caught.value.code is Code.BAD_HEADER


# ------------------------------------------------------------------------------- Tus-Resumable


@pytest.mark.parametrize(
    "version",
    [None, "", "1.0", "1.0.1", "0.2.2", "2.0.0", "v1.0.0", "1.0.0,0.2.2", ["1.0.0", "0.2.2"]],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", ""), ("HEAD", "a"), ("PATCH", "a"), ("DELETE", "a"), ("HEAD", "a/b")],
)
def test_another_version(method: str, path: str, version: str | list[str] | None) -> None:
    headers: Headers = {} if version is None else {"Tus-Resumable": version}
    with pytest.raises(Refusal, match=r"^Tus-Resumable: .* this server speaks 1\.0\.0$") as caught:
        tus1.parse(request(method, path, headers))
    assert (caught.value.code, caught.value.status) == (Code.UNSUPPORTED_VERSION, 412)


@pytest.mark.parametrize("version", ["1.0.0", " 1.0.0", "1.0.0\t", ["1.0.0", "1.0.0"]])
def test_our_version(version: str | list[str]) -> None:
    tus1.parse(request("HEAD", "a", {"Tus-Resumable": version}))


@pytest.mark.parametrize("headers", [{}, {"Tus-Resumable": "0.2.2"}, {"Tus-Resumable": ""}])
def test_the_version_is_ignored_by_discovery_and_downloads(headers: Headers) -> None:
    """ "the Server MUST ignore the header" """
    assert tus1.parse(request("OPTIONS", "", headers)) == Discover()
    assert tus1.parse(request("GET", "a", headers)) == Download(id=UploadId("a"))


# ---------------------------------------------------------------------------------------- POST


def test_a_creation() -> None:
    metadata = "filename d29ybGRfZG9taW5hdGlvbl9wbGFuLnBkZg==,is_confidential"
    assert create(POST | {"Content-Length": "0", "Upload-Metadata": metadata}) == Create(
        length=100, metadata=metadata
    )
    assert create(TUS | {"Upload-Defer-Length": "1"}) == Create(deferred=True)
    assert create(TUS | {"Upload-Length": "0"}) == Create(length=0)
    # Neither, and both, are for `decide` to refuse.
    assert create(TUS) == Create()
    assert create(POST | {"Upload-Defer-Length": "1"}) == Create(length=100, deferred=True)


def test_white_space_around_a_value_is_not_part_of_it() -> None:
    headers: Headers = TUS | {"Upload-Length": " \t100 ", "Upload-Metadata": " a YQ==\t"}
    assert create(headers) == Create(length=100, metadata="a YQ==")


@pytest.mark.parametrize("value", ["", " ", ["", ""]])
def test_empty_metadata_is_none(value: str | list[str]) -> None:
    assert create(POST | {"Upload-Metadata": value}) == Create(length=100)


def test_a_header_that_is_repeated() -> None:
    assert create(TUS | {"Upload-Length": ["100", " 100"]}) == Create(length=100)
    for name, values in (
        ("Upload-Length", ["100", "101"]),
        ("Upload-Length", ["100", ""]),
        ("Upload-Length", ["100", "0100"]),
        ("Upload-Metadata", ["a", "b"]),
        ("Upload-Concat", ["partial", "final;a"]),
        ("Upload-Defer-Length", ["1", "0"]),
        ("Content-Length", ["0", "1"]),
        ("Upload-Checksum", [f"sha1 {SHA1}", "md5 AAAA"]),
    ):
        headers = POST | STREAM | {name: values}
        refused(create(headers), Code.BAD_HEADER, f"{name}: sent 2 times")


@pytest.mark.parametrize("value", ["0", "2", "", "01", "true", "1,1", "+1", "1.0"])
def test_a_deferral_other_than_1(value: str) -> None:
    refused(
        create(TUS | {"Upload-Defer-Length": value}),
        Code.BAD_LENGTH,
        f"Upload-Defer-Length: '{value}'",
    )


@pytest.mark.parametrize("value", ["", "-1", "+5", "1e3", "0x1", "9223372036854775808", "\xb2"])
def test_a_length_that_is_none(value: str) -> None:
    refused(create(TUS | {"Upload-Length": value}), Code.BAD_HEADER, "Upload-Length: ")


def test_what_is_wrong_with_other_headers() -> None:
    refused(create(POST | {"Upload-Metadata": ","}), Code.BAD_METADATA, "Upload-Metadata: ")
    refused(create(POST | {"Upload-Concat": "whole"}), Code.BAD_CONCAT, "Upload-Concat: ")
    refused(create(POST | {"Upload-Checksum": "sha1"}), Code.BAD_CHECKSUM, "Upload-Checksum: ")


def test_a_malformed_creation_is_nothing_else() -> None:
    command = create(POST | {"Upload-Metadata": ",", "Upload-Concat": "partial"})
    assert command == Create(malformed=command.malformed)


# ------------------------------------------------------------------------ POST: the body


def test_creation_with_upload() -> None:
    assert create(POST | BODY) == Create(length=100, payload=Payload(length=30))
    chunked = POST | STREAM | {"Transfer-Encoding": "chunked"}
    assert create(chunked) == Create(length=100, payload=Payload(length=None))
    checksum = Payload(length=30, checksum=Checksum("sha1", bytes(20)))
    assert create(POST | BODY | {"Upload-Checksum": f"sha1 {SHA1}"}).payload == checksum


@pytest.mark.parametrize("length", [{}, {"Content-Length": "0"}, {"Content-Length": "00"}])
def test_without_a_body_its_type_does_not_matter(length: Headers) -> None:
    contents: list[Headers] = [{}, {"Content-Type": "text/plain"}, {"Content-Encoding": "gzip"}]
    for content in contents:
        assert create(POST | length | content) == Create(length=100)


@pytest.mark.parametrize("length", [{}, {"Content-Length": "0"}])
def test_a_checksum_of_no_body_is_not_forgotten(length: Headers) -> None:
    payload = Payload(length=0, checksum=Checksum("sha1", bytes(20)))
    assert create(POST | length | {"Upload-Checksum": f"sha1 {SHA1}"}).payload == payload


@pytest.mark.parametrize("framing", [{"Content-Length": "5"}, {"Transfer-Encoding": "chunked"}])
@pytest.mark.parametrize(
    "content_type",
    [None, "", "application/octet-stream", "application/offset+octet-streams", "text/plain", "*/*"],
)
def test_a_body_of_another_type(framing: Headers, content_type: str | None) -> None:
    headers = POST | framing | ({} if content_type is None else {"Content-Type": content_type})
    refused(create(headers), Code.UNSUPPORTED_TYPE, "Content-Type: ")


def test_the_type_comes_before_the_syntax_of_headers() -> None:
    headers = POST | {"Content-Length": "5", "Upload-Checksum": "x", "Upload-Length": "x"}
    refused(create(headers), Code.UNSUPPORTED_TYPE)
    refused(create(headers | {"Content-Length": "-5"}), Code.UNSUPPORTED_TYPE)
    refused(append(headers), Code.UNSUPPORTED_TYPE)


def test_in_http_2_a_body_may_come_unannounced() -> None:
    assert create(POST, **HTTP2) == Create(length=100)
    assert create(POST | STREAM, **HTTP2).payload == Payload(length=None)
    assert create(POST | BODY, **HTTP2).payload == Payload(length=30)
    assert create(POST | STREAM | {"Content-Length": "0"}, **HTTP2).payload is None
    refused(create(POST | {"Content-Type": "text/plain"}, **HTTP2), Code.UNSUPPORTED_TYPE)
    refused(create(POST | {"Trailer": "Upload-Checksum"}, **HTTP2), Code.UNSUPPORTED_TYPE)
    final: Headers = TUS | {"Upload-Concat": "final;/files/a"}
    assert create(final, **HTTP2).payload is None


# -------------------------------------------------------------------------------------- concat


def test_a_partial() -> None:
    command = create(POST | {"Upload-Concat": "partial"})
    assert command == Create(kind=Kind.PARTIAL, concat="partial", length=100)


def final(value: str, **fields: Any) -> Create:
    return create(TUS | {"Upload-Concat": value}, **fields)


def test_a_final() -> None:
    value = "final;/files/a /files/b /files/a"
    assert final(value) == Create(
        kind=Kind.FINAL, concat=value, parts=(UploadId("a"), UploadId("b"), UploadId("a"))
    )


PUBLIC = "https://up.example.org/tus/"


@pytest.mark.parametrize(
    ("url", "part"),
    [
        ("/files/a", "a"),
        # absolute; "host and scheme do not matter"
        ("http://localhost:1080/files/a", "a"),
        ("https://other.example.net/files/a", "a"),
        ("//other.example.net/files/a", "a"),
        ("http://[::1]:80/files/a", "a"),
        # relative to the creation URL
        ("a", "a"),
        ("./a", "a"),
        ("../files/a", "a"),
        ("/files/./a", "a"),
        # as a proxy shows it to the world
        ("https://up.example.org/tus/a", "a"),
        ("/tus/a", "a"),
        # percent-encoded
        ("/files/a%20b", "a b"),
        ("/files/%61", "a"),
        ("/files/%C3%A9", "é"),
        ("/files/a%2Fb", "a/b"),
        ("/files/a+b", "a+b"),
        # what does not belong to the path
        ("/files/a?token=secret", "a"),
        ("/files/a#there", "a"),
        ("/files/a;v=1", "a;v=1"),
    ],
)
def test_how_a_part_is_named(url: str, part: str) -> None:
    command = final(f"final;/files/x {url}", base_url=PUBLIC)
    assert command.malformed is None
    assert command.parts == ("x", part)
    assert command.concat == f"final;/files/x {url}", "kept to the letter"


@pytest.mark.parametrize(
    "url",
    [
        *(
            "/other/a",
            "/files",
            "/files/",
            "/",
            "/a",
            "//files/a",
            "/FILES/a",
            "/filesa",
            "?a",
            "#a",
        ),
        *(
            "/files/a/",
            "/files/a/b",
            "/files//a",
            "/files/../a",
            "../a",
            "files/a/b",
            "a/b",
            ".",
            "..",
        ),
        *(
            "/files/%ff",
            "/files/%00",
            "/files/%0d%0a",
            "http://[/files/a",
            "http://h",
            "/tus/",
            "/tus",
        ),
    ],
)
def test_what_names_no_part(url: str) -> None:
    """An unknown upload: 404."""
    command = final(f"final;/files/x {url}", base_url=PUBLIC)
    refused(command, Code.NOT_FOUND, "Upload-Concat: part 2 is not an upload of this server")


@pytest.mark.parametrize(
    ("base_path", "base_url", "url"),
    [
        ("/", "https://h/", "/a"),
        ("/", "https://h/", "a"),
        ("/", "https://h/tus/", "https://h/tus/a"),
        ("/", "https://h/tus/", "/a"),
        ("/files/", "https://h/", "https://h/a"),
        ("/files/", "https://h/", "/files/a"),
        ("/api/files/", "/api/files/", "/api/files/a"),
        ("/files/", "/files/files/", "/files/files/a"),
        ("/files/files/", "/files/", "/files/files/a"),
    ],
)
def test_parts_under_any_base(base_path: str, base_url: str, url: str) -> None:
    assert final(f"final;{url}", base_path=base_path, base_url=base_url).parts == ("a",)


@pytest.mark.parametrize("value", ["final;", "final; a", "final;a ", "final;a  b", "Partial", ""])
def test_another_concat(value: str) -> None:
    refused(final(value.replace("a ", "a \x1f")), Code.BAD_CONCAT, "Upload-Concat: ")


def test_a_final_of_many_parts() -> None:
    urls = " ".join(f"https://tus.example.org/files/{n:032x}" for n in range(500))
    assert len(final(f"final;{urls}").parts) == 500


# --------------------------------------------------------------------------------------- PATCH


def test_an_append() -> None:
    assert append(PATCH) == Append(id=UploadId("a"), offset=70, payload=Payload(length=30))
    assert append(PATCH | {"Upload-Length": "100"}).length == 100
    checksum = Payload(length=30, checksum=Checksum("sha1", bytes(20)))
    assert append(PATCH | {"Upload-Checksum": f"sha1 {SHA1}"}).payload == checksum


def test_an_append_of_nothing() -> None:
    for length in ({"Content-Length": "0"}, {}):
        headers = TUS | STREAM | {"Upload-Offset": "70"} | length
        assert append(headers).payload == Payload(length=0)
        with_checksum = append(headers | {"Upload-Checksum": f"sha1 {SHA1}"})
        assert with_checksum.payload == Payload(length=0, checksum=Checksum("sha1", bytes(20)))


def test_an_append_of_unknown_size() -> None:
    headers = TUS | STREAM | {"Upload-Offset": "70"}
    assert append(headers | {"Transfer-Encoding": "chunked"}).payload == Payload(length=None)
    assert append(headers | {"Transfer-Encoding": "Chunked"}).payload == Payload(length=None)
    assert append(headers, **HTTP2).payload == Payload(length=None)


@pytest.mark.parametrize(
    "value",
    [
        "application/offset+octet-stream",
        "Application/Offset+Octet-Stream",
        " application/offset+octet-stream ",
        "application/offset+octet-stream; charset=utf-8",
        "application/offset+octet-stream ;x=y",
        ["application/offset+octet-stream", "application/offset+octet-stream"],
    ],
)
def test_the_type(value: str | list[str]) -> None:
    assert append(PATCH | {"Content-Type": value}).malformed is None


@pytest.mark.parametrize(
    "value",
    [
        *("", "application/octet-stream", "application/offset", "offset+octet-stream", ";"),
        "application/offset+octet-stream, text/plain",
        "application/x-www-form-urlencoded",
    ],
)
def test_another_type(value: str) -> None:
    refused(append(PATCH | {"Content-Type": value}), Code.UNSUPPORTED_TYPE, "Content-Type: ")
    without = {name: v for name, v in PATCH.items() if name != "Content-Type"}
    refused(append(without), Code.UNSUPPORTED_TYPE, "Content-Type: ")
    refused(append(without | {"Content-Length": "0"}), Code.UNSUPPORTED_TYPE, "Content-Type: ")


def test_a_content_encoding() -> None:
    assert append(PATCH | {"Content-Encoding": "identity"}).malformed is None
    for value in ("gzip", "br", "", "identity, gzip", ["identity", "gzip"]):
        encoded = PATCH | {"Content-Encoding": value}
        refused(append(encoded), Code.UNSUPPORTED_ENCODING, "Content-Encoding: ")
    refused(create(POST | BODY | {"Content-Encoding": "gzip"}), Code.UNSUPPORTED_ENCODING)


@pytest.mark.parametrize(
    "value", ["gzip", "gzip, chunked", "chunked, chunked", "identity", "", ["chunked", "chunked"]]
)
def test_another_transfer_encoding(value: str | list[str]) -> None:
    headers = TUS | STREAM | {"Upload-Offset": "70", "Transfer-Encoding": value}
    for command in (append(headers), create(POST | headers)):
        refused(command, Code.UNSUPPORTED_TRANSFER_CODING, "Transfer-Encoding: ")
        assert command.malformed is not None
        assert command.malformed.status == 501


def test_two_framings() -> None:
    headers = PATCH | {"Transfer-Encoding": "chunked"}
    refused(append(headers), Code.BAD_HEADER, "both Content-Length and Transfer-Encoding")


@pytest.mark.parametrize("value", [None, "", "-1", "70.0", "+70", "9223372036854775808"])
def test_an_offset_that_is_none(value: str | None) -> None:
    headers = BODY | ({} if value is None else {"Upload-Offset": value})
    refused(append(headers), Code.BAD_HEADER, "Upload-Offset: ")


def test_numbers_of_an_append() -> None:
    refused(append(PATCH | {"Upload-Length": "x"}), Code.BAD_HEADER, "Upload-Length: ")
    refused(append(PATCH | {"Content-Length": "x"}), Code.BAD_HEADER, "Content-Length: ")
    refused(append(PATCH | {"Upload-Offset": ["70", "71"]}), Code.BAD_HEADER, "Upload-Offset: ")
    largest = str(2**63 - 1)
    assert append(PATCH | {"Upload-Offset": largest}).offset == 2**63 - 1


# ------------------------------------------------------------------------------------- trailers

CHUNKED = TUS | STREAM | {"Upload-Offset": "70", "Transfer-Encoding": "chunked"}


@pytest.mark.parametrize(
    "value",
    [
        "Upload-Checksum",
        "upload-checksum",
        "Expires, Upload-Checksum",
        ["Expires", "Upload-Checksum"],
    ],
)
def test_a_checksum_that_is_announced_for_the_trailer(value: str | list[str]) -> None:
    payload = Payload(length=None, trailing_checksum=True)
    assert append(CHUNKED | {"Trailer": value}).payload == payload
    assert create(POST | CHUNKED | {"Trailer": value}).payload == payload


def test_other_trailers() -> None:
    assert append(CHUNKED | {"Trailer": "Expires"}).payload == Payload(length=None)
    assert append(CHUNKED | {"Trailer": "Upload-Checksums"}).payload == Payload(length=None)


def test_a_checksum_in_head_and_trailer_both() -> None:
    both = CHUNKED | {"Trailer": "Upload-Checksum", "Upload-Checksum": f"sha1 {SHA1}"}
    refused(append(both), Code.BAD_CHECKSUM, "Upload-Checksum: in the head and announced")


@pytest.mark.parametrize("length", ["30", "0"])
def test_a_trailer_that_cannot_come_is_refused_at_once(length: str) -> None:
    headers = PATCH | {"Content-Length": length, "Trailer": "Upload-Checksum"}
    refused(append(headers), Code.BAD_CHECKSUM, "Upload-Checksum: announced for the trailer, which")
    # In HTTP/2 any body may have one.
    announced = append(headers, **HTTP2)
    assert announced.payload == Payload(length=int(length), trailing_checksum=True)


def test_the_checksum_that_a_trailer_brought() -> None:
    value = f" sha1 {SHA1}\t".encode()
    assert tus1.trailing_checksum([value]) == Checksum("sha1", bytes(20))
    for values in ([], [value, value]):
        with pytest.raises(Refusal, match=f"which has {len(values)}; expected one") as caught:
            tus1.trailing_checksum(values)
        assert (caught.value.code, caught.value.status) == (Code.BAD_CHECKSUM, 400)
    with pytest.raises(Refusal, match="expected an algorithm"):
        tus1.trailing_checksum([b"\xff"])


# --------------------------------------------------------------------------- the order of checks


def test_the_order_of_checks_from_the_method_to_the_last() -> None:
    """One request with everything wrong; each step mends what was refused."""
    records = {
        "a/b": None,
        "gone": None,
        "foreign": upload(principal="bob"),
        "tide": upload(kind=Kind.FINAL),
        "a": upload(principal="alice"),
    }
    alice = Principal(id="alice")
    headers: Headers = {
        "Upload-Offset": "x",
        "Upload-Length": "2000",
        "Content-Length": "5000",
        "Upload-Checksum": "sha3 AAAA",
    }

    def code(method: str, path: str) -> str:
        try:
            command = tus1.parse(request(method, path, headers))
            assert isinstance(command, Append)
            decide.append(
                decide.Case(
                    command=command, upload=records[path], principal=alice, offer=OFFER, now=NOW
                )
            )
        except Refusal as refusal:
            return refusal.code.label
        return "accepted"

    assert code("PUT", "a/b") == "method_not_allowed"
    assert code("PATCH", "a/b") == "unsupported_version"
    headers["Tus-Resumable"] = "1.0.0"
    assert code("PATCH", "a/b") == "not_found"
    assert code("PATCH", "gone") == "not_found"
    assert code("PATCH", "foreign") == "not_found"
    assert code("PATCH", "tide") == "unsupported_type"
    headers["Content-Type"] = tus1.OFFSET_STREAM
    assert code("PATCH", "tide") == "bad_header"
    headers["Upload-Offset"] = "5"
    assert code("PATCH", "tide") == "final_upload"
    assert code("PATCH", "a") == "offset_mismatch"
    headers["Upload-Offset"] = "70"
    assert code("PATCH", "a") == "bad_length"
    headers["Upload-Length"] = "100"
    assert code("PATCH", "a") == "too_large"
    headers["Content-Length"] = "30"
    assert code("PATCH", "a") == "unknown_algorithm"
    headers["Upload-Checksum"] = f"sha1 {SHA1}"
    assert code("PATCH", "a") == "accepted"


def test_a_value_is_read_as_latin_1() -> None:
    raw = Request(method="GET", path="a", headers=[(b"x", b" \xe9\t"), (b"y", b"1"), (b"x", b"2")])
    assert raw.values(b"x") == ["é", "2"]
    assert raw.values(b"z") == []
    assert raw.value(b"z") is None
    assert raw.value(b"y") == "1"
    assert fields.shown(raw.values(b"x")[0]) == "?"
