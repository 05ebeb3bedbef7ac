"""Events of the real command over `kill -9`: none is lost, and those of an upload come in order."""

from __future__ import annotations

import itertools
import random
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from tests.support.receiver import SECRET, Answer, Received, Receiver
from tests.support.server import ServerProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

TUS = {"Tus-Resumable": "1.0.0"}
STREAM = {"Content-Type": "application/offset+octet-stream"}
PATIENCE = 45.0
"""Seconds after which what is waited for will not come any more: some claims of 11 s."""
KILLS = 5
ORDER = ["created", "completed", "terminated"]
pytestmark = [pytest.mark.blocking_ok, pytest.mark.timeout(120)]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as started:
        yield started


def wait_for(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Client(threading.Thread):
    """Makes uploads, completes them, deletes some, and knows what the server acknowledged of each."""

    def __init__(self, url: str, seed: int) -> None:
        super().__init__()
        self._url = url
        self._rng = random.Random(seed)
        self._stopping = threading.Event()
        self.acknowledged: dict[str, list[str]] = {}
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            with httpx.Client(timeout=10) as client:
                # Not faster than a busy machine sends webhooks, or the end would be waited for.
                while not self._stopping.wait(0.02):
                    try:
                        self._upload(client)
                    except httpx.HTTPError:
                        time.sleep(0.01)  # it is being killed
        except BaseException as error:
            self.error = error
            raise

    def _upload(self, client: httpx.Client) -> None:
        created = client.post(self._url, headers=TUS | {"Upload-Length": "6"})
        if created.status_code != 201:
            return
        url = created.headers["Location"]
        told = self.acknowledged[url.rpartition("/")[2]] = ["created"]
        if self._rng.random() < 0.2:
            return
        headers = TUS | STREAM | {"Upload-Offset": "0"}
        if client.patch(url, headers=headers, content=b"abcdef").status_code == 204:
            told.append("completed")
            if self._rng.random() < 0.3 and client.delete(url, headers=TUS).status_code == 204:
                told.append("terminated")

    def stop(self) -> None:
        self._stopping.set()
        self.join(30)
        assert self.error is None


def check(client: Client, told: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Nothing that was acknowledged is missing, nothing comes out of order; what came."""
    came = defaultdict[str, list[str]](list)
    for upload, kind in told:
        came[upload].append(kind)
    for upload, kinds in client.acknowledged.items():
        assert set(kinds) <= set(came[upload]), (upload, kinds, came[upload])
    for upload, kinds in came.items():
        # Told again one after another, but never after what followed.
        order = [kind for kind, _ in itertools.groupby(kinds)]
        assert order == ORDER[: len(order)], (upload, kinds)
    return came


def all_told(client: Client, told: Callable[[], Iterable[tuple[str, str]]]) -> bool:
    came = set(told())
    return all((u, kind) in came for u, kinds in client.acknowledged.items() for kind in kinds)


def under_fire(server: ServerProcess, rng: random.Random) -> Client:
    """Uploads while the server is killed some times, and restarted."""
    client = Client(server.url, rng.randrange(1 << 30))
    client.start()
    try:
        for _ in range(KILLS):
            time.sleep(rng.uniform(0.2, 0.7))
            server.restart(kill=True)
        time.sleep(0.3)
    finally:
        client.stop()
    assert len(client.acknowledged) > KILLS
    return client


@pytest.mark.parametrize("workers", [1, 2])
def test_no_webhook_is_lost(tmp_path: Path, receiver: Receiver, workers: int) -> None:
    """The receiver fails now and then, too."""
    rng = random.Random(workers)
    receiver.answer = lambda _: Answer(500 if rng.random() < 0.1 else 204)
    flags = ["--webhook", receiver.url, "--webhook-timeout", "1", "--log-level", "error"]
    env = {"TIDEGATE_WEBHOOK_SECRET": SECRET}

    def told() -> list[tuple[str, str]]:
        return [
            (got.upload["id"], got.payload["type"].removeprefix("upload."))
            for got in list(receiver.received)
        ]

    with ServerProcess(
        tmp_path / "data", *flags, "--workers", str(workers), env=env, stop_timeout=30
    ) as server:
        client = under_fire(server, rng)
        wait_for(lambda: all_told(client, told))
        assert server.stop() == 0
    check(client, told())
    keys = defaultdict[tuple[str, str], set[str]](set)
    for got in receiver.received:
        assert got.signed_by(SECRET)
        keys[got.upload["id"], got.payload["type"]].add(got.headers["webhook-id"])
    assert all(len(each) == 1 for each in keys.values())
    assert len(set().union(*keys.values())) == len(keys)


TELL = """\
import json, os, sys
told = json.load(sys.stdin)
line = f"{told['data']['upload']['id']} {os.environ['TIDEGATE_EVENT']}\\n"
file = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
os.write(file, line.encode())
"""


def test_no_command_is_lost(tmp_path: Path) -> None:
    rng = random.Random(3)
    script, told_to = tmp_path / "tell.py", tmp_path / "told"
    script.write_text(TELL)
    told_to.touch()
    command = f"{sys.executable} -S {script} {told_to}"
    flags = ["--on-event-command", command, "--command-timeout", "3", "--log-level", "error"]

    def told() -> list[tuple[str, str]]:
        lines = [line.split() for line in told_to.read_text().splitlines()]
        return [(upload, kind) for upload, kind in lines]

    with ServerProcess(tmp_path / "data", *flags, stop_timeout=30) as server:
        client = under_fire(server, rng)
        wait_for(lambda: all_told(client, told))
        assert server.stop() == 0
    check(client, told())


def test_workers_tell_each_event_once(tmp_path: Path, receiver: Receiver) -> None:
    """Nobody is killed, nobody fails: nothing is told twice, and of no upload two at a time."""
    at_work = defaultdict[str, int](int)
    overlaps: list[str] = []
    lock = threading.Lock()

    def answer(got: Received) -> Answer:
        upload = got.upload["id"]
        with lock:
            at_work[upload] += 1
            if at_work[upload] > 1:
                overlaps.append(upload)
        time.sleep(0.005)
        with lock:
            at_work[upload] -= 1
        return Answer()

    receiver.answer = answer
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    flags = ["--webhook", receiver.url, "--webhook-secret-file", str(secret), "--workers", "3"]
    with ServerProcess(tmp_path / "data", *flags) as server:
        clients = [Client(server.url, seed) for seed in range(3)]
        for client in clients:
            client.start()
        wait_for(lambda: sum(len(client.acknowledged) for client in clients) > 100)
        for client in clients:
            client.stop()

        def told() -> list[tuple[str, str]]:
            return [
                (got.upload["id"], got.payload["type"].removeprefix("upload."))
                for got in list(receiver.received)
            ]

        for client in clients:
            wait_for(lambda client=client: all_told(client, told))  # type: ignore[misc]
        assert server.stop() == 0
    came = [each for client in clients for each in check(client, told()).values()]
    assert all(kinds == ORDER[: len(kinds)] for kinds in came)
    assert overlaps == []


def test_progress_of_a_long_body(tmp_path: Path, receiver: Receiver) -> None:
    """What is being received is told of while it comes, to who asks for it."""
    flags = ["--webhook", receiver.url, "--webhook-events", "progress", "--progress-every", "0.1"]
    env = {"TIDEGATE_WEBHOOK_SECRET": SECRET}
    with ServerProcess(tmp_path / "data", *flags, env=env) as server:
        created = httpx.post(server.url, headers=TUS | {"Upload-Length": "100000"})
        url = created.headers["Location"]

        def body() -> Iterator[bytes]:
            deadline = time.monotonic() + PATIENCE
            while not receiver.received and time.monotonic() < deadline:
                yield b"x"
                time.sleep(0.02)
            for _ in range(10):  # for more than the interval
                yield b"x"
                time.sleep(0.02)

        # The first comes by a checkpoint, after 3 s, the second at the end.
        headers = TUS | STREAM | {"Upload-Offset": "0"}
        answer = httpx.patch(url, headers=headers, content=body(), timeout=PATIENCE)
        assert answer.status_code == 204
        wait_for(lambda: len(receiver.received) >= 2)
    first, last = [got.upload["offset"] for got in receiver.received]
    assert 0 < first < last == int(answer.headers["Upload-Offset"])
    assert {got.payload["type"] for got in receiver.received} == {"upload.progress"}
