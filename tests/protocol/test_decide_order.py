"""Which refusal wins where several are due, and what is refused before a writer is asked to let go."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
from msgspec.structs import replace
from tests.protocol.cases import (
    COMPLETE,
    FULL,
    GROWING,
    MALFORMED,
    MAX_SIZE,
    SHA1,
    UNKNOWN,
    UNLIMITED,
    Refused,
    Row,
    appending,
    check,
    creating,
    ending,
    joining,
    looking,
    ours,
    reading,
    refusal_of,
    takes,
)
from tests.protocol.samples import (
    BARE,
    NOW,
    OFFER,
    partial,
    upload,
    without,
)

from tidegate.protocol.capabilities import Offer
from tidegate.protocol.commands import Checksum, Payload
from tidegate.protocol.decide import Case
from tidegate.protocol.errors import Code
from tidegate.protocol.model import Kind, State, Upload

# ------------------------------------------------------------------------ the order of checks

BAD_PART = partial("x", 1, state=State.TERMINATED)
TOO_MUCH = Payload(length=MAX_SIZE + 1, checksum=Checksum("sha3", b""))


def ladder(*steps: tuple[Code | None, Case[Any]]) -> list[Any]:
    """Each case mends what the one before was refused for, and nothing else."""
    return [
        pytest.param(
            case, code, id=f"{type(case.command).__name__} {code.label if code else 'accepted'}"
        )
        for code, case in steps
    ]


CREATE_LADDER = ladder(
    (
        Code.METHOD_NOT_ALLOWED,
        creating(length=2000, deferred=True, sent=TOO_MUCH, offer=BARE, malformed=MALFORMED),
    ),
    (
        Code.UNSUPPORTED_TYPE,
        creating(
            length=2000,
            deferred=True,
            sent=TOO_MUCH,
            offer=without("creation-defer-length", "checksum"),
            malformed=MALFORMED,
        ),
    ),
    (
        Code.NOT_OFFERED,
        creating(
            length=2000,
            deferred=True,
            sent=TOO_MUCH,
            offer=without("creation-defer-length", "checksum"),
        ),
    ),
    (Code.BAD_LENGTH, creating(length=2000, deferred=True, sent=TOO_MUCH)),
    (Code.TOO_LARGE, creating(length=2000, sent=TOO_MUCH)),
    (Code.TOO_LARGE, creating(length=900, sent=TOO_MUCH)),
    (Code.UNKNOWN_ALGORITHM, creating(length=900, sent=replace(TOO_MUCH, length=900))),
    (None, creating(length=900, sent=Payload(length=900, checksum=SHA1))),
)
FINAL_LADDER = ladder(
    (Code.BAD_LENGTH, joining(FULL, BAD_PART, length=5, sent=TOO_MUCH)),
    (Code.BAD_CONCAT, joining(FULL, BAD_PART, sent=TOO_MUCH)),
    (Code.GONE, joining(FULL, BAD_PART)),
    (Code.TOO_LARGE, joining(FULL, replace(BAD_PART, state=State.COMPLETE))),
    (None, joining(FULL)),
)
MANY: dict[str, Any] = {"length": 2000, "checksum": UNKNOWN}
APPEND_LADDER = ladder(
    (Code.NOT_FOUND, appending(None, 5, 5000, malformed=MALFORMED, **MANY)),
    (
        Code.GONE,
        appending(upload(kind=Kind.FINAL, expires_at=NOW), 5, 5000, malformed=MALFORMED, **MANY),
    ),
    (
        Code.UNSUPPORTED_TYPE,
        appending(upload(kind=Kind.FINAL), 5, 5000, malformed=MALFORMED, **MANY),
    ),
    (Code.FINAL_UPLOAD, appending(upload(kind=Kind.FINAL), 5, 5000, **MANY)),
    (Code.OFFSET_MISMATCH, appending(upload(), 5, 5000, **MANY)),
    (Code.BAD_LENGTH, appending(upload(), 70, 5000, **MANY)),
    (Code.TOO_LARGE, appending(upload(), 70, 5000, **MANY | {"length": 100})),
    (Code.UNKNOWN_ALGORITHM, appending(upload(), 70, 30, **MANY | {"length": 100})),
    (None, appending(upload(), 70, 30, length=100, checksum=SHA1)),
)
OTHER_LADDERS = [
    *ladder(
        (Code.NOT_FOUND, looking(None, malformed=MALFORMED)),
        (Code.GONE, looking(upload(state=State.EXPIRED), malformed=MALFORMED)),
        (Code.UNSUPPORTED_TYPE, looking(upload(), malformed=MALFORMED)),
        (None, looking(upload())),
    ),
    *ladder(
        (Code.METHOD_NOT_ALLOWED, ending(None, BARE, malformed=MALFORMED)),
        (Code.NOT_FOUND, ending(None, malformed=MALFORMED)),
        (Code.GONE, ending(upload(state=State.EXPIRED), malformed=MALFORMED)),
        (Code.UNSUPPORTED_TYPE, ending(upload(), malformed=MALFORMED)),
        (None, ending(upload())),
    ),
    *ladder(
        (Code.METHOD_NOT_ALLOWED, reading(None, BARE, malformed=MALFORMED)),
        (Code.NOT_FOUND, reading(None, malformed=MALFORMED)),
        (Code.GONE, reading(upload(state=State.EXPIRED), malformed=MALFORMED)),
        (Code.UNSUPPORTED_TYPE, reading(upload(), malformed=MALFORMED)),
        (Code.UNFINISHED, reading(upload())),
        (None, reading(COMPLETE)),
    ),
]


@pytest.mark.parametrize(
    ("case", "code"), [*CREATE_LADDER, *FINAL_LADDER, *APPEND_LADDER, *OTHER_LADDERS]
)
def test_the_first_violation_is_the_one_that_is_told(case: Case[Any], code: Code | None) -> None:
    refusal = refusal_of(case)
    assert (refusal and refusal.code) == code


# -------------------------------------------------------------------------- a writer at work

UNLEASED = [
    ours(
        "An offset that the writer may be about to reach is worth asking it to let go.",
        appending(upload(), 90, 10, leased=False),
        takes(100, 10, room=30),
    ),
    ours(
        "So is the very end.",
        appending(upload(), 100, 0, leased=False),
        takes(100, 0, room=30),
    ),
    ours(
        "An offset that was passed is never reached again.",
        appending(upload(), 69, 31, leased=False),
        Refused(Code.OFFSET_MISMATCH, 409, offset=70),
    ),
    ours(
        "An offset beyond the length is never reached.",
        appending(upload(), 101, 0, leased=False),
        Refused(Code.OFFSET_MISMATCH, 409, offset=70),
    ),
    ours(
        "Nor is one beyond the maximum.",
        appending(GROWING, MAX_SIZE + 1, None, leased=False),
        Refused(Code.OFFSET_MISMATCH, 409, offset=70),
    ),
    ours(
        "Where neither is known, any may be.",
        appending(GROWING, 10**12, None, leased=False, offer=UNLIMITED),
        takes(None, None, room=None),
    ),
    ours(
        "A complete upload has no writer.",
        appending(replace(COMPLETE, offset=70, length=70), 71, 0, leased=False),
        Refused(Code.OFFSET_MISMATCH, 409, offset=70),
    ),
    ours(
        "A body past the length stays past it.",
        appending(upload(), 90, 11, leased=False),
        Refused(Code.TOO_LARGE, 413),
    ),
    ours(
        "A length, once set, stays.",
        appending(upload(), 90, 10, length=101, leased=False),
        Refused(Code.BAD_LENGTH, 400),
    ),
    ours(
        "A length below the offset that the client itself names.",
        appending(GROWING, 90, 0, length=89, leased=False),
        Refused(Code.BAD_LENGTH, 400),
    ),
    ours(
        "An unknown algorithm stays unknown.",
        appending(upload(), 90, 10, checksum=Checksum("sha3", b""), leased=False),
        Refused(Code.UNKNOWN_ALGORITHM, 400),
    ),
    ours(
        "A malformed head stays malformed.",
        appending(upload(), 90, 10, malformed=MALFORMED, leased=False),
        Refused(Code.UNSUPPORTED_TYPE, 415),
    ),
    ours(
        "A final takes no bytes.",
        appending(upload(kind=Kind.FINAL, offset=0), 90, 10, leased=False),
        Refused(Code.FINAL_UPLOAD, 403),
    ),
    ours(
        "What is gone stays gone.",
        appending(upload(state=State.TERMINATED), 90, 10, leased=False),
        Refused(Code.GONE, 410),
    ),
]


@pytest.mark.parametrize("row", UNLEASED, ids=lambda row: row.sentence)
def test_who_may_ask_a_writer_to_let_go(row: Row) -> None:
    check(row)


def futures(now: Upload, max_size: int | None, top: int) -> Iterator[Upload]:
    """All that a writer at work can make of an upload, up to `top` bytes."""
    yield now
    if now.complete:
        return
    lengths = [now.length] if now.length is not None else [None, *range(top + 1)]
    for length in lengths:
        ends = [n for n in (length, max_size, top) if n is not None]
        if length is not None and max_size is not None and length > max_size:
            continue
        for offset in range(now.offset, min(ends) + 1):
            yield replace(now, length=length, offset=offset)
            if offset == length:
                yield replace(now, length=length, offset=offset, state=State.COMPLETE)


def test_only_what_no_writer_could_make_acceptable_is_refused_without_the_lease() -> None:
    """All small cases: refused beforehand if and only if refused whatever the writer does."""
    top = 4
    nothing_or = [None, *range(top + 1)]
    uploads = [
        upload(length=length, offset=offset)
        for length, offset in product((None, 0, 2, 3), range(3))
        if length is None or offset <= length
    ]
    uploads += [replace(u, state=State.COMPLETE) for u in uploads if u.whole]
    checked = 0
    for record, max_size in product(uploads, (None, 3)):
        offer = Offer(extensions=OFFER.extensions, algorithms={}, max_size=max_size)
        later = list(futures(record, max_size, top))
        for offset, length, sent in product(range(top + 1), nothing_or, nothing_or):
            case = appending(record, offset, sent, length=length, offer=offer)
            before = refusal_of(replace(case, leased=False))
            accepted = any(refusal_of(replace(case, upload=u)) is None for u in later)
            assert (before is None) == accepted, (case.command, record, max_size, before)
            checked += 1
    assert checked > 3000
