"""Lines about requests, from `tidegate serve`: both formats, both transports."""

from __future__ import annotations

import io
import json
import logging
import re
import socket
import sys
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from tests.support.exchange import STREAM, TUS
from tests.support.server import ServerProcess

from tidegate.cli.lines import MOST, TOGETHER, Handler
from tidegate.transports.access import Line

if TYPE_CHECKING:
    from pathlib import Path

    from tidegate.config import LogFormat

FORMATS = ("console", "json")
REQUEST = " request [tidegate.access] "


def parsed(text: str, log_format: str) -> list[dict[str, Any]]:
    """The fields of the lines about requests."""
    found: list[dict[str, Any]] = []
    for line in text.splitlines():
        if log_format == "json" and line.startswith("{"):
            fields = json.loads(line)
            if fields["event"] == "request":
                found.append(fields)
        elif log_format == "console" and REQUEST in line:
            pairs = re.findall(r'([a-z_]+)=("(?:[^"\\]|\\.)*"|\S*)', line.partition(REQUEST)[2])
            found.append({k: json.loads(v) if v[:1] == '"' else v for k, v in pairs})
    return found


@pytest.fixture(params=[(f, t) for f in FORMATS for t in ("native", "asgi")], ids="-".join)
def kind(request: pytest.FixtureRequest) -> tuple[str, str]:
    found: tuple[str, str] = request.param
    return found


def exercised(data: Path, kind: tuple[str, str], *flags: str) -> tuple[str, list[httpx.Response]]:
    """What a server logs of some requests, and what it answered."""
    log_format, transport = kind
    server = ServerProcess(data, "--log-format", log_format, "--transport", transport, *flags)
    with server, httpx.Client() as client:
        headers = TUS | {"Upload-Length": "5", "Upload-Metadata": "filename c2VjcmV0LW5hbWU="}
        made = client.post(server.url, headers=headers | {"Authorization": "Bearer hush-hush"})
        url = made.headers["Location"]
        stream = TUS | {"Content-Type": STREAM}
        answers = [
            made,
            client.patch(
                url,
                headers=stream | {"Upload-Offset": "0", "X-Request-ID": "mine-1"},
                content=b"hello",
            ),
            client.get(f"{url}?token=hush-hush", headers={"X-Request-ID": "not sane, this"}),
            client.patch(url, headers=stream | {"Upload-Offset": "2"}, content=b"x"),
        ]
        assert server.stop() == 0
        return server.tail(), answers


def test_one_line_per_request_with_all_of_it(tmp_path: Path, kind: tuple[str, str]) -> None:
    text, answers = exercised(tmp_path / "data", kind)
    by_id = {line["request_id"]: line for line in parsed(text, kind[0])}
    # An answer may be with its client, who goes on, a moment before its line is made.
    lines = [by_id.pop(answer.headers["X-Request-ID"]) for answer in answers]
    assert not by_id
    upload = answers[0].headers["Location"].rpartition("/")[2]
    told = [
        [str(line[name]) for name in ("method", "status", "outcome", "upload", "bytes_in")]
        for line in lines
    ]
    assert told == [
        ["POST", "201", "ok", upload, "0"],
        ["PATCH", "204", "ok", upload, "5"],
        ["GET", "200", "ok", upload, "0"],
        ["PATCH", "409", "offset_mismatch", upload, "0"],
    ]
    assert [str(line["bytes_out"]) for line in lines[:3]] == ["0", "0", "5"]
    assert lines[0]["path"] == "/files/"
    assert lines[2]["path"] == f"/files/{upload}"  # its query may hold a secret
    for line in lines:
        assert line["client"] == "127.0.0.1"
        assert str(line["worker"]) == "0"
        assert 0 <= float(line["seconds"]) < 30
    assert lines[1]["request_id"] == "mine-1"
    assert re.fullmatch(r"[0-9a-f]{18}", lines[2]["request_id"])


def test_nothing_secret_is_logged_and_no_metadata(tmp_path: Path, kind: tuple[str, str]) -> None:
    text, _ = exercised(tmp_path / "data", kind)
    assert "hush-hush" not in text
    assert "secret-name" not in text
    assert "c2VjcmV0LW5hbWU=" not in text


def test_metadata_is_logged_when_asked_for(tmp_path: Path, kind: tuple[str, str]) -> None:
    text, _ = exercised(tmp_path / "data", kind, "--log-metadata")
    carried_out = [line for line in parsed(text, kind[0]) if line["outcome"] == "ok"]
    assert len(carried_out) == 3
    for line in carried_out:
        metadata = line["metadata"]
        found = json.loads(metadata) if isinstance(metadata, str) else metadata
        assert found == {"filename": "secret-name"}


def test_without_the_level_there_are_none(tmp_path: Path, kind: tuple[str, str]) -> None:
    text, _ = exercised(tmp_path / "data", kind, "--log-level", "warning")
    assert parsed(text, kind[0]) == []


def test_what_is_no_request_has_a_line_too(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data", "--log-format", "json") as server:
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(b"\x1b[2Jnonsense\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 400 ")
        server.stop()
        (line,) = parsed(server.tail(), "json")
    assert (line["status"], line["outcome"], line["method"]) == (400, "bad_request", "-")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_stop_loses_no_line(tmp_path: Path, workers: str) -> None:
    """Each answer that a client had before it has one, also those of the last milliseconds."""
    ids = []
    with ServerProcess(tmp_path / "data", "--log-format", "json", "--workers", workers) as server:
        for _ in range(4):
            with httpx.Client(headers=TUS) as client:
                answers = [client.head(f"{server.url}nothing") for _ in range(50)]
            ids += [answer.headers["X-Request-ID"] for answer in answers]
        assert server.stop() == 0
        told = [each["request_id"] for each in parsed(server.tail(10_000), "json")]
    assert sorted(told) == sorted(ids)


# --------------------------------------------------------------------------------- the handler


def line(**changed: Any) -> Line:
    fields: dict[str, Any] = {
        "timestamp": datetime(2026, 11, 22, 1, 2, 3, 4567, tzinfo=UTC),
        "request_id": "r",
        "method": "GET",
        "path": "/files/a",
        "status": 200,
        "outcome": "ok",
        "bytes_in": 0,
        "bytes_out": 5,
        "seconds": 0.25,
        "worker": 1,
    }
    return Line(**(fields | changed))


def written(log_format: LogFormat, *lines: Line, colors: bool = False) -> str:
    stream = io.StringIO()
    handler = Handler(stream, log_format, colors=colors)
    handler._lines += lines
    handler.close()
    return stream.getvalue()


def test_the_two_forms() -> None:
    assert written("console", line(upload="a")) == (
        "2026-11-22T01:02:03.004567Z [info] request [tidegate.access] request_id=r method=GET"
        " path=/files/a status=200 outcome=ok bytes_in=0 bytes_out=5 seconds=0.25 worker=1"
        " upload=a\n"
    )
    assert json.loads(written("json", line(upload="a"))) == {
        "event": "request",
        "level": "info",
        "logger": "tidegate.access",
        "timestamp": "2026-11-22T01:02:03.004567Z",
        "request_id": "r",
        "method": "GET",
        "path": "/files/a",
        "status": 200,
        "outcome": "ok",
        "bytes_in": 0,
        "bytes_out": 5,
        "seconds": 0.25,
        "worker": 1,
        "upload": "a",
    }
    assert "\x1b[36mmethod\x1b[0m=\x1b[35mGET" in written("console", line(), colors=True)


def test_lines_that_are_written_together_are_what_each_is_alone() -> None:
    """To the byte, in their order; also where a line holds what begins and ends one."""
    lines = [line(), line(path="/{a}"), line(metadata={"a": '{"b":1}\n{'}), line(upload="é")]
    alone = [written("json", each) for each in lines]
    assert written("json", *lines) == "".join(alone)
    for text in alone:
        start = '{"event":"request","level":"info","logger":"tidegate.access","timestamp":"2026-'
        assert text.startswith(start)
        assert (
            text == json.dumps(json.loads(text), separators=(",", ":"), ensure_ascii=False) + "\n"
        )


@pytest.mark.anyio
@pytest.mark.parametrize("log_format", FORMATS)
@pytest.mark.parametrize("count", [TOGETHER - 1, TOGETHER, 3 * TOGETHER + 1])
async def test_lines_keep_their_order_however_many_wait(count: int, log_format: LogFormat) -> None:
    stream = io.StringIO()
    handler = Handler(stream, log_format, colors=False)
    handler._gathering = True  # the thread does not come
    told = [line(request_id=f"r{number}", path="/é\n") for number in range(count)]
    for each in told:
        handler.tell(each)
    handler.close()
    found = parsed(stream.getvalue(), log_format)
    assert [each["request_id"] for each in found] == [f"r{number}" for number in range(count)]
    assert len(stream.getvalue().splitlines()) == count


def test_no_line_is_lost_to_a_thread_that_writes_meanwhile() -> None:
    stream = io.StringIO()
    handler = Handler(stream, "json", colors=False)
    handler._gathering = True  # its own thread does not come, but another does, all the time
    done = threading.Event()

    def write() -> None:
        while not done.is_set():
            handler.handle(logging.makeLogRecord({"msg": "beside"}))

    beside = threading.Thread(target=write)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        beside.start()
        for number in range(20_000):
            handler.tell(line(request_id=f"r{number}"))
    finally:
        sys.setswitchinterval(before)
        done.set()
        beside.join()
    handler.close()
    found = [each["request_id"] for each in parsed(stream.getvalue(), "json")]
    assert found == [f"r{number}" for number in range(20_000)]


HOSTILE = "/a\n2000-01-01 [info] forged\r\x1b[2J\x9b\u2028\u202e\x7f\ud800"


@pytest.mark.parametrize("log_format", FORMATS)
@pytest.mark.parametrize("field", ["method", "path", "upload", "client", "metadata"])
def test_a_client_can_neither_end_a_line_nor_steer_a_terminal(
    field: str, log_format: LogFormat
) -> None:
    hostile = HOSTILE.replace("\ud800", "") if field == "metadata" else HOSTILE[:-1]
    value: Any = {hostile: hostile} if field == "metadata" else hostile
    text = written(log_format, line(), line(**{field: value}), line())
    assert text.count("\n") == len(text.splitlines()) == 3
    assert not set("\x1b\x9b\r\x7f\u2028\u202e").intersection(text)
    if log_format == "json":
        found = json.loads(text.splitlines()[1])[field]
        shown = next(iter(found.values())) if field == "metadata" else found
        assert shown.isprintable()


def test_fields_stay_apart() -> None:
    text = written("console", line(path='/a status=500 "x\\'))
    assert parsed(text, "console")[0]["path"] == '/a status=500 "x\\'
    assert parsed(text, "console")[0]["status"] == "200"


@pytest.mark.anyio
async def test_what_nobody_reads_is_lost_and_told_of() -> None:
    stream = io.StringIO()
    handler = Handler(stream, "json", colors=False)
    handler._gathering = True  # the thread does not come
    for _ in range(MOST + 3):
        handler.tell(line())
    handler.close()
    lines = stream.getvalue().splitlines()
    assert len(lines) == MOST + 1
    assert lines[-1].startswith("3 lines about requests are lost")


def test_other_lines_come_after_what_was_told_before(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from tidegate.cli import logs

    root, before = logging.getLogger(), logging.getLogger().handlers[:]
    try:
        handler = logs.configure("info", "json")
        handler._lines.append(line())
        root.warning("later")
    finally:
        root.handlers[:] = before
        logging.captureWarnings(capture=False)
    first, second = capsys.readouterr().err.splitlines()
    assert '"event":"request"' in first
    assert "later" in second
