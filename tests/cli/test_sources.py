"""Where settings come from: flags, then the environment, then the file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tidegate import cli
from tidegate.config import Config
from tidegate.ports import Durability

if TYPE_CHECKING:
    from pathlib import Path


def settings(*flags: str) -> Config:
    """What `tidegate serve` would be called with."""
    _, bound, _ = cli.app.parse_args(["serve", *flags], exit_on_error=False, print_error=False)
    found = bound.arguments.get("settings", Config())
    assert isinstance(found, Config)
    return found


def said(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    """What a wrong use is answered with: one line, and exit code 2."""
    assert cli.run(["serve", *flags]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("tidegate: ")
    assert err.count("\n") == 1
    return err


def test_without_any_setting_the_defaults_hold() -> None:
    assert settings() == Config()


def test_a_flag_wins_over_the_environment_and_that_over_the_file(
    clean_place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (clean_place / "tidegate.toml").write_text(
        'port = 1\nmax-size = "1KiB"\nexpire-after = "1h"\ncors-origin = ["https://file.example"]\n'
    )
    monkeypatch.setenv("TIDEGATE_PORT", "2")
    monkeypatch.setenv("TIDEGATE_MAX_SIZE", "2KiB")
    found = settings("--port", "3", "--cors-origin", "https://flag.example")
    assert found.port == 3
    assert found.max_size == 2048
    assert found.expire_after == 3600
    assert found.cors_origin == ("https://flag.example",)


EVERY: dict[str, tuple[str, str, object]] = {
    # name: as a flag or in the environment, as TOML, as it is meant
    "host": ("0.0.0.0", '"0.0.0.0"', "0.0.0.0"),
    "port": ("0", "0", 0),
    "base-path": ("up", '"up"', "/up/"),
    "public-url": ("https://e.org/", '"https://e.org/"', "https://e.org"),
    "behind-proxy": ("10.0.0.1,::1", '["10.0.0.1", "::1"]', ("10.0.0.1", "::1")),
    "cors-origin": ("none", "[]", ()),
    "auth": ("token:env:TOKENS", '"token:env:TOKENS"', "token:env:TOKENS"),
    "owners": ("false", "false", False),
    "data": ("file:d", '"file:d"', "file:d"),
    "metadata": ("m.db", '"m.db"', "m.db"),
    "file-name": ("{id}{ext}", '"{id}{ext}"', "{id}{ext}"),
    "durability": ("ack", '"ack"', Durability.ACK),
    "max-size": ("10GiB", '"10GiB"', 10 * 2**30),
    "max-unfinished": ("1TB", '"1TB"', 10**12),
    "reserve-disk": ("5GB", '"5GB"', 5 * 10**9),
    "max-concurrent": ("100", "100", 100),
    "max-concurrent-per-client": ("6", "6", 6),
    "idle-timeout": ("never", '"never"', None),
    "min-rate": ("1KiB", '"1KiB/s"', 1024),
    "head-timeout": ("5s", "5", 5),
    "expire-after": ("never", '"never"', None),
    "disable": ("termination,checksum", '["termination", "checksum"]', ("termination", "checksum")),
    "webhook": (
        "http://e.org/a,b https://f.org",
        '["http://e.org/a,b", "https://f.org"]',
        ("http://e.org/a,b", "https://f.org"),
    ),
    "webhook-secret-file": ("s", '"s"', "s"),
    "webhook-secret": ("whsec_a whsec_b", '["whsec_a", "whsec_b"]', ("whsec_a", "whsec_b")),
    "webhook-events": (
        "completed,progress",
        '["completed", "progress"]',
        ("completed", "progress"),
    ),
    "webhook-timeout": ("5s", "5", 5),
    "on-event-command": ("tell 'a b'", "\"tell 'a b'\"", "tell 'a b'"),
    "command-events": ("created", '["created"]', ("created",)),
    "command-timeout": ("1h", '"1h"', 3600),
    "progress-every": ("0.5", "0.5", 0.5),
    "transport": ("asgi", "'asgi'", "asgi"),
    "workers": ("4", "4", 4),
    "log-level": ("warning", '"warning"', "warning"),
    "log-format": ("json", '"json"', "json"),
    "log-metadata": ("true", "true", True),
    "metrics-listen": ("9090", '":9090"', "127.0.0.1:9090"),
    "health": ("false", "false", False),
    "openapi": ("false", "false", False),
    "shutdown-timeout": ("1.5", "1.5", 1.5),
    "relative-location": ("true", "true", True),
    "s3-endpoint": ("http://s3", '"http://s3"', "http://s3"),
    "s3-region": ("eu-west-1", '"eu-west-1"', "eu-west-1"),
    "s3-path-style": ("true", "true", True),
    "s3-part-size": ("16MiB", '"16MiB"', 16 * 2**20),
    "s3-uniform-parts": ("true", "true", True),
    "s3-memory": ("1GiB", '"1GiB"', 2**30),
    "s3-concurrency": ("8", "8", 8),
    "s3-checksum": ("md5", '"md5"', "md5"),
    "s3-encryption": ("AES256", '"AES256"', "AES256"),
    "s3-storage-class": ("STANDARD_IA", '"STANDARD_IA"', "STANDARD_IA"),
    "s3-redirect-downloads": ("true", "true", True),
    "downloads": ("false", "false", False),
}


@pytest.mark.parametrize("name", EVERY)
def test_every_setting_can_come_from_everywhere(
    name: str, clean_place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, toml, meant = EVERY[name]
    field = name.replace("-", "_")
    assert getattr(Config(), field) != meant
    assert getattr(settings(f"--{name}={text}"), field) == meant
    with monkeypatch.context() as patch:
        patch.setenv(f"TIDEGATE_{field.upper()}", text)
        assert getattr(settings(), field) == meant
    for key in (name, field):
        (clean_place / "tidegate.toml").write_text(f"{key} = {toml}\n")
        assert getattr(settings(), field) == meant


PAIRS: list[dict[str, str]] = [
    {"tls-cert": "c", "tls-key": "k"},
    {"unix-socket": "s"},
    {
        "auth": "jwt:key.pem",
        "jwt-issuer": "https://id.test",
        "jwt-principal": "email",
        "jwt-max-size": "max",
    },
    {"auth": "forward:http://auth.test/", "forward-principal": "X-User"},
]
LISTS: list[dict[str, str]] = [
    {"auth": "jwt:key.pem", "jwt-audience": "a,b", "jwt-require": "c,d"},
    {"auth": "forward:http://auth.test/", "forward-send": "A,B", "forward-return": "C,D"},
]
TIMES: list[dict[str, str]] = [{"auth": "jwt:key.pem", "auth-timeout": "3s", "jwt-leeway": "3s"}]


@pytest.mark.parametrize("source", ["flags", "environment", "file"])
def test_settings_that_only_go_together(
    source: str, clean_place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for pair in PAIRS:
        flags = []
        with monkeypatch.context() as patch:
            if source == "flags":
                flags = [f"--{name}={value}" for name, value in pair.items()]
            elif source == "environment":
                for name, value in pair.items():
                    patch.setenv(f"TIDEGATE_{name.replace('-', '_').upper()}", value)
            else:
                lines = [f'{name} = "{value}"\n' for name, value in pair.items()]
                (clean_place / "tidegate.toml").write_text("".join(lines))
            found = settings(*flags)
        for name, value in pair.items():
            assert getattr(found, name.replace("-", "_")) == value


def test_lists_and_times_that_only_go_with_others() -> None:
    for some in LISTS:
        (_, auth), *lists = some.items()
        found = settings(f"--auth={auth}", *(f"--{name}={text}" for name, text in lists))
        for name, text in lists:
            assert getattr(found, name.replace("-", "_")) == tuple(text.split(","))
    for some in TIMES:
        (_, auth), *times = some.items()
        found = settings(f"--auth={auth}", *(f"--{name}={text}" for name, text in times))
        assert [getattr(found, name.replace("-", "_")) for name, _ in times] == [3.0, 3.0]


def test_every_setting_is_tried_above() -> None:
    tried = {*EVERY, *(name for settings in PAIRS + LISTS + TIMES for name in settings)}
    assert tried == {name.replace("_", "-") for name in Config.__dataclass_fields__}


def test_switches() -> None:
    assert settings("--relative-location").relative_location
    assert not settings("--no-downloads").downloads
    assert settings("--downloads").downloads


def test_a_flag_can_be_repeated_where_several_values_make_sense() -> None:
    found = settings("--disable", "checksum", "--disable", "termination")
    assert found.disable == ("checksum", "termination")


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEGATE_MAX_SIZE", "")
    assert settings() == Config()


def test_the_file_can_be_somewhere_else(clean_place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (clean_place / "tidegate.toml").write_text("port = 1\n")
    (clean_place / "other.toml").write_text("port = 2\n")
    assert settings().port == 1
    assert settings("--config", "other.toml").port == 2
    monkeypatch.setenv("TIDEGATE_CONFIG", str(clean_place / "other.toml"))
    assert settings().port == 2


# ------------------------------------------------------------------------------------ what is wrong


def test_a_wrong_flag_says_what_would_be_right(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--prot. Did you mean --port?" in said(capsys, "--prot", "1")
    assert "--max-size: '10G' is not a size, say 10GB or 10GiB" in said(capsys, "--max-size", "10G")
    assert '"debug", "info"' in said(capsys, "--log-level", "loud")
    assert "--port requires an argument" in said(capsys, "--port")
    assert "'4' is not expected here: all settings are flags" in said(capsys, "4")
    assert "--tls-cert needs --tls-key" in said(capsys, "--tls-cert", "c")
    assert "no store gs:; expected a folder, file:PATH or s3://BUCKET or memory:" in said(
        capsys, "--data", "gs://b"
    )


def test_a_wrong_command_says_which_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["sreve"]) == 2
    assert 'Did you mean "serve"?' in capsys.readouterr().err


def test_a_wrong_variable_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIDEGATE_EXPIRE_AFTER", "soon")
    assert "TIDEGATE_EXPIRE_AFTER: 'soon' is not a length of time" in said(capsys)


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ("prot = 1", "unknown setting 'prot'; did you mean port?"),
        ("[serve]\nport = 1", "unknown setting 'serve'; there are auth, auth-timeout, base-path"),
        ("port = 70000", "port in tidegate.toml: '70000' is not a port"),
        ("port = [1]", "'port' is a list: expected one value"),
        ("port = {a = 1}", "'port' is a table: expected one value"),
        ("port = 2020-01-01", "'port' is a date: expected one value"),
        ("max-size = 1\nmax_size = 2", "'max-size' is set twice"),
        ("port =", "not a TOML file: Invalid value (at line 1"),
        ("downloads = 3", "downloads in tidegate.toml"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(
    toml: str, words: str, clean_place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (clean_place / "tidegate.toml").write_text(toml + "\n")
    assert words in said(capsys)


def test_a_file_that_cannot_be_read_is_named(
    clean_place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "absent.toml: the settings cannot be read: No such file" in said(
        capsys, "--config", "absent.toml"
    )
    assert "cannot be read: Is a directory" in said(capsys, "--config", str(clean_place))
    (clean_place / "binary.toml").write_bytes(b"\xff\xfe")
    assert "binary.toml: not a TOML file" in said(capsys, "--config", "binary.toml")


def test_nothing_in_a_message_steers_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--a\\x1b[2J b" in said(capsys, "--a\x1b[2J\nb")
