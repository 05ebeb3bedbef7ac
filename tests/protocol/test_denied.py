"""An application's own refusals: what they may say, and how it is told."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.protocol.samples import request

from tidegate.protocol.dialects.http import phrase
from tidegate.protocol.dialects.tus1 import render_refusal
from tidegate.protocol.errors import Code, Denied, Refusal
from tidegate.protocol.fields import metadata_pairs, render_metadata


def rendered(denied: Denied, accept: str = "") -> tuple[int, dict[bytes, bytes], bytes]:
    response = render_refusal(denied, request("PATCH", "a", {"Accept": accept}))
    headers = dict(response.headers)
    assert len(headers) == len(response.headers), "each once"
    assert headers[b"content-length"] == str(len(response.body)).encode()
    assert headers[b"tus-resumable"] == b"1.0.0"
    return response.status, headers, response.body


def test_its_own_status_headers_and_body() -> None:
    denied = Denied(
        402,
        "more than was paid for",
        headers={"Content-Type": "application/json", "X-Plan": "free", "Cache-Control": "private"},
        body='{"pay": true}',
    )
    assert denied.code is Code.DENIED
    assert denied.status == 402
    assert denied.lasting
    status, headers, body = rendered(denied, "application/problem+json")
    assert (status, body) == (402, b'{"pay": true}')
    assert headers[b"content-type"] == b"application/json"
    assert headers[b"x-plan"] == b"free"
    assert headers[b"cache-control"] == b"private"
    assert headers[b"x-content-type-options"] == b"nosniff"


def test_without_a_body_its_message_is_told_as_of_every_refusal() -> None:
    denied = Denied(418, "no coffee here", headers={"X-Pot": "tea"})
    status, headers, body = rendered(denied)
    assert (status, body) == (418, b"no coffee here\n")
    assert headers[b"content-type"] == b"text/plain; charset=utf-8"
    assert headers[b"x-pot"] == b"tea"
    problem = json.loads(rendered(denied, "application/problem+json")[2])
    assert (problem["status"], problem["code"]) == (418, "denied")
    assert problem["detail"] == "no coffee here"


def test_what_it_says_when_nothing_is_said() -> None:
    assert rendered(Denied())[0] == 403
    assert rendered(Denied(body=b"\x00\xff"))[2] == b"\x00\xff"
    assert rendered(Denied(body=b""))[2] == b""
    assert not Denied(503).lasting


def test_a_401_has_a_challenge() -> None:
    """ "The server generating a 401 response MUST send a WWW-Authenticate header field"."""
    assert rendered(Denied(401))[1][b"www-authenticate"] == b"Bearer"
    own = Denied(401, headers={"WWW-Authenticate": 'Basic realm="x"'})
    assert rendered(own)[1][b"www-authenticate"] == b'Basic realm="x"'


def test_a_status_that_has_no_phrase() -> None:
    assert rendered(Denied(499))[0] == 499
    assert phrase(499) == "Refused"
    assert b'"title": "Refused"' in rendered(Denied(499), "application/problem+json")[2]


def test_a_redirect() -> None:
    status, headers, _ = rendered(Denied(302, headers={"Location": "https://sign.in/"}))
    assert (status, headers[b"location"]) == (302, b"https://sign.in/")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"status": 200}, "expected 400 to 599"),
        ({"status": 399}, "expected 400 to 599"),
        ({"status": 600}, "expected 400 to 599"),
        ({"status": 302}, "a redirect with a Location"),
        ({"status": 304, "headers": {"Location": "/"}}, "expected 400 to 599"),
        ({"headers": {"a b": "x"}}, "not the name of a header"),
        ({"headers": {"": "x"}}, "not the name of a header"),
        ({"headers": {"é": "x"}}, "not the name of a header"),
        ({"headers": {"x": "secret\r\nSet-Cookie: a=b"}}, "characters that no header has"),
        ({"headers": {"x": " secret"}}, "characters that no header has"),
        ({"headers": {"x": "secret\0"}}, "characters that no header has"),
        ({"headers": {"x": "secret→"}}, "characters that no header has"),
        ({"headers": {"Content-Length": "5"}}, "the server's to set"),
        ({"headers": {"Transfer-Encoding": "chunked"}}, "the server's to set"),
        ({"headers": {"Connection": "close"}}, "the server's to set"),
        ({"headers": {"Upload-Offset": "5"}}, "the server's to set"),
        ({"headers": {"Access-Control-Allow-Origin": "*"}}, "the server's to set"),
        ({"headers": {"Content-Type": "text/html"}}, "without a body"),
    ],
)
def test_what_is_not_to_be_sent(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        Denied(**arguments)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("value", ["", "x", "a b", "Bearer realm=\"x\", error='y'", "é"])
def test_values_that_are_sent(value: str) -> None:
    assert Denied(headers={"X": value}).headers == [(b"x", value.encode("latin-1"))]


# ------------------------------------------------------------- metadata that an application gives


@pytest.mark.parametrize(
    "pairs", [{}, {"filename": b"a.txt", "empty": b""}, {"k": bytes(range(256))}]
)
def test_metadata_that_is_rendered_reads_the_same(pairs: dict[str, bytes]) -> None:
    assert metadata_pairs(render_metadata(pairs)) == pairs


@pytest.mark.parametrize(
    "pairs",
    [{"": b"x"}, {"a b": b""}, {"a,b": b""}, {"é": b""}, {"a\n": b""}, {"a": bytes(20_000)}],
)
def test_metadata_that_cannot_be_written(pairs: dict[str, bytes]) -> None:
    with pytest.raises(Refusal) as caught:
        render_metadata(pairs)
    assert caught.value.code is Code.BAD_METADATA
