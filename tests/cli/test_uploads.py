"""`tidegate ls`, `show` and `rm`, on the stores of a server."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import sys
from typing import Any

import httpx
import pytest
from tests.cli.stores import DATA, Command, change, create, records, with_engine
from tests.support.exchange import STREAM, TUS
from tests.support.server import ServerProcess

from tidegate.cli import offline
from tidegate.cli.ls import age, short
from tidegate.engine.engine import Engine
from tidegate.protocol.model import EventType, Kind, Upload, UploadId


def name(text: str) -> str:
    return f"filename {base64.b64encode(text.encode()).decode()}"


def made(*creations: tuple[bytes, int | None, str], kind: Kind = Kind.REGULAR) -> list[Upload]:
    """Uploads: what came of each, its length, its metadata."""
    found: list[Upload] = []

    async def work(engine: Engine) -> None:
        concat = "partial" if kind is Kind.PARTIAL else ""
        for content, length, said in creations:
            fields = {"metadata": said, "kind": kind, "concat": concat}
            found.append(await create(engine, content, length, **fields))

    with_engine(work)
    return found


def ids(out: str) -> list[str]:
    return [json.loads(line)["id"] for line in out.splitlines()]


# --------------------------------------------------------------------------------------- ls


def test_where_nothing_is_there_is_nothing_to_list(tidegate: Command) -> None:
    for command in (["ls"], ["show", "a"], ["rm", "a", "--yes"]):
        code, out, err = tidegate(*command)
        assert (code, out) == (1, "")
        assert "there is no such f" in err  # folder, or file


def test_a_table_for_people(tidegate: Command) -> None:
    whole, part, deferred = made((b"hello", 5, name("a b.txt")), (b"abc", 9, ""), (b"x", None, ""))
    code, out, err = tidegate("ls", "--sort", "id")
    assert (code, err) == (0, "")
    head, *rows = out.splitlines()
    assert head.split() == ["id", "state", "kind", "size", "here", "made", "active", "name"]
    assert [row.split()[0] for row in rows] == sorted([whole.id, part.id, deferred.id])
    cells = {row.split()[0]: row.split()[1:] for row in rows}
    assert cells[whole.id][:4] == ["complete", "regular", "5", "100%"]
    assert cells[whole.id][-2:] == ["a", "b.txt"]
    assert cells[part.id][:4] == ["receiving", "regular", "9", "33%"]
    assert cells[deferred.id][:4] == ["receiving", "regular", "?", "1"]


def test_a_table_fits_the_terminal(tidegate: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """An id is whole, since it is to be copied; a name ends in an ellipsis."""
    (upload,) = made((b"hello", 5, name("long " * 40)))
    monkeypatch.setattr(offline, "PIPED_COLUMNS", 80)
    _, out, _ = tidegate("ls")
    assert max(map(len, out.splitlines())) <= 80
    assert upload.id in out
    assert "…" in out


def test_a_name_can_not_steer_the_terminal(tidegate: Command) -> None:
    made((b"hello", 5, name("evil\x1b[2J\nname\u202e [bold]")))
    _, out, _ = tidegate("ls")
    assert len(out.splitlines()) == 2
    assert not set("\x1b\u202e").intersection(out)
    assert "[bold]" in out


def test_what_is_listed_can_be_chosen(tidegate: Command) -> None:
    first, second = made((b"hello", 5, name("Report.PDF")), (b"a", 100, name("film.mp4")))
    (part,) = made((b"part", 4, ""), kind=Kind.PARTIAL)
    change(first.id, created_at=first.created_at - 7200, principal="ann")
    for flags, expected in (
        ((), {first.id, second.id, part.id}),
        (("--state", "complete"), {first.id, part.id}),
        (("--state", "receiving"), {second.id}),
        (("--kind", "partial"), {part.id}),
        (("--kind", "regular", "--state", "complete"), {first.id}),
        (("--principal", "ann"), {first.id}),
        (("--older", "1h"), {first.id}),
        (("--newer", "1h"), {second.id, part.id}),
        (("--name", "report"), {first.id}),
        (("--name", "nothing"), set()),
    ):
        code, out, _ = tidegate("ls", "--json", *flags)
        assert code == 0
        assert set(ids(out)) == expected, flags


def test_and_its_order(tidegate: Command) -> None:
    small, large, begun = made((b"hello", 5, ""), (b"abcdef", 100, ""), (b"a", 50, ""))
    for number, upload in enumerate((begun, small, large)):
        change(upload.id, created_at=1000.0 - number, active_at=2000.0 + number)
    for flags, expected in (
        (("--sort", "created"), [begun, small, large]),
        (("--sort", "created", "--reverse"), [large, small, begun]),
        (("--sort", "active"), [large, small, begun]),
        (("--sort", "size"), [large, begun, small]),
        (("--sort", "offset"), [large, small, begun]),
        (("--sort", "offset", "--reverse"), [begun, small, large]),
        (("--sort", "size", "--limit", "2"), [large, begun]),
        (("--sort", "size", "--limit", "2", "--reverse"), [small, begun]),
    ):
        _, out, _ = tidegate("ls", "--json", *flags)
        assert ids(out) == [upload.id for upload in expected], flags
    by_id = sorted(upload.id for upload in (small, large, begun))
    assert ids(tidegate("ls", "--json", "--sort", "id")[1]) == by_id
    assert ids(tidegate("ls", "--json", "--sort", "id", "--reverse")[1]) == by_id[::-1]


def test_what_is_left_out_is_told(tidegate: Command) -> None:
    made(*[(b"", 9, "")] * 3)
    _, out, err = tidegate("ls", "--limit", "2")
    assert len(out.splitlines()) == 3
    assert "2 of 3 uploads" in err
    assert tidegate("ls", "--limit", "unlimited")[2] == ""
    assert tidegate("ls", "--json", "--limit", "2")[2] == ""


def test_json_has_all_of_a_record(tidegate: Command) -> None:
    (upload,) = made((b"hello", 5, name("ä.txt")))
    (line,) = tidegate("ls", "--json")[1].splitlines()
    found = json.loads(line)
    assert set(upload.__struct_fields__) < set(found)
    assert found["metadata"] == {"filename": "ä.txt"}
    assert found["upload_metadata"] == upload.metadata
    assert (found["state"], found["length"], found["offset"]) == ("complete", 5, 5)


@pytest.mark.parametrize(
    "flags", [["--state", "lost"], ["--kind", "x"], ["--sort", "x"], ["--limit", "0"], ["--x"]]
)
def test_a_wrong_use_ends_with_2(tidegate: Command, flags: list[str]) -> None:
    assert tidegate("ls", *flags)[0] == 2


# ------------------------------------------------------------------------------------- show


def test_all_of_one_upload(tidegate: Command) -> None:
    (upload,) = made((b"abc", 9, name("a.txt")))
    code, out, err = tidegate("show", upload.id)
    assert (code, err) == (0, "")
    rows = dict(line.rstrip().split("  ", 1) for line in out.splitlines())
    rows = {key: value.strip() for key, value in rows.items()}
    assert rows["state"] == "receiving"
    assert rows["length"] == "9 bytes"
    assert rows["offset"] == rows["stored"] == "3 bytes"
    assert rows["metadata filename"] == "a.txt"
    assert rows["lease"] == "nobody writes to it"
    assert rows["data"] == str(DATA)
    assert (DATA / rows["storage incoming"]).read_bytes() == b"abc"
    found = json.loads(tidegate("show", upload.id, "--json")[1])
    assert (found["lease"], found["segments"], found["stored_bytes"]) == ("free", [], 3)


def test_a_writer_at_work_is_seen_and_left_alone(tidegate: Command) -> None:
    with ServerProcess(DATA, "--log-level", "warning") as server, httpx.Client() as client:
        created = client.post(server.url, headers=TUS | {"Upload-Length": "9"})
        url = created.headers["Location"]
        upload_id = url.rpartition("/")[2]
        seen: list[Any] = []

        def body() -> Any:
            yield b"abc"
            found: dict[str, Any] = {}
            while found.get("lease") != "held" or found["stored_bytes"] != 3:
                found = json.loads(tidegate("show", upload_id, "--json")[1])
            seen.append(found)
            yield b"defghi"

        headers = TUS | {"Content-Type": STREAM, "Upload-Offset": "0"}
        assert client.patch(url, headers=headers, content=body()).status_code == 204
        assert seen[0]["offset"] == 0
        assert json.loads(tidegate("show", upload_id, "--json")[1])["lease"] == "free"


def test_one_that_is_not_there(tidegate: Command) -> None:
    made((b"abc", 9, ""))
    code, out, err = tidegate("show", "no\x1b[2Jne")
    assert (code, out) == (1, "")
    assert "there is no upload no\\x1b[2Jne" in err
    assert tidegate("show")[0] == 2


@pytest.mark.parametrize("upload_id", ["-abc", "--abc", "-hello", "-", "_a-"])
def test_an_id_may_begin_with_a_hyphen(tidegate: Command, upload_id: str) -> None:
    """One of 64 does: it is no flag, also without `--` before it."""
    made((b"abc", 9, ""))
    for command in (["show"], ["rm", "--yes"]):
        code, _, err = tidegate(*command, upload_id)
        assert (code, "there is no upload" in err) == (1, True), err


# --------------------------------------------------------------------------------------- rm


def events() -> list[tuple[EventType, UploadId]]:
    async def run() -> list[tuple[EventType, UploadId]]:
        async with records() as store:
            kept = [each.delivery.event async for each in store.events()]
            return [(event.type, event.upload.id) for event in kept]

    return asyncio.run(run())


def test_what_is_deleted_is_gone_for_clients(tidegate: Command) -> None:
    """A complete one, too; its bytes with it."""
    first, second, kept = made((b"hello", 5, ""), (b"abc", 9, ""), (b"kept", 4, ""))
    code, out, err = tidegate("rm", first.id, second.id, "--yes", "--tell")
    assert (code, err) == (0, "")
    assert out == f"{first.id}: deleted\n{second.id}: deleted\n"
    terminated = EventType.TERMINATED
    assert events() == [(terminated, first.id), (terminated, second.id)]
    files = [path.read_bytes() for path in DATA.rglob("*") if path.parent.parent.parent == DATA]
    assert files == [b"kept"]
    with ServerProcess(DATA, "--log-level", "warning") as server:
        statuses = [
            httpx.head(server.url + upload.id, headers=TUS).status_code
            for upload in (first, second, kept)
        ]
    assert statuses == [410, 410, 200]


def test_what_can_not_be_deleted_is_told_and_the_rest_is_done(tidegate: Command) -> None:
    (upload,) = made((b"hello", 5, ""))
    code, out, err = tidegate("rm", "none", upload.id, "--yes")
    assert code == 1
    assert out == f"{upload.id}: deleted\n"
    assert "none: there is no upload" in err
    code, out, _ = tidegate("rm", upload.id, upload.id, "--yes", "--json")
    (line,) = out.splitlines()
    found = json.loads(line)
    assert (code, found["id"], found["deleted"]) == (1, upload.id, False)
    assert "terminated" in found["why"]


def test_beside_a_server_a_writer_is_stopped(tidegate: Command) -> None:
    with ServerProcess(DATA, "--log-level", "warning") as server, httpx.Client() as client:
        url = client.post(server.url, headers=TUS | {"Upload-Length": "9"}).headers["Location"]
        upload_id = url.rpartition("/")[2]
        codes: list[int] = []

        def body() -> Any:
            yield b"abc"
            while json.loads(tidegate("show", upload_id, "--json")[1])["lease"] != "held":
                pass
            codes.append(tidegate("rm", upload_id, "--yes")[0])
            yield b"defghi"

        headers = TUS | {"Content-Type": STREAM, "Upload-Offset": "0", "Content-Length": "9"}
        answer = client.patch(url, headers=headers, content=body())
        assert codes == [0]
        assert answer.status_code in (410, 423)
        assert client.head(url, headers=TUS).status_code == 410


@pytest.mark.parametrize(("said", "code"), [("y\n", 0), ("YES\n", 0), ("\n", 1), ("", 1)])
def test_it_asks_a_person(
    said: str, code: int, tidegate: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    (upload,) = made((b"hello", 5, ""))
    monkeypatch.setattr(sys, "stdin", terminal := io.StringIO(said))
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    found, _, err = tidegate("rm", upload.id)
    assert found == code
    assert "Delete 1 upload for good?" in err
    assert json.loads(tidegate("show", upload.id, "--json")[1])["state"] == (
        "complete" if code else "terminated"
    )


def test_a_program_has_to_say_yes(tidegate: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    (upload,) = made((b"hello", 5, ""))
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    code, _, err = tidegate("rm", upload.id)
    assert code == 2
    assert "--yes" in err
    assert tidegate("rm", "--yes")[0] == 2


# ------------------------------------------------------------------------------ how it is said


def test_sizes_and_ages_are_short() -> None:
    assert [short(count) for count in (0, 999, 1000, 1536, 10 * 2**20, 5 * 2**40)] == [
        *("0", "999", "1.0K", "1.5K", "10.0M", "5.0T")
    ]
    assert [age(seconds) for seconds in (-1, 59, 61, 7200, 3 * 86400)] == [
        *("0s", "59s", "1m", "2h", "3d")
    ]
