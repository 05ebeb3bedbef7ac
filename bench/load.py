"""Runs the load generator: requests in, figures out."""

from __future__ import annotations

import base64
import contextlib
import json
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

from bench.process import BenchError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from bench.process import Server

OFFSET: Final = "{offset}"
"""Stands in requests, and in what is wanted of their answers, for the offset of an upload."""


@dataclass(frozen=True)
class Figures:
    """What came of it: latencies are in milliseconds."""

    count: int
    seconds: float
    p50: float
    p99: float
    max: float

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.count / self.seconds


class Load:
    """The load generator at work on one server. Use it as a context manager."""

    def __init__(self, program: Path, server: Server, mode: str, **task: Any) -> None:
        self.server = server
        self._argv = [str(program)]
        self._task = {"mode": mode, "address": f"127.0.0.1:{server.port}", **task}

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(self._task) + "\n")
        self._process.stdin.flush()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._process.wait()

    def kill(self) -> None:
        """End it."""
        self._process.kill()

    def events(self) -> Iterator[dict[str, Any]]:
        """What it says, as it says it."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            yield json.loads(line)
        assert self._process.stderr is not None
        if error := self._process.stderr.read():
            raise BenchError(f"{self.server.name}: {error.strip()}")

    def figures(self, timeout: float) -> Figures:
        """The end of its input, and what it found. Raises BenchError when any answer was wrong."""
        try:
            out, error = self._process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            raise BenchError(f"{self.server.name}: no end after {timeout:g} s") from None
        if not out:
            raise BenchError(f"{self.server.name}: {error.strip()}")
        said = json.loads(out)
        if said["errors"] or not said["count"]:
            raise BenchError(f"{self.server.name}: {said['error'] or 'nothing was answered'}")
        return Figures(*(said[name] for name in ("count", "seconds", "p50", "p99", "max")))


def rate(
    program: Path,
    server: Server,
    requests: Sequence[bytes],
    *,
    status: int,
    header: str,
    seconds: float,
    connections: int,
    step: int = 0,
) -> Figures:
    """As many requests as can be, on `connections`. Each appends `step` bytes to its upload."""
    with Load(
        program,
        server,
        "rate",
        requests=packed(requests),
        status=status,
        header=header,
        seconds=seconds,
        connections=connections,
        step=step,
    ) as load:
        return load.figures(seconds + 60)


def packed(requests: Sequence[bytes]) -> list[str]:
    """Requests as the task has them."""
    return [base64.b64encode(one).decode() for one in requests]
