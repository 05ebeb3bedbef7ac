"""The sockets that a server listens on, and why it can't."""

from __future__ import annotations

import errno
import os
import socket
import ssl
import stat
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final

from tidegate.cli.errors import Failure
from tidegate.config.parsers import MAIN

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tidegate.config import Config

UNIX_PATH_BYTES: Final = 107
"""What `sun_path` holds on Linux, with the zero at its end."""
NO_ADDRESS: Final = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
ANYONE: Final = 0o666
"""Whoever may reach the folder may connect, as any program may connect to a port of this machine."""


@contextmanager
def listening(config: Config) -> Iterator[list[socket.socket]]:
    """Bound sockets; closed, and a unix socket removed, at the end. Raises Failure."""
    if config.unix_socket is not None:
        with _unix(config.unix_socket) as bound:
            yield [bound]
        return
    with ExitStack() as stack:
        yield _tcp(config.host, config.port, stack)


@contextmanager
def listening_for_metrics(place: str | None) -> Iterator[list[socket.socket]]:
    """The same for metrics, where they have a place of their own. Raises Failure."""
    with ExitStack() as stack:
        if place is None or place == MAIN:
            yield []
            return
        host, _, port = place.rpartition(":")
        yield _tcp(host.strip("[]"), int(port), stack, flag="--metrics-listen")


def accept(bound: Sequence[socket.socket], backlog: int) -> None:
    """Let clients connect. Raises Failure where another program was quicker.

    uvloop would keep the error to itself, and serve nobody.
    """
    for each in bound:
        try:
            each.listen(backlog)
        except OSError as error:
            place = each.getsockname()
            raise _refused(place if isinstance(place, tuple) else (place, 0), error) from error


def address(config: Config, bound: Sequence[socket.socket]) -> str:
    """Where clients find the server: a URL, or `unix:` and a path."""
    if config.unix_socket is not None:
        return f"unix:{config.unix_socket}"
    scheme = "https" if config.tls_cert else "http"
    host = f"[{config.host}]" if ":" in config.host else config.host
    return f"{scheme}://{host}:{bound[0].getsockname()[1]}{config.base_path}"


def metrics_address(bound: Sequence[socket.socket]) -> str:
    """Where Prometheus finds the metrics."""
    host, port = bound[0].getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/metrics"


def tls_context(config: Config) -> ssl.SSLContext | None:
    """The certificate and key, read. Raises Failure."""
    if config.tls_cert is None or config.tls_key is None:
        return None
    for path in (config.tls_cert, config.tls_key):
        try:
            with open(path, "rb"):
                pass
        except OSError as error:
            raise Failure(f"{path}: cannot be read: {_why(error)}") from error

    def no_password() -> str:
        raise Failure(f"{config.tls_key}: the key has a password; expected one without")

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(config.tls_cert, config.tls_key, password=no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            why = "the key is not the one of the certificate"
        else:
            why = "expected a certificate chain and its private key, both PEM"
        raise Failure(f"{config.tls_cert}, {config.tls_key}: {why}") from error
    return context


# -------------------------------------------------------------------------------------- TCP


def _tcp(host: str, port: int, stack: ExitStack, *, flag: str = "--host") -> list[socket.socket]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError):
        raise Failure(
            f"{flag} {host}: no address of that name: expected an address of this machine,"
            " like 127.0.0.1, 0.0.0.0 or localhost"
        ) from None
    # A name may have an address per family, and may have one of them twice.
    places = dict.fromkeys((family, place) for family, _, _, _, place in found)
    bound: list[socket.socket] = []
    absent: Failure | None = None
    for family, (address, _, *scope) in places:
        # All of them on one port, also when the first got any that was free.
        place = (address, bound[0].getsockname()[1] if bound else port, *scope)
        try:
            bound.append(_bind(family, place, stack, alone=len(places) == 1))
        except OSError as error:
            refused = _refused(place, error)
            if error.errno not in NO_ADDRESS:
                raise refused from error
            # localhost is ::1, too, where there is no IPv6.
            absent = absent or refused
    if absent and not bound:
        raise absent
    return bound


def _bind(
    family: socket.AddressFamily, place: tuple[Any, ...], stack: ExitStack, *, alone: bool
) -> socket.socket:
    bound = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
    # A restart must not wait for the connections of its predecessor to be forgotten.
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        # `::` alone means every address of this machine, the old ones too.
        bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(not alone))
    bound.bind(place)
    return bound


def _refused(place: tuple[Any, ...], error: OSError) -> Failure:
    host, port = place[:2]
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if error.errno in NO_ADDRESS:
        return Failure(
            f"{shown} is not an address of this machine: expected one that is, or 0.0.0.0 for all"
        )
    match error.errno:
        case errno.EADDRINUSE:
            return Failure(
                f"{shown} is in use by another program: stop it, or choose another --port"
                " (0: any that is free)"
            )
        case errno.EACCES | errno.EPERM:
            return Failure(
                f"{shown}: port {port} is for privileged users: choose a --port from 1024 on"
            )
        case _:
            return Failure(f"{shown}: cannot listen: {_why(error)}")


# ------------------------------------------------------------------------------- unix sockets


@contextmanager
def _unix(path: str) -> Iterator[socket.socket]:
    if len(os.fsencode(path)) > UNIX_PATH_BYTES:
        raise Failure(
            f"--unix-socket {path}: longer than {UNIX_PATH_BYTES} bytes, which is what the system"
            " allows: choose a shorter path"
        )
    _remove_stale(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as bound:
        try:
            bound.bind(path)
        except FileNotFoundError:
            raise Failure(f"--unix-socket {path}: its folder does not exist") from None
        except OSError as error:
            raise Failure(f"--unix-socket {path}: cannot listen: {_why(error)}") from error
        ours = os.stat(path)
        try:
            os.chmod(path, ANYONE)
            yield bound
        finally:
            _remove_ours(path, ours)


def _remove_stale(path: str) -> None:
    """Remove what a server left that was killed. Raises Failure when it is anything else."""
    try:
        found = os.lstat(path)
    except OSError:
        return  # nothing is there, or nothing can be: bind says which
    if not stat.S_ISSOCK(found.st_mode):
        raise Failure(
            f"--unix-socket {path}: is a file or folder: expected a path that is free"
        ) from None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        # Not to wait for one that is alive and whose backlog is full.
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            pass
        except FileNotFoundError:
            return
        except BlockingIOError:
            raise _in_use(path) from None
        except OSError as error:
            raise Failure(f"--unix-socket {path}: cannot be tried: {_why(error)}") from error
        else:
            raise _in_use(path)
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise Failure(
            f"--unix-socket {path}: left by another server, and cannot be removed: {_why(error)}"
        ) from error


def _in_use(path: str) -> Failure:
    return Failure(
        f"--unix-socket {path} is in use by another server: stop it, or choose another path"
    )


def _remove_ours(path: str, ours: os.stat_result) -> None:
    """Remove the socket, if nobody put another one in its place."""
    try:
        found = os.lstat(path)
        if (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino):
            os.unlink(path)
    except OSError:
        pass  # gone already, or its folder is: nothing is left behind


def _why(error: OSError) -> str:
    return error.strerror or str(error)
