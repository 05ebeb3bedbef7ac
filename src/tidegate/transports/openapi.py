"""The HTTP interface as an OpenAPI 3.1 document, made from the tables that the server goes by."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from tidegate import __version__
from tidegate.protocol.dialects import tus1
from tidegate.protocol.dialects.http import phrase
from tidegate.protocol.errors import Code
from tidegate.protocol.model import MAX_LENGTH

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from tidegate.protocol.capabilities import Offer

Schema = dict[str, Any]

_INTEGER: Final[Schema] = {"type": "integer", "minimum": 0, "maximum": MAX_LENGTH}
_TEXT: Final[Schema] = {"type": "string"}
_BINARY: Final[Schema] = {"type": "string", "contentMediaType": "application/octet-stream"}

ALWAYS: Final = (
    *(Code.BAD_REQUEST, Code.INTERNAL, Code.UNSUPPORTED_TRANSFER_CODING, Code.UNAVAILABLE),
    *(Code.BUSY, Code.TOO_MANY, Code.METHOD_NOT_ALLOWED),
)
"""What may come of any request."""
HEADS: Final = {
    400: "Not a request of HTTP/1.1",
    408: "The head took too long to come",
    431: "The head is too long",
    505: "Another version of HTTP",
}
"""What comes of one whose head is not understood."""
_NAMED: Final = (Code.DENIED, Code.NOT_FOUND, Code.GONE)
CHALLENGED: Final = 401
"""The other status of a refusal by who is asked whether a request may come in. An application's own
can be any of the 4xx and 5xx, which no document knows."""
_HEADERS: Final = (Code.BAD_HEADER,)
_BODY: Final = (
    *(Code.BAD_LENGTH, Code.BAD_CHECKSUM, Code.UNKNOWN_ALGORITHM, Code.NOT_OFFERED),
    *(Code.TOO_LARGE, Code.UNSUPPORTED_TYPE, Code.UNSUPPORTED_ENCODING, Code.CHECKSUM_MISMATCH),
    *(Code.LOCKED, Code.STALLED, Code.STOPPING, Code.NO_SPACE),
)
REFUSALS: Final[dict[str, tuple[Code, ...]]] = {
    "OPTIONS": (),
    "POST": (
        *(Code.UNSUPPORTED_VERSION, *_HEADERS, *_BODY, *_NAMED),
        *(Code.BAD_METADATA, Code.BAD_CONCAT, Code.UNFINISHED, Code.EXISTS),
    ),
    "HEAD": (Code.UNSUPPORTED_VERSION, *_HEADERS, *_NAMED, Code.LOCKED, Code.NO_SPACE),
    "PATCH": (
        *(Code.UNSUPPORTED_VERSION, *_HEADERS, *_BODY, *_NAMED),
        *(Code.FINAL_UPLOAD, Code.OFFSET_MISMATCH),
    ),
    "DELETE": (Code.UNSUPPORTED_VERSION, *_HEADERS, *_NAMED, Code.LOCKED, Code.NO_SPACE),
    "GET": (*_HEADERS, *_NAMED, Code.UNFINISHED, Code.RANGE_NOT_SATISFIABLE),
}
"""What may come of each method besides."""

_REQUEST: Final[dict[str, tuple[Schema, str]]] = {
    "Tus-Resumable": (
        {"type": "string", "const": tus1.VERSION},
        "The version of tus that the client speaks",
    ),
    "Upload-Length": (_INTEGER, "Bytes of the whole upload"),
    "Upload-Defer-Length": ({"type": "string", "enum": ["1"]}, "The length is not known yet"),
    "Upload-Offset": (_INTEGER, "Where in the upload the body begins; what HEAD said"),
    "Upload-Metadata": (_TEXT, "Pairs of a key and a base64 value, separated by commas"),
    "Upload-Concat": (_TEXT, "`partial`, or `final;` and the URLs of the parts"),
    "Upload-Checksum": (_TEXT, "An algorithm and the base64 digest of the body"),
    "Range": (_TEXT, "Which bytes"),
    "If-None-Match": (_TEXT, "Not if the entity tag is this one"),
    "If-Range": (_TEXT, "All of it, if the entity tag is another one"),
    "X-Request-ID": (
        {"type": "string", "pattern": "^[A-Za-z0-9._~+/=:@-]{1,128}$"},
        "How the log calls the request; made where it is missing",
    ),
}
_RESPONSE: Final[dict[str, tuple[Schema, str]]] = {
    "Location": (_TEXT, "The URL of the new upload"),
    "Tus-Resumable": _REQUEST["Tus-Resumable"],
    "Tus-Version": (_TEXT, "The versions that the server speaks"),
    "Tus-Extension": (_TEXT, "The extensions that it offers"),
    "Tus-Max-Size": (_INTEGER, "The largest upload, in bytes"),
    "Tus-Checksum-Algorithm": (_TEXT, "The algorithms that it knows"),
    "Upload-Offset": (_INTEGER, "How many bytes are safe here"),
    "Upload-Length": _REQUEST["Upload-Length"],
    "Upload-Defer-Length": _REQUEST["Upload-Defer-Length"],
    "Upload-Metadata": _REQUEST["Upload-Metadata"],
    "WWW-Authenticate": (_TEXT, "How to say who asks"),
    "Upload-Concat": _REQUEST["Upload-Concat"],
    "Upload-Expires": (_TEXT, "When the upload is given up, unless somebody goes on with it"),
    "Retry-After": (_INTEGER, "Seconds after which to try again"),
    "Allow": (_TEXT, "The methods that would do"),
    "ETag": (_TEXT, "The entity tag"),
    "Last-Modified": (_TEXT, "When it was complete"),
    "Accept-Ranges": (_TEXT, "`bytes`"),
    "Content-Range": (_TEXT, "Which bytes these are"),
    "Content-Disposition": (_TEXT, "What a browser does with it, and its name"),
    "Cache-Control": (_TEXT, "Who may keep it"),
    "X-Request-ID": (_TEXT, "How the log calls the request"),
}
_NEEDED: Final = {
    "POST": ("Tus-Resumable",),
    "HEAD": ("Tus-Resumable",),
    "PATCH": ("Tus-Resumable", "Upload-Offset"),
    "DELETE": ("Tus-Resumable",),
}
_TAKEN: Final = {
    "OPTIONS": (),
    "POST": (
        *("Upload-Length", "Upload-Defer-Length", "Upload-Metadata", "Upload-Concat"),
        "Upload-Checksum",
    ),
    "HEAD": (),
    "PATCH": ("Upload-Length", "Upload-Checksum"),
    "DELETE": (),
    "GET": ("Range", "If-None-Match", "If-Range"),
}
"""Header fields of requests: those that must be there, and those that may."""
_NEEDS_EXTENSION: Final = {
    "Upload-Defer-Length": "creation-defer-length",
    "Upload-Concat": "concatenation",
    "Upload-Checksum": "checksum",
}
_GIVEN: Final[dict[str, dict[int, tuple[tuple[str, ...], tuple[str, ...], str]]]] = {
    "OPTIONS": {
        204: (
            ("Tus-Resumable", "Tus-Version"),
            ("Tus-Extension", "Tus-Max-Size", "Tus-Checksum-Algorithm"),
            "What the server can do",
        )
    },
    "POST": {
        201: (
            ("Tus-Resumable", "Location"),
            ("Upload-Offset", "Upload-Expires"),
            "The upload is there",
        )
    },
    "HEAD": {
        200: (
            ("Tus-Resumable", "Cache-Control"),
            (
                *("Upload-Offset", "Upload-Length", "Upload-Defer-Length", "Upload-Metadata"),
                *("Upload-Concat", "Upload-Expires"),
            ),
            "How far the upload is",
        )
    },
    "PATCH": {
        204: (("Tus-Resumable", "Upload-Offset"), ("Upload-Expires",), "The bytes are safe here")
    },
    "DELETE": {204: (("Tus-Resumable",), (), "The upload is gone")},
    "GET": {
        200: (
            ("ETag", "Last-Modified", "Accept-Ranges", "Content-Disposition"),
            (),
            "The bytes of a complete upload",
        ),
        206: (
            ("ETag", "Last-Modified", "Accept-Ranges", "Content-Disposition"),
            ("Content-Range",),
            "Those that were asked for",
        ),
        304: (("ETag",), ("Last-Modified",), "They are what the client has"),
    },
}
"""Header fields of answers, by method and status: those that are always there, those that may be;
and what the answer says."""
_SUMMARIES: Final = {
    "OPTIONS": "Say what the server can do",
    "POST": "Make an upload, perhaps with its first bytes",
    "HEAD": "Say how far an upload is",
    "PATCH": "Add bytes to an upload",
    "DELETE": "Delete an upload",
    "GET": "Read a complete upload",
}


def document(offer: Offer, base_path: str, pages: Collection[str] = ()) -> Schema:
    """The document of a server that offers `offer`, with its uploads under `base_path`.

    `pages` are the paths of others that it answers at (see `monitoring`).
    """
    upload: Schema = {
        "parameters": [
            {
                "name": "id",
                "in": "path",
                "required": True,
                "schema": {"type": "string", "minLength": 1},
            }
        ]
    }
    collection: Schema = {}
    for methods, path in ((tus1.ON_COLLECTION, collection), (tus1.ON_UPLOAD, upload)):
        for method in methods:
            if _offered(method, offer):
                path[method.lower()] = _operation(method, offer, named=path is upload)
    paths: Schema = {base_path: collection, f"{base_path}{{id}}": upload}
    paths |= {page: {"get": operation} for page, operation in _PAGES.items() if page in pages}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "tidegate",
            "version": __version__,
            "summary": "Resumable uploads",
            "description": (
                "tus 1.0.0 (https://tus.io/protocols/resumable-upload)."
                " X-HTTP-Method-Override stands for the method of any request."
            ),
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": paths,
        "components": {
            "schemas": {"Problem": _problem()},
            "headers": {name: _header(*found) for name, found in _RESPONSE.items()},
        },
    }


def statuses(document: Schema, path: str, method: str) -> set[int]:
    """Those that a document lists for an operation; for tests, and for who writes a client."""
    return {int(status) for status in document["paths"][path][method.lower()]["responses"]}


def _offered(method: str, offer: Offer) -> bool:
    return {
        "POST": "creation" in offer.extensions,
        "DELETE": "termination" in offer.extensions,
        "GET": offer.downloads,
    }.get(method, True)


def _operation(method: str, offer: Offer, *, named: bool) -> Schema:
    needed = _NEEDED.get(method, ())
    taken = [
        name
        for name in (*_TAKEN[method], "X-Request-ID")
        if _NEEDS_EXTENSION.get(name, name) in (name, *offer.extensions)
    ]
    operation: Schema = {
        "operationId": f"{method.lower()}_{'upload' if named else 'uploads'}",
        "summary": _SUMMARIES[method],
        "parameters": [
            {
                "name": name,
                "in": "header",
                "required": name in needed,
                "schema": _REQUEST[name][0],
                "description": _REQUEST[name][1],
            }
            for name in (*needed, *taken)
        ],
    }
    if method == "PATCH" or (method == "POST" and "creation-with-upload" in offer.extensions):
        operation["requestBody"] = {
            "description": "The bytes, as they are",
            "required": method == "PATCH",
            "content": {tus1.OFFSET_STREAM: {"schema": _BINARY}},
        }
    operation["responses"] = _responses(method)
    return operation


def _responses(method: str) -> Schema:
    responses: Schema = {}
    for status, (always, perhaps, description) in _GIVEN[method].items():
        responses[str(status)] = {
            "description": description,
            "headers": _headers(always, perhaps),
            **(
                {"content": {"*/*": {"schema": _BINARY}}}
                if status in (200, 206) and method == "GET"
                else {}
            ),
        }
    codes: dict[int, list[Code]] = {status: [] for status in HEADS}
    for code in (*ALWAYS, *REFUSALS[method]):
        codes.setdefault(code.status, []).append(code)
    if Code.DENIED in REFUSALS[method]:
        codes[CHALLENGED] = [Code.DENIED]
    for status, of_status in sorted(codes.items()):
        labels = ", ".join(f"`{code.label}`" for code in of_status)
        said = HEADS.get(status, phrase(status)) if not of_status else phrase(status)
        responses[str(status)] = {
            "description": f"{said}: {labels}" if labels else said,
            "headers": _headers((), _of_refusal(of_status, status)),
            **({} if method == "HEAD" else {"content": _refusal(of_status)}),
        }
    return responses


def _of_refusal(codes: Iterable[Code], status: int) -> tuple[str, ...]:
    more = {
        Code.UNSUPPORTED_VERSION: ("Tus-Version",),
        Code.OFFSET_MISMATCH: ("Upload-Offset",),
        Code.METHOD_NOT_ALLOWED: ("Allow",),
        Code.RANGE_NOT_SATISFIABLE: ("Content-Range",),
    }
    found = [name for code in codes for name in more.get(code, ())]
    if status == CHALLENGED:
        found.append("WWW-Authenticate")
    return ("Tus-Resumable", "Retry-After", *found)


def _refusal(codes: list[Code]) -> Schema:
    content: Schema = {"text/plain": {"schema": {"type": "string"}}}
    if codes:
        of_these = {"properties": {"code": {"enum": [code.label for code in codes]}}}
        problem = {"allOf": [{"$ref": "#/components/schemas/Problem"}, of_these]}
        content["application/problem+json"] = {"schema": problem}
    return content


def _problem() -> Schema:
    """RFC 9457."""
    return {
        "type": "object",
        "required": ["type", "title", "status", "code", "detail"],
        "properties": {
            "type": {"const": "about:blank"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "code": {"description": "A word that does not change", "type": "string"},
            "detail": {"description": "What was wrong, and what was expected", "type": "string"},
        },
    }


def _headers(always: Iterable[str], perhaps: Iterable[str]) -> Schema:
    headers: Schema = {}
    for name in always:
        schema, description = _RESPONSE[name]
        headers[name] = {"required": True, **_header(schema, description)}
    for name in (*perhaps, "X-Request-ID"):
        headers[name] = {"$ref": f"#/components/headers/{name}"}
    return headers


def _header(schema: Schema, description: str) -> Schema:
    return {"description": description, "schema": schema}


def _page(summary: str, content: Schema, also: Schema | None = None) -> Schema:
    answer = {"description": summary, "content": content}
    return {"summary": summary, "responses": {"200": answer, **(also or {})}}


_STATUS: Final[Schema] = {
    "application/json": {"schema": {"type": "object", "required": ["status"]}}
}
_PAGES: Final[dict[str, Schema]] = {
    "/healthz": _page("The process is alive", _STATUS),
    "/readyz": _page(
        "The server can do its work",
        _STATUS,
        {
            "503": {
                "description": f"{HTTPStatus(503).phrase}: a store cannot be reached, or it stops",
                "content": _STATUS,
            }
        },
    ),
    "/metrics": _page(
        "What was measured, for Prometheus",
        {
            "text/plain": {"schema": _TEXT},
            "application/openmetrics-text": {"schema": _TEXT},
        },
    ),
    "/openapi.json": _page("This document", {"application/json": {"schema": {"type": "object"}}}),
}
