"""Runs the drivers: small programs around real clients, which take a case and tell a result.

A driver reads one line that says what to do, and writes one JSON value per line; the last has
`result`. A second line on its stdin aborts the upload half way.
"""

from __future__ import annotations

import importlib.util
import json
import queue
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Self

import pytest
from tests.interop.matrix import HERE, Client

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

BUILD = HERE / ".build"
ADVICE = "run tests/interop/setup"


@dataclass(frozen=True)
class Result:
    """What a client says came of its upload."""

    url: str | None
    error: str | None
    aborted: bool


def _needs(tool: str) -> str:
    found = shutil.which(tool)
    if found is None:
        pytest.skip(f"{tool} is not installed")
    return found


def _built(path: Path) -> str:
    if not path.exists():
        pytest.skip(f"{path.relative_to(HERE)} is not there: {ADVICE}")
    return str(path)


def _python(package: str, script: str) -> list[str]:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"the Python package {package} is not installed")
    return [sys.executable, str(HERE / "python" / script)]


def _chromium() -> str:
    for name in ("chromium", "chromium-browser"):
        if found := shutil.which(name):
            return found
    pytest.skip(f"chromium is not installed: {ADVICE}")


def command(driver: str) -> list[str]:
    """The command that starts this driver; skips the test when its tools are missing."""
    if driver in {"node", "browser"}:
        node = _needs("node")
        _built(HERE / "js/node_modules")
        if driver == "node":
            return [node, str(HERE / "js/node-driver.mjs")]
        page = _built(BUILD / "page.js")
        return [node, str(HERE / "js/browser-driver.mjs"), _chromium(), page]
    if driver == "go":
        return [_built(BUILD / "go-driver")]
    if driver == "java":
        _built(BUILD / "java/Driver.class")
        path = f"{BUILD / 'java'}:{BUILD / 'java/lib'}/*"
        options = ["-XX:TieredStopAtLevel=1", "-Dfile.encoding=UTF-8"]
        return [_needs("java"), *options, "-cp", path, "Driver"]
    if driver == "tuspy":
        return _python("tusclient", "tuspy_driver.py")
    assert driver == "aiotus"
    return _python("aiotus", "aiotus_driver.py")


def encode(driver: str, wanted: dict[str, Any]) -> str:
    """The line that says what to do. Java has no JSON of its own, so it gets pairs."""
    if driver != "java":
        return json.dumps(wanted)
    flat = {key: value for key, value in wanted.items() if key != "metadata"}
    flat |= {f"metadata.{key}": value for key, value in wanted.get("metadata", {}).items()}
    return "\t".join(f"{key}={value}" for key, value in flat.items())


class Driver:
    """One driver's process."""

    def __init__(self, name: str, log: Path) -> None:
        self.name = name
        self.log = log
        self._said: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                command(name),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                encoding="utf-8",
            )
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,))
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(5)  # the browser closes when its driver's stdin ends
        except (OSError, subprocess.TimeoutExpired):
            pass
        finally:
            self._process.kill()
            self._process.wait()
            self._reader.join(5)
            self._process.stdout.close()

    def start(self, wanted: dict[str, Any]) -> None:
        """Begin an upload."""
        self._write(encode(self.name, wanted))

    def abort(self, *, terminate: bool = False) -> None:
        """Tell the client to abort the upload that it is at."""
        self._write(json.dumps({"abort": True, "terminate": terminate}))

    def result(self, timeout: float = 40.0) -> Result:
        """Wait for the upload's end."""
        said = self._next("result", timeout)
        return Result(said.get("url"), said.get("error"), bool(said.get("aborted")))

    def wait_ready(self, timeout: float = 40.0) -> None:
        """Wait for what a driver that stays says when it can take cases."""
        self._next("event", timeout)

    def _next(self, key: str, timeout: float) -> Any:
        while True:
            try:
                said = self._said.get(timeout=timeout)
            except queue.Empty:
                raise AssertionError(f"no {key} in {timeout:g} s\n{self.tail()}") from None
            if said is None:
                raise AssertionError(f"the driver ended without a {key}\n{self.tail()}")
            if key in said:
                return said[key]

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def _read(self, lines: IO[str]) -> None:
        for line in lines:
            self._said.put(json.loads(line))
        self._said.put(None)

    def tail(self) -> str:
        """The last of what the driver wrote to stderr."""
        return self.log.read_text(errors="replace")[-4000:]


class Drivers:
    """Gives each upload its driver: a new process, but one browser for all."""

    def __init__(self, folder: Path, clients: Iterable[Client]) -> None:
        self._folder = folder
        self._browser: Driver | None = None
        self._wants_browser = any(client.in_browser for client in clients)

    def __enter__(self) -> Self:
        if self._wants_browser:
            try:
                self._browser = Driver("browser", self._folder / "browser.log")
            except pytest.skip.Exception:
                return self  # the tests that need it will say so themselves
            self._browser.wait_ready()
        return self

    def __exit__(self, *_: object) -> None:
        if self._browser is not None:
            self._browser.__exit__()

    def for_client(self, client: Client, folder: Path) -> tuple[Driver, bool]:
        """A driver, and whether it is the caller's to close."""
        if client.in_browser and self._browser is not None:
            return self._browser, False
        return Driver(client.driver, folder / f"{client.driver}.log"), True
