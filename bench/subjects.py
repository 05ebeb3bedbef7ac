"""What is measured: tidegate in its variants, its peers, and the bounds.

All of them are told not to log every request (tusd can't be: its lines go nowhere), and otherwise
run with their defaults.
A subject that is not there says why; that is no failure.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.process import BenchError, Command, Server, free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parent
PEERS: Final = HERE / ".peers"
RUSTUS_LARGEST: Final = 2 << 30
ADVICE: Final = "run bench/setup"

BOUNDS: Final = ("copy", "splice", "sha1", "sha256", "crc32c")
NAMES: Final = ("tusd", "rustus", "node", "python", "nginx")


@dataclass(frozen=True)
class Subject:
    """Something that can be measured.

    Args:
        name: as the tables have it.
        kind: tidegate, raw, peer or nginx.
        version: what it is, and with how many processes or threads it works.
        start: the command to serve the folder.
        absent: why it can't be measured; empty when it can.
        traits: of a variant of tidegate: transport, workers, durability.
    """

    name: str
    kind: str
    version: str
    start: Callable[[Path], Command]
    absent: str = ""
    traits: dict[str, str] = field(default_factory=dict)

    def serve(self, folder: Path) -> Server:
        """A server, not yet started, that keeps its data in `folder`, made for it."""
        if self.absent:
            raise BenchError(f"{self.name}: {self.absent}")
        folder.mkdir(parents=True)
        log = folder.with_name(f"{folder.name}.log")
        return Server(self.name, self.start(folder), log)


def said(*command: str) -> str:
    """The output of a command; empty when it fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=True, cwd=ROOT
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return (done.stdout or done.stderr).strip()


# ------------------------------------------------------------------------------------------ tidegate


@dataclass(frozen=True)
class Tidegate:
    """A command that is tidegate: of this checkout, or of another one."""

    argv: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Tidegate:
        """From a command line; the default is what this Python imports."""
        return cls(tuple(shlex.split(text)) or (sys.executable, "-m", "tidegate"))

    @property
    def python(self) -> tuple[str, ...]:
        """The Python that runs it, and so knows its metadata store."""
        if "-m" in self.argv:
            return self.argv[: self.argv.index("-m")]
        script = shutil.which(self.argv[0]) or self.argv[0]
        return (str(Path(script).resolve().parent / "python"),)

    def transports(self) -> tuple[str, ...]:
        """What `--transport` offers, its default first; empty where there is no such flag."""
        text = said("env", "COLUMNS=200", *self.argv, "serve", "--help")
        found = re.search(r"--transport\b(.*)", text)
        if found is None:
            return ()
        default = found[1].rpartition("[")[2]
        names = [name for name in ("native", "asgi") if name in found[1]]
        return tuple(sorted(names, key=lambda name: not default.startswith(name)))

    def version(self) -> str:
        """Its version, and the commit when it runs from a checkout."""
        where = said(*self.python, "-c", "import tidegate; print(tidegate.__file__)")
        commit = said("git", "-C", str(Path(where).parent), "describe", "--always", "--dirty")
        return f"{said(*self.argv, '--version') or '?'} ({commit or 'no checkout'})"

    def variant(self, transport: str, workers: int, durability: str, version: str) -> Subject:
        """One way to run it."""
        flags = ["--workers", str(workers), "--durability", durability, "--log-level", "warning"]
        flags += ["--transport", transport] if transport else []

        def start(folder: Path) -> Command:
            argv = [*self.argv, "serve", "--port", "0", "--data", str(folder), *flags]
            return Command(argv, {}, cwd=folder)

        shown = [transport, f"{workers}w", durability]
        return Subject(
            name=f"tidegate {' '.join(word for word in shown if word)}",
            kind="tidegate",
            version=f"{version}, {workers} worker{'s' * (workers > 1)}",
            start=start,
            traits={"transport": transport, "workers": str(workers), "durability": durability},
        )


def tidegates(
    tidegate: Tidegate,
    transports: Sequence[str],
    workers: Sequence[int],
    durabilities: Sequence[str],
) -> list[Subject]:
    """All variants that were asked for; without `transports`, the server's default."""
    version = tidegate.version()
    offered = tidegate.transports()
    if unknown := set(transports) - set(offered):
        raise BenchError(f"tidegate offers no --transport {' or '.join(unknown)}")
    return [
        tidegate.variant(transport, count, durability, version)
        for transport in (transports or offered[:1] or ("",))
        for count in workers
        for durability in durabilities
    ]


# -------------------------------------------------------------------------------------------- bounds


def bound(mode: str) -> Subject:
    """A raw loop."""

    def start(folder: Path) -> Command:
        return Command([sys.executable, "-m", "bench.raw", mode, str(folder)], {}, cwd=ROOT)

    return Subject(f"raw {mode}", "raw", f"Python {sys.version.split()[0]}, 1 process", start)


# --------------------------------------------------------------------------------------------- peers


def peer(name: str) -> Subject:
    """A server of that name, if it is there."""
    return {
        "tusd": tusd,
        "rustus": rustus,
        "node": node,
        "python": python,
        "nginx": nginx,
    }[name]()


def _program(name: str, *places: Path) -> str:
    for place in places:
        if os.access(place, os.X_OK):
            return str(place)
    return shutil.which(name) or ""


def tusd() -> Subject:
    """The reference server, in Go; its file store, no hooks."""
    program = _program("tusd", PEERS / "bin" / "tusd")

    def start(folder: Path) -> Command:
        port = free_port()
        flags = f"-host 127.0.0.1 -port {port} -base-path /files/ -verbose=false".split()
        return Command([program, *flags, "-upload-dir", str(folder)], {}, port)

    found = re.search(r"Version:\s*(\S+)", said(program, "-version")) if program else None
    version = f"{found[1] if found else '?'}, GOMAXPROCS {os.cpu_count()}"
    return Subject("tusd", "peer", version, start, "" if program else ADVICE)


def rustus() -> Subject:
    """A server in Rust."""
    program = _program("rustus", PEERS / "bin" / "rustus")

    def start(folder: Path) -> Command:
        port = free_port()
        flags = f"--host 127.0.0.1 --port {port} --url /files --log-level ERROR".split()
        # Its default takes bodies of 256 KiB, for it holds each in memory.
        flags += ["--max-body-size", str(RUSTUS_LARGEST)]
        return Command(
            [program, *flags, "--data-dir", f"{folder}/data", "--info-dir", f"{folder}/info"],
            {},
            port,
        )

    version = said(program, "--version") if program else ""
    advice = "run bench/setup rustus"
    return Subject(
        "rustus", "peer", f"{version}, its default workers", start, "" if program else advice
    )


def node() -> Subject:
    """The server of the authors of the protocol, on Node."""
    script = PEERS / "node" / "server.mjs"
    program = shutil.which("node") or ""
    there = (PEERS / "node" / "node_modules").is_dir()

    def start(folder: Path) -> Command:
        port = free_port()
        return Command([program, str(script), str(port), str(folder), "2"], {}, port)

    version = f"Node {said(program, '--version')}, 2 processes" if program else ""
    if there:
        package = PEERS / "node" / "node_modules" / "@tus" / "server" / "package.json"
        version = f"@tus/server {json.loads(package.read_text())['version']}, {version}"
    return Subject("node", "peer", version, start, "" if program and there else ADVICE)


def python() -> Subject:
    """tuspyserver on uvicorn."""
    program = PEERS / "python" / "bin" / "python"

    def start(folder: Path) -> Command:
        port = free_port()
        flags = f"--host 127.0.0.1 --port {port} --workers 2 --log-level error --no-access-log"
        return Command(
            [str(program), "-m", "uvicorn", "python_server:app", *flags.split()],
            {"TUS_DIRECTORY": str(folder), "PYTHONPATH": str(HERE)},
            port,
        )

    names = ("tuspyserver", "uvicorn", "uvloop", "httptools")
    script = (
        f"import importlib.metadata as m; print(*[n+' '+m.version(n) for n in {names}], sep=', ')"
    )
    version = said(str(program), "-c", script)
    return Subject(
        "python", "peer", f"{version}, 2 workers", start, "" if program.exists() else ADVICE
    )


def nginx() -> Subject:
    """For downloads only: the files of a folder, by sendfile."""
    program = _program("nginx", PEERS / "nginx" / "usr" / "sbin" / "nginx", Path("/usr/sbin/nginx"))

    def start(folder: Path) -> Command:
        port = free_port()
        config = folder.with_name(f"{folder.name}.conf")
        temporary = "client_body proxy fastcgi uwsgi scgi".split()
        paths = "\n".join(f"    {name}_temp_path {folder}.tmp;" for name in temporary)
        user = "user root;" if os.geteuid() == 0 else ""
        config.write_text(f"""
daemon off; {user}
worker_processes 2;
pid {folder}.pid;
error_log stderr error;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    sendfile on; tcp_nopush on;
{paths}
    server {{ listen 127.0.0.1:{port}; location /files/ {{ alias {folder}/; }} }}
}}
""")
        flags = ["-e", "stderr", "-p", str(folder.parent), "-c", str(config)]
        return Command([program, *flags], {}, port)

    version = said(program, "-v").rpartition("/")[2] if program else ""
    return Subject("nginx", "nginx", f"{version}, 2 workers", start, "" if program else ADVICE)


def load_generator() -> Path | None:
    """The load generator, built anew if its source is newer; None where there is no Go."""
    program = PEERS / "load"
    source = HERE / "load" / "main.go"
    if program.exists() and program.stat().st_mtime >= source.stat().st_mtime:
        return program
    if shutil.which("go") is None:
        return None
    PEERS.mkdir(exist_ok=True)
    done = subprocess.run(
        ["go", "build", "-buildvcs=false", "-o", str(program), "."],
        cwd=source.parent,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode:
        raise BenchError(f"the load generator does not build:\n{done.stderr}")
    return program


def libraries() -> str:
    """The versions of what tidegate's speed depends on, in this environment."""
    names = ("uvicorn", "uvloop", "httptools")
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
