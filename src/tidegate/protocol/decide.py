"""Whether a command may be carried out: the record in, a plan or a refusal out. Pure.

The preconditions of each command are an ordered list; the first that is not met refuses. Above
each stands the sentence of the specification that asks for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

import msgspec

from tidegate.protocol.capabilities import Offer
from tidegate.protocol.commands import (
    Append,
    Checksum,
    Command,
    Create,
    Download,
    Inspect,
    Payload,
    Terminate,
)
from tidegate.protocol.errors import Code, Refusal
from tidegate.protocol.fields import shown
from tidegate.protocol.lifecycle import may_expire
from tidegate.protocol.model import MAX_LENGTH, Kind, Principal, Upload, UploadId

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

C = TypeVar("C", Create, Append, Inspect, Terminate, Download)


class Case(msgspec.Struct, Generic[C], frozen=True, kw_only=True):
    """All that a decision depends on."""

    command: C
    upload: Upload | None = None
    """The record, or None where there is none."""
    parts: dict[UploadId, Upload] = {}
    """For a new final: the records of its parts, as far as they exist."""
    principal: Principal | None = None
    """Who asks; None where nobody is asked who they are."""
    max_size: int | None = None
    """What the upload may come to in bytes, by the word of a hook; None: it said nothing."""
    offer: Offer
    now: float
    leased: bool = True
    """False: someone may be writing, so that `upload.offset` is only the least that it can be."""

    @property
    def known(self) -> Upload:
        """The record, for the checks behind `_exists`."""
        if self.upload is None:
            raise AssertionError
        return self.upload

    @property
    def largest(self) -> int | None:
        """What an upload whose length is not known yet may come to, in bytes; None: anything."""
        principal = None if self.principal is None else self.principal.max_size
        limits = (self.offer.max_size, principal, self.max_size)
        return min((limit for limit in limits if limit is not None), default=None)

    def may_use(self, upload: Upload) -> bool:
        """Whether an upload is there for who asks.

        One without an owner was made when nobody was asked: whoever may come in may use it, as
        before. Where nobody is asked any more, an owner's uploads are still nobody else's.
        """
        if upload.principal is None or not self.offer.owners:
            return True
        return self.principal is not None and self.principal.id == upload.principal


class CreatePlan(msgspec.Struct, frozen=True, kw_only=True):
    """Make the upload; then receive `payload`, at most `room` bytes of it, if there is one."""

    length: int | None
    complete: bool
    """It is whole as soon as it is made."""
    payload: Payload | None
    room: int | None
    """None: no limit is known."""


class AppendPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Receive `payload` from the record's offset on, at most `room` bytes of it."""

    length: int | None
    """The upload's length from now on."""
    payload: Payload
    room: int | None


def offered(command: Command, offer: Offer) -> None:
    """Whether the method is one here: what can be told before anyone is asked; raises Refusal."""
    match command:
        case Create():
            refusal = _creation_offered(offer)
        case Terminate():
            refusal = _termination_offered(offer)
        case Download():
            refusal = _downloads_offered(offer)
        case _:
            refusal = None
    if refusal is not None:
        raise refusal


def create(case: Case[Create]) -> CreatePlan:
    """Decide on a new upload; raises Refusal."""
    _hold(case, CREATE)
    command = case.command
    length = _final_length(case) if command.kind is Kind.FINAL else command.length
    return CreatePlan(
        length=length,
        # "The Upload-Length header MAY be set to 0 ... Such an upload is immediately complete after
        # its creation without transferring data using PATCH requests."
        complete=length == 0 and command.kind is not Kind.FINAL,
        payload=command.payload,
        room=case.largest if length is None else length,
    )


def append(case: Case[Append]) -> AppendPlan:
    """Decide on an append; raises Refusal.

    Not `leased`, this only refuses what no writer at work could make acceptable.
    """
    _hold(case, APPEND)
    upload, command = case.known, case.command
    length = upload.length if upload.length is not None else command.length
    limit = length if length is not None else case.largest
    return AppendPlan(
        length=length,
        payload=command.payload,
        room=None if limit is None else max(0, limit - upload.offset),
    )


def inspect(case: Case[Inspect]) -> Upload:
    """Decide on a look at an upload; raises Refusal."""
    _hold(case, INSPECT)
    return case.known


def terminate(case: Case[Terminate]) -> Upload:
    """Decide on ending an upload; raises Refusal."""
    _hold(case, TERMINATE)
    return case.known


def download(case: Case[Download]) -> Upload:
    """Decide on reading an upload; raises Refusal."""
    _hold(case, DOWNLOAD)
    return case.known


def _hold(case: Case[C], preconditions: Sequence[Callable[[Case[C]], Refusal | None]]) -> None:
    offered(case.command, case.offer)
    for precondition in preconditions:
        refusal = precondition(case)
        if refusal is not None:
            raise refusal


# ------------------------------------------------------------------------- shared preconditions


def _well_formed(case: Case[C]) -> Refusal | None:
    return case.command.malformed


# "If the resource is not found, the Server SHOULD return either the 404 Not Found, 410 Gone or 403
# Forbidden status without the Upload-Offset header."
def _exists(case: Case[C]) -> Refusal | None:
    if case.upload is None:
        return Refusal(Code.NOT_FOUND, "there is no upload at this URL")
    return None


# To others than its owner an upload is not there, and nothing tells that it is.
def _is_theirs(case: Case[C]) -> Refusal | None:
    if not case.may_use(case.known):
        return Refusal(Code.NOT_FOUND, "there is no upload at this URL")
    return None


# "If a Client does attempt to resume an upload which has since been removed by the Server, the
# Server SHOULD respond with the 404 Not Found or 410 Gone status. The latter one SHOULD be used if
# the Server is keeping track of expired uploads."
# "For all future requests to this URL [of a terminated upload], the Server SHOULD respond with the
# 404 Not Found or 410 Gone status."
def _not_gone(case: Case[C]) -> Refusal | None:
    upload = case.known
    if upload.gone:
        return Refusal(Code.GONE, f"the upload is {upload.state}; start a new one")
    if upload.expires_at is not None and upload.expires_at <= case.now and may_expire(upload):
        return Refusal(Code.GONE, "the upload is expired; start a new one")
    return None


# "1) 400 Bad Request if the checksum algorithm is not supported by the server"
def _algorithm_known(case: Case[Create] | Case[Append]) -> Refusal | None:
    payload, offer = case.command.payload, case.offer
    if payload is None:
        return None
    if payload.trailing_checksum and "checksum-trailer" not in offer.extensions:
        return Refusal(
            Code.NOT_OFFERED,
            "Trailer: checksum-trailer is not offered here; send Upload-Checksum in the head",
        )
    return None if payload.checksum is None else unverifiable(payload.checksum, offer)


def unverifiable(checksum: Checksum, offer: Offer) -> Refusal | None:
    """Why this server cannot verify `checksum`, or None when it can."""
    if "checksum" not in offer.extensions:
        return Refusal(Code.NOT_OFFERED, "Upload-Checksum: checksums are not offered here")
    algorithm = offer.algorithms.get(checksum.algorithm)
    if algorithm is None:
        return Refusal(
            Code.UNKNOWN_ALGORITHM,
            f"Upload-Checksum: the algorithm '{shown(checksum.algorithm)}' is not supported;"
            f" expected one of {', '.join(offer.algorithms)}",
        )
    if len(checksum.digest) != algorithm.size:
        return Refusal(
            Code.BAD_CHECKSUM,
            f"Upload-Checksum: the digest has {len(checksum.digest)} bytes;"
            f" one of {algorithm.name} has {algorithm.size}",
        )
    return None


def _too_large(largest: int | None, size: int) -> Refusal | None:
    if largest is not None and size > largest:
        return Refusal(Code.TOO_LARGE, f"{size} bytes; the largest upload here is {largest} bytes")
    return None


# ---------------------------------------------------------------------------------------- create


# "If the Server supports this extension, it MUST add creation to the Tus-Extension header."
def _creation_offered(offer: Offer) -> Refusal | None:
    if "creation" in offer.extensions:
        return None
    return Refusal(
        Code.METHOD_NOT_ALLOWED, "uploads are not created over HTTP here", allow=("OPTIONS",)
    )


# "If the Server supports deferring length, it MUST add creation-defer-length"; "it MUST advertise
# this by including creation-with-upload"; "it MUST add concatenation to the Tus-Extension header".
def _extensions_offered(case: Case[Create]) -> Refusal | None:
    command = case.command
    for extension, wanted in (
        ("creation-defer-length", command.deferred),
        ("creation-with-upload", command.payload is not None),
        ("concatenation", command.kind is not Kind.REGULAR),
    ):
        if wanted and extension not in case.offer.extensions:
            return Refusal(Code.NOT_OFFERED, f"the extension {extension} is not offered here")
    return None


# "The request MUST include one of the following headers: a) Upload-Length ... b)
# Upload-Defer-Length: 1". "The Client MUST NOT include the Upload-Length header in the final upload
# creation."
def _one_length(case: Case[Create]) -> Refusal | None:
    command = case.command
    given = (command.length is not None) + command.deferred
    if command.kind is Kind.FINAL:
        if given:
            return Refusal(
                Code.BAD_LENGTH, "a final upload has the length of its parts; expected no length"
            )
        return None
    if given != 1:
        return Refusal(
            Code.BAD_LENGTH,
            ("both" if given else "neither") + " of Upload-Length and Upload-Defer-Length;"
            " expected one of them",
        )
    return None


# A final is made of its parts alone.
def _final_has_no_body(case: Case[Create]) -> Refusal | None:
    if case.command.kind is Kind.FINAL and case.command.payload is not None:
        return Refusal(Code.BAD_CONCAT, "a final upload is made of its parts; expected no body")
    return None


# "a space-separated list of the partial upload URLs that need to be concatenated"
def _parts_are_partial(case: Case[Create]) -> Refusal | None:
    for number, part_id in enumerate(case.command.parts, 1):
        part = case.parts.get(part_id)
        if part is None or not case.may_use(part):
            return Refusal(Code.NOT_FOUND, f"Upload-Concat: part {number} does not exist")
        if part.kind is not Kind.PARTIAL:
            return Refusal(
                Code.BAD_CONCAT,
                f"Upload-Concat: part {number} is a {part.kind} upload; expected a partial one",
            )
        expired = part.expires_at is not None and part.expires_at <= case.now
        if part.gone or expired:
            return Refusal(Code.GONE, f"Upload-Concat: part {number} is gone; upload it again")
        # "The Client MAY send the concatenation request while the partial uploads are still in
        # progress. This feature MUST be explicitly announced by the Server".
        if not part.complete and "concatenation-unfinished" not in case.offer.extensions:
            return Refusal(
                Code.UNFINISHED, f"Upload-Concat: part {number} is unfinished; finish it first"
            )
    return None


# "If the length of the upload exceeds the maximum, which MAY be specified using the Tus-Max-Size
# header, the Server MUST respond with the 413 Request Entity Too Large status."
def _creation_fits(case: Case[Create]) -> Refusal | None:
    command, largest = case.command, case.largest
    if command.kind is Kind.FINAL:
        # What is known of the parts is the least that the whole can be.
        least = sum((case.parts[p].length or case.parts[p].offset) for p in command.parts)
        if least > MAX_LENGTH:
            return Refusal(Code.TOO_LARGE, "the parts are larger than 2^63-1 bytes together")
        return _too_large(largest, least)
    if command.length is not None:
        refusal = _too_large(largest, command.length)
        if refusal is not None:
            return refusal
    sent = None if command.payload is None else command.payload.length
    if sent is None:
        return None
    if command.length is not None and sent > command.length:
        return Refusal(
            Code.TOO_LARGE, f"a body of {sent} bytes for an upload of {command.length} bytes"
        )
    return _too_large(largest, sent)


CREATE: tuple[Callable[[Case[Create]], Refusal | None], ...] = (
    _well_formed,
    _extensions_offered,
    _one_length,
    _final_has_no_body,
    _parts_are_partial,
    _creation_fits,
    _algorithm_known,
)


# "The length of the final upload MUST be the sum of the length of all partial uploads."
def _final_length(case: Case[Create]) -> int | None:
    return length_of(case.parts[part] for part in case.command.parts)


def length_of(parts: Iterable[Upload]) -> int | None:
    """The length of a final upload over `parts`; None while one of them has none."""
    total = 0
    for part in parts:
        if part.length is None:
            return None
        total += part.length
    return total


# ---------------------------------------------------------------------------------------- append


# "The Server MUST respond with the 403 Forbidden status to PATCH requests against a final upload
# URL and MUST NOT modify the final or its partial uploads."
def _not_final(case: Case[Append]) -> Refusal | None:
    if case.known.kind is Kind.FINAL:
        return Refusal(Code.FINAL_UPLOAD, "a final upload is made of its parts; nothing is added")
    return None


# "The Upload-Offset header's value MUST be equal to the current offset of the resource. If the
# offsets do not match, the Server MUST respond with the 409 Conflict status without modifying the
# upload resource."
def _offset_matches(case: Case[Append]) -> Refusal | None:
    offset, upload = case.command.offset, case.known
    if offset == upload.offset:
        return None
    # A writer at work moves the offset up, and no further than the end.
    end = upload.length if upload.length is not None else case.offer.max_size
    in_reach = offset > upload.offset and (end is None or offset <= end)
    if not case.leased and not upload.complete and in_reach:
        return None
    return Refusal(
        Code.OFFSET_MISMATCH,
        f"Upload-Offset: {offset}; the upload is at {upload.offset}",
        offset=upload.offset,
    )


# "Once set the length MUST NOT be changed."
def _length_agrees(case: Case[Append]) -> Refusal | None:
    command, upload = case.command, case.known
    if command.length is None:
        return None
    if upload.length is not None:
        if command.length != upload.length:
            return Refusal(
                Code.BAD_LENGTH,
                f"Upload-Length: {command.length}; it was set to {upload.length} before",
            )
        return None
    if command.length < command.offset:
        return Refusal(
            Code.BAD_LENGTH,
            f"Upload-Length: {command.length}; there are {command.offset} bytes already",
        )
    return _too_large(case.largest, command.length)


# "The new offset MUST be the sum of the offset before the PATCH request and the number of bytes
# received": what goes past the length, or the maximum, is refused before a byte is read.
def _append_fits(case: Case[Append]) -> Refusal | None:
    command, upload = case.command, case.known
    sent = command.payload.length
    if sent is None:
        return None
    length = upload.length if upload.length is not None else command.length
    stop = command.offset + sent
    if length is not None and stop > length:
        return Refusal(
            Code.TOO_LARGE,
            f"a body of {sent} bytes; {length - command.offset} of {length} are missing",
        )
    if stop > MAX_LENGTH:
        return Refusal(Code.TOO_LARGE, "an upload has at most 2^63-1 bytes")
    # A length that was accepted stays so, whoever goes on with the upload.
    return _too_large(case.largest if upload.length is None else case.offer.max_size, stop)


APPEND: tuple[Callable[[Case[Append]], Refusal | None], ...] = (
    _exists,
    _is_theirs,
    _not_gone,
    _well_formed,
    _not_final,
    _offset_matches,
    _length_agrees,
    _append_fits,
    _algorithm_known,
)


# ------------------------------------------------------------------ inspect, terminate, download


# "If this extension is supported by the Server, it MUST be announced by adding termination to the
# Tus-Extension header."
def _termination_offered(offer: Offer) -> Refusal | None:
    if "termination" in offer.extensions:
        return None
    return Refusal(
        Code.METHOD_NOT_ALLOWED,
        "uploads are not terminated over HTTP here",
        allow=_allowed(offer),
    )


def _downloads_offered(offer: Offer) -> Refusal | None:
    if offer.downloads:
        return None
    return Refusal(
        Code.METHOD_NOT_ALLOWED,
        "uploads are not read over HTTP here",
        allow=_allowed(offer),
    )


def _allowed(offer: Offer) -> tuple[str, ...]:
    """The methods of an upload's URL."""
    terminates = ("DELETE",) if "termination" in offer.extensions else ()
    reads = ("GET",) if offer.downloads else ()
    return "OPTIONS", "HEAD", "PATCH", *terminates, *reads


# A client that reads an unfinished upload would take a piece for the whole.
def _complete(case: Case[Download]) -> Refusal | None:
    if case.known.complete:
        return None
    return Refusal(Code.UNFINISHED, "the upload is not complete; it can be read once it is")


INSPECT: tuple[Callable[[Case[Inspect]], Refusal | None], ...] = (
    _exists,
    _is_theirs,
    _not_gone,
    _well_formed,
)
TERMINATE: tuple[Callable[[Case[Terminate]], Refusal | None], ...] = (
    _exists,
    _is_theirs,
    _not_gone,
    _well_formed,
)
DOWNLOAD: tuple[Callable[[Case[Download]], Refusal | None], ...] = (
    _exists,
    _is_theirs,
    _not_gone,
    _well_formed,
    _complete,
)
