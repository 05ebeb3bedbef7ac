"""`tidegate events`, and the events that other commands write."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.cli.stores import DATA, Command, change, die_writing, uploaded, with_engine
from tests.support.bodies import ScriptedBody

from tidegate.engine.engine import Engine
from tidegate.metadata.sqlite.store import SQLiteMetadataStore
from tidegate.ports import Retry
from tidegate.protocol.commands import Create, Payload
from tidegate.protocol.model import STORED_EVENTS, EventType, UploadId
from tidegate.protocol.results import Created
from tidegate.stores.local import LocalStore
from tidegate.testing.metadata.support import end_claim


def lines(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


@pytest.fixture
def uploads() -> list[UploadId]:
    """Three whole uploads: nobody was told yet of the first, the second's creation was given up,
    the third's failed.
    """
    made: list[UploadId] = []

    async def work() -> None:
        DATA.mkdir(exist_ok=True)
        store = SQLiteMetadataStore(DATA / "tidegate.db")
        engine = Engine(LocalStore(DATA), store, tells=STORED_EVENTS, tending=False)
        async with engine:
            for _ in range(3):
                command = Create(length=3, payload=Payload(length=3))
                created = await engine.handle(command, ScriptedBody(b"abc"))
                assert isinstance(created, Created)
                made.append(created.upload.id)
            first, second, third = await store.claim_events(0, 10, 0)
            assert [line.upload_id for line in (first, second, third)] == made
            told, kept = second.deliveries
            told = told.after(["mail", "queue"], [Retry("hook", 40, None)])
            await end_claim(store, second, given_up=[told], kept=[kept])
            told, kept = third.deliveries
            told = told.after([], [Retry("hook", 3, 4e9)])
            await end_claim(store, third, kept=[told, kept], due_at=4e9)

    asyncio.run(work())
    return made


def test_a_list_of_all(tidegate: Command, uploads: Sequence[UploadId]) -> None:
    code, out, err = tidegate("events", "list", "--json")
    assert (code, err) == (0, "")
    found = lines(out)
    assert [(f["upload"], f["type"]) for f in found] == [
        (upload, kind) for upload in uploads for kind in ("created", "completed")
    ]
    assert [f["given_up"] for f in found] == [False, False, True, False, False, False]
    assert found[2]["due_at"] is None
    assert found[2]["done"] == ["mail", "queue"]
    assert [f["attempts"] for f in found] == [0, 0, 40, 0, 3, 0]
    assert found[4]["due_at"] == 4e9
    assert found[4]["retries"] == [{"sink": "hook", "attempts": 3, "due_at": 4e9}]


def test_a_list_of_some(tidegate: Command, uploads: Sequence[UploadId]) -> None:
    found = lines(tidegate("events", "list", "--json", "--given-up")[1])
    assert [f["upload"] for f in found] == [uploads[1]]
    found = lines(tidegate("events", "list", "--json", "--upload", uploads[2])[1])
    assert [f["upload"] for f in found] == [uploads[2]] * 2
    found = lines(tidegate("events", "list", "--json", "--upload", uploads[2], "--limit", "1")[1])
    assert [f["type"] for f in found] == ["created"]
    assert tidegate("events", "list", "--upload", "nonesuch")[:2] == (0, "no events\n")
    assert tidegate("events", "list", "--upload", "nonesuch", "--json")[:2] == (0, "")


def test_an_id_that_looks_like_a_flag(tidegate: Command, uploads: Sequence[UploadId]) -> None:
    assert tidegate("events", "list", "--upload", "-x")[:2] == (0, "no events\n")


def test_a_table_for_people(tidegate: Command, uploads: Sequence[UploadId]) -> None:
    code, out, _ = tidegate("events", "list")
    assert code == 0
    head, *rows = out.splitlines()
    assert head.split() == "event failed type when upload next".split()
    assert len(rows) == 6
    assert re.search(rf"40  created +\d\d-\d\d \d\d:\d\dZ  {uploads[1]}  given up *$", rows[2])
    assert re.search(rf"created .* {uploads[0]}  due", rows[0])
    assert re.search(rf"completed .* {uploads[0]}  waits", rows[1])
    assert re.search(rf"created .* {uploads[2]}  in \d+d", rows[4])


def test_the_table_fits_a_terminal(
    tidegate: Command, uploads: Sequence[UploadId], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    _, out, _ = tidegate("events", "list")
    lines_shown = re.sub("\x1b\\[[0-9;]*m", "", out).splitlines()
    assert max(map(len, lines_shown)) <= 80
    for upload in uploads:
        assert upload in out


def test_a_replay_of_some(tidegate: Command, uploads: Sequence[UploadId]) -> None:
    (given_up,) = lines(tidegate("events", "list", "--json", "--given-up")[1])
    sequence = str(given_up["sequence"])
    assert tidegate("events", "replay", sequence, sequence)[:2] == (
        0,
        "1 events are delivered again\n",
    )
    code, out, err = tidegate("events", "replay", sequence, "999")
    assert (code, out) == (1, "0 events are delivered again\n")
    assert err == (
        f"tidegate: event {sequence}: there is none that was given up\n"
        "tidegate: event 999: there is none that was given up\n"
    )
    replayed = lines(tidegate("events", "list", "--json", "--upload", uploads[1])[1])
    assert [(f["given_up"], f["attempts"], f["done"]) for f in replayed] == [(False, 0, [])] * 2


def test_a_replay_of_all(tidegate: Command, uploads: Sequence[UploadId]) -> None:
    code, out, _ = tidegate("events", "replay", "--all", "--json")
    assert code == 0
    assert len(json.loads(out)["replayed"]) == 1
    assert tidegate("events", "replay", "--all")[:2] == (0, "0 events are delivered again\n")


@pytest.mark.parametrize("arguments", [[], ["1", "--all"], ["x"]])
def test_wrong_use(tidegate: Command, arguments: list[str]) -> None:
    code, out, err = tidegate("events", "replay", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("tidegate: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["list"], ["replay", "1"]])
def test_where_nothing_is(tidegate: Command, arguments: list[str]) -> None:
    """No database is made that isn't there."""
    code, out, err = tidegate("events", *arguments)
    assert (code, out) == (1, "")
    assert "there is no such file" in err
    assert not DATA.exists()


# --------------------------------------------------------------- what other commands tell of


@pytest.mark.parametrize(
    ("flags", "settings", "told"),
    [
        ([], "", []),
        (["--tell"], "", ["expired"]),
        ([], 'webhook = ["http://e.org"]\n', ["expired"]),
        ([], 'webhook = ["http://e.org"]\nwebhook-events = ["completed"]\n', []),
        ([], 'on-event-command = "tell"\nwebhook-timeout = 5\n', ["expired"]),
    ],
)
def test_a_sweep_writes_events_for_who_listens(
    tidegate: Command, flags: list[str], settings: str, told: list[str]
) -> None:
    """The server's own settings say who does; an application's callables no file knows of."""
    old = uploaded(b"old", length=9)
    change(old.id, expires_at=1.0)
    Path("tidegate.toml").write_text(settings)
    code, out, _ = tidegate("sweep", *flags)
    assert (code, old.id in out) == (0, True)
    found = lines(tidegate("events", "list", "--json")[1])
    assert [(f["upload"], f["type"]) for f in found] == [(old.id, kind) for kind in told]


def test_a_repair_writes_events_for_who_listens(
    tidegate: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an upload that it completes, as the server would have."""
    monkeypatch.setenv("TIDEGATE_WEBHOOK", "http://e.org")
    upload = uploaded(b"abc", length=9)
    die_writing(upload, b"defghi")
    assert tidegate("check", "--repair")[0] == 0
    (told,) = lines(tidegate("events", "list", "--json")[1])
    assert (told["upload"], told["type"]) == (upload.id, EventType.COMPLETED.value)


def test_nothing_is_written_without_listeners() -> None:
    async def count(engine: Engine) -> None:
        found = await engine._core.metadata.counts()
        assert found.pending_events == 0

    uploaded(b"abc", length=3)
    with_engine(count)
