"""The OpenAPI document: it is current, and it is whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import requests
from tests.support.server import ServerProcess

from tidegate import cli
from tidegate.cli.openapi import document
from tidegate.protocol.dialects import tus1
from tidegate.protocol.errors import Code
from tidegate.transports import openapi

COMMITTED = Path(__file__).parents[2] / "docs" / "openapi.json"


def test_the_committed_document_is_current() -> None:
    """If not: `tidegate openapi docs/openapi.json`."""
    assert COMMITTED.read_text() == document()


def test_the_command_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["openapi", str(tmp_path / "o.json"), "--base-path", "up"]) == 0
    assert "/up/{id}" in json.loads((tmp_path / "o.json").read_text())["paths"]
    assert cli.run(["openapi"]) == 0
    assert capsys.readouterr().out == document()
    assert cli.run(["openapi", str(tmp_path / "no" / "o.json")]) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_every_method_and_every_reason_to_refuse_is_listed() -> None:
    """A new code must be put where it may come of."""
    assert set(openapi.REFUSALS) == set(tus1.METHODS)
    listed = {code for codes in openapi.REFUSALS.values() for code in codes}
    assert listed | set(openapi.ALWAYS) == set(Code)


def test_what_a_server_does_not_offer_is_not_in_its_document(tmp_path: Path) -> None:
    flags = ("--disable", "termination,checksum", "--no-downloads", "--no-health", "--log-level")
    with ServerProcess(tmp_path / "data", *flags, "warning") as server:
        root = server.url.removesuffix("/files/")
        paths = requests.get(f"{root}/openapi.json", timeout=10).json()["paths"]
    assert set(paths) == {"/files/", "/files/{id}", "/openapi.json"}
    assert set(paths["/files/{id}"]) == {"parameters", "options", "head", "patch"}
    named = {each["name"] for each in paths["/files/"]["post"]["parameters"]}
    assert "Upload-Checksum" not in named
    assert "Upload-Concat" in named


def test_it_can_be_left_out(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data", "--no-openapi", "--log-level", "warning") as server:
        root = server.url.removesuffix("/files/")
        assert requests.get(f"{root}/openapi.json", timeout=10).status_code == 404
