"""`decide` as a table: a sentence, a case, and what comes of it.

`tus` rows quote the specification, `ours` rows say what was decided where it is silent.
"""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace
from tests.protocol.cases import (
    CHUNKED,
    COMPLETE,
    DEFERRED,
    FULL,
    GROWING,
    MALFORMED,
    MAX_SIZE,
    SHA1,
    UNFINISHED,
    UNLIMITED,
    WHOLE_A,
    WHOLE_B,
    Refused,
    Row,
    appending,
    check,
    creating,
    ending,
    joining,
    looking,
    makes,
    ours,
    reading,
    refusal_of,
    takes,
    tus,
)
from tests.protocol.samples import (
    BARE,
    NOW,
    OFFER,
    partial,
    upload,
    without,
)

from tidegate.protocol import decide
from tidegate.protocol.capabilities import Offer
from tidegate.protocol.commands import Checksum, Payload
from tidegate.protocol.decide import Case
from tidegate.protocol.errors import Code
from tidegate.protocol.model import MAX_LENGTH, Kind, State

# ------------------------------------------------------------------------------------- POST

ALMOST = partial("f", MAX_SIZE - 10, offset=0)
HUGE = partial("g", MAX_LENGTH, offset=1)

CREATE = [
    tus(
        "The request MUST include one of the following headers: "
        "a) `Upload-Length` to indicate the size of an entire upload in bytes.",
        creating(length=100),
        makes(100, room=100),
    ),
    tus(
        "b) `Upload-Defer-Length: 1` if upload size is not known at the time.",
        creating(deferred=True),
        makes(None, room=MAX_SIZE),
    ),
    tus(
        "b) `Upload-Defer-Length: 1` if upload size is not known at the time.",
        creating(deferred=True, offer=Offer(extensions=OFFER.extensions, algorithms={})),
        makes(None, room=None),
    ),
    ours("Neither of the two: 400.", creating(), Refused(Code.BAD_LENGTH, 400)),
    ours("Both: 400.", creating(length=1, deferred=True), Refused(Code.BAD_LENGTH, 400)),
    ours(
        "Both, though one is 0: 400.",
        creating(length=0, deferred=True),
        Refused(Code.BAD_LENGTH, 400),
    ),
    ours(
        "What is wrong with the head is brought up in its turn.",
        creating(malformed=MALFORMED),
        Refused(Code.UNSUPPORTED_TYPE, 415),
    ),
    tus(
        "If the Server supports this extension, it MUST add `creation` to the `Tus-Extension` header.",
        creating(length=100, offer=BARE),
        Refused(Code.METHOD_NOT_ALLOWED, 405, allow=("OPTIONS",)),
    ),
    tus(
        "If the Server supports deferring length, it MUST add `creation-defer-length` to "
        "the `Tus-Extension` header.",
        creating(deferred=True, offer=without("creation-defer-length")),
        Refused(Code.NOT_OFFERED, 400),
    ),
    tus(
        "The `Upload-Length` header MAY be set to 0, indicating that the Client wants to upload an "
        "empty file. Such an upload is immediately complete after its creation without "
        "transferring data using `PATCH` requests.",
        creating(length=0),
        makes(0, room=0, complete=True),
    ),
    tus(
        "If the length of the upload exceeds the maximum, which MAY be specified using the "
        "`Tus-Max-Size` header, the Server MUST respond with the `413 Request Entity Too Large` "
        "status.",
        creating(length=MAX_SIZE + 1),
        Refused(Code.TOO_LARGE, 413),
    ),
    ours(
        "The maximum itself is allowed.", creating(length=MAX_SIZE), makes(MAX_SIZE, room=MAX_SIZE)
    ),
    ours(
        "Without a maximum there is only what an integer holds.",
        creating(length=MAX_LENGTH, offer=Offer(extensions=("creation",), algorithms={})),
        makes(MAX_LENGTH, room=MAX_LENGTH),
    ),
    # Creation With Upload
    tus(
        "The Client MAY include either the entirety or a chunk of the upload data in the body of "
        "the `POST` request.",
        creating(length=100, sent=Payload(length=5)),
        makes(100, room=100, payload=Payload(length=5)),
    ),
    tus(
        "The Client MAY include either the entirety or a chunk of the upload data in the body of "
        "the `POST` request.",
        creating(length=5, sent=Payload(length=5)),
        makes(5, room=5, payload=Payload(length=5)),
    ),
    ours(
        "A chunked body is received up to the length.",
        creating(length=100, sent=CHUNKED),
        makes(100, room=100, payload=CHUNKED),
    ),
    ours(
        "A body of an upload without a length is received up to the maximum.",
        creating(deferred=True, sent=Payload(length=MAX_SIZE)),
        makes(None, room=MAX_SIZE, payload=Payload(length=MAX_SIZE)),
    ),
    tus(
        "If the Server supports this extension, it MUST advertise this by including "
        "`creation-with-upload` in the `Tus-Extension` header.",
        creating(length=100, sent=Payload(length=5), offer=without("creation-with-upload")),
        Refused(Code.NOT_OFFERED, 400),
    ),
    ours(
        "A body longer than the upload: 413 before a byte is read.",
        creating(length=5, sent=Payload(length=6)),
        Refused(Code.TOO_LARGE, 413),
    ),
    ours(
        "A body over the maximum, of an upload without a length: 413.",
        creating(deferred=True, sent=Payload(length=MAX_SIZE + 1)),
        Refused(Code.TOO_LARGE, 413),
    ),
    ours(
        "A checksum on creation-with-upload is verified too.",
        creating(length=5, sent=Payload(length=5, checksum=SHA1)),
        makes(5, room=5, payload=Payload(length=5, checksum=SHA1)),
    ),
    ours(
        "So its algorithm must be known.",
        creating(length=5, sent=Payload(length=5, checksum=Checksum("sha3", bytes(20)))),
        Refused(Code.UNKNOWN_ALGORITHM, 400),
    ),
    # Concatenation
    tus(
        "A partial upload represents a chunk of a file.",
        creating(kind=Kind.PARTIAL, concat="partial", length=100),
        makes(100, room=100),
    ),
    ours(
        "An empty partial is complete at once, as any empty upload.",
        creating(kind=Kind.PARTIAL, concat="partial", length=0),
        makes(0, room=0, complete=True),
    ),
    ours(
        "A partial, too, has a length or defers it.",
        creating(kind=Kind.PARTIAL, concat="partial"),
        Refused(Code.BAD_LENGTH, 400),
    ),
    tus(
        "If the Server supports this extension, it MUST add `concatenation` to the "
        "`Tus-Extension` header.",
        creating(kind=Kind.PARTIAL, length=100, offer=without("concatenation")),
        Refused(Code.NOT_OFFERED, 400),
    ),
    tus(
        "If the Server supports this extension, it MUST add `concatenation` to the "
        "`Tus-Extension` header.",
        joining(WHOLE_A, offer=without("concatenation")),
        Refused(Code.NOT_OFFERED, 400),
    ),
    tus(
        "The length of the final upload MUST be the sum of the length of all partial uploads.",
        joining(WHOLE_A, WHOLE_B),
        makes(30, room=30),
    ),
    tus(
        "The same partial upload MAY be present multiple times in the `Upload-Concat` header in one "
        "upload creation request",
        joining(WHOLE_A, WHOLE_B, of=("a", "b", "a")),
        makes(40, room=40),
    ),
    ours(
        "A final is complete when it is assembled, and not before, though it be empty.",
        joining(partial("a", 0, state=State.COMPLETE)),
        makes(0, room=0),
    ),
    tus(
        "The Client MUST NOT include the `Upload-Length` header in the final upload creation.",
        joining(WHOLE_A, length=10),
        Refused(Code.BAD_LENGTH, 400),
    ),
    ours(
        "Nor Upload-Defer-Length.",
        joining(WHOLE_A, deferred=True),
        Refused(Code.BAD_LENGTH, 400),
    ),
    ours(
        "A final with a body: 400.",
        joining(WHOLE_A, sent=Payload(length=5)),
        Refused(Code.BAD_CONCAT, 400),
    ),
    ours(
        "A final with a chunked body, of whatever length: 400.",
        joining(WHOLE_A, sent=CHUNKED),
        Refused(Code.BAD_CONCAT, 400),
    ),
    tus(
        "The Client MAY send the concatenation request while the partial uploads are still in "
        "progress.",
        joining(WHOLE_A, UNFINISHED),
        makes(40, room=40),
    ),
    tus(
        "The `Upload-Length` header MUST be included if the length of the final resource can be "
        "calculated at the time of the request.",
        joining(WHOLE_A, DEFERRED),
        makes(None, room=MAX_SIZE),
    ),
    tus(
        "This feature MUST be explicitly announced by the Server by adding "
        "`concatenation-unfinished` to the `Tus-Extension` header.",
        joining(WHOLE_A, UNFINISHED, offer=without("concatenation-unfinished")),
        Refused(Code.UNFINISHED, 403),
    ),
    ours(
        "Whole parts need no such announcement.",
        joining(WHOLE_A, WHOLE_B, offer=without("concatenation-unfinished")),
        makes(30, room=30),
    ),
    ours(
        "A part that nobody knows: 404.",
        joining(WHOLE_A, of=("a", "x")),
        Refused(Code.NOT_FOUND, 404),
    ),
    ours(
        "A part that is a regular upload: 400.",
        joining(WHOLE_A, upload(state=State.COMPLETE, offset=100)),
        Refused(Code.BAD_CONCAT, 400),
    ),
    ours(
        "A part that is a final upload: 400.",
        joining(upload(kind=Kind.FINAL, state=State.COMPLETE, offset=100)),
        Refused(Code.BAD_CONCAT, 400),
    ),
    *(
        ours(
            f"A part that is {state}: 410.",
            joining(WHOLE_A, partial("x", state=state)),
            Refused(Code.GONE, 410),
        )
        for state in (State.TERMINATED, State.EXPIRED, State.FAILED)
    ),
    ours(
        "A part whose time is over, though nobody has swept it yet: 410.",
        joining(replace(WHOLE_A, expires_at=NOW)),
        Refused(Code.GONE, 410),
    ),
    ours(
        "A part whose time will come.",
        joining(replace(WHOLE_A, expires_at=NOW + 1)),
        makes(10, room=10),
    ),
    ours(
        "A final over the maximum: 413.",
        joining(FULL, WHOLE_A),
        Refused(Code.TOO_LARGE, 413),
    ),
    ours(
        "A final of just the maximum.",
        joining(ALMOST, WHOLE_A),
        makes(MAX_SIZE, room=MAX_SIZE),
    ),
    ours(
        "A part counts each time that it is listed.",
        joining(ALMOST, of=("f", "f")),
        Refused(Code.TOO_LARGE, 413),
    ),
    ours(
        "What is there of a part without a length is the least that the whole will be.",
        joining(FULL, partial("d", None, offset=1)),
        Refused(Code.TOO_LARGE, 413),
    ),
    ours(
        "An empty part adds nothing, whatever its offset pretends.",
        joining(FULL, partial("d", 0, state=State.COMPLETE)),
        makes(MAX_SIZE, room=MAX_SIZE),
    ),
    ours(
        "A final of over 2^63-1 bytes: 413, also where there is no maximum.",
        joining(HUGE, WHOLE_A, offer=Offer(extensions=OFFER.extensions, algorithms={})),
        Refused(Code.TOO_LARGE, 413),
    ),
]

# ------------------------------------------------------------------------------------ PATCH


APPEND = [
    tus(
        "The Server SHOULD accept `PATCH` requests against any upload URL and apply the bytes "
        "contained in the message at the given offset specified by the `Upload-Offset` header.",
        appending(upload()),
        takes(100, 30, room=30),
    ),
    tus(
        "The Client SHOULD send all the remaining bytes of an upload in a single `PATCH` request, "
        "but MAY also use multiple small requests successively",
        appending(upload(), sent=1),
        takes(100, 1, room=30),
    ),
    ours(
        "A chunked body is received up to the length.",
        appending(upload(), sent=None),
        takes(100, None, room=30),
    ),
    ours(
        "A body of an upload without a length is received up to the maximum.",
        appending(GROWING, sent=None),
        takes(None, None, room=MAX_SIZE - 70),
    ),
    ours(
        "Or without a bound, where there is no maximum.",
        appending(GROWING, sent=None, offer=UNLIMITED),
        takes(None, None, room=None),
    ),
    ours(
        "The maximum was lowered below what is there already: nothing more comes.",
        appending(upload(length=None, offset=2000), 2000, None),
        takes(None, None, room=0),
    ),
    ours(
        "PATCH on a partial is as any other.",
        appending(partial("tide", 100, offset=70)),
        takes(100, 30, room=30),
    ),
    tus(
        "If the server receives a `PATCH` request against a non-existent resource it SHOULD return a "
        "`404 Not Found` status.",
        appending(None),
        Refused(Code.NOT_FOUND, 404),
    ),
    *(
        tus(
            "If a Client does attempt to resume an upload which has since been removed by the "
            "Server, the Server SHOULD respond with the`404 Not Found` or `410 Gone` status. The "
            "latter one SHOULD be used if the Server is keeping track of expired uploads.",
            appending(upload(state=state)),
            Refused(Code.GONE, 410),
        )
        for state in (State.EXPIRED, State.TERMINATED, State.FAILED)
    ),
    tus(
        "After this date the upload can not be resumed.",
        appending(upload(expires_at=NOW)),
        Refused(Code.GONE, 410),
    ),
    tus(
        "The unfinished upload is available until the time specified in `Upload-Expires`.",
        appending(upload(expires_at=NOW + 1)),
        takes(100, 30, room=30),
    ),
    ours(
        "What is wrong with the head is brought up in its turn.",
        appending(upload(), malformed=MALFORMED),
        Refused(Code.UNSUPPORTED_TYPE, 415),
    ),
    tus(
        "The `Upload-Offset` header's value MUST be equal to the current offset of the resource.",
        appending(upload(), 69),
        Refused(Code.OFFSET_MISMATCH, 409, offset=70),
    ),
    tus(
        "If the offsets do not match, the Server MUST respond with the `409 Conflict` status without "
        "modifying the upload resource.",
        appending(upload(), 71),
        Refused(Code.OFFSET_MISMATCH, 409, offset=70),
    ),
    ours(
        "An empty PATCH at the wrong offset is at the wrong offset.",
        appending(upload(), 0, 0),
        Refused(Code.OFFSET_MISMATCH, 409, offset=70),
    ),
    ours(
        "An empty PATCH at the end of a complete upload: 204.",
        appending(COMPLETE, 100, 0),
        takes(100, 0, room=0),
    ),
    ours(
        "A PATCH before the end of a complete upload: 409.",
        appending(COMPLETE, 70),
        Refused(Code.OFFSET_MISMATCH, 409, offset=100),
    ),
    ours(
        "Nothing is missing of a complete upload, so any body is too much: 413.",
        appending(COMPLETE, 100, 1),
        Refused(Code.TOO_LARGE, 413),
    ),
    ours(
        "Content-Length beyond what is missing: 413 before a byte is read.",
        appending(upload(), sent=31),
        Refused(Code.TOO_LARGE, 413),
    ),
    ours(
        "Beyond the maximum, of an upload without a length: 413.",
        appending(GROWING, sent=MAX_SIZE - 69),
        Refused(Code.TOO_LARGE, 413),
    ),
    ours(
        "Up to the maximum.",
        appending(GROWING, sent=MAX_SIZE - 70),
        takes(None, MAX_SIZE - 70, room=MAX_SIZE - 70),
    ),
    ours(
        "Beyond 2^63-1, where there is no maximum: 413.",
        appending(GROWING, sent=MAX_LENGTH - 69, offer=UNLIMITED),
        Refused(Code.TOO_LARGE, 413),
    ),
    ours(
        "Up to 2^63-1.",
        appending(GROWING, sent=MAX_LENGTH - 70, offer=UNLIMITED),
        takes(None, MAX_LENGTH - 70, room=None),
    ),
    # Upload-Length on a PATCH
    tus(
        "If the length was deferred using `Upload-Defer-Length: 1`, the Client MUST set the "
        "`Upload-Length` header in the next `PATCH` request, once the length is known.",
        appending(GROWING, length=200),
        takes(200, 30, room=130),
    ),
    ours(
        "An empty PATCH may set it and so complete the upload.",
        appending(GROWING, sent=0, length=70),
        takes(70, 0, room=0),
    ),
    ours(
        "Below the offset: 400.",
        appending(GROWING, sent=0, length=69),
        Refused(Code.BAD_LENGTH, 400),
    ),
    ours(
        "A length that this very body runs past: 413.",
        appending(GROWING, sent=30, length=99),
        Refused(Code.TOO_LARGE, 413),
    ),
    ours(
        "A length over the maximum: 413, as at creation.",
        appending(GROWING, sent=0, length=MAX_SIZE + 1),
        Refused(Code.TOO_LARGE, 413),
    ),
    tus(
        "Once set the length MUST NOT be changed.",
        appending(upload(), length=101),
        Refused(Code.BAD_LENGTH, 400),
    ),
    tus(
        "Once set the length MUST NOT be changed.",
        appending(COMPLETE, 100, 0, length=101),
        Refused(Code.BAD_LENGTH, 400),
    ),
    ours(
        "Equal to the known one it is harmless.",
        appending(upload(), length=100),
        takes(100, 30, room=30),
    ),
    # Checksum
    tus(
        "A Client MAY include the `Upload-Checksum` header in a `PATCH` request.",
        appending(upload(), checksum=SHA1),
        takes(100, 30, room=30, checksum=SHA1),
    ),
    tus(
        "1) `400 Bad Request` if the checksum algorithm is not supported by the server,",
        appending(upload(), checksum=Checksum("sha3", bytes(20))),
        Refused(Code.UNKNOWN_ALGORITHM, 400),
    ),
    tus(
        "The names of the checksum algorithms MUST only consist of ASCII characters with the "
        "modification that uppercase characters are excluded.",
        appending(upload(), checksum=Checksum("SHA1", bytes(20))),
        Refused(Code.UNKNOWN_ALGORITHM, 400),
    ),
    *(
        ours(
            "The digest's length is checked before the body is read: 400.",
            appending(upload(), checksum=Checksum(name, bytes(size))),
            Refused(Code.BAD_CHECKSUM, 400),
        )
        for name, size in (("sha1", 19), ("sha1", 21), ("sha1", 0), ("crc32", 8), ("sha256", 64))
    ),
    tus(
        "If supported, the Server MUST add `checksum` to the `Tus-Extension` header.",
        appending(upload(), checksum=SHA1, offer=without("checksum")),
        Refused(Code.NOT_OFFERED, 400),
    ),
    tus(
        "If the hash cannot be calculated at the beginning of the upload, it MAY be included as a "
        "trailer.",
        appending(upload(), sent=None, trailing_checksum=True),
        takes(100, None, room=30, trailing_checksum=True),
    ),
    tus(
        "If the Server can handle trailers, this behavior MUST be announced by adding "
        "`checksum-trailer` to the `Tus-Extension` header.",
        appending(upload(), sent=None, trailing_checksum=True, offer=without("checksum-trailer")),
        Refused(Code.NOT_OFFERED, 400),
    ),
    # Concatenation
    *(
        tus(
            "The Server MUST respond with the `403 Forbidden` status to `PATCH` requests against a "
            "final upload URL and MUST NOT modify the final or its partial uploads.",
            appending(upload(kind=Kind.FINAL, parts=("a",), **state), offset, sent),
            Refused(Code.FINAL_UPLOAD, 403),
        )
        for state, offset, sent in (
            ({"offset": 0}, 0, 100),
            ({"offset": 0, "length": None}, 0, 0),
            ({"offset": 100, "state": State.COMPLETE}, 100, 0),
            ({"offset": 100, "state": State.COMPLETE}, 50, 10),
        )
    ),
]

# ---------------------------------------------------------------------- HEAD, DELETE, GET

PARTIAL_DONE = partial("tide", 10, offset=10, state=State.COMPLETE, expires_at=NOW)
FINAL_PENDING = upload(kind=Kind.FINAL, offset=0, parts=("a", "b"))

INSPECT = [
    tus(
        "The Server MUST always include the `Upload-Offset` header in the response for a `HEAD` "
        "request, even if the offset is `0`, or the upload is already considered completed.",
        looking(COMPLETE),
        COMPLETE,
    ),
    ours("An unfinished upload.", looking(upload()), upload()),
    ours("A pending final.", looking(FINAL_PENDING), FINAL_PENDING),
    tus(
        "If the resource is not found, the Server SHOULD return either the `404 Not Found`, `410 "
        "Gone` or `403 Forbidden` status without the `Upload-Offset` header.",
        looking(None),
        Refused(Code.NOT_FOUND, 404),
    ),
    *(
        tus(
            "the Server SHOULD respond with the`404 Not Found` or `410 Gone` status.",
            looking(upload(state=state)),
            Refused(Code.GONE, 410),
        )
        for state in (State.EXPIRED, State.TERMINATED, State.FAILED)
    ),
    ours(
        "What has expired is gone for everyone before a sweep finds it.",
        looking(upload(expires_at=NOW)),
        Refused(Code.GONE, 410),
    ),
    ours(
        "An instant before it is there.",
        looking(upload(expires_at=NOW + 0.001)),
        upload(expires_at=NOW + 0.001),
    ),
    ours(
        "A completed regular upload does not expire.",
        looking(replace(COMPLETE, expires_at=NOW - 1)),
        replace(COMPLETE, expires_at=NOW - 1),
    ),
    ours(
        "Nor does a completed final.",
        looking(replace(COMPLETE, kind=Kind.FINAL, expires_at=NOW - 1)),
        replace(COMPLETE, kind=Kind.FINAL, expires_at=NOW - 1),
    ),
    ours("A partial does, complete or not.", looking(PARTIAL_DONE), Refused(Code.GONE, 410)),
    ours(
        "What is wrong with the head is brought up in its turn.",
        looking(upload(), malformed=MALFORMED),
        Refused(Code.UNSUPPORTED_TYPE, 415),
    ),
]

TERMINATE = [
    *(
        tus(
            "This extension defines a way for the Client to terminate completed and unfinished "
            "uploads",
            ending(which),
            which,
        )
        for which in (upload(), COMPLETE, FINAL_PENDING, partial("tide"))
    ),
    tus(
        "For all future requests to this URL, the Server SHOULD respond with the `404 Not Found` or "
        "`410 Gone` status.",
        ending(upload(state=State.TERMINATED)),
        Refused(Code.GONE, 410),
    ),
    ours("DELETE of nothing: 404.", ending(None), Refused(Code.NOT_FOUND, 404)),
    tus(
        "If this extension is supported by the Server, it MUST be announced by adding `termination` "
        "to the `Tus-Extension` header.",
        ending(upload(), without("termination")),
        Refused(Code.METHOD_NOT_ALLOWED, 405, allow=("OPTIONS", "HEAD", "PATCH", "GET")),
    ),
    ours(
        "Not offered is not offered, whatever the URL.",
        ending(None, BARE),
        Refused(Code.METHOD_NOT_ALLOWED, 405, allow=("OPTIONS", "HEAD", "PATCH")),
    ),
    ours(
        "What is wrong with the head is brought up in its turn.",
        ending(upload(), malformed=MALFORMED),
        Refused(Code.UNSUPPORTED_TYPE, 415),
    ),
]

DOWNLOAD = [
    ours("GET of a complete upload: the bytes.", reading(COMPLETE), COMPLETE),
    ours(
        "GET of an unfinished one is refused (4xx).",
        reading(upload()),
        Refused(Code.UNFINISHED, 403),
    ),
    ours(
        "All bytes are there, but the completion is not done: refused too.",
        reading(upload(offset=100)),
        Refused(Code.UNFINISHED, 403),
    ),
    ours("GET of a pending final.", reading(FINAL_PENDING), Refused(Code.UNFINISHED, 403)),
    ours("GET of nothing: 404.", reading(None), Refused(Code.NOT_FOUND, 404)),
    ours(
        "GET of what was terminated: 410.",
        reading(upload(state=State.TERMINATED)),
        Refused(Code.GONE, 410),
    ),
    ours(
        "Where nothing is read over HTTP: 405.",
        reading(COMPLETE, Offer(extensions=OFFER.extensions, algorithms={}, downloads=False)),
        Refused(Code.METHOD_NOT_ALLOWED, 405, allow=("OPTIONS", "HEAD", "PATCH", "DELETE")),
    ),
    ours(
        "What is wrong with the head is brought up in its turn.",
        reading(upload(), malformed=MALFORMED),
        Refused(Code.UNSUPPORTED_TYPE, 415),
    ),
]


def rows() -> list[Any]:
    tables = {
        "POST": CREATE,
        "PATCH": APPEND,
        "HEAD": INSPECT,
        "DELETE": TERMINATE,
        "GET": DOWNLOAD,
    }
    return [
        pytest.param(row, id=f"{method} {number}: {row.sentence}")
        for method, table in tables.items()
        for number, row in enumerate(table, 1)
    ]


@pytest.mark.parametrize("row", rows())
def test_what_is_said_is_done(row: Row) -> None:
    check(row)


def test_every_refusal_of_a_decision_has_a_row() -> None:
    """A check that is added is added to the table."""
    said = {
        row.values[0].expected.code for row in rows() if isinstance(row.values[0].expected, Refused)
    }
    raised = {
        getattr(Code, name)
        for function in vars(decide).values()
        if callable(function) and getattr(function, "__module__", "") == decide.__name__
        for name in getattr(getattr(function, "__code__", None), "co_names", ())
        if name in Code.__members__
    }
    assert raised
    assert raised <= said


# ------------------------------------------------------------------------------------- the rest


def test_length_of() -> None:
    assert decide.length_of([]) == 0
    assert decide.length_of([WHOLE_A, UNFINISHED, WHOLE_A]) == 50
    assert decide.length_of([WHOLE_A, DEFERRED, WHOLE_B]) is None


def test_known_is_for_behind_the_check_that_there_is_a_record() -> None:
    with pytest.raises(AssertionError):
        _ = looking(None).known


def test_messages_name_what_was_wrong_and_what_was_expected() -> None:
    def message(case: Case[Any]) -> str:
        refusal = refusal_of(case)
        assert refusal is not None
        return refusal.message

    assert message(appending(upload(), 5)) == "Upload-Offset: 5; the upload is at 70"
    assert message(appending(upload(), sent=31)) == "a body of 31 bytes; 30 of 100 are missing"
    assert message(creating()).startswith("neither of Upload-Length")
    assert message(creating(length=1, deferred=True)).startswith("both of Upload-Length")
    assert "part 2 " in message(joining(WHOLE_A, of=("a", "x")))
    assert "expected one of sha1, " in message(
        appending(upload(), checksum=Checksum("sha\n3" + "x" * 100, b""))
    )
