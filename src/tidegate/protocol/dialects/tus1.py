"""tus 1.0.0: its headers and statuses to commands, and results back to them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote, urljoin, urlsplit

from tidegate.protocol import fields
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
from tidegate.protocol.dialects.http import Header, Request, Response, header, refusal_response
from tidegate.protocol.errors import Code, Refusal
from tidegate.protocol.lifecycle import may_expire
from tidegate.protocol.model import NOWHERE, Kind, Upload, UploadId
from tidegate.protocol.results import (
    Appended,
    Created,
    Discovered,
    Inspected,
    Readable,
    Result,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tidegate.protocol.capabilities import Offer
    from tidegate.protocol.commands import Checksum

VERSION = "1.0.0"
OFFSET_STREAM = "application/offset+octet-stream"

REQUEST_HEADERS = (
    "Authorization",
    "Content-Type",
    "Tus-Resumable",
    "Upload-Checksum",
    "Upload-Concat",
    "Upload-Defer-Length",
    "Upload-Length",
    "Upload-Metadata",
    "Upload-Offset",
    "X-HTTP-Method-Override",
    "X-Request-ID",
    "X-Requested-With",
)
"""What a page of another origin may send: tus's own, and what its clients add."""
RESPONSE_HEADERS = (
    "Location",
    "Retry-After",
    "Tus-Checksum-Algorithm",
    "Tus-Extension",
    "Tus-Max-Size",
    "Tus-Resumable",
    "Tus-Version",
    "Upload-Concat",
    "Upload-Defer-Length",
    "Upload-Expires",
    "Upload-Length",
    "Upload-Metadata",
    "Upload-Offset",
)
"""What a page of another origin may read."""
METHODS = ("OPTIONS", "POST", "HEAD", "PATCH", "DELETE", "GET")

_COLLECTION = ("", "/")
ON_COLLECTION = ("OPTIONS", "POST")
ON_UPLOAD = ("OPTIONS", "HEAD", "PATCH", "DELETE", "GET")
_VERSIONED = frozenset({"POST", "HEAD", "PATCH", "DELETE"})
VERBS: Final[Mapping[type[Command], str]] = {
    Discover: "OPTIONS",
    Create: "POST",
    Append: "PATCH",
    Inspect: "HEAD",
    Terminate: "DELETE",
    Download: "GET",
}
"""The method that each command came by: the one that counts (X-HTTP-Method-Override)."""


def method(request: Request) -> str:
    """The method that counts. Raises Refusal when it is said twice, differently.

    "The X-HTTP-Method-Override request header MUST be a string which MUST be interpreted as the
    request's method by the Server, if the header is presented. The actual method of the request
    MUST be ignored."
    """
    override = request.value(b"x-http-method-override")
    return override.upper() if override else request.method


def parse(request: Request) -> Command:
    """What the request asks for.

    Raises the refusals that come before anyone is asked who the client is (method, version); what
    is wrong with the rest of the head is kept in the command, for `decide` to bring up in its turn.
    A path that can name no upload is a command on NOWHERE, since that it names none is not for
    everyone to know.
    """
    verb = method(request)
    allowed = ON_COLLECTION if request.path in _COLLECTION else ON_UPLOAD
    if verb not in allowed:
        raise Refusal(
            Code.METHOD_NOT_ALLOWED,
            f"{fields.shown(verb)} is not a method of this URL; expected {', '.join(allowed)}",
            allow=allowed,
        )
    # "The Client SHOULD NOT include the Tus-Resumable header in the request and the Server MUST
    # ignore the header."
    if verb == "OPTIONS":
        return Discover()
    if verb in _VERSIONED:
        _check_version(request)
    if request.path in _COLLECTION:
        return _create(request)
    upload_id = _upload_id(request.path) or NOWHERE
    if verb == "PATCH":
        return _append(request, upload_id)
    if verb == "HEAD":
        return Inspect(id=upload_id)
    return Terminate(id=upload_id) if verb == "DELETE" else Download(id=upload_id)


def _upload_id(path: str) -> UploadId | None:
    """The id that a path under the base names; None where it can name no upload."""
    try:
        upload_id = unquote(path, errors="strict")
    except UnicodeDecodeError:
        upload_id = ""
    if not upload_id or "/" in path or not upload_id.isprintable():
        return None
    return UploadId(upload_id)


# "If the version specified by the Client is not supported by the Server, it MUST respond with the
# 412 Precondition Failed status and MUST include the Tus-Version header into the response. In
# addition, the Server MUST NOT process the request."
def _check_version(request: Request) -> None:
    versions = request.values(b"tus-resumable")
    if not versions or any(version != VERSION for version in versions):
        said = f"'{fields.shown(versions[0])}'" if versions else "missing"
        raise Refusal(
            Code.UNSUPPORTED_VERSION, f"Tus-Resumable: {said}; this server speaks {VERSION}"
        )


def _create(request: Request) -> Create:
    try:
        if _has_body(request):
            _check_content(request)
        kind, concat, parts = _concat(request)
        return Create(
            kind=kind,
            length=_integer(request, b"upload-length", "Upload-Length"),
            deferred=_deferred(request),
            metadata=fields.metadata(request.value(b"upload-metadata") or ""),
            concat=concat,
            parts=parts,
            payload=_payload(request),
        )
    except Refusal as refusal:
        return Create(malformed=refusal)


def _append(request: Request, upload_id: UploadId) -> Append:
    try:
        # "All PATCH requests MUST use Content-Type: application/offset+octet-stream, otherwise the
        # server SHOULD return a 415 Unsupported Media Type status."
        _check_content(request)
        offset = _integer(request, b"upload-offset", "Upload-Offset")
        if offset is None:
            raise Refusal(Code.BAD_HEADER, "Upload-Offset: missing; expected where the body begins")
        return Append(
            id=upload_id,
            offset=offset,
            length=_integer(request, b"upload-length", "Upload-Length"),
            payload=_payload(request) or Payload(length=0),
        )
    except Refusal as refusal:
        return Append(id=upload_id, payload=Payload(length=0), malformed=refusal)


def _check_content(request: Request) -> None:
    content_type = (request.value(b"content-type") or "").partition(";")[0].strip().lower()
    if content_type != OFFSET_STREAM:
        raise Refusal(
            Code.UNSUPPORTED_TYPE,
            f"Content-Type: '{fields.shown(content_type)}'; expected {OFFSET_STREAM}",
        )
    encodings = [e for e in request.values(b"content-encoding") if e.lower() != "identity"]
    if encodings:
        raise Refusal(
            Code.UNSUPPORTED_ENCODING,
            f"Content-Encoding: '{fields.shown(encodings[0])}'; expected none, since offsets count"
            " the bytes as they are",
        )


def _has_body(request: Request) -> bool:
    """Whether the head announces a body."""
    if request.values(b"transfer-encoding"):
        return True
    lengths = request.values(b"content-length")
    if lengths:
        return any(length.strip("0") for length in lengths)
    # In HTTP/2 a body need not be announced, but one that means something has a type.
    return request.may_omit_length and any(
        request.values(name) for name in (b"content-type", b"trailer")
    )


def _payload(request: Request) -> Payload | None:
    """What the head says of the body; None: there is none, nor a checksum of none."""
    codings = request.values(b"transfer-encoding")
    length = _integer(request, b"content-length", "Content-Length")
    if codings:
        if len(codings) != 1 or codings[0].lower() != "chunked":
            raise Refusal(
                Code.UNSUPPORTED_TRANSFER_CODING,
                f"Transfer-Encoding: '{fields.shown(', '.join(codings))}'; expected chunked alone",
            )
        if length is not None:
            raise Refusal(
                Code.BAD_HEADER, "both Content-Length and Transfer-Encoding; expected one of them"
            )
    elif length is None and not _has_body(request):
        length = 0
    value = request.value(b"upload-checksum")
    checksum = None if value is None else fields.checksum(value)
    trailing = _trailing_checksum(request)
    if length == 0 and checksum is None and not trailing:
        return None
    return Payload(length=length, checksum=checksum, trailing_checksum=trailing)


# "If the hash cannot be calculated at the beginning of the upload, it MAY be included as a
# trailer." It counts only if the Trailer field announced it (RFC 9110, 6.6.2).
def _trailing_checksum(request: Request) -> bool:
    announced = any(
        name.strip().lower() == "upload-checksum"
        for value in request.values(b"trailer")
        for name in value.split(",")
    )
    if announced and request.value(b"upload-checksum") is not None:
        raise Refusal(
            Code.BAD_CHECKSUM, "Upload-Checksum: in the head and announced for the trailer as well"
        )
    if announced and not (request.values(b"transfer-encoding") or request.may_omit_length):
        raise Refusal(
            Code.BAD_CHECKSUM,
            "Upload-Checksum: announced for the trailer, which only a chunked body has",
        )
    return announced


def trailing_checksum(values: list[bytes]) -> Checksum:
    """The checksum that a trailer brought; raises Refusal when it brought none, or several."""
    if len(values) != 1:
        raise Refusal(
            Code.BAD_CHECKSUM,
            f"Upload-Checksum: announced for the trailer, which has {len(values)}; expected one",
        )
    return fields.checksum(values[0].decode("latin-1").strip(" \t"))


def _integer(request: Request, name: bytes, shown: str) -> int | None:
    value = request.value(name)
    return None if value is None else fields.integer(shown, value)


# "If the Upload-Defer-Length header contains any other value than 1 the server should return a 400
# Bad Request status."
def _deferred(request: Request) -> bool:
    value = request.value(b"upload-defer-length")
    if value not in (None, "1"):
        raise Refusal(
            Code.BAD_LENGTH, f"Upload-Defer-Length: '{fields.shown(value or '')}'; expected 1"
        )
    return value is not None


def _concat(request: Request) -> tuple[Kind, str, tuple[UploadId, ...]]:
    value = request.value(b"upload-concat")
    if value is None:
        return Kind.REGULAR, "", ()
    urls = fields.concat(value)
    if urls is None:
        return Kind.PARTIAL, value, ()
    parts = tuple(_part(url, number, request) for number, url in enumerate(urls, 1))
    return Kind.FINAL, value, parts


# "The partial uploads URLs MAY be absolute or relative": the path under our base names the upload.
def _part(url: str, number: int, request: Request) -> UploadId:
    unknown = Refusal(
        Code.NOT_FOUND, f"Upload-Concat: part {number} is not an upload of this server"
    )
    try:
        path = urljoin(request.base_path, urlsplit(url).path)
    except ValueError:
        raise unknown from None
    # What the clients call, and what a proxy in front of us may have made of it.
    for base in (urlsplit(request.base_url).path, request.base_path):
        part = _upload_id(path.removeprefix(base)) if path.startswith(base) else None
        if part is not None:
            return part
    raise unknown


# -------------------------------------------------------------------------------------- results


def render(result: Result, request: Request) -> Response:
    """The response that tells of a result. A download's is made by `downloads`."""
    headers = [header(b"tus-resumable", VERSION)]
    match result:
        case Discovered(offer):
            return Response(status=204, headers=headers + _discovery(offer))
        case Created(upload, with_payload):
            # "The Server MUST set the Location header to the URL of the created resource."
            headers.append(header(b"location", location(request, upload.id)))
            if with_payload:
                # "The Server ... MUST include the Upload-Offset header in the response".
                headers.append(header(b"upload-offset", str(upload.offset)))
            return Response(status=201, headers=[*headers, *_expires(upload), _EMPTY])
        case Appended(upload):
            # "It MUST include the Upload-Offset header containing the new offset."
            headers.append(header(b"upload-offset", str(upload.offset)))
            return Response(status=204, headers=headers + _expires(upload))
        case Inspected(upload):
            return Response(status=200, headers=[*headers, *_inspection(upload), _EMPTY])
        case Readable():
            raise AssertionError
        case _:
            return Response(status=204, headers=headers)


def render_refusal(refusal: Refusal, request: Request) -> Response:
    """The response that tells of a refusal."""
    headers = [header(b"tus-resumable", VERSION)]
    if refusal.code is Code.UNSUPPORTED_VERSION:
        headers.append(header(b"tus-version", VERSION))
    if refusal.offset is not None:
        headers.append(header(b"upload-offset", str(refusal.offset)))
    accept = ",".join(request.values(b"accept"))
    return refusal_response(refusal, accept, headers)


_EMPTY: Header = (b"content-length", b"0")
_UNRESERVED = re.compile(r"[A-Za-z0-9_.~-]+")


def location(request: Request, upload_id: UploadId) -> str:
    """The URL of an upload, as the client can reach it."""
    if _UNRESERVED.fullmatch(upload_id):
        return request.base_url + upload_id
    return request.base_url + quote(upload_id, safe="~")


def _discovery(offer: Offer) -> list[Header]:
    headers = [header(b"tus-version", VERSION)]
    # "If no extensions are supported, the Tus-Extension header MUST be omitted."
    if offer.extensions:
        headers.append(header(b"tus-extension", ",".join(offer.extensions)))
    if offer.max_size is not None:
        headers.append(header(b"tus-max-size", str(offer.max_size)))
    # "The Tus-Checksum-Algorithm header MUST be included in the response to an OPTIONS request."
    if "checksum" in offer.extensions:
        headers.append(header(b"tus-checksum-algorithm", ",".join(offer.algorithms)))
    return headers


def _inspection(upload: Upload) -> list[Header]:
    headers: list[Header] = []
    # "The response to a HEAD request for a final upload SHOULD NOT contain the Upload-Offset header
    # unless the concatenation has been successfully finished."
    if upload.kind is not Kind.FINAL or upload.complete:
        headers.append(header(b"upload-offset", str(upload.offset)))
    if upload.length is not None:
        headers.append(header(b"upload-length", str(upload.length)))
    elif upload.kind is not Kind.FINAL:
        # "As long as the length of the upload is not known, the Server MUST set
        # Upload-Defer-Length: 1 in all responses to HEAD requests."
        headers.append(header(b"upload-defer-length", "1"))
    # "If an upload contains additional metadata, responses to HEAD requests MUST include the
    # Upload-Metadata header and its value as specified by the Client during the creation."
    if upload.metadata:
        headers.append(header(b"upload-metadata", upload.metadata))
    # "Response to HEAD request against partial or final upload MUST include the Upload-Concat
    # header and its value as received in the upload creation request."
    if upload.concat:
        headers.append(header(b"upload-concat", upload.concat))
    # "The Server MUST prevent the client and/or proxies from caching the response by adding the
    # Cache-Control: no-store header to the response."
    return [*headers, *_expires(upload), header(b"cache-control", "no-store")]


# "This header MUST be included in every PATCH response if the upload is going to expire. If the
# expiration is known at the creation, the Upload-Expires header MUST be included in the response to
# the initial POST request."
def _expires(upload: Upload) -> list[Header]:
    if upload.expires_at is None or not may_expire(upload):
        return []
    return [header(b"upload-expires", fields.http_date(upload.expires_at))]
