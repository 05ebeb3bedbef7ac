"""Refusals: codes that stay, statuses that fit, messages that tell."""

from __future__ import annotations

import json
from itertools import product

import pytest
from tests.protocol.samples import request

from tidegate.protocol.dialects.http import phrase, refusal_response
from tidegate.protocol.dialects.tus1 import render_refusal
from tidegate.protocol.errors import Code, Refusal

STATUSES = {
    "bad_request": 400,
    "bad_header": 400,
    "bad_length": 400,
    "bad_metadata": 400,
    "bad_checksum": 400,
    "unknown_algorithm": 400,
    "bad_concat": 400,
    "not_offered": 400,
    "final_upload": 403,
    "unfinished": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "offset_mismatch": 409,
    "exists": 409,
    "gone": 410,
    "unsupported_version": 412,
    "too_large": 413,
    "unsupported_type": 415,
    "unsupported_encoding": 415,
    "range_not_satisfiable": 416,
    "locked": 423,
    "checksum_mismatch": 460,
    "internal": 500,
    "unsupported_transfer_coding": 501,
    "unavailable": 503,
    "no_space": 507,
}
"""Clients and logs hold on to these: one may be added, none may change."""


def test_codes_and_statuses_stay() -> None:
    codes = {code.label: code.status for code in Code}
    assert {label: codes.get(label) for label in STATUSES} == STATUSES
    assert len(codes) == len(Code), "each has a label of its own"
    assert all(code.name.lower() == code.label for code in Code)


def test_a_refusal_says_what_it_is() -> None:
    refusal = Refusal(Code.GONE, "the upload is expired")
    assert refusal.status == 410
    assert str(refusal) == refusal.message == "the upload is expired"
    assert repr(refusal) == "Refusal(gone, 'the upload is expired')"
    assert (refusal.retry_after, refusal.offset, refusal.allow, refusal.size) == (
        None,
        None,
        (),
        None,
    )


def test_every_status_has_a_phrase() -> None:
    assert phrase(460) == "Checksum Mismatch"
    assert phrase(204) == "No Content"
    assert all(phrase(code.status) for code in Code)


@pytest.mark.parametrize(
    ("accept", "is_problem"),
    [
        ("", False),
        ("*/*", False),
        ("text/plain", False),
        ("application/json", False),
        ("application/problem+json", True),
        ("text/html, Application/Problem+JSON;q=0.9", True),
    ],
)
@pytest.mark.parametrize("code", Code, ids=lambda code: code.label)
def test_the_body_of_a_refusal(code: Code, accept: str, is_problem: bool) -> None:
    response = refusal_response(Refusal(code, 'what “was” wrong; "expected"'), accept, [])
    headers = dict(response.headers)
    assert len(headers) == len(response.headers), "each once"
    assert response.status == code.status
    assert headers[b"content-length"] == str(len(response.body)).encode()
    assert headers[b"cache-control"] == b"no-store"
    assert headers[b"x-content-type-options"] == b"nosniff"
    if is_problem:
        assert headers[b"content-type"] == b"application/problem+json"
        assert json.loads(response.body) == {
            "type": "about:blank",
            "title": phrase(code.status),
            "status": code.status,
            "code": code.label,
            "detail": 'what “was” wrong; "expected"',
        }
    else:
        assert headers[b"content-type"] == b"text/plain; charset=utf-8"
        assert response.body.decode() == 'what “was” wrong; "expected"\n'


def test_what_a_refusal_tells_in_headers() -> None:
    given: list[tuple[bytes, bytes]] = [(b"x", b"y")]
    refusal = Refusal(Code.LOCKED, "m", retry_after=3, allow=("OPTIONS", "HEAD"), size=10)
    headers = dict(refusal_response(refusal, "", given).headers)
    assert headers[b"x"] == b"y"
    assert headers[b"retry-after"] == b"3"
    assert headers[b"allow"] == b"OPTIONS, HEAD"
    assert headers[b"content-range"] == b"bytes */10"
    assert given == [(b"x", b"y")], "the caller's list is left alone"

    plain = dict(refusal_response(Refusal(Code.LOCKED, "m"), "", []).headers)
    assert not plain.keys() & {b"retry-after", b"allow", b"content-range"}
    zeros = dict(refusal_response(Refusal(Code.LOCKED, "m", retry_after=0, size=0), "", []).headers)
    assert (zeros[b"retry-after"], zeros[b"content-range"]) == (b"0", b"bytes */0")


@pytest.mark.parametrize(
    ("code", "accept"), list(product(Code, ("", "application/problem+json"))), ids=str
)
def test_a_refusal_in_tus(code: Code, accept: str) -> None:
    """ "If the version specified by the Client is not supported by the Server, it ... MUST include
    the Tus-Version header into the response."
    """
    refusal = Refusal(code, "m")
    response = render_refusal(refusal, request("PATCH", "a", {"Accept": accept}))
    headers = dict(response.headers)
    assert headers[b"tus-resumable"] == b"1.0.0"
    assert headers.get(b"tus-version") == (b"1.0.0" if code is Code.UNSUPPORTED_VERSION else None)
    assert b"upload-offset" not in headers
    assert headers[b"content-type"].startswith(b"application/problem" if accept else b"text/plain")


def test_a_conflict_tells_the_offset() -> None:
    refusal = Refusal(Code.OFFSET_MISMATCH, "m", offset=0)
    assert (b"upload-offset", b"0") in render_refusal(refusal, request("PATCH", "a")).headers


def test_several_accept_fields_are_one_list() -> None:
    accepts = ["text/html", "application/problem+json"]
    response = render_refusal(Refusal(Code.GONE, "m"), request("HEAD", "a", {"Accept": accepts}))
    assert response.body.startswith(b"{")
