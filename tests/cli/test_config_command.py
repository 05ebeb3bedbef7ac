"""`tidegate config`: what is in force, and where it came from."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from tidegate import cli
from tidegate.cli.config import masked
from tidegate.config import Config

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def found(capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, dict[str, Any]]:
    assert cli.run(["config", "--json", *flags]) == 0
    result: dict[str, dict[str, Any]] = json.loads(capsys.readouterr().out)
    return result


def test_every_setting_is_there_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    settings = found(capsys)
    assert list(settings) == [field.name.replace("_", "-") for field in fields(Config)]
    assert {each["source"] for each in settings.values()} == {"default"}
    assert settings["port"]["value"] == 1080
    assert settings["cors-origin"]["value"] == ["*"]


def test_each_source_is_named(
    clean_place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The one that won, where several say something."""
    (clean_place / "tidegate.toml").write_text('port = 1\nmax-size = "1KiB"\nhost = "::1"\n')
    monkeypatch.setenv("TIDEGATE_PORT", "2")
    monkeypatch.setenv("TIDEGATE_MAX_SIZE", "2KiB")
    settings = found(capsys, "--port", "3")
    assert settings["port"] == {"value": 3, "source": "flag"}
    assert settings["max-size"] == {"value": 2048, "source": "environment (TIDEGATE_MAX_SIZE)"}
    assert settings["host"] == {"value": "::1", "source": "file (tidegate.toml)"}
    assert settings["workers"]["source"] == "default"


def test_a_file_that_was_named(clean_place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (clean_place / "other.toml").write_text("port = 7\n")
    assert found(capsys, "--config", "other.toml")["port"] == {
        "value": 7,
        "source": "file (other.toml)",
    }


def test_the_table_says_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TIDEGATE_PORT", "2")
    assert cli.run(["config", "--no-downloads"]) == 0
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert rows["setting"] == ["value", "from"]
    assert rows["port"] == ["2", "environment", "(TIDEGATE_PORT)"]
    assert rows["downloads"] == ["off", "flag"]
    assert rows["host"] == ["127.0.0.1", "default"]


def test_secrets_are_not_shown() -> None:
    """In a URL the password; of what is a secret all of it."""
    url = "postgresql://tide:pa55@db.internal/uploads"
    assert masked("metadata", url) == "postgresql://tide:***@db.internal/uploads"
    assert masked("metadata", "redis://:pa55@cache") == "redis://:***@cache"
    assert masked("data", "s3://bucket/prefix") == "s3://bucket/prefix"
    assert masked("webhook", ("https://u:p@e.org/x",)) == ["https://u:***@e.org/x"]
    assert masked("webhook_secret", "whsec_abc") == "***"
    assert masked("token", ("a", "b")) == ["***", "***"]
    assert masked("tls_key", "key.pem") == "key.pem"
    assert masked("max_size", None) is None


def test_settings_that_do_not_fit_together(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["config", "--tls-key", "k"]) == 2
    assert "--tls-cert" in capsys.readouterr().err
