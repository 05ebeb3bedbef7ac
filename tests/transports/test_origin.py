"""What a trusted proxy tells of the request it got, and that nobody else is listened to."""

from __future__ import annotations

import pytest

from tidegate.transports.origin import Origin, Proxies

PEER = "10.1.2.3"


def origin(
    trusted: str = "", peer: str | None = PEER, scheme: str = "http", **headers: str
) -> Origin:
    pairs = [
        (name.replace("_", "-").encode(), part.encode("latin-1"))
        for name, value in ({"host": "inner:1080"} | headers).items()
        for part in value.split("\n")
    ]
    return Proxies(trusted.split()).origin(scheme, peer, pairs)


def test_without_a_proxy_the_request_speaks_for_itself() -> None:
    assert origin() == Origin("http", "inner:1080", PEER)
    assert origin(scheme="https") == Origin("https", "inner:1080", PEER)
    assert origin(peer=None) == Origin("http", "inner:1080", None)


@pytest.mark.parametrize("trusted", ["", "10.1.2.4", "10.2.0.0/16", "::1", "127.0.0.1"])
@pytest.mark.parametrize("peer", [PEER, "testclient", "11.0.0.1"])
def test_a_peer_that_is_not_trusted_is_not_listened_to(trusted: str, peer: str | None) -> None:
    found = origin(
        trusted,
        peer,
        forwarded="proto=https;host=evil;for=1.1.1.1",
        x_forwarded_proto="https",
        x_forwarded_host="evil",
        x_forwarded_for="1.1.1.1",
    )
    assert found == Origin("http", "inner:1080", peer)


@pytest.mark.parametrize(
    ("trusted", "peer"),
    [
        ("10.1.2.3", PEER),
        ("10.0.0.0/8", PEER),
        ("10.9.9.9/8", PEER),
        ("*", PEER),
        ("*", None),
        ("10.0.0.0/8", None),
        ("*", "testclient"),
        ("192.168.0.1 10.0.0.0/8", PEER),
        ("fd00::/8", "fd00::1"),
        ("10.0.0.0/8", "::ffff:10.1.2.3"),
        ("fe80::/10", "fe80::1%eth0"),
    ],
)
def test_a_trusted_peer(trusted: str, peer: str | None) -> None:
    found = origin(
        trusted,
        peer,
        x_forwarded_proto="https",
        x_forwarded_host="files.test",
        x_forwarded_for="9.9.9.9",
    )
    assert found == Origin("https", "files.test", "9.9.9.9")
    found = origin(trusted, peer, forwarded='for=9.9.9.9;proto=HTTPS;host="files.test:444"')
    assert found == Origin("https", "files.test:444", "9.9.9.9")


def test_a_unix_socket_is_trusted_where_any_proxy_is() -> None:
    assert origin("", None, x_forwarded_host="evil").host == "inner:1080"
    assert origin("10.0.0.0/8", None, x_forwarded_host="files.test").host == "files.test"


def test_forwarded_goes_before_the_older_fields() -> None:
    found = origin(
        "*", forwarded="host=new;proto=https", x_forwarded_host="old", x_forwarded_proto="http"
    )
    assert (found.scheme, found.host) == ("https", "new")


def test_what_a_client_prepends_is_not_believed() -> None:
    """Our peer adds on the right; what stands left of an address that is not ours is hearsay."""
    found = origin(PEER, forwarded="for=6.6.6.6;host=evil, for=9.9.9.9;host=files.test;proto=https")
    assert found == Origin("https", "files.test", "9.9.9.9")
    found = origin(PEER, x_forwarded_for="6.6.6.6, 9.9.9.9", x_forwarded_host="evil, files.test")
    assert (found.host, found.client) == ("files.test", "9.9.9.9")
    found = origin(PEER, x_forwarded_host="evil\nfiles.test")
    assert found.host == "files.test"


def test_a_chain_of_trusted_proxies_is_followed() -> None:
    found = origin(
        "10.0.0.0/8",
        forwarded='for=9.9.9.9;host=files.test;proto=https, for="10.0.0.7:3030";proto=http',
    )
    assert found == Origin("https", "files.test", "9.9.9.9")


@pytest.mark.parametrize(
    ("node", "client"),
    [
        ("1.2.3.4", "1.2.3.4"),
        ('"1.2.3.4:80"', "1.2.3.4"),
        ('"[2001:db8::1]:80"', "2001:db8::1"),
        ('"[2001:db8::1]"', "2001:db8::1"),
        ("_hidden", "_hidden"),
        ('""', PEER),
    ],
)
def test_the_forms_of_an_address(node: str, client: str) -> None:
    assert origin("*", forwarded=f"for={node}").client == client


@pytest.mark.parametrize("address", ["2001:db8::1", "[2001:db8::1]:80"])
def test_x_forwarded_for_of_ipv6(address: str) -> None:
    assert origin("*", x_forwarded_for=address).client == "2001:db8::1"


@pytest.mark.parametrize(
    "host",
    [
        *("", " ", "a b", "a/b", "user@host", "a:b", "a:123456", "[::1", "::1", "a\\b", 'a"b'),
        *("a\tb", "h\xf6st", "a,b", "a?b", "a#b", "<script>", "[::1]x", "a;b"),
    ],
)
def test_what_is_not_the_name_of_a_host_is_none(host: str) -> None:
    assert origin(host=host).host is None
    assert origin("*", x_forwarded_host=host).host in (None, "inner:1080", "b")


@pytest.mark.parametrize("host", ["a", "a.b-c", "1.2.3.4:80", "[::1]", "[fe80::1]:8", "a_b"])
def test_names_of_hosts(host: str) -> None:
    assert origin(host=host).host == host


@pytest.mark.parametrize("scheme", ["ftp", "javascript", "", "https://x", "ht tp"])
def test_a_scheme_is_http_or_https(scheme: str) -> None:
    assert origin("*", x_forwarded_proto=scheme).scheme == "http"
    assert origin("*", forwarded=f'proto="{scheme}"').scheme == "http"


@pytest.mark.parametrize(
    "value",
    ["", ";", ",", "=", "for", "for=", ";;;,,,=", 'host="a', "host=a=b", "\xff=\xff", "a" * 9999],
)
def test_a_malformed_forwarded_is_no_error(value: str) -> None:
    found = origin("*", forwarded=value)
    assert found.scheme == "http"
    assert found.client in (PEER, "")


def test_what_is_wrong_with_the_addresses_is_said_at_once() -> None:
    for name in ("localhost", "10.0.0.0/99", "a b", ""):
        with pytest.raises(ValueError):
            Proxies([name])
