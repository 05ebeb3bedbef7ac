"""The command as a process, where `tests.support.server` does not fit: it fails, or has no port."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

COMMAND = (sys.executable, "-m", "tidegate", "serve")


def run(*flags: str, command: Sequence[str] = COMMAND) -> tuple[int, list[str]]:
    """Run a command that is expected to end by itself: its exit code, and what it said."""
    ended = subprocess.run(
        [*command, *flags],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        text=True,
        timeout=30,
    )
    assert ended.stdout == ""
    return ended.returncode, ended.stderr.splitlines()


@contextmanager
def started(*flags: str, **options: Any) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server, once it has said its first line, and that line; killed at the end."""
    with subprocess.Popen(
        [*COMMAND, *flags], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **options
    ) as process:
        try:
            assert process.stderr is not None
            yield process, process.stderr.readline().rstrip("\n")
        finally:
            process.kill()
