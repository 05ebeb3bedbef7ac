"""Which pages of other origins may use the server, and what of it they see."""

from __future__ import annotations

import pytest
from tests.protocol.samples import Headers, request

from tidegate.protocol.dialects import tus1
from tidegate.protocol.dialects.cors import Cors, is_preflight

PAGE = "https://app.example.org"
OTHER = "https://evil.example.net"
PREFLIGHT: Headers = {"Access-Control-Request-Method": "PATCH"}


def cors(*origins: str) -> Cors:
    return Cors(
        origins=origins,
        methods=("OPTIONS", "PATCH"),
        request_headers=("Upload-Offset", "Tus-Resumable"),
        response_headers=("Upload-Offset", "Location"),
        max_age=600,
    )


def told(rules: Cors, method: str, headers: Headers) -> dict[str, str]:
    fields = rules.headers(request(method, "a", headers))
    assert len(dict(fields)) == len(fields), "each once"
    return {name.decode(): value.decode() for name, value in fields}


def test_any_origin_by_default_and_never_with_credentials() -> None:
    rules = Cors(methods=tus1.METHODS, request_headers=["A"], response_headers=["B"])
    assert rules.origins == ("*",)
    assert told(rules, "PATCH", {"Origin": PAGE}) == {
        "access-control-allow-origin": "*",
        "access-control-expose-headers": "B",
    }
    preflight = told(rules, "OPTIONS", PREFLIGHT | {"Origin": PAGE})
    assert preflight == {
        "access-control-allow-origin": "*",
        "access-control-allow-methods": "OPTIONS, POST, HEAD, PATCH, DELETE, GET",
        "access-control-allow-headers": "A",
        "access-control-max-age": "86400",
    }


def test_some_origins() -> None:
    rules = cors(PAGE, "http://localhost:3000")
    for origin in (PAGE, "http://localhost:3000"):
        assert told(rules, "HEAD", {"Origin": origin}) == {
            "vary": "Origin",
            "access-control-allow-origin": origin,
            "access-control-expose-headers": "Upload-Offset, Location",
        }
        assert told(rules, "OPTIONS", PREFLIGHT | {"Origin": origin}) == {
            "vary": "Origin",
            "access-control-allow-origin": origin,
            "access-control-allow-methods": "OPTIONS, PATCH",
            "access-control-allow-headers": "Upload-Offset, Tus-Resumable",
            "access-control-max-age": "600",
        }


@pytest.mark.parametrize(
    "origin",
    [
        *(OTHER, PAGE + ".evil.net", PAGE + "/", PAGE + ":443", PAGE.upper(), "null", "*", ""),
        *("http://app.example.org", "app.example.org", [PAGE, OTHER], [PAGE, PAGE]),
    ],
)
@pytest.mark.parametrize("preflight", [{}, PREFLIGHT])
def test_an_origin_that_is_not_listed_is_told_nothing(
    origin: str | list[str], preflight: Headers
) -> None:
    """But a cache learns that another origin may be told something else."""
    assert told(cors(PAGE), "OPTIONS", {"Origin": origin} | preflight) == {"vary": "Origin"}


def test_without_an_origin_it_is_no_page() -> None:
    assert told(cors("*"), "PATCH", {}) == {}
    assert told(cors(PAGE), "PATCH", {}) == {"vary": "Origin"}


def test_nobody() -> None:
    assert told(cors(), "PATCH", {"Origin": PAGE}) == {}
    assert told(cors(), "OPTIONS", PREFLIGHT | {"Origin": PAGE}) == {}


def test_any_among_others_is_any() -> None:
    rules = cors(PAGE, "*")
    assert told(rules, "PATCH", {"Origin": OTHER})["access-control-allow-origin"] == "*"
    assert "vary" not in told(rules, "PATCH", {"Origin": PAGE})


def test_what_a_preflight_is() -> None:
    assert is_preflight(request("OPTIONS", "a", PREFLIGHT))
    assert not is_preflight(request("OPTIONS", "a"))
    assert not is_preflight(request("POST", "a", PREFLIGHT))
    exposed = told(cors("*"), "OPTIONS", {"Origin": PAGE})
    assert "access-control-expose-headers" in exposed, "OPTIONS of tus is read by the page"
    assert "access-control-allow-methods" not in exposed
