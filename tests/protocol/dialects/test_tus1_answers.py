"""Results and refusals to responses of tus 1.0.0."""

from __future__ import annotations

from typing import Any

import pytest
from tests.protocol.samples import BARE, OFFER, partial, request, upload

from tidegate.protocol.capabilities import Offer
from tidegate.protocol.dialects import tus1
from tidegate.protocol.dialects.http import Response
from tidegate.protocol.errors import Code, Refusal
from tidegate.protocol.model import Kind, State, Upload, UploadId
from tidegate.protocol.results import (
    Appended,
    Created,
    Discovered,
    Inspected,
    Readable,
    Result,
    Terminated,
)

SOON = 1403712000.0
EXPIRES = "Wed, 25 Jun 2014 16:00:00 GMT"
METADATA = "filename d29ybGRfZG9taW5hdGlvbl9wbGFuLnBkZg==,is_confidential"


def told(result: Result, **fields: Any) -> tuple[int, dict[str, str]]:
    """Status and headers; each header once, and Tus-Resumable always."""
    response = tus1.render(result, request("PATCH", "tide", **fields))
    assert response.body == b""
    headers = {name.decode(): value.decode("latin-1") for name, value in response.headers}
    assert len(headers) == len(response.headers)
    # "The Tus-Resumable header MUST be included in every request and response"
    assert headers.pop("tus-resumable") == "1.0.0"
    return response.status, headers


# ------------------------------------------------------------------------------------- OPTIONS


def test_discovery() -> None:
    status, headers = told(Discovered(OFFER))
    assert status == 204
    assert headers == {
        "tus-version": "1.0.0",
        "tus-extension": (
            "creation,creation-with-upload,creation-defer-length,expiration,checksum,"
            "checksum-trailer,termination,concatenation,concatenation-unfinished"
        ),
        "tus-max-size": "1000",
        "tus-checksum-algorithm": ",".join(OFFER.algorithms),
    }
    assert headers["tus-checksum-algorithm"].startswith("sha1,")


def test_discovery_of_little() -> None:
    """ "If no extensions are supported, the Tus-Extension header MUST be omitted." """
    assert told(Discovered(BARE)) == (204, {"tus-version": "1.0.0"})
    nothing_fits = Offer(extensions=("creation",), algorithms=OFFER.algorithms, max_size=0)
    assert told(Discovered(nothing_fits))[1] == {
        "tus-version": "1.0.0",
        "tus-extension": "creation",
        "tus-max-size": "0",
    }


# --------------------------------------------------------------------------- POST, PATCH, DELETE


def test_creation() -> None:
    created = Created(upload(offset=0), with_payload=False)
    assert told(created) == (201, {"location": "/files/tide", "content-length": "0"})
    absolute = told(created, base_url="https://tus.example.org/files/")[1]
    assert absolute["location"] == "https://tus.example.org/files/tide"


def test_creation_with_upload() -> None:
    """ "MUST include the Upload-Offset header in the response" """
    for offset in (0, 70):
        headers = told(Created(upload(offset=offset), with_payload=True))[1]
        assert headers["upload-offset"] == str(offset)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("abc-_.~123", "abc-_.~123"),
        ("a b", "a%20b"),
        ("é", "%C3%A9"),
        ("a/b", "a%2Fb"),
        ("a%2Fb", "a%252Fb"),
        ("a?b#c", "a%3Fb%23c"),
        ("a\r\nX: y", "a%0D%0AX%3A%20y"),
    ],
)
def test_a_location_holds_nothing_that_is_not_a_urls(name: str, path: str) -> None:
    assert tus1.location(request(), UploadId(name)) == f"/files/{path}"


def test_an_append() -> None:
    assert told(Appended(upload())) == (204, {"upload-offset": "70"})
    assert told(Appended(upload(offset=0))) == (204, {"upload-offset": "0"})


def test_a_termination() -> None:
    assert told(Terminated()) == (204, {})


def test_a_download_is_rendered_elsewhere() -> None:
    with pytest.raises(AssertionError):
        tus1.render(Readable(upload()), request())


# ---------------------------------------------------------------------------------------- HEAD

CONCAT = "final;/files/a https://h/files/b?x"
DONE = {"offset": 100, "state": State.COMPLETE}


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (upload(), {"upload-offset": "70", "upload-length": "100"}),
        # "even if the offset is 0, or the upload is already considered completed"
        (upload(offset=0), {"upload-offset": "0", "upload-length": "100"}),
        (upload(**DONE), {"upload-offset": "100", "upload-length": "100"}),
        (upload(offset=0, length=0), {"upload-offset": "0", "upload-length": "0"}),
        # "As long as the length of the upload is not known, the Server MUST set
        # Upload-Defer-Length: 1 in all responses to HEAD requests."
        (upload(length=None), {"upload-offset": "70", "upload-defer-length": "1"}),
        # "its value as specified by the Client during the creation"
        (
            upload(metadata=METADATA),
            {"upload-offset": "70", "upload-length": "100", "upload-metadata": METADATA},
        ),
        (
            upload(metadata="\xe9 YQ=="),
            {"upload-offset": "70", "upload-length": "100", "upload-metadata": "\xe9 YQ=="},
        ),
        # "The response to a HEAD request for a partial upload MUST contain the Upload-Offset
        # header"; "MUST include the Upload-Concat header and its value as received"
        (
            partial("a", 10, offset=3),
            {"upload-offset": "3", "upload-length": "10", "upload-concat": "partial"},
        ),
        (
            partial("a", None, offset=3),
            {"upload-offset": "3", "upload-defer-length": "1", "upload-concat": "partial"},
        ),
        # "The response to a HEAD request for a final upload SHOULD NOT contain the Upload-Offset
        # header unless the concatenation has been successfully finished."
        (
            upload(kind=Kind.FINAL, concat=CONCAT, offset=0),
            {"upload-length": "100", "upload-concat": CONCAT},
        ),
        (
            upload(kind=Kind.FINAL, concat=CONCAT, offset=100),
            {"upload-length": "100", "upload-concat": CONCAT},
        ),
        (
            upload(kind=Kind.FINAL, concat=CONCAT, offset=0, length=None),
            {"upload-concat": CONCAT},
        ),
        # "After successful concatenation, the Upload-Offset and Upload-Length MUST be set and their
        # values MUST be equal."
        (
            upload(kind=Kind.FINAL, concat=CONCAT, metadata=METADATA, **DONE),
            {
                "upload-offset": "100",
                "upload-length": "100",
                "upload-concat": CONCAT,
                "upload-metadata": METADATA,
            },
        ),
    ],
)
def test_an_inspection(record: Upload, expected: dict[str, str]) -> None:
    status, headers = told(Inspected(record))
    assert status == 200
    # "The Server MUST prevent the client and/or proxies from caching the response"
    assert headers == expected | {"cache-control": "no-store", "content-length": "0"}


# -------------------------------------------------------------------------------------- expiry


@pytest.mark.parametrize(
    ("record", "expires"),
    [
        (upload(expires_at=SOON), True),
        (upload(expires_at=SOON, length=None), True),
        (upload(), False),
        (upload(expires_at=SOON, **DONE), False),
        (upload(expires_at=SOON, kind=Kind.FINAL, **DONE), False),
        (upload(expires_at=SOON, kind=Kind.FINAL, offset=0), True),
        (partial("a", expires_at=SOON), True),
        (partial("a", expires_at=SOON, offset=10, state=State.COMPLETE), True),
        (partial("a", offset=10, state=State.COMPLETE), False),
    ],
)
def test_when_an_upload_expires_is_told_while_it_applies(record: Upload, expires: bool) -> None:
    for result in (
        Created(record, with_payload=False),
        Created(record, with_payload=True),
        Appended(record),
        Inspected(record),
    ):
        assert told(result)[1].get("upload-expires") == (EXPIRES if expires else None)


# ------------------------------------------------------------------------------------ refusals


def refused(refusal: Refusal, **headers: str) -> Response:
    return tus1.render_refusal(refusal, request("HEAD", "a", {**headers}))


def test_an_upload_that_is_not_there_has_no_offset() -> None:
    """ "without the Upload-Offset header" """
    for code in (Code.NOT_FOUND, Code.GONE):
        response = refused(Refusal(code, "there is no upload at this URL"))
        names = [name for name, _ in response.headers]
        assert b"upload-offset" not in names
        assert b"tus-resumable" in names


def test_another_version_is_told_ours() -> None:
    response = refused(Refusal(Code.UNSUPPORTED_VERSION, "m"))
    assert response.status == 412
    assert (b"tus-version", b"1.0.0") in response.headers


def test_a_refusal_says_what_was_wrong() -> None:
    plain = refused(Refusal(Code.TOO_LARGE, "a body of 31 bytes"))
    assert plain.body == b"a body of 31 bytes\n"
    problem = refused(
        Refusal(Code.TOO_LARGE, "a body of 31 bytes"), accept="application/problem+json"
    )
    assert b'"detail": "a body of 31 bytes"' in problem.body
    assert b'"code": "too_large"' in problem.body


def test_everything_that_a_page_needs_is_listed_for_cors() -> None:
    """Every header of ours that these tests saw, and every one that a client may have to send."""
    shown = {name.lower() for name in tus1.RESPONSE_HEADERS}
    results: list[Result] = [
        Discovered(OFFER),
        Created(upload(expires_at=SOON), with_payload=True),
        Inspected(upload(length=None, metadata=METADATA, concat="partial", expires_at=SOON)),
        Inspected(upload()),
        Appended(upload()),
    ]
    for result in results:
        names = {n for n in told(result)[1] if n.startswith(("tus-", "upload-", "location"))}
        assert names <= shown
    assert {"tus-resumable", "retry-after"} <= shown
    assert {name.lower() for name in tus1.REQUEST_HEADERS} >= {
        "authorization",
        "content-type",
        "tus-resumable",
        "upload-checksum",
        "upload-concat",
        "upload-defer-length",
        "upload-length",
        "upload-metadata",
        "upload-offset",
        "x-http-method-override",
    }
