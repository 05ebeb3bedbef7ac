"""moto's S3 server, in a process of its own: in memory, and quick to answer as it is told."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.support.s3_server import Processes, S3Server, answers, environment, free_ports

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def moto(root: Path, *, least_part: int = 5 * 1024 * 1024, page: int = 1000) -> Iterator[S3Server]:
    """A server with parts of at least `least_part` bytes, which lists `page` objects at a time."""
    processes = Processes(root)
    [port] = free_ports(1)
    settings = environment(
        S3_UPLOAD_PART_MIN_SIZE=str(least_part), MOTO_S3_DEFAULT_MAX_KEYS=str(page)
    )
    try:
        processes.start(
            "moto",
            sys.executable,
            "-c",
            "from moto.server import main; main()",
            "-H",
            "127.0.0.1",
            "-p",
            str(port),
            env=settings,
        )
        endpoint = f"http://127.0.0.1:{port}"
        processes.wait_until(answers(f"{endpoint}/moto-api/"))
        yield S3Server(endpoint)
    finally:
        processes.stop()
