"""The proxies of `deploy/`: started with the very files that stand there, but for ports and names."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

import pytest
from tests.interop.drivers import BUILD

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DEPLOY = Path(__file__).parents[2] / "deploy"
UNPACKED = BUILD / "proxies"
PATIENCE = 20.0
"""Seconds after which a proxy will not start or stop any more."""


class Kind(NamedTuple):
    """A proxy, and what it does that others do not."""

    name: str
    snippet: str
    trailers: bool
    """Whether the trailer of a request goes on to the server."""
    asks: bool | None
    """Whether it says `100 Continue` itself, before the server has made up its mind; None: it does,
    when it is quicker than the server's answer."""


NGINX = Kind("nginx", "nginx/tidegate.conf", trailers=False, asks=True)
CADDY = Kind("caddy", "caddy/Caddyfile", trailers=False, asks=None)
HAPROXY = Kind("haproxy", "haproxy/haproxy.cfg", trailers=True, asks=False)
KINDS = (NGINX, CADDY, HAPROXY)


def program(name: str) -> str:
    """Where a proxy's program is: installed, or unpacked by tests/interop/setup."""
    for folder in ("usr/sbin", "usr/bin"):
        if os.access(UNPACKED / folder / name, os.X_OK):
            return str(UNPACKED / folder / name)
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if found is None:
        pytest.skip(f"{name} is not installed: run tests/interop/setup")
    return found


class Proxy:
    """One proxy in front of servers on loopback, with a folder of its own.

    It listens twice: on `port` with plain HTTP, and on `tls_port` with the certificate in `pem`.
    """

    def __init__(self, kind: Kind, folder: Path, servers: Sequence[int], pem: Path) -> None:
        self.kind = kind
        self.port, self.tls_port = _free_ports(2)
        self._folder = folder
        self._program = program(kind.name)
        self._log = folder / "proxy.log"
        self._process: subprocess.Popen[bytes] | None = None
        build = {"nginx": self._nginx, "caddy": self._caddy, "haproxy": self._haproxy}[kind.name]
        self._command, self._check = build(_at(kind, servers), pem)

    def __enter__(self) -> Self:
        said = self._run(self._check)
        assert "warn" not in said.lower(), said
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._env(),
                cwd=self._folder,
                start_new_session=True,
            )
        try:
            wait_until(lambda: _listens(self.port) and _listens(self.tls_port), self.tail)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        process = self._process
        if process is None:
            return
        try:
            process.terminate()
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            pass
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()

    def connect(self, *, tls: bool = False) -> socket.socket:
        """A connection to it, whose calls end after PATIENCE seconds."""
        port = self.tls_port if tls else self.port
        plain = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        if not tls:
            return plain
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context.wrap_socket(plain, server_hostname="localhost")

    def tail(self) -> str:
        """What it said."""
        logs = [self._log, self._folder / "error.log"]
        return "\n".join(log.read_text(errors="replace")[-4000:] for log in logs if log.exists())

    def _env(self) -> dict[str, str]:
        home = {"HOME": str(self._folder), "XDG_DATA_HOME": str(self._folder)}
        if not self._program.startswith(str(UNPACKED)):
            return {**os.environ, **home}
        libraries = ":".join(str(found) for found in sorted(UNPACKED.glob("usr/lib/*-linux-gnu*")))
        return {**os.environ, **home, "LD_LIBRARY_PATH": libraries}

    def _run(self, command: Sequence[str]) -> str:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
            env=self._env(),
            cwd=self._folder,
        )
        said = done.stdout + done.stderr
        assert done.returncode == 0, said
        return "" if self.kind is CADDY else said  # which says that it has no formatter at hand

    # ------------------------------------------------------------ one by one

    def _nginx(self, snippet: str, pem: Path) -> tuple[list[str], list[str]]:
        listen = (
            f"listen 127.0.0.1:{self.port}; listen 127.0.0.1:{self.tls_port} ssl;"
            f" ssl_certificate {pem}; ssl_certificate_key {pem};"
        )
        (self._folder / "tidegate.conf").write_text(_once(snippet, "listen 80;", listen))
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        temporary = " ".join(f"{kind}_temp_path {self._folder}/{kind};" for kind in kinds)
        main = self._folder / "nginx.conf"
        main.write_text(
            f"daemon off; worker_processes 2; pid {self._folder}/pid;"
            f" error_log {self._folder}/error.log; events {{ }}"
            f" http {{ access_log off; {temporary} include {self._folder}/tidegate.conf; }}"
        )
        command = [self._program, "-p", str(self._folder), "-c", str(main)]
        # Before it has read where its log is, it tries the one of the whole machine.
        command += ["-e", f"{self._folder}/error.log"]
        return command, [*command, "-t", "-q"]

    def _caddy(self, snippet: str, pem: Path) -> tuple[list[str], list[str]]:
        # One site can't be both, so both have the same in them.
        text = _once(snippet, "http://:80 {", "(site) {")
        text += f"http://:{self.port} {{\n\tbind 127.0.0.1\n\timport site\n}}\n"
        text += f"https://:{self.tls_port} {{\n\tbind 127.0.0.1\n\ttls {pem} {pem}\n"
        text += "\timport site\n}\n"
        options = (
            f"{{\n\tadmin off\n\tauto_https disable_redirects\n\tstorage file_system {self._folder}"
        )
        text = text.replace("\n{\n", f"\n{options}\n", 1)
        config = self._folder / "Caddyfile"
        config.write_text(text)
        flags = ["--config", str(config), "--adapter", "caddyfile"]
        return [self._program, "run", *flags], [self._program, "validate", *flags]

    def _haproxy(self, snippet: str, pem: Path) -> tuple[list[str], list[str]]:
        bind = f"bind 127.0.0.1:{self.port}\n    bind 127.0.0.1:{self.tls_port} ssl crt {pem}"
        config = self._folder / "haproxy.cfg"
        config.write_text(_once(snippet, "bind :80", bind))
        command = [self._program, "-db", "-f", str(config)]
        return command, [self._program, "-c", "-f", str(config)]


def _at(kind: Kind, servers: Sequence[int]) -> str:
    """The file of a proxy, for servers at these ports of this machine."""
    text = (DEPLOY / kind.snippet).read_text()
    ports = dict(zip(("1", "2", "3"), servers, strict=True))
    replaced, count = re.subn(
        r"tidegate-([123]):1080", lambda match: f"127.0.0.1:{ports[match[1]]}", text
    )
    assert count == len(ports), text
    return replaced


def _once(text: str, old: str, new: str) -> str:
    lines = [line for line in text.splitlines() if line.strip() == old]
    assert len(lines) == 1, f"{old!r} is there {len(lines)} times"
    return text.replace(f"\n{lines[0]}\n", f"\n{lines[0].replace(old, new)}\n")


def _free_ports(count: int) -> list[int]:
    """Ports that nobody has; the kernel gives others to whoever asks for any."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def wait_until(
    happened: Callable[[], bool], otherwise: Callable[[], str], within: float = PATIENCE
) -> None:
    """Wait for a condition, asking again and again."""
    end = time.monotonic() + within
    while not happened():
        assert time.monotonic() < end, otherwise()
        time.sleep(0.02)
