"""`tidegate sweep` and `tidegate check`, on the stores that a server left."""

from __future__ import annotations

import asyncio
import json
import os
import time

from tests.cli.stores import (
    DATA,
    Command,
    change,
    die_writing,
    finished,
    incoming,
    records,
    uploaded,
    with_engine,
)
from tests.support.bodies import ScriptedBody

from tidegate.engine.engine import Engine
from tidegate.ports import BodyEnd, Grant
from tidegate.protocol.commands import Append, Payload


def test_nothing_is_swept_where_nothing_is(tidegate: Command) -> None:
    """Neither command makes a folder that isn't there."""
    for command in ("sweep", "check"):
        code, out, err = tidegate(command)
        assert (code, out) == (1, "")
        assert "there is no such folder" in err
    assert not DATA.exists()


def test_a_sweep_gives_up_what_expired(tidegate: Command) -> None:
    """An unfinished upload past its time goes; one in its time, and a complete one, stay."""
    old = uploaded(b"old", length=9)
    young = uploaded(b"young", length=9)
    whole = uploaded(b"whole", length=5)
    for upload in (old, whole):
        change(upload.id, expires_at=1.0)
    assert tidegate("sweep", "--dry-run")[:2] == (
        0,
        (
            f"{old.id}: would be expired\n"
            "1 would be expired, 0 would be forgotten, 0 orphans would be deleted:"
            " 3 bytes would be freed\n"
        ),
    )
    assert incoming(old).exists()
    code, out, _ = tidegate("sweep", "--json")
    assert code == 0
    assert json.loads(out) == {
        "dry_run": False,
        "expired": [old.id],
        "forgotten": [],
        "orphans": [],
        "freed": 3,
        "failed": [],
    }
    assert not incoming(old).exists()
    assert incoming(young).read_bytes() == b"young"
    assert finished(whole).read_bytes() == b"whole"


def test_a_sweep_forgets_old_tombstones(tidegate: Command) -> None:
    upload = uploaded(b"old", length=9)
    change(upload.id, expires_at=1.0)
    tidegate("sweep")
    change(upload.id, ended_at=1.0)
    _, out, _ = tidegate("sweep")
    assert f"{upload.id}: forgotten" in out
    assert "0 uploads checked" in tidegate("check")[1]


def test_a_sweep_deletes_unfinished_bytes_without_a_record(tidegate: Command) -> None:
    """Old ones only; and what is whole stays, though every record is lost."""
    unfinished = uploaded(b"abc", length=9)
    whole = uploaded(b"whole", length=5)
    for file in DATA.glob("tidegate.db*"):
        if file.is_file():
            file.unlink()
    assert "0 orphans deleted" in tidegate("sweep")[1]
    month_ago = time.time() - 30 * 86_400
    for path in (incoming(unfinished), finished(whole)):
        os.utime(path, (month_ago, month_ago))
    code, out, _ = tidegate("sweep")
    assert code == 0
    assert "1 orphans deleted: 3 bytes freed" in out
    assert not incoming(unfinished).exists()
    assert finished(whole).read_bytes() == b"whole"
    code, out, _ = tidegate("check")
    assert code == 1
    assert "5 bytes that belong to no upload (whole, so that no sweep deletes them)" in out


def test_a_sweep_waits_for_none(tidegate: Command) -> None:
    """While another server sweeps, the command says so; a dry run does not mind."""
    uploaded(b"abc", length=9)

    async def meanwhile() -> None:
        async with records() as store:
            assert await store.take_turn("sweep", time.time(), 60)
            code, _, err = await asyncio.to_thread(tidegate, "sweep")
            assert code == 1
            assert "at work already" in err
            assert (await asyncio.to_thread(tidegate, "sweep", "--dry-run"))[0] == 0

    asyncio.run(meanwhile())


def test_a_check_finds_that_all_is_well(tidegate: Command) -> None:
    uploaded(b"abc", length=9)
    uploaded(b"whole", length=5)
    assert tidegate("check")[:2] == (
        0,
        "2 uploads checked, 0 left alone (in use), 0 findings, 0 mended\n",
    )


def test_a_check_finds_lost_bytes(tidegate: Command) -> None:
    """An unfinished upload can go back to what it has; a complete one can't be mended."""
    unfinished = uploaded(b"abc", length=9)
    whole = uploaded(b"whole", length=5)
    os.truncate(incoming(unfinished), 1)
    os.truncate(finished(whole), 2)
    code, out, _ = tidegate("check")
    assert code == 1
    assert f"{unfinished.id}: acknowledged 3 bytes (receiving), holds 1 (lost for good)" in out
    assert f"{whole.id}: acknowledged 5 bytes (complete), holds 2 (lost for good)" in out
    code, out, _ = tidegate("check", "--repair", "--json")
    assert code == 1
    mended = {f["subject"]: f["mended"] for f in json.loads(out)["findings"]}
    assert mended == {unfinished.id: True, whole.id: False}
    assert whole.id in tidegate("check")[1]
    assert unfinished.id not in tidegate("check")[1]

    async def resume(engine: Engine) -> None:
        body = ScriptedBody(b"bcdefghi", end=BodyEnd.WHOLE)
        await engine.handle(Append(id=unfinished.id, offset=1, payload=Payload(length=8)), body)

    with_engine(resume)
    assert finished(unfinished).read_bytes() == b"abcdefghi"


def test_a_repair_cuts_off_what_never_counted(tidegate: Command) -> None:
    upload = uploaded(b"abc", length=9)
    with incoming(upload).open("ab") as file:
        file.write(b"???")
    assert "acknowledged 3 bytes, holds 6 (mended)" in tidegate("check", "--repair")[1]
    assert incoming(upload).read_bytes() == b"abc"


def test_a_repair_recovers_what_a_crash_left(tidegate: Command) -> None:
    """A server that died in an append that had all come: the upload is completed."""
    upload = uploaded(b"abc", length=9)
    die_writing(upload, b"defghi")
    code, out, _ = tidegate("check")
    assert code == 1
    assert "was left in the middle by a server that died (not mended)" in out
    assert tidegate("check", "--repair")[0] == 0
    assert finished(upload).read_bytes() == b"abcdefghi"
    assert tidegate("check")[0] == 0


def test_a_repair_deletes_what_ended(tidegate: Command) -> None:
    upload = uploaded(b"abc", length=9)
    content = incoming(upload).read_bytes()
    change(upload.id, expires_at=1.0)
    tidegate("sweep")
    incoming(upload).write_bytes(content)
    assert "is expired, and still holds 3 bytes (mended)" in tidegate("check", "--repair")[1]
    assert not incoming(upload).exists()


def test_what_is_in_use_is_left_alone(tidegate: Command) -> None:
    upload = uploaded(b"abc", length=9)

    async def meanwhile() -> None:
        async with records() as store:
            assert isinstance(await store.acquire(upload.id), Grant)
            for repair in ((), ("--repair",)):
                _, out, _ = await asyncio.to_thread(tidegate, "check", *repair)
                assert out.startswith("1 uploads checked, 1 left alone (in use), 0 findings")

    asyncio.run(meanwhile())
