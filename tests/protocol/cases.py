"""How the tables of decisions are written: commands as cases, and rows of what comes of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.protocol.samples import ID, NOW, OFFER, partial, upload

from tidegate.protocol import decide
from tidegate.protocol.capabilities import Offer
from tidegate.protocol.commands import (
    Append,
    Checksum,
    Create,
    Download,
    Inspect,
    Payload,
    Terminate,
)
from tidegate.protocol.decide import AppendPlan, Case, CreatePlan
from tidegate.protocol.errors import Code, Refusal
from tidegate.protocol.model import Kind, State, Upload, UploadId

SHA1 = Checksum("sha1", bytes(20))
UNKNOWN = Checksum("sha3", b"")
MALFORMED = Refusal(Code.UNSUPPORTED_TYPE, "Content-Type: 'text/plain'")
CHUNKED = Payload(length=None)
MAX_SIZE = 1000

WHOLE_A = partial("a", 10, offset=10, state=State.COMPLETE)
WHOLE_B = partial("b", 20, offset=20, state=State.COMPLETE)
UNFINISHED = partial("c", 30, offset=5)
DEFERRED = partial("d", None, offset=5)
FULL = partial("e", MAX_SIZE, offset=MAX_SIZE, state=State.COMPLETE)
GROWING = upload(length=None)
COMPLETE = upload(offset=100, state=State.COMPLETE)
UNLIMITED = Offer(extensions=OFFER.extensions, algorithms=OFFER.algorithms)


@dataclass(frozen=True)
class Refused:
    """The code, its status, and what the refusal tells besides."""

    code: Code
    status: int
    offset: int | None = None
    allow: tuple[str, ...] = ()


Expected = CreatePlan | AppendPlan | Upload | Refused


@dataclass(frozen=True)
class Row:
    sentence: str
    case: Case[Any]
    expected: Expected


def tus(sentence: str, case: Case[Any], expected: Expected) -> Row:
    """A sentence of the specification."""
    return Row(sentence, case, expected)


def ours(sentence: str, case: Case[Any], expected: Expected) -> Row:
    """A decision of our own."""
    return Row(sentence, case, expected)


def creating(
    *,
    length: int | None = None,
    sent: Payload | None = None,
    offer: Offer = OFFER,
    parts: tuple[Upload, ...] = (),
    of: tuple[str, ...] | None = None,
    **fields: Any,
) -> Case[Create]:
    """POST. `parts` are the records that there are, `of` the names that the client lists."""
    names = tuple(part.id for part in parts) if of is None else tuple(map(UploadId, of))
    command = Create(length=length, payload=sent, parts=names, **fields)
    return Case(command=command, parts={part.id: part for part in parts}, offer=offer, now=NOW)


def joining(*parts: Upload, **fields: Any) -> Case[Create]:
    """POST with Upload-Concat: final."""
    return creating(kind=Kind.FINAL, concat="final;...", parts=parts, **fields)


def appending(
    to: Upload | None,
    offset: int = 70,
    sent: int | None = 30,
    *,
    length: int | None = None,
    offer: Offer = OFFER,
    leased: bool = True,
    malformed: Refusal | None = None,
    **payload: Any,
) -> Case[Append]:
    """PATCH, of 30 bytes at 70 unless said otherwise."""
    command = Append(
        id=ID,
        offset=offset,
        length=length,
        payload=Payload(length=sent, **payload),
        malformed=malformed,
    )
    return Case(command=command, upload=to, offer=offer, now=NOW, leased=leased)


def looking(at: Upload | None, **fields: Any) -> Case[Inspect]:
    """HEAD."""
    return Case(command=Inspect(id=ID, **fields), upload=at, offer=OFFER, now=NOW)


def ending(what: Upload | None, offer: Offer = OFFER, **fields: Any) -> Case[Terminate]:
    """DELETE."""
    return Case(command=Terminate(id=ID, **fields), upload=what, offer=offer, now=NOW)


def reading(what: Upload | None, offer: Offer = OFFER, **fields: Any) -> Case[Download]:
    """GET."""
    return Case(command=Download(id=ID, **fields), upload=what, offer=offer, now=NOW)


def outcome(case: Case[Any]) -> CreatePlan | AppendPlan | Upload:
    functions: dict[type, Callable[[Case[Any]], CreatePlan | AppendPlan | Upload]] = {
        Create: decide.create,
        Append: decide.append,
        Inspect: decide.inspect,
        Terminate: decide.terminate,
        Download: decide.download,
    }
    return functions[type(case.command)](case)


def refusal_of(case: Case[Any]) -> Refusal | None:
    try:
        outcome(case)
    except Refusal as refusal:
        return refusal
    return None


def makes(
    length: int | None, *, room: int | None, complete: bool = False, payload: Payload | None = None
) -> CreatePlan:
    return CreatePlan(length=length, complete=complete, payload=payload, room=room)


def takes(length: int | None, sent: int | None, *, room: int | None, **payload: Any) -> AppendPlan:
    return AppendPlan(length=length, payload=Payload(length=sent, **payload), room=room)


def check(row: Row) -> None:
    """Fail unless what comes of the row's case is what the row expects."""
    if not isinstance(row.expected, Refused):
        assert outcome(row.case) == row.expected
        return
    refusal = refusal_of(row.case)
    assert refusal is not None, "accepted"
    assert (refusal.code, refusal.status) == (row.expected.code, row.expected.status)
    assert refusal.offset == row.expected.offset
    assert refusal.allow == row.expected.allow
    assert refusal.message
    assert refusal.message.isprintable()
    assert refusal.retry_after is None
