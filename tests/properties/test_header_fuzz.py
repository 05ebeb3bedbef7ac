"""Whatever a request's head holds: a command or a refusal comes of it, and the answer is HTTP."""

from __future__ import annotations

import re
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from tests.protocol.samples import BARE, NOW, OFFER, b64, partial, upload, without

from tidegate.protocol import decide, fields
from tidegate.protocol.capabilities import Offer
from tidegate.protocol.commands import Append, Command, Create, Discover, Download, Inspect, Payload
from tidegate.protocol.dialects import downloads, tus1
from tidegate.protocol.dialects.cors import Cors
from tidegate.protocol.dialects.http import Header, Request
from tidegate.protocol.errors import Refusal
from tidegate.protocol.model import MAX_LENGTH, Kind, State, Upload, UploadId
from tidegate.protocol.results import Appended, Created, Discovered, Inspected, Result, Terminated

# ----------------------------------------------------------------------------------- requests

BYTES = st.binary(max_size=24)
"""Any bytes, those that no HTTP parser lets through included."""
NUMBERS = st.one_of(
    st.sampled_from(
        [b"0", b"70", b"100", b"30", b"1", b"00", b"+1", b"-1", b"1e3", b"0x1", b"\xb2"]
    ),
    st.integers(-1, 2**70).map(lambda n: str(n).encode()),
    st.integers(1, 6000).map(lambda n: b"9" * n),
    BYTES,
)
KEYS = st.text(st.characters(max_codepoint=255, exclude_characters=" ,"), min_size=1, max_size=6)
PAIRS = st.tuples(KEYS, st.binary(max_size=9), st.booleans()).map(
    lambda pair: pair[0] if pair[2] and not pair[1] else f"{pair[0]} {b64(pair[1])}"
)
METADATA = st.one_of(
    st.lists(PAIRS, max_size=3).map(lambda pairs: ",".join(pairs).encode("latin-1")),
    st.text("a, =YQ\t\r\n\xe9", max_size=12).map(lambda text: text.encode("latin-1")),
    BYTES,
)
PARTS = st.one_of(
    st.sampled_from(["/files/a", "b", "http://h/files/a?x", "/files/%61", "//h/files/b", "/tus/a"]),
    st.sampled_from(["/files/tide", "/files/none", "http://[", "/files/", "..", "/files/%ff"]),
    st.text("/a%2F.:[]?#;@\xff", max_size=10),
)
CONCATS = st.one_of(
    st.just(b"partial"),
    st.lists(PARTS, min_size=1, max_size=3).map(lambda u: f"final;{' '.join(u)}".encode("latin-1")),
    BYTES.map(lambda rest: b"final;" + rest),
    BYTES,
)
CHECKSUMS = st.one_of(
    st.builds(
        lambda name, digest: f"{name} {b64(digest)}".encode(),
        st.sampled_from(["sha1", "SHA1", "crc32", "sha256", "none", ""]),
        st.one_of(st.just(bytes(20)), st.just(bytes(4)), BYTES),
    ),
    BYTES,
)
VALUES: dict[str, st.SearchStrategy[bytes]] = {
    "tus-resumable": st.one_of(st.just(b"1.0.0"), BYTES),
    "upload-offset": NUMBERS,
    "upload-length": NUMBERS,
    "content-length": NUMBERS,
    "upload-defer-length": st.one_of(st.just(b"1"), BYTES),
    "upload-metadata": METADATA,
    "upload-concat": CONCATS,
    "upload-checksum": CHECKSUMS,
    "content-type": st.one_of(st.just(tus1.OFFSET_STREAM.encode()), BYTES),
    "content-encoding": st.sampled_from([b"identity", b"gzip", b""]),
    "transfer-encoding": st.one_of(st.sampled_from([b"chunked", b"gzip, chunked"]), BYTES),
    "trailer": st.one_of(st.just(b"Upload-Checksum"), BYTES),
    "x-http-method-override": st.one_of(
        st.sampled_from([m.encode() for m in tus1.METHODS]), st.just(b"patch"), BYTES
    ),
    "accept": st.one_of(st.just(b"application/problem+json"), BYTES),
    "origin": st.one_of(st.just(b"https://app.example.org"), BYTES),
    "access-control-request-method": BYTES,
    "range": BYTES,
}


@st.composite
def heads(draw: st.DrawFn, *, likely: dict[str, str] | None = None) -> list[Header]:
    """Headers of which some are right, some are nearly right, and some are anything."""
    missing = draw(st.sampled_from([None, None, None, *(likely or {})]))
    headers = [(n.encode(), v.encode()) for n, v in (likely or {}).items() if n != missing]
    for name in draw(st.lists(st.sampled_from(sorted(VALUES)), max_size=4)):
        if draw(st.booleans()):
            headers = [header for header in headers if header[0] != name.encode()]
        headers.append((name.encode(), draw(VALUES[name])))
    return headers + draw(st.lists(st.tuples(BYTES, BYTES), max_size=1))


PATHS = st.one_of(
    st.sampled_from(["", "/", "a", "tide", "a/b", "%61", "%ff", "%00", "..", "a%0d%0aX: y"]),
    st.text(st.characters(max_codepoint=255), max_size=8),
)
METHODS = st.sampled_from(tus1.METHODS)


def sent(method: str, path: str, headers: list[Header], **fields: Any) -> Request:
    return Request(method=method, path=path, headers=headers, **fields)


REQUESTS = st.one_of(
    st.builds(
        sent,
        st.just("POST"),
        st.just(""),
        heads(likely={"tus-resumable": "1.0.0", "upload-length": "100"}),
        may_omit_length=st.booleans(),
    ),
    st.builds(
        sent,
        st.just("POST"),
        st.just(""),
        heads(likely={"tus-resumable": "1.0.0", "upload-concat": "final;/files/a a"}),
        base_url=st.sampled_from(["/files/", "https://h/tus/", "https://h/"]),
    ),
    st.builds(
        sent,
        st.just("PATCH"),
        st.sampled_from(["tide", "a"]),
        heads(
            likely={
                "tus-resumable": "1.0.0",
                "content-type": tus1.OFFSET_STREAM,
                "upload-offset": "70",
                "content-length": "30",
            }
        ),
        may_omit_length=st.booleans(),
    ),
    st.builds(
        sent,
        METHODS,
        st.sampled_from(["tide", "%61"]),
        heads(likely={"tus-resumable": "1.0.0"}),
    ),
    st.builds(
        sent,
        METHODS | st.text(st.characters(max_codepoint=255), max_size=8),
        PATHS,
        heads(likely={"tus-resumable": "1.0.0"}),
    ),
)
RECORDS = st.one_of(
    st.sampled_from([None, upload(), upload(length=None), partial("tide", 100, offset=70)]),
    st.sampled_from([upload(offset=100, state=State.COMPLETE), upload(kind=Kind.FINAL, offset=0)]),
    st.builds(
        upload,
        kind=st.sampled_from(Kind),
        state=st.sampled_from(State),
        length=st.one_of(st.none(), st.sampled_from([0, 70, 100, MAX_LENGTH])),
        offset=st.sampled_from([0, 70, 100, MAX_LENGTH]),
        expires_at=st.one_of(st.none(), st.sampled_from([NOW - 1, NOW, NOW + 1])),
    ),
)
OFFERS = st.sampled_from(
    [
        OFFER,
        OFFER,
        BARE,
        without("checksum", "concatenation"),
        Offer(extensions=OFFER.extensions, algorithms={}),
    ]
)
PART_RECORDS = {
    part.id: part
    for part in (
        partial("a", 10, offset=10, state=State.COMPLETE),
        partial("b", None, offset=5),
        partial("c", MAX_LENGTH),
        upload(),
    )
}

# -------------------------------------------------------------------------------- what is HTTP

TOKEN = re.compile(rb"[a-z0-9!#$%&'*+.^_`|~-]+")
FIELD_VALUE = re.compile(rb"[\x21-\x7e\x80-\xff]([\t \x21-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?|")
"""RFC 9110, 5.5: no control character but the tab, no white space at either end."""


def assert_http(status: int, headers: list[Header]) -> None:
    assert 200 <= status < 600
    for name, value in headers:
        assert TOKEN.fullmatch(name), name
        assert FIELD_VALUE.fullmatch(value), (name, value)
    names = [name for name, _ in headers]
    assert len(set(names)) == len(names), names


def assert_refused_in_http(refusal: Refusal, request: Request) -> None:
    response = tus1.render_refusal(refusal, request)
    assert_http(response.status, response.headers)
    assert dict(response.headers)[b"content-length"] == str(len(response.body)).encode()
    assert refusal.message.isprintable()
    assert len(refusal.message) < 500


def carried_out(command: Command, case: dict[str, Any]) -> Result | Upload:
    """What would come of a command, if the engine did nothing but what was decided."""
    now = NOW
    match command:
        case Discover():
            return Discovered(case["offer"])
        case Create():
            plan = decide.create(decide.Case(command=command, **case, parts=PART_RECORDS, now=now))
            assert plan.room is None or plan.room >= 0
            record = upload(
                kind=command.kind,
                length=plan.length,
                offset=0,
                metadata=command.metadata,
                concat=command.concat,
            )
            return Created(record, with_payload=plan.payload is not None)
        case Append():
            added = decide.append(decide.Case(command=command, **case, now=now))
            assert added.room is None or added.room >= 0
            return Appended(replace(case["upload"], length=added.length))
        case Inspect():
            return Inspected(decide.inspect(decide.Case(command=command, **case, now=now)))
        case Download():
            return decide.download(decide.Case(command=command, **case, now=now))
        case _:
            decide.terminate(decide.Case(command=command, **case, now=now))
            return Terminated()


@settings(max_examples=600)
@given(REQUESTS, RECORDS, OFFERS, st.booleans())
@example(
    sent("POST", "", [(b"upload-length", b"9" * 5000), (b"tus-resumable", b"1.0.0")]),
    None,
    OFFER,
    True,
)
@example(sent("\r\n", "%0d%0a", [(b"", b"")]), None, BARE, True)
def test_a_request_is_carried_out_or_refused(
    request: Request, record: Upload | None, offer: Offer, leased: bool
) -> None:
    try:
        command = tus1.parse(request)
        case = {"upload": record, "offer": offer, "leased": leased}
        result = carried_out(command, case)
    except Refusal as refusal:
        assert_refused_in_http(refusal, request)
        return
    if isinstance(result, Upload):
        return
    response = tus1.render(result, request)
    assert_http(response.status, response.headers)
    if isinstance(result, Created):
        # What a client said is echoed to the letter, as HTTP.
        head = tus1.render(Inspected(result.upload), request)
        assert_http(head.status, head.headers)


@given(REQUESTS)
def test_what_was_wrong_is_kept_for_later_or_told_at_once(request: Request) -> None:
    """A malformed command carries nothing of what was not understood."""
    try:
        command = tus1.parse(request)
    except Refusal:
        return
    if isinstance(command, Discover) or command.malformed is None:
        return
    assert_refused_in_http(command.malformed, request)
    if isinstance(command, Create):
        assert command == Create(malformed=command.malformed)
    else:
        assert isinstance(command, Append)
        empty = Payload(length=0)
        assert command == Append(id=command.id, payload=empty, malformed=command.malformed)


@given(st.lists(st.binary(max_size=40), max_size=3))
def test_any_trailer(values: list[bytes]) -> None:
    try:
        checksum = tus1.trailing_checksum(values)
    except Refusal as refusal:
        assert_refused_in_http(refusal, sent("PATCH", "a", []))
    else:
        assert checksum.algorithm


@given(REQUESTS, st.sampled_from([(), ("*",), ("https://app.example.org",)]))
def test_any_origin(request: Request, origins: tuple[str, ...]) -> None:
    cors = Cors(
        origins=origins,
        methods=tus1.METHODS,
        request_headers=tus1.REQUEST_HEADERS,
        response_headers=tus1.RESPONSE_HEADERS,
    )
    headers = cors.headers(request)
    assert_http(200, headers)
    allowed = dict(headers).get(b"access-control-allow-origin")
    assert allowed in {None, *(origin.encode() for origin in origins)}


# -------------------------------------------------------------------------------- there and back


@given(st.dictionaries(KEYS, st.binary(max_size=40), max_size=5), st.booleans())
def test_metadata_goes_there_and_back_to_the_letter(pairs: dict[str, bytes], spaced: bool) -> None:
    value = ",".join(
        f"{key} {b64(content)}" if content or spaced else key for key, content in pairs.items()
    )
    assume(not any(c < " " or c == "\x7f" for c in value))
    # What stands at the ends of a header's value is not part of it.
    assume(value == value.strip(" \t"))
    raw = value.encode("latin-1")
    head = [(b"tus-resumable", b"1.0.0"), (b"upload-length", b"1"), (b"upload-metadata", raw)]
    command = tus1.parse(sent("POST", "", head))
    assert isinstance(command, Create)
    assert command.malformed is None
    assert command.metadata == value
    assert fields.metadata_pairs(command.metadata) == pairs
    answer = tus1.render(Inspected(upload(metadata=command.metadata)), sent("HEAD", "tide", head))
    assert dict(answer.headers).get(b"upload-metadata", b"") == raw


@given(METADATA)
def test_metadata_that_is_accepted_is_what_it_says(raw: bytes) -> None:
    value = raw.decode("latin-1")
    try:
        pairs = fields.metadata_pairs(value)
    except Refusal:
        return
    written = [(key, b64(content)) for key, content in pairs.items()]
    read = [pair.partition(" ")[::2] for pair in value.split(",")] if value else []
    # (The last bits of a padded value may be anything.)
    assert [(key, len(content)) for key, content in written] == [(k, len(v)) for k, v in read]
    assert fields.metadata_pairs(",".join(f"{k} {v}" for k, v in written)) == pairs


IDS = st.one_of(
    st.text("abc-_.~09", min_size=1, max_size=12),
    st.text(
        st.characters(exclude_categories=["Cs", "Cc", "Cf", "Zl", "Zp"]), min_size=1, max_size=8
    ),
)
BASES = st.sampled_from(
    [
        ("/files/", "/files/"),
        ("/files/", "https://tus.example.org/files/"),
        ("/", "http://localhost:1080/"),
        ("/", "https://tus.example.org/up/load/"),
        ("/files/", "https://tus.example.org/"),
    ]
)


@given(IDS, BASES)
def test_a_location_leads_back_to_its_upload(name: str, base: tuple[str, str]) -> None:
    assume(name not in {".", ".."} and name.isprintable())
    base_path, base_url = base
    where: dict[str, Any] = {"base_path": base_path, "base_url": base_url}
    created = tus1.render(
        Created(upload(id=UploadId(name)), with_payload=False), sent("POST", "", [], **where)
    )
    location = dict(created.headers)[b"location"].decode()
    assert location.startswith(base_url)
    version = (b"tus-resumable", b"1.0.0")
    path = urlsplit(location).path.removeprefix(urlsplit(base_url).path)
    assert tus1.parse(sent("HEAD", path, [version])) == Inspect(id=UploadId(name))

    concat = f"final;{location} {urlsplit(location).path} {location}"
    command = tus1.parse(sent("POST", "", [version, (b"upload-concat", concat.encode())], **where))
    assert isinstance(command, Create)
    assert command.malformed is None
    assert command.parts == (name,) * 3
    answer = tus1.render(
        Inspected(upload(kind=command.kind, concat=command.concat)), sent("HEAD", path, [])
    )
    assert dict(answer.headers)[b"upload-concat"] == concat.encode()


@given(RECORDS)
def test_what_head_tells_is_the_record(record: Upload | None) -> None:
    assume(record is not None)
    assert record is not None
    answer = tus1.render(Inspected(record), sent("HEAD", "tide", []))
    told = Request(method="PATCH", path="tide", headers=answer.headers)

    def number(name: str) -> int | None:
        value = told.value(name.encode())
        return None if value is None else fields.integer(name, value)

    shows_offset = record.kind is not Kind.FINAL or record.complete
    assert number("upload-offset") == (record.offset if shows_offset else None)
    assert number("upload-length") == record.length
    deferred = record.length is None and record.kind is not Kind.FINAL
    assert told.value(b"upload-defer-length") == ("1" if deferred else None)
    expires = told.value(b"upload-expires")
    if expires is not None:
        assert parsedate_to_datetime(expires).timestamp() == record.expires_at


@given(st.integers(0, MAX_LENGTH), st.integers(0, 30))
def test_an_integer_there_and_back(number: int, zeros: int) -> None:
    assert fields.integer("Upload-Offset", "0" * zeros + str(number)) == number


# ------------------------------------------------------------------------------------ downloads

SIZE = 50
RANGES = st.one_of(
    st.lists(
        st.tuples(st.integers(0, 60), st.integers(0, 60), st.sampled_from(["{}-{}", "{}-", "-{}"])),
        min_size=1,
        max_size=4,
    ).map(lambda specs: "bytes=" + ",".join(form.format(a, b) for a, b, form in specs)),
    st.text("bytes=0123456789-, ", max_size=20),
    st.integers(0, 2**80).map(lambda n: f"bytes={n}-{n}"),
).map(str.encode)
TYPES = st.one_of(
    st.sampled_from(sorted(downloads.INLINE_TYPES)).map(str.encode),
    st.sampled_from([b"text/html", b"image/svg+xml", b"image/png\r\nX: y", b"IMAGE/PNG;x"]),
    BYTES,
)
NAMES = st.one_of(BYTES, st.text(max_size=12).map(lambda text: text.encode("utf-8", "replace")))
DISPOSITION = re.compile(
    rb"""(?:inline|attachment)
    (?:;\ filename="[^"\\%/\x00-\x1f\x7f-\xff]*"
       (?:;\ filename\*=UTF-8''(?:[A-Za-z0-9_.~-]|%[0-9A-F]{2})*)?)?""",
    re.VERBOSE,
)


@given(
    st.integers(0, SIZE),
    NAMES,
    TYPES,
    st.lists(RANGES, max_size=2),
    st.lists(
        st.tuples(
            st.sampled_from([b"if-range", b"if-none-match", b"if-modified-since"]),
            st.one_of(BYTES, st.sampled_from([b"ETAG", b'W/ETAG, "x"', b"*"])),
        ),
        max_size=2,
    ),
)
def test_a_download_is_what_its_head_says(
    size: int, name: bytes, media_type: bytes, ranges: list[bytes], conditions: list[Header]
) -> None:
    record = upload(
        length=size,
        offset=size,
        state=State.COMPLETE,
        metadata=f"filename {b64(name)},filetype {b64(media_type)}",
    )
    tag = downloads.etag(record).encode()
    headers = [(b"range", value) for value in ranges]
    headers += [(n, value.replace(b"ETAG", tag)) for n, value in conditions]
    request = sent("GET", "tide", headers)
    try:
        answer = downloads.reading(record, request)
    except Refusal as refusal:
        assert_refused_in_http(refusal, request)
        return
    assert_http(answer.status, answer.headers)
    told = dict(answer.headers)
    if answer.status == 304:
        assert (answer.pieces, answer.after) == ((), b"")
        return
    assert all(0 <= piece.start <= piece.stop <= size for piece in answer.pieces)
    content = sum(piece.stop - piece.start for piece in answer.pieces)
    framing = sum(len(piece.before) for piece in answer.pieces) + len(answer.after)
    assert int(told[b"content-length"]) == content + framing
    assert content <= size, "no amplification"
    assert (answer.status == 200) == (b"content-range" not in told and not answer.after)
    if answer.status == 200:
        assert content == size

    assert DISPOSITION.fullmatch(told[b"content-disposition"])
    own = told[b"content-type"]
    shown = re.findall(rb"\r\nContent-Type: (.*?)\r\n", b"".join(p.before for p in answer.pieces))
    for content_type in shown or [own]:
        inline = content_type.decode().removesuffix("; charset=utf-8") in downloads.INLINE_TYPES
        assert inline or content_type == b"application/octet-stream"
        assert told[b"content-disposition"].startswith(b"inline" if inline else b"attachment")
    assert told[b"x-content-type-options"] == b"nosniff"


@given(st.text(max_size=300))
def test_any_file_name(name: str) -> None:
    value = fields.content_disposition("attachment", name)
    assert DISPOSITION.fullmatch(value.encode("latin-1"))


@given(st.text(st.characters(max_codepoint=255), max_size=60))
def test_anything_is_shown_as_printable_ascii(value: str) -> None:
    shown = fields.shown(value)
    assert shown.removesuffix("…").isascii()
    assert shown.isprintable()
    assert len(shown) <= 41
