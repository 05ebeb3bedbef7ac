"""`tidegate migrate`, on the records of a server that does not run."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from tests.support import postgres

from tidegate import cli
from tidegate.metadata.postgres.schema import MIGRATIONS
from tidegate.metadata.sqlite.schema import MIGRATIONS as SQLITE_MIGRATIONS


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = cli.run(["migrate", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_postgresql_is_migrated_once(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dry run changes nothing; the second time there is nothing to do."""
    monkeypatch.chdir(tmp_path)
    newest = len(MIGRATIONS)
    url = postgres.server().url()
    arguments = ("--data", str(tmp_path), "--metadata", url)
    assert shown(capsys, *arguments, "--dry-run") == (
        0,
        f"schema (none): would be brought to {newest}\n",
        "",
    )
    code, out, _ = shown(capsys, *arguments, "--dry-run", "--json")
    assert json.loads(out) == {"dry_run": True, "before": 0, "after": 0, "newest": newest}
    assert shown(capsys, *arguments)[1] == f"schema (none): brought to {newest}\n"
    assert shown(capsys, *arguments)[1] == f"schema {newest}: up to date\n"
    code, out, _ = shown(capsys, *arguments, "--json")
    assert code == 0
    assert json.loads(out)["before"] == newest


def test_a_newer_schema_is_left_alone(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    server = postgres.server()
    url = server.url()
    arguments = ("--data", str(tmp_path), "--metadata", url)
    shown(capsys, *arguments)
    schema = url.partition("schema=")[2]
    server.sql(f"UPDATE {schema}.schema_version SET version = 99")
    code, _, err = shown(capsys, *arguments)
    assert code == 1
    assert "newer tidegate" in err


def test_sqlite_is_migrated(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    newest, path = len(SQLITE_MIGRATIONS), tmp_path / "tidegate.db"
    arguments = ("--data", str(tmp_path))
    assert "would be brought" in shown(capsys, *arguments, "--dry-run")[1]
    assert not path.exists()
    assert shown(capsys, *arguments)[1] == f"schema (none): brought to {newest}\n"
    assert shown(capsys, *arguments)[1] == f"schema {newest}: up to date\n"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.commit()
    connection.close()
    assert shown(capsys, *arguments)[0] == 1


def test_what_has_no_schema_says_so(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = shown(capsys, "--data", "memory:")
    assert code == 1
    assert "nothing to migrate" in err


def test_a_database_that_is_not_there(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    url = "postgresql://user:s3cret@127.0.0.1:1/db?patience=0.2"
    code, _, err = shown(capsys, "--data", str(tmp_path), "--metadata", url)
    assert code == 1
    assert "metadata database" in err
    assert "s3cret" not in err
