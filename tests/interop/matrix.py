"""Which clients there are, which cases, and what a client can't do at all.

A pair of client and case is either run or listed here with its reason: nothing is left out in
silence. The table at the end of a run is made from this.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent

CASES = {
    "plain": "one request for all",
    "empty": "empty file",
    "chunked": "chunked",
    "with-creation": "data with the creation",
    "deferred": "length deferred",
    "parallel": "parallel parts, concatenated",
    "override": "PATCH overridden",
    "checksum": "checksums",
    "checksum-trailer": "checksum in a trailer",
    "corrupted": "checksums, a bit flipped on the way",
    "abort-resume": "aborted, resumed by a new run",
    "cut": "line reset, own retry",
    "vanished": "line gone in silence, own retry",
    "parallel-cut": "parallel, lines reset, own retry",
    "restarted": "server stopped (SIGTERM) and started, own retry",
    "killed": "server killed (SIGKILL) and started, own retry",
    "terminate": "terminated half way",
}

NO_CHECKSUMS = "it knows no checksums"
NO_CONCATENATION = "it knows no concatenation"
NO_CREATION_DATA = "it creates without data only"
NO_DEFERRAL = "it must know the length first"
NO_TERMINATION = "it can't terminate an upload"


@dataclass(frozen=True)
class Client:
    """One real client.

    Args:
        name: as the table has it.
        driver: which program runs it: node, browser, go, java, tuspy, aiotus.
        asked: what its driver's cases say besides the case itself.
        cannot: case -> why this client has nothing to do there.
        pauses: it can't drop a request half way, only stop after one.
    """

    name: str
    driver: str
    asked: dict[str, Any] = field(default_factory=dict)
    cannot: dict[str, str] = field(default_factory=dict)
    pauses: bool = False

    @property
    def in_browser(self) -> bool:
        """Whether it runs in a page of another origin."""
        return self.driver == "browser"

    def __str__(self) -> str:
        return self.name


def _without(reason: str, *cases: str) -> dict[str, str]:
    return dict.fromkeys(cases, reason)


NEITHER_CHECKSUM = _without(NO_CHECKSUMS, "checksum", "checksum-trailer", "corrupted")
NO_PARTS = _without(NO_CONCATENATION, "parallel", "parallel-cut")

CLIENTS = [
    Client("tus-js-client in Node", "node", cannot=NEITHER_CHECKSUM),
    Client("tus-js-client in Chromium", "browser", {"client": "tus"}, NEITHER_CHECKSUM),
    Client("Uppy in Chromium", "browser", {"client": "uppy"}, NEITHER_CHECKSUM),
    Client(
        "tuspy",
        "tuspy",
        cannot=NO_PARTS
        | {
            "with-creation": NO_CREATION_DATA,
            "deferred": NO_DEFERRAL,
            "override": "it has no option for it",
            "checksum-trailer": "it puts checksums in the head",
            "terminate": NO_TERMINATION,
        },
        pauses=True,
    ),
    Client(
        "aiotus",
        "aiotus",
        cannot=NEITHER_CHECKSUM
        | {
            "with-creation": NO_CREATION_DATA,
            "deferred": NO_DEFERRAL,
            "override": "it has no option for it",
            "terminate": NO_TERMINATION,
        },
    ),
    Client(
        "tusgo",
        "go",
        {"client": "tusgo"},
        cannot={
            "empty": "its CreateUpload panics at a length of 0",
            "override": "it has no option for it",
        },
    ),
    Client(
        "go-tus",
        "go",
        {"client": "go-tus"},
        cannot=NEITHER_CHECKSUM
        | NO_PARTS
        | {
            "with-creation": NO_CREATION_DATA,
            "deferred": NO_DEFERRAL,
            "terminate": NO_TERMINATION,
        },
        pauses=True,
    ),
    Client(
        "tus-java-client",
        "java",
        cannot=NEITHER_CHECKSUM
        | NO_PARTS
        | {
            "with-creation": NO_CREATION_DATA,
            "deferred": NO_DEFERRAL,
            "terminate": NO_TERMINATION,
        },
        pauses=True,
    ),
]


def case(name: str) -> pytest.MarkDecorator:
    """Run the test with each client that can do this case."""
    assert name in CASES
    able = [client for client in CLIENTS if name not in client.cannot]
    return pytest.mark.parametrize(
        "client",
        [pytest.param(client, id=client.name, marks=pytest.mark.interop(name)) for client in able],
    )


def versions() -> dict[str, str]:
    """Client -> the version that is pinned (or installed)."""
    lock = json.loads((HERE / "js/package-lock.json").read_text())["packages"]
    go = dict(re.findall(r"^\t(\S+) v(\S+)$", (HERE / "go/go.mod").read_text(), re.MULTILINE))
    java = re.search(
        r"tus-java-client</.*?<version>(.*?)<", (HERE / "java/pom.xml").read_text(), re.DOTALL
    )
    tus_js = lock["node_modules/tus-js-client"]["version"]
    found = {
        "tus-js-client in Node": tus_js,
        "tus-js-client in Chromium": tus_js,
        "Uppy in Chromium": lock["node_modules/@uppy/tus"]["version"],
        "tusgo": go["github.com/bdragon300/tusgo"],
        "go-tus": go["github.com/eventials/go-tus"][:14],
        "tus-java-client": java[1] if java else "?",
    }
    for name in ("tuspy", "aiotus"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
