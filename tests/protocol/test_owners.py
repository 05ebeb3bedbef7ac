"""Whose an upload is, and how large it may be for whom, as a table."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace
from tests.protocol.cases import (
    COMPLETE,
    GROWING,
    MALFORMED,
    MAX_SIZE,
    UNLIMITED,
    Expected,
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
)
from tests.protocol.samples import BARE, OFFER, partial, upload

from tidegate.protocol import decide
from tidegate.protocol.commands import (
    Append,
    Command,
    Create,
    Discover,
    Download,
    Inspect,
    Payload,
    Terminate,
)
from tidegate.protocol.decide import Case
from tidegate.protocol.errors import Code, Refusal
from tidegate.protocol.model import NOWHERE, Principal, State

ALICE = Principal(id="alice")
BOB = Principal(id="bob")
SMALL = Principal(id="alice", max_size=50)
OWNED = upload(principal="alice")
OURS = partial("a", 10, offset=10, state=State.COMPLETE, principal="alice")
THEIRS = partial("b", 10, offset=10, state=State.COMPLETE, principal="bob")
NOBODYS = partial("c", 10, offset=10, state=State.COMPLETE)
SHARED = replace(OFFER, owners=False)
NOT_THERE = Refused(Code.NOT_FOUND, 404)


def asked_by(principal: Principal | None, case: Case[Any], **fields: Any) -> Case[Any]:
    return replace(case, principal=principal, **fields)


def on(record: Any) -> list[Case[Any]]:
    """Every command on one upload, each of which its owner may give."""
    return [appending(record), looking(record), ending(record)]


DONE = replace(COMPLETE, principal="alice")
ALLOWED: list[tuple[Case[Any], Expected]] = [
    (appending(OWNED), takes(100, 30, room=30)),
    (looking(OWNED), OWNED),
    (ending(OWNED), OWNED),
    (reading(DONE), DONE),
]
FOR_ALL: list[tuple[Case[Any], Expected]] = [
    (looking(upload()), upload()),
    (ending(upload()), upload()),
]

OWNERS = [
    *(
        ours("An upload is there for its owner.", asked_by(ALICE, case), expected)
        for case, expected in ALLOWED
    ),
    *(
        ours("It is not there for anyone else.", asked_by(BOB, case), NOT_THERE)
        for case in [*on(OWNED), reading(DONE)]
    ),
    *(
        ours("Nor for anyone where nobody is asked.", asked_by(None, case), NOT_THERE)
        for case in [*on(OWNED), reading(DONE)]
    ),
    *(
        ours("What is gone is not even gone for others.", asked_by(BOB, case), NOT_THERE)
        for case in on(upload(principal="alice", state=State.TERMINATED))
    ),
    *(
        ours("What was made when nobody was asked is there for all.", asked_by(BOB, case), expected)
        for case, expected in FOR_ALL
    ),
    *(
        ours(
            "Unless owners do not matter.",
            asked_by(principal, looking(OWNED), offer=SHARED),
            OWNED,
        )
        for principal in (BOB, None)
    ),
    ours(
        "A final of one's own parts, and of those that are nobody's.",
        asked_by(ALICE, joining(OURS, NOBODYS)),
        makes(20, room=20),
    ),
    ours("A foreign part is not there.", asked_by(ALICE, joining(OURS, THEIRS)), NOT_THERE),
    ours("Nor is it where nobody is asked.", asked_by(None, joining(THEIRS)), NOT_THERE),
    ours(
        "A foreign part that is gone is not there either.",
        asked_by(ALICE, joining(replace(THEIRS, state=State.TERMINATED))),
        NOT_THERE,
    ),
]

SIZES = [
    ours(
        "A principal's largest upload.",
        asked_by(SMALL, creating(length=50)),
        makes(50, room=50),
    ),
    ours(
        "One byte more.",
        asked_by(SMALL, creating(length=51)),
        Refused(Code.TOO_LARGE, 413),
    ),
    ours(
        "None of any size at all.",
        asked_by(Principal(id="x", max_size=0), creating(length=1)),
        Refused(Code.TOO_LARGE, 413),
    ),
    ours(
        "More than the server takes is no principal's to allow.",
        asked_by(Principal(id="x", max_size=MAX_SIZE + 1), creating(length=MAX_SIZE + 1)),
        Refused(Code.TOO_LARGE, 413),
    ),
    ours(
        "Where the length is deferred, that much may come.",
        asked_by(SMALL, creating(deferred=True)),
        makes(None, room=50),
    ),
    ours(
        "Its first bytes are too many.",
        asked_by(SMALL, creating(deferred=True, sent=Payload(length=51))),
        Refused(Code.TOO_LARGE, 413),
    ),
    ours(
        "A final of more than that.",
        asked_by(Principal(id="alice", max_size=19), joining(OURS, NOBODYS)),
        Refused(Code.TOO_LARGE, 413),
    ),
    ours(
        "A hook's word counts as well as a principal's.",
        asked_by(SMALL, creating(length=20), max_size=19),
        Refused(Code.TOO_LARGE, 413),
    ),
    ours(
        "The least of all counts.",
        asked_by(SMALL, creating(deferred=True), max_size=60),
        makes(None, room=50),
    ),
    ours(
        "What is appended to an upload without a length is capped, too.",
        asked_by(SMALL, appending(replace(GROWING, offset=40), 40, 11)),
        Refused(Code.TOO_LARGE, 413),
    ),
    ours(
        "So is what comes without a length itself.",
        asked_by(SMALL, appending(replace(GROWING, offset=40), 40, None)),
        takes(None, None, room=10),
    ),
    ours(
        "And the length that is set at last.",
        asked_by(SMALL, appending(replace(GROWING, offset=40), 40, 0, length=51)),
        Refused(Code.TOO_LARGE, 413),
    ),
    ours(
        "What is there already is more than may be: nothing more comes.",
        asked_by(SMALL, appending(GROWING, 70, None)),
        takes(None, None, room=0),
    ),
    ours(
        "A length that was accepted once stays accepted.",
        asked_by(SMALL, appending(OWNED, 70, 30)),
        takes(100, 30, room=30),
    ),
    ours(
        "Without a limit of the server's.",
        asked_by(SMALL, appending(replace(GROWING, offset=40), 40, None), offer=UNLIMITED),
        takes(None, None, room=10),
    ),
]


@pytest.mark.parametrize("row", OWNERS, ids=lambda row: row.sentence)
def test_whose_an_upload_is(row: Row) -> None:
    check(row)


@pytest.mark.parametrize("row", SIZES, ids=lambda row: row.sentence)
def test_how_large_an_upload_may_be_for_whom(row: Row) -> None:
    check(row)


@pytest.mark.parametrize("case", [*on(None), reading(None)], ids=lambda c: type(c.command).__name__)
def test_a_foreign_upload_looks_like_none(case: Case[Any]) -> None:
    """The same answer to the letter; and nothing of it hangs on what state the upload is in."""
    nothing = refusal_of(asked_by(BOB, case))
    assert nothing is not None
    for record in (
        OWNED,
        replace(OWNED, expires_at=0.0),
        upload(principal="c", state=State.FAILED),
    ):
        found = refusal_of(asked_by(BOB, replace(case, upload=record)))
        assert found is not None
        assert vars(found) == vars(nothing)


def test_a_foreign_upload_is_not_there_before_a_head_is_looked_at() -> None:
    refusal = refusal_of(asked_by(BOB, appending(OWNED, malformed=MALFORMED)))
    assert refusal is not None
    assert refusal.code is Code.NOT_FOUND


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (Create(), 405),
        (Terminate(id=NOWHERE), 405),
        (Download(id=NOWHERE), 405),
        (Append(id=NOWHERE, payload=Payload(length=0)), None),
        (Inspect(id=NOWHERE), None),
        (Discover(), None),
    ],
)
def test_a_method_that_is_none_here_is_told_before_anyone_is_asked(
    command: Command, status: int | None
) -> None:
    try:
        decide.offered(command, BARE)
    except Refusal as refusal:
        assert refusal.status == status  # noqa: PT017
    else:
        assert status is None
    decide.offered(command, OFFER)


@pytest.mark.parametrize("fields", [{"id": ""}, {"id": "a\nb"}, {"id": "a", "max_size": -1}])
def test_what_is_no_principal(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="a principal's"):
        Principal(**fields)
