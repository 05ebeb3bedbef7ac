"""GET of a complete upload."""

from __future__ import annotations

import email.parser
import email.policy
from typing import Any

import pytest
from msgspec.structs import replace
from tests.protocol.samples import NOW, Headers, b64, request, upload

from tidegate.protocol.dialects import downloads
from tidegate.protocol.dialects.downloads import INLINE_TYPES, Piece, Reading, etag, reading
from tidegate.protocol.errors import Code, Refusal
from tidegate.protocol.model import State, Upload, UploadId

CONTENT = bytes(range(256))
DONE = upload(length=256, offset=256, state=State.COMPLETE, ended_at=NOW)
TAG = etag(DONE)
MODIFIED = "Mon, 12 Jan 1970 13:46:40 GMT"


def get(headers: Headers | None = None, of: Upload = DONE) -> Reading:
    answer = reading(of, request("GET", of.id, headers))
    assert len(dict(answer.headers)) == len(answer.headers), "each once"
    return answer


def told(answer: Reading) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in answer.headers}


def body(answer: Reading) -> bytes:
    pieces = [piece.before + CONTENT[piece.start : piece.stop] for piece in answer.pieces]
    return b"".join(pieces) + answer.after


def test_the_whole() -> None:
    answer = get()
    assert answer.status == 200
    assert answer.pieces == (Piece(b"", 0, 256),)
    assert body(answer) == CONTENT
    assert told(answer) == {
        "etag": TAG,
        "last-modified": MODIFIED,
        "accept-ranges": "bytes",
        "cache-control": "private, no-cache",
        "content-disposition": "attachment",
        "x-content-type-options": "nosniff",
        "content-security-policy": "sandbox; default-src 'none'",
        "content-type": "application/octet-stream",
        "content-length": "256",
    }


def test_nothing() -> None:
    empty = replace(DONE, length=0, offset=0)
    for wanted in ([], ["bytes=0-"], ["bytes=-1"]):
        answer = get({"Range": wanted}, empty)
        assert (answer.status, told(answer)["content-length"]) == (200, "0")
        assert body(answer) == b""


def test_when_it_was_made_stands_in_for_when_it_ended() -> None:
    assert (
        told(get(of=replace(DONE, ended_at=None)))["last-modified"]
        == "Mon, 12 Jan 1970 13:45:40 GMT"
    )


def test_a_tag_is_that_of_one_upload() -> None:
    assert etag(DONE) == TAG
    others = [
        replace(DONE, id=UploadId("other")),
        replace(DONE, length=255),
        replace(DONE, created_at=NOW + 1),
    ]
    assert len({TAG, *map(etag, others)}) == 4
    assert TAG.startswith('"')
    assert TAG.endswith('"')
    # What changes without the bytes does not change it.
    assert etag(replace(DONE, version=9, storage={"a": 1}, ended_at=NOW + 9)) == TAG


# -------------------------------------------------------------------------------------- ranges


@pytest.mark.parametrize(
    ("value", "start", "stop"),
    [("bytes=0-0", 0, 1), ("bytes=5-", 5, 256), ("bytes=-6", 250, 256), ("bytes=0-999", 0, 256)],
)
def test_one_range(value: str, start: int, stop: int) -> None:
    answer = get({"Range": value})
    assert answer.status == 206
    assert body(answer) == CONTENT[start:stop]
    headers = told(answer)
    assert headers["content-range"] == f"bytes {start}-{stop - 1}/256"
    assert headers["content-length"] == str(stop - start)
    assert headers["content-type"] == "application/octet-stream"
    assert headers["content-disposition"] == "attachment"
    assert headers["x-content-type-options"] == "nosniff"


def test_several_ranges() -> None:
    answer = get({"Range": "bytes=0-1, 100-102,-1"}, named(filetype="image/png"))
    assert answer.status == 206
    headers = told(answer)
    assert "content-range" not in headers
    assert headers["content-length"] == str(len(body(answer)))
    raw = f"Content-Type: {headers['content-type']}\r\n\r\n".encode() + body(answer)
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(raw)
    assert message.get_content_type() == "multipart/byteranges"
    parts: list[Any] = list(message.iter_parts())
    assert not message.defects
    assert [part["Content-Range"] for part in parts] == [
        "bytes 0-1/256",
        "bytes 100-102/256",
        "bytes 255-255/256",
    ]
    assert {part.get_content_type() for part in parts} == {"image/png"}
    sizes = [piece.stop - piece.start for piece in answer.pieces]
    assert sizes == [2, 3, 1]


def test_a_range_that_cannot_be_had() -> None:
    with pytest.raises(Refusal) as caught:
        get({"Range": "bytes=256-"})
    assert (caught.value.code, caught.value.size) == (Code.RANGE_NOT_SATISFIABLE, 256)


@pytest.mark.parametrize(
    "value", ["chars=0-1", "bytes=x", "bytes=0-,0-", ["bytes=0-1", "bytes=2-3"]]
)
def test_what_is_not_worth_ranges(value: str | list[str]) -> None:
    answer = get({"Range": value})
    assert answer.status == 200
    assert body(answer) == CONTENT


# ----------------------------------------------------------------------------------- conditions


@pytest.mark.parametrize("condition", [TAG, MODIFIED, f" {TAG} "])
def test_if_range_holds(condition: str) -> None:
    assert get({"Range": "bytes=0-1", "If-Range": condition}).status == 206


@pytest.mark.parametrize(
    "condition",
    [
        *('"other"', f"W/{TAG}", TAG.strip('"'), "", "*", "Mon, 12 Jan 1970 13:46:41 GMT"),
        *([TAG, MODIFIED], [TAG, TAG], f"{TAG}, {TAG}"),
    ],
)
def test_if_range_does_not_hold(condition: str | list[str]) -> None:
    """The whole is sent; and a range that can't be had is no error then."""
    assert get({"Range": "bytes=0-1", "If-Range": condition}).status == 200
    assert get({"Range": "bytes=999-", "If-Range": condition}).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"If-None-Match": TAG},
        {"If-None-Match": f"W/{TAG}"},
        {"If-None-Match": "*"},
        {"If-None-Match": f'"a", {TAG} ,"b"'},
        {"If-None-Match": ['"a"', TAG]},
        {"If-Modified-Since": MODIFIED},
        {"If-None-Match": TAG, "If-Modified-Since": "Mon, 12 Jan 1970 13:46:39 GMT"},
        # "A recipient of a range MUST evaluate preconditions first" (RFC 9110, 13.2.2)
        {"If-None-Match": TAG, "Range": "bytes=0-1"},
        {"If-None-Match": TAG, "Range": "bytes=999-"},
    ],
)
def test_not_modified(headers: Headers) -> None:
    answer = get(headers)
    assert answer.status == 304
    assert body(answer) == b""
    # "MUST generate any of the following header fields that would have been sent in a 200"
    assert told(answer) == {
        "etag": TAG,
        "last-modified": MODIFIED,
        "accept-ranges": "bytes",
        "cache-control": "private, no-cache",
    }


@pytest.mark.parametrize(
    "headers",
    [
        {"If-None-Match": '"other"'},
        {"If-None-Match": TAG.strip('"')},
        {"If-Modified-Since": "Mon, 12 Jan 1970 13:46:39 GMT"},
        {"If-Modified-Since": "yesterday"},
        {"If-Modified-Since": [MODIFIED, MODIFIED]},
        # "A recipient MUST ignore If-Modified-Since if the request contains an If-None-Match"
        {"If-None-Match": '"other"', "If-Modified-Since": MODIFIED},
    ],
)
def test_modified(headers: Headers) -> None:
    assert get(headers).status == 200


# --------------------------------------------------------------------------- names and types


def named(**pairs: str | bytes) -> Upload:
    metadata = ",".join(f"{key.replace('_', '-')} {b64(value)}" for key, value in pairs.items())
    return replace(DONE, metadata=metadata)


@pytest.mark.parametrize(
    ("name", "disposition"),
    [
        ("report.pdf", 'attachment; filename="report.pdf"'),
        ("", "attachment"),
        ("../../etc/passwd", 'attachment; filename=".._.._etc_passwd"'),
        ("..\\..\\boot.ini", 'attachment; filename=".._.._boot.ini"'),
        (
            'a"; filename="evil.exe',
            "attachment; filename=\"a_; filename=_evil.exe\"; filename*=UTF-8''a%22%3B%20filename%3D%22evil.exe",
        ),
        ("a\r\nSet-Cookie: b", 'attachment; filename="a__Set-Cookie: b"'),
        ("a\x00.html", 'attachment; filename="a_.html"'),
        ("gnp.\u202eexe", 'attachment; filename="gnp._exe"'),
        ("é.txt", "attachment; filename=\"_.txt\"; filename*=UTF-8''%C3%A9.txt"),
        ("%41.txt", "attachment; filename=\"_41.txt\"; filename*=UTF-8''%2541.txt"),
        (b"\xff\xfe", "attachment; filename=\"__\"; filename*=UTF-8''%EF%BF%BD%EF%BF%BD"),
    ],
)
def test_hostile_names(name: str | bytes, disposition: str) -> None:
    assert told(get(of=named(filename=name)))["content-disposition"] == disposition


def test_a_very_long_name() -> None:
    assert len(told(get(of=named(filename="🦆" * 3000)))["content-disposition"]) < 3000


def test_which_key_names_the_file() -> None:
    assert "first" in told(get(of=named(name="second", filename="first")))["content-disposition"]
    assert "second" in told(get(of=named(name="second", filename="")))["content-disposition"]
    assert told(get(of=named(title="third")))["content-disposition"] == "attachment"


@pytest.mark.parametrize("media_type", sorted(INLINE_TYPES))
def test_what_is_shown_in_place(media_type: str) -> None:
    headers = told(get(of=named(filename="a", filetype=media_type)))
    charset = "; charset=utf-8" if media_type == "text/plain" else ""
    assert headers["content-type"] == media_type + charset
    assert headers["content-disposition"] == 'inline; filename="a"'
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-security-policy"] == "sandbox; default-src 'none'"


ACTIVE = [
    *(
        "text/html",
        "text/xml",
        "text/javascript",
        "text/css",
        "text/csv",
        "text/calendar",
        "text/vtt",
    ),
    *("application/xhtml+xml", "application/xml", "application/javascript", "application/pdf"),
    *("application/json", "application/x-shockwave-flash", "application/octet-stream"),
    *("image/svg+xml", "image/svg", "multipart/x-mixed-replace", "message/rfc822", "text/x-html"),
]


@pytest.mark.parametrize(
    "media_type",
    [
        *ACTIVE,
        *("TEXT/HTML", "text/html;charset=utf-7", " text/html", "text/html,text/plain"),
        *("image/png,text/html", "image/png\r\nX: y", "image/png text/html", "image", "", "/"),
        *("text/plain\x00", "image/*", "*/*", b"\xff\xfe"),
    ],
)
def test_what_is_never_shown_in_place(media_type: str | bytes) -> None:
    headers = told(get(of=named(filename="a.html", filetype=media_type)))
    assert headers["content-type"] == "application/octet-stream"
    assert headers["content-disposition"] == 'attachment; filename="a.html"'


def test_nothing_that_runs_is_on_the_list() -> None:
    assert not INLINE_TYPES & set(ACTIVE)
    words = ("html", "xml", "svg", "script", "pdf", "json", "css", "flash", "xsl", "multipart")
    assert not [t for t in INLINE_TYPES if any(word in t for word in words)]
    assert all(
        t.split("/")[0] in {"audio", "image", "video"} or t == "text/plain" for t in INLINE_TYPES
    )


@pytest.mark.parametrize("value", ["IMAGE/PNG", "image/png; charset=binary", " image/png "])
def test_a_type_is_taken_without_its_parameters(value: str) -> None:
    assert told(get(of=named(filetype=value)))["content-type"] == "image/png"


@pytest.mark.parametrize("key", ["filetype", "contentType", "content_type", "mimetype", "type"])
def test_which_key_tells_the_type(key: str) -> None:
    assert told(get(of=named(**{key: "image/png"})))["content-type"] == "image/png"


def test_the_boundary_is_not_chosen_by_the_client() -> None:
    ranges: Headers = {"Range": "bytes=0-0,2-2"}
    first, second = get(ranges), get({"Range": "bytes=0-0,3-3"})
    assert told(first)["content-type"] == told(get(ranges))["content-type"]
    assert told(first)["content-type"] != told(second)["content-type"]
    assert downloads._BOUNDARY_BYTES >= 12
