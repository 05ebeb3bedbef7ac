"""Sockets: which are bound, and what is said of those that can't be."""

from __future__ import annotations

import errno
import os
import socket
import stat
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tidegate.cli import listen
from tidegate.cli.errors import Failure
from tidegate.config import Config


def port_of(bound: socket.socket) -> int:
    port: int = bound.getsockname()[1]
    return port


def test_a_free_port_is_found_and_told() -> None:
    config = Config(port=0)
    with listen.listening(config) as [bound]:
        assert listen.address(config, [bound]) == f"http://127.0.0.1:{port_of(bound)}/files/"
    assert bound.fileno() == -1


def test_all_addresses_of_a_name_get_one_port(monkeypatch: pytest.MonkeyPatch) -> None:
    def two(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        families = {"127.0.0.1": (host, port), "127.0.0.2": ("127.0.0.2", port)}
        places = [(name, port) for name in families] + [("127.0.0.1", port)]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", place) for place in places]

    monkeypatch.setattr(socket, "getaddrinfo", two)
    with listen.listening(Config(host="several", port=0)) as bound:
        assert [sock.getsockname()[0] for sock in bound] == ["127.0.0.1", "127.0.0.2"]
        assert len({port_of(sock) for sock in bound}) == 1


def test_an_address_that_is_not_there_is_passed_over_when_another_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """localhost is ::1, too, also on a machine without IPv6."""
    places = [("192.0.2.1", 0), ("127.0.0.1", 0)]
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda *_, **__: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", place) for place in places],
    )
    with listen.listening(Config(host="several", port=0)) as bound:
        assert [sock.getsockname()[0] for sock in bound] == ["127.0.0.1"]
    places.pop()
    with (
        pytest.raises(Failure, match="not an address of this machine"),
        listen.listening(Config(host="several", port=0)),
    ):
        pass


def test_urls_of_ipv6_and_https() -> None:
    with closing(socket.socket(socket.AF_INET)) as bound:
        bound.bind(("127.0.0.1", 0))
        config = Config(host="::1", tls_cert="c", tls_key="k", base_path="/")
        assert listen.address(config, [bound]) == f"https://[::1]:{port_of(bound)}/"


@pytest.mark.parametrize("host", ["nosuch.invalid", "", "a" * 70])
def test_a_name_without_address(host: str) -> None:
    with (
        pytest.raises(Failure, match=r"--host .*: expected an address of this machine"),
        listen.listening(Config(host=host, port=0)),
    ):
        pass


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EADDRINUSE, "127.0.0.1:80 is in use by another program: stop it, or choose another"),
        (errno.EACCES, "port 80 is for privileged users: choose a --port from 1024 on"),
        (errno.EADDRNOTAVAIL, "127.0.0.1:80 is not an address of this machine"),
        (errno.ENOBUFS, "127.0.0.1:80: cannot listen: No buffer space available"),
    ],
)
def test_why_an_address_is_refused(number: int, words: str) -> None:
    refused = listen._refused(("127.0.0.1", 80), OSError(number, os.strerror(number)))
    assert words in str(refused)
    assert "[::1]:80" in str(listen._refused(("::1", 80, 0, 0), OSError(number, "")))


# ------------------------------------------------------------------------------- unix sockets


def bind_unix(path: str, stack: ExitStack) -> socket.socket:
    bound = stack.enter_context(socket.socket(socket.AF_UNIX))
    bound.bind(path)
    return bound


def test_a_unix_socket_is_for_everyone_who_reaches_it_and_goes_with_its_server(
    clean_place: Path,
) -> None:
    config = Config(unix_socket="gate")
    with listen.listening(config) as bound:
        assert listen.address(config, bound) == "unix:gate"
        assert stat.S_IMODE(os.stat("gate").st_mode) == 0o666
    assert not os.path.lexists("gate")


def test_a_stale_unix_socket_is_replaced(clean_place: Path) -> None:
    with ExitStack() as stack:
        bind_unix("gate", stack)
    with listen.listening(Config(unix_socket="gate")) as [bound]:
        bound.listen()
        with closing(socket.socket(socket.AF_UNIX)) as client:
            client.connect("gate")


@pytest.mark.parametrize("backlog", [8, 0])
def test_a_unix_socket_that_is_alive_is_left_alone(backlog: int, clean_place: Path) -> None:
    with ExitStack() as stack:
        bind_unix("gate", stack).listen(backlog)
        if not backlog:  # one that is too busy to answer is alive, too
            for _ in range(2):
                client = stack.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                try:
                    client.connect("gate")
                except BlockingIOError:
                    break
        with (
            pytest.raises(Failure, match="gate is in use by another server"),
            listen.listening(Config(unix_socket="gate")),
        ):
            pass
        assert os.path.lexists("gate")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("file", "is a file or folder"),
        (".", "is a file or folder"),
        ("no/gate", "its folder does not exist"),
        ("file/gate", "cannot listen: Not a directory"),
        ("g" * 200, "longer than 107 bytes"),
    ],
)
def test_where_no_unix_socket_can_be(path: str, words: str, clean_place: Path) -> None:
    Path("file").write_text("keep me")
    with pytest.raises(Failure, match=words), listen.listening(Config(unix_socket=path)):
        pass
    assert Path("file").read_text() == "keep me"


def test_a_socket_that_another_server_put_there_is_not_removed(clean_place: Path) -> None:
    with ExitStack() as stack:
        with listen.listening(Config(unix_socket="gate")):
            # Kept under another name, so that the new one can't get its inode.
            os.rename("gate", "moved")
            bind_unix("gate", stack)
        assert os.path.lexists("gate")


# ---------------------------------------------------------------------------------------- TLS


def test_without_certificate_there_is_no_tls() -> None:
    assert listen.tls_context(Config()) is None
