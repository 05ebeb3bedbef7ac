"""How settings are written, and what is said of those that are written wrongly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tidegate.config import Config, ConfigError, parsers
from tidegate.ports import Durability
from tidegate.stores.naming import Template

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1024", 1024),
        ("1b", 1),
        ("10GiB", 10 * 2**30),
        ("10gib", 10 * 2**30),
        ("10 GB", 10 * 10**9),
        ("500MB", 500 * 10**6),
        ("1.5KiB", 1536),
        ("2TB", 2 * 10**12),
        (" 3kb ", 3000),
        ("9007199254740993", 9007199254740993),  # more than a float holds
        ("unlimited", None),
    ],
)
def test_sizes(text: str, size: int | None) -> None:
    assert parsers.parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("10G", "10GB or 10GiB"),
        ("big", "expected bytes, or a number with KB"),
        ("-1", "expected bytes"),
        ("1e9", "expected bytes"),
        ("٣KB", "expected bytes"),
        ("", "expected bytes"),
        ("0", "for no limit say unlimited"),
        ("0.1", "for no limit say unlimited"),
    ],
)
def test_wrong_sizes(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parsers.parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("0.5", 0.5),
        ("15m", 900),
        ("24h", 86_400),
        ("7d", 604_800),
        ("2W", 1_209_600),
        ("never", None),
    ],
)
def test_durations(text: str, seconds: float | None) -> None:
    assert parsers.parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1y", "90s, 15m, 24h, 7d"),
        ("1h30m", "expected seconds"),
        ("soon", "or never"),
        ("-1", "expected seconds"),
        ("0", "more than 0"),
        ("99999999d", "at most 36500d"),
    ],
)
def test_wrong_durations(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parsers.parse_duration(text)


@pytest.mark.parametrize(
    ("text", "path"),
    [("/files/", "/files/"), ("files", "/files/"), ("/a/b", "/a/b/"), ("/", "/"), ("", "/")],
)
def test_base_paths_start_and_end_with_a_slash(text: str, path: str) -> None:
    assert parsers.parse_base_path(text) == path


def test_ports_urls_proxies_and_origins_as_they_are_meant() -> None:
    assert parsers.parse_port("0") == 0
    assert parsers.parse_public_url("https://example.org/up/") == "https://example.org/up"
    assert parsers.parse_public_url("http://[::1]:8080") == "http://[::1]:8080"
    for proxy in ("*", "10.0.0.5", "10.0.0.0/8", "10.1.2.3/8", "::1", "fd00::/8"):
        assert parsers.parse_proxy(proxy) == proxy
    assert parsers.parse_origin("*") == "*"
    assert parsers.parse_origin("https://Example.org:8443") == "https://example.org:8443"
    assert parsers.parse_origin("http://[::1]:80") == "http://[::1]:80"
    assert parsers.parse_origin("app-x://localhost") == "app-x://localhost"


@pytest.mark.parametrize(
    ("parse", "text", "said"),
    [
        (parsers.parse_port, "65536", "from 0 to 65535"),
        (parsers.parse_port, "http", "from 0 to 65535"),
        (parsers.parse_port, "-1", "from 0 to 65535"),
        (parsers.parse_port, "²", "from 0 to 65535"),
        (parsers.parse_port, "tcp://10.0.0.1:1080", "Kubernetes"),
        (parsers.parse_base_path, "/a?b", "like /files/"),
        (parsers.parse_base_path, "/a b", "like /files/"),
        (parsers.parse_base_path, "/a//b", "like /files/"),
        (parsers.parse_base_path, "/a/../b", "like /files/"),
        (parsers.parse_public_url, "example.org", "http:// or https://"),
        (parsers.parse_public_url, "ftp://example.org", "http:// or https://"),
        (parsers.parse_public_url, "https://", "a host"),
        (parsers.parse_public_url, "https://example.org/?a", "a host"),
        (parsers.parse_public_url, "https://user:pw@example.org", "a host"),
        (parsers.parse_public_url, "https://example.org:port", "perhaps a port"),
        (parsers.parse_public_url, "https://example.org/\n", "a host"),
        (parsers.parse_proxy, "nginx", "10.0.0.0/8"),
        (parsers.parse_proxy, "10.0.0.0/33", "10.0.0.0/8"),
        (parsers.parse_origin, "example.org", "https://example.org"),
        (parsers.parse_origin, "https://*.example.org", "scheme://host"),
        (parsers.parse_origin, "https://a.org:x", "scheme://host"),
        (parsers.parse_origin, "https://user@a.org", "scheme://host"),
        (
            parsers.parse_origin,
            "https://a.org/path",
            "expected https://a.org, without a path",
        ),
        (parsers.parse_origin, "https://a.org/", "expected https://a.org, without a path"),
        (parsers.parse_extension, "termiation", "termination"),
        (parsers.parse_durability, "full", "complete, ack, none"),
        (parsers.parse_template, "{name}", "the fields are"),
    ],
)
def test_what_is_wrong_is_said_with_what_is_right(
    parse: Callable[[str], object], text: str, said: str
) -> None:
    with pytest.raises(ValueError) as caught:
        parse(text)
    assert said in str(caught.value)


def test_lists_take_commas_spaces_and_several_texts() -> None:
    parse = parsers.parse_items(parsers.parse_proxy)
    assert parse(["10.0.0.1, 10.0.0.2", "::1"]) == ("10.0.0.1", "10.0.0.2", "::1")
    assert parse(["none"]) == ()
    assert parse([""]) == ()


def test_defaults_are_what_they_are_said_to_be() -> None:
    default = Config()
    assert (default.host, default.port, default.base_path) == ("127.0.0.1", 1080, "/files/")
    assert default.metadata_url.endswith("/tidegate-data/tidegate.db")
    assert default.max_size is None
    assert default.expire_after == parsers.parse_duration("7d")
    assert default.shutdown_timeout == parsers.parse_duration("7s")
    assert default.durability is Durability.COMPLETE
    assert parsers.parse_base_path(default.base_path) == default.base_path
    assert Template(default.file_name).text == default.file_name


@pytest.mark.parametrize(
    "text",
    [
        "token:tokens.txt",
        "token:env:TOKENS",
        "jwt:/etc/key.pem",
        "jwt:https://id.test/keys?x=y",
        "forward:http://127.0.0.1:9000/auth?for=tus",
    ],
)
def test_who_says_who_it_is(text: str) -> None:
    assert parsers.parse_auth(text) == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("token", "expected token:FILE"),
        ("token:", "expected token:FILE"),
        ("tokens:a", "expected token:FILE"),
        ("", "expected token:FILE"),
        ("forward:auth.test", "expected http:// or https://"),
        ("forward:ftp://auth.test", "expected http:// or https://"),
        ("jwt:https://", "expected http:// or https://"),
        ("jwt:https://user:secret@id.test/", "expected http:// or https://"),
    ],
)
def test_who_can_not_say_it(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parsers.parse_auth(text)


def test_names_of_headers() -> None:
    assert parsers.parse_header("X-User_1") == "X-User_1"
    for text in ("", "a b", "é", "a:"):
        with pytest.raises(ValueError, match="not the name of a header"):
            parsers.parse_header(text)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tls_cert": "c"}, "--tls-cert needs --tls-key"),
        ({"tls_key": "k"}, "--tls-key needs --tls-cert"),
        ({"unix_socket": "s", "port": 1081}, "--unix-socket and --host or --port"),
        ({"unix_socket": "s", "host": "::1"}, "--unix-socket and --host or --port"),
        ({"unix_socket": "s", "tls_cert": "c", "tls_key": "k"}, "--unix-socket and --tls-cert"),
        ({"metadata": "memory:"}, "--data and --metadata: records in memory:"),
        ({"jwt_issuer": "us"}, "--jwt-issuer needs --auth jwt:"),
        ({"auth": "forward:http://a", "jwt_require": ("x",)}, "--jwt-require needs --auth jwt:"),
        ({"auth": "token:a", "forward_send": ()}, "--forward-send needs --auth forward:"),
        ({"auth_timeout": 1.0}, "--auth-timeout needs --auth"),
        ({"data": "memory:", "metadata": "a.db"}, "--data and --metadata: bytes in memory:"),
    ],
)
def test_settings_that_do_not_fit_together(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Config(**settings)  # type: ignore[arg-type]


def test_settings_that_do_fit_together() -> None:
    assert Config(data="memory:").metadata_url == "memory:"
    assert Config(metadata="sqlite:///x.db").metadata_url == "sqlite:///x.db"
    assert Config(tls_cert="c", tls_key="k").tls_key == "k"
    assert Config(unix_socket="s").unix_socket == "s"
    assert Config(auth="jwt:key", jwt_issuer="us", auth_timeout=None).auth == "jwt:key"
    assert Config(auth="forward:http://a", forward_send=("X",)).forward_send == ("X",)
