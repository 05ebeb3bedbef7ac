"""Log lines, for people and for programs."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from typing import TYPE_CHECKING

import pytest

from tidegate.cli import logs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.config import LogFormat, LogLevel


@pytest.fixture(autouse=True)
def loggers_as_they_were() -> Iterator[None]:
    root, uvicorn = logging.getLogger(), logging.getLogger("uvicorn.error")
    before = root.handlers[:], root.level, uvicorn.level
    yield
    root.handlers[:], root.level = before[:2]
    uvicorn.setLevel(before[2])
    logging.captureWarnings(capture=False)


ACCESS = {"method": "PATCH", "path": "/files/a", "status": 204, "upload": None, "seconds": 0.25}


def test_a_request_is_one_line_of_fields(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "console")
    logging.getLogger("tidegate.access").info("request", extra={"tidegate": ACCESS})
    line = capsys.readouterr().err
    assert line.endswith(
        "[info] request [tidegate.access] method=PATCH path=/files/a seconds=0.25 status=204\n"
    )
    assert line.count("\n") == 1
    assert "\x1b" not in line  # no colours where nobody looks


def test_a_request_is_one_object_of_fields(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json")
    logging.getLogger("tidegate.access").info("request", extra={"tidegate": ACCESS})
    found = json.loads(capsys.readouterr().err)
    assert found.pop("timestamp").endswith("Z")
    assert found == {
        "event": "request",
        "level": "info",
        "logger": "tidegate.access",
        "method": "PATCH",
        "path": "/files/a",
        "status": 204,
        "seconds": 0.25,
    }


def test_colours_are_for_terminals(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    logs.configure("info", "console")
    logging.getLogger("tidegate").info("hello")
    assert "\x1b[" in capsys.readouterr().err


def test_what_uvicorn_says_comes_out_the_same_way_if_it_matters(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure("info", "json")
    logging.getLogger("uvicorn.error").info("Shutting down")
    logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
    found = json.loads(capsys.readouterr().err)
    assert (found["logger"], found["level"]) == ("uvicorn.error", "warning")
    logs.configure("debug", "json")
    logging.getLogger("uvicorn.error").info("Shutting down")
    assert "Shutting down" in capsys.readouterr().err


def test_what_is_below_the_level_is_not_said(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("warning", "console")
    logging.getLogger("tidegate.access").info("request", extra={"tidegate": ACCESS})
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_a_failure_has_its_trace_but_no_values_of_variables(
    log_format: LogFormat, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure("info", log_format)
    secret = "hush" * 2
    try:
        raise OSError(5, "broken")
    except OSError:
        logging.getLogger("tidegate").exception("it failed")
    text = capsys.readouterr().err
    assert "Traceback" in text
    assert "[Errno 5] broken" in text
    assert secret not in text


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_a_client_can_neither_end_a_line_nor_steer_the_terminal(
    log_format: LogFormat, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure("info", log_format)
    logging.getLogger("tidegate.access").info(
        "request", extra={"tidegate": {"path": "/a\n2000-01-01 [info] forged\x1b[2J\x9b"}}
    )
    logging.getLogger("tidegate").warning("PATCH %s failed", "/b\r\nforged")
    text = capsys.readouterr().err
    assert text.count("\n") == 2
    assert not set("\x1b\x9b\r").intersection(text)


def test_a_warning_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "console")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old ways", stacklevel=1)
    assert "old ways" in capsys.readouterr().err


@pytest.mark.parametrize("level", ["error", "info"])
def test_an_announcement_is_always_made(
    level: LogLevel, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure(level, "console")
    logs.announce("tidegate listens", "console")
    assert capsys.readouterr().err == "tidegate listens\n"
    logs.configure(level, "json")
    logs.announce("tidegate listens", "json")
    assert json.loads(capsys.readouterr().err)["event"] == "tidegate listens"
