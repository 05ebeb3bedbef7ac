"""The sinks that `tidegate serve` makes of its settings."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tests.support.receiver import OTHER_SECRET, SECRET

from tidegate import cli
from tidegate.cli import notify
from tidegate.config import Config, ConfigError
from tidegate.events.command import CommandSink
from tidegate.events.webhook import WebhookSink
from tidegate.protocol.model import EventType

HOOK = ("http://e.org/a",)


def test_nobody_is_told_unless_asked() -> None:
    assert notify.sinks(Config()) == []


def test_webhooks_and_a_command(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(f"# the new one\n{OTHER_SECRET}\n\n {SECRET}\r\n")
    one, two, three = notify.sinks(
        Config(
            webhook=("http://e.org/a", "http://e.org/b", "http://e.org/a"),
            webhook_secret=(SECRET,),
            webhook_secret_file=str(tmp_path / "secret"),
            webhook_events=("created", "progress"),
            webhook_timeout=3,
            on_event_command=f"{sys.executable} -c 'import os'",
            command_timeout=60,
        )
    )
    assert isinstance(one, WebhookSink)
    assert isinstance(two, WebhookSink)
    assert isinstance(three, CommandSink)
    assert one.types == {EventType.CREATED, EventType.PROGRESS}
    assert (one.timeout, three.timeout) == (3, 60)
    assert [len(key) for key in one._keys] == [24, 32, 24]
    assert three._command == [sys.executable, "-c", "import os"]
    assert len({each.name for each in (one, two, three)}) == 3


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read: No such file"),
        (b"\xff", "is not text"),
        (b"# nothing\n", "anyone can send"),
        (SECRET.encode() + b"\nsecret\n", "line 2: a secret of webhooks begins with whsec_"),
    ],
)
def test_secrets_that_are_none(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        notify.sinks(Config(webhook=HOOK, webhook_secret_file=str(path)))


def test_a_secret_in_the_environment_that_is_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not shown."""
    monkeypatch.setenv("TIDEGATE_WEBHOOK_SECRET", "password")
    assert cli.run(["serve", "--webhook", HOOK[0]]) == 2
    _, err = capsys.readouterr()
    assert err.startswith("tidegate: TIDEGATE_WEBHOOK_SECRET: a secret of webhooks begins with")
    assert "password" not in err


def test_without_httpx_webhooks_say_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    monkeypatch.delitem(sys.modules, "tidegate.events.webhook")
    monkeypatch.setenv("TIDEGATE_WEBHOOK_SECRET", SECRET)
    assert cli.run(["serve", "--webhook", HOOK[0]]) == 2
    assert "pip install 'tidegate[webhooks]'" in capsys.readouterr().err


def test_a_command_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="there is no command nonesuch"):
        notify.sinks(Config(on_event_command="nonesuch --now"))
