"""What the S3 servers of the tests have in common: how they are reached, stopped, and emptied."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.request import urlopen

import anyio
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session

from tidegate.stores.s3.options import S3Options
from tidegate.stores.s3.store import S3Store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

START_WITHIN = 60.0
"""Seconds: far more than it takes, on a busy machine."""


KEY, SECRET = "test:tester", "testing"
"""What Swift is told to let in; moto lets anybody in."""
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": KEY,
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_DEFAULT_REGION": "us-east-1",
    # Not this machine's own, whatever they say.
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    "AWS_EC2_METADATA_DISABLED": "true",
}
"""What the SDK looks for."""
BUCKET = "uploads"


class S3Server(NamedTuple):
    """Where an S3 server listens."""

    endpoint: str

    def client(self, **config: Any) -> Any:
        """A client of the SDK's own, to be entered."""
        return get_session().create_client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
            config=AioConfig(s3={"addressing_style": "path"}, **config),
        )

    def make_bucket(self) -> S3Server:
        """Make BUCKET, which is not there yet."""

        async def make() -> None:
            async with self.client() as client:
                await client.create_bucket(Bucket=BUCKET)

        anyio.run(make)
        return self

    def store(self, prefix: str = "", *, name: str = "{shard}/{id}", **options: Any) -> S3Store:
        """A store in BUCKET, not opened yet; fails quickly where it has to."""
        given = {"patience": 5.0, "timeout": 10.0} | options
        return S3Store(
            BUCKET,
            prefix,
            name=name,
            options=S3Options(endpoint=self.endpoint, path_style=True, **given),
        )


def free_ports(number: int) -> list[int]:
    """Ports of this machine's loopback that nobody listens on, all different."""
    with ExitStack() as stack:
        listeners = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(number)
        ]
        return [listener.getsockname()[1] for listener in listeners]


def environment(**more: str) -> dict[str, str]:
    """What a server that is not ours runs in: nobody asks what of it is covered, or what it warns of."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    return {**ours, "PYTHONWARNINGS": "ignore", **more}


class Processes:
    """Processes that are told to stop at the end, each with its log."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: list[tuple[subprocess.Popen[bytes], Path]] = []

    def start(self, name: str, *command: str, **options: Any) -> None:
        """Start one; what it says goes to a file."""
        log = self._folder / f"{name}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, **options
            )
        self._running.append((process, log))

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Wait until something holds, as long as all of them run."""
        deadline = time.monotonic() + START_WITHIN
        while not ready():
            for process, log in self._running:
                assert process.poll() is None, f"{log.stem} ended: {log.read_text()[-3000:]}"
            assert time.monotonic() < deadline, f"not ready within {START_WITHIN} s"
            time.sleep(0.02)

    def stop(self) -> None:
        """Ask all of them to end, and see that they do."""
        for process, _ in self._running:
            process.terminate()
        for process, _ in self._running:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._running.clear()


def answers(url: str) -> Callable[[], bool]:
    """Whether something answers at an address, in whatever words."""

    def ready() -> bool:
        try:
            with urlopen(url, timeout=5):
                return True
        except OSError as error:
            return hasattr(error, "code")

    return ready
