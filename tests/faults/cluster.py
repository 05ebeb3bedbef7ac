"""A cluster under faults: nothing acknowledged is lost, nothing is stuck, every completion is told.

    python -m tests.faults.cluster --faults 1000 --seed 1
    python -m tests.faults.cluster --faults 200 --s3 moto

Three `tidegate serve` share one PostgreSQL and one bucket. They are killed, stopped, paused, and cut
off, PostgreSQL is restarted, and all the while clients upload through a proxy that sends every
request of an upload to another server. A seed gives the same uploads and faults again; how they
meet is up to the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import re
import secrets
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.faults.cluster_client import Client, Logbook
from tests.faults.cluster_faults import LONGEST, Cluster, Faults
from tests.faults.cluster_stage import Server, relaying, round_robin, to
from tests.faults.sea import Broken, Known
from tests.support.moto import moto
from tests.support.postgres import Postgres
from tests.support.receiver import SECRET, Answer, Receiver
from tests.support.s3_server import BUCKET, ENVIRONMENT, free_ports
from tests.support.swift import swift

SERVERS: Final = 3
CLIENTS: Final = 6
SCHEMA: Final = "cluster"
# Shorter than most pauses and cuts, so that others take over while the holder still believes.
LEASE: Final = "ttl=1.5&heartbeat=0.4&patience=2"
WEBHOOK_TIMEOUT: Final = 5.0
TOLD_WITHIN: Final = 45.0
"""Seconds after which an event will not come any more: three claims of 15 s."""
FINISH_WITHIN: Final = 90.0
"""Seconds in which all that was begun is done, once all is mended."""
ORDER: Final = ("created", "completed", "terminated")
LIES: Final = re.compile(
    r".*(?:acknowledged \d+ bytes, found|Traceback|never retrieved|never awaited).*"
)
"""What no server must ever have to write."""

# A lease that is taken from somebody who has not let it go: '' is who gave it up himself.
COUNT_TAKEOVERS: Final = f"""
CREATE TABLE {SCHEMA}.takeover (id text, previous text);
CREATE FUNCTION {SCHEMA}.count_takeover() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO {SCHEMA}.takeover VALUES (OLD.id, OLD.holder);
    RETURN NULL;
END $$;
CREATE TRIGGER takeover AFTER UPDATE ON {SCHEMA}.upload FOR EACH ROW
    WHEN (OLD.token <> NEW.token AND OLD.holder IS NOT NULL AND NEW.holder <> '')
    EXECUTE FUNCTION {SCHEMA}.count_takeover()
"""


@dataclass
class Report:
    """What a run did."""

    seed: int
    faults: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)
    takeovers: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    """What the servers said at level error, without what differs each time."""
    told: int = 0
    compared: int = 0
    """Objects that were read from the bucket itself."""
    checked: int = 0
    remains: int = 0
    """What a check of the stores found and mended: left by the dead."""
    starts: int = 0
    seconds: float = 0.0
    able: float = 0.0
    silence: float = 0.0
    standstill: float = 0.0
    longest_stop: float = 0.0
    broken: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [
            f"seed {self.seed}: {self.faults.total()} faults ({_counts(self.faults)})",
            f"  in {self.seconds:.0f} s, of which somebody could answer in {self.able:.0f}",
            f"  longest without an answer {self.silence:.1f} s",
            f"  longest without a byte {self.standstill:.1f} s; stop {self.longest_stop:.1f} s",
            f"  leases taken over: {_counts(self.takeovers)}; starts of servers: {self.starts}",
            f"  completions told: {self.told}; objects compared in the bucket: {self.compared}",
            f"  records checked: {self.checked}; remains mended: {self.remains}",
            f"  {_counts(self.seen)}",
            *(f"  error, {count} times: {what}" for what, count in self.errors.most_common()),
            *(f"  BROKEN: {each}" for each in self.broken),
        ]
        return "\n".join(lines)


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in sorted(counter.items()))


# -------------------------------------------------------------------------------------- the run


@asynccontextmanager
async def cluster(folder: Path, s3: str, receiver: Receiver) -> AsyncIterator[Cluster]:
    """Three servers that serve, and what they need."""
    async with AsyncExitStack() as stack:
        (folder / "s3").mkdir()
        server = await asyncio.to_thread(
            stack.enter_context, (swift if s3 == "swift" else moto)(folder / "s3")
        )
        async with server.client() as client:
            await client.create_bucket(Bucket=BUCKET)
        postgres = await asyncio.to_thread(Postgres)
        stack.push_async_callback(asyncio.to_thread, postgres.close)
        await asyncio.to_thread(postgres.start)
        bucket_port = int(server.endpoint.rpartition(":")[2])
        servers: list[Server] = []
        for number, port in enumerate(free_ports(SERVERS)):
            database = await stack.enter_async_context(relaying(to(postgres.port)))
            bucket = await stack.enter_async_context(relaying(to(bucket_port)))
            flags = [
                *_stores(postgres.url(SCHEMA, port=database.port), bucket.port),
                *("--s3-part-size", "5MiB", "--s3-memory", "64MiB"),
                *("--relative-location", "--shutdown-timeout", "2s"),
                *("--webhook", receiver.url, "--webhook-timeout", f"{WEBHOOK_TIMEOUT:g}s"),
            ]
            servers.append(
                Server(
                    flags,
                    port,
                    database=database,
                    bucket=bucket,
                    log=folder / f"server-{number}.log",
                    environment={**ENVIRONMENT, "TIDEGATE_WEBHOOK_SECRET": SECRET},
                )
            )
            stack.push_async_callback(servers[-1].close)
        await asyncio.gather(*(each.start() for each in servers))
        await asyncio.to_thread(postgres.sql, COUNT_TAKEOVERS)
        yield Cluster(postgres, server, servers)


def _stores(database: str, bucket_port: int) -> list[str]:
    return [
        *("--data", f"s3://{BUCKET}/cluster", "--metadata", f"{database}&{LEASE}"),
        *("--s3-endpoint", f"http://127.0.0.1:{bucket_port}", "--s3-path-style"),
    ]


async def run(
    folder: Path, *, seed: int, faults: int, s3: str = "swift", longest: float = LONGEST
) -> Report:
    """So many faults while clients upload; then all is mended, and everything is looked at."""
    report = Report(seed)
    unwilling = random.Random(f"{seed} receiver")
    with Receiver() as receiver:
        # Whoever is told may be unwell, too.
        receiver.answer = lambda _: Answer(503 if unwilling.random() < 0.03 else 204)
        async with cluster(folder, s3, receiver) as stage:
            book = Logbook(seed, stage.able)
            began = time.monotonic()
            watch = asyncio.create_task(stage.watch())
            try:
                await _play(
                    stage, book, Faults(stage, seed, report.faults, longest=longest).run(faults)
                )
                report.seconds = time.monotonic() - began
                report.able = stage.able()
                if not book.broken:
                    await _look_at_all(stage, book, receiver, report)
            finally:
                watch.cancel()
                await asyncio.gather(watch, return_exceptions=True)
            for server in stage.servers:
                await server.end(signal.SIGTERM)
            await _check(stage, report)
            sql = f"SELECT count(*) FILTER (WHERE previous = ''), count(*) FROM {SCHEMA}.takeover"
            given_up, all_of_them = map(int, stage.postgres.sql(sql).split("|"))
            report.takeovers["given up by their holder"] = given_up
            report.takeovers["of the dead, the late and the cut off"] = all_of_them - given_up
    for server in stage.servers:
        report.broken += server.ended
        report.starts += server.starts
        report.longest_stop = max(report.longest_stop, server.longest_stop)
        log = server.log.read_text()
        report.broken += [f"{server.log.name}: {line}" for line in LIES.findall(log)]
        for line in log.splitlines():
            if "[error]" in line:
                report.errors[_gist(line)] += 1
    report.seen, report.silence = book.seen, book.longest_silence
    report.standstill = book.longest_standstill
    report.broken = book.broken + report.broken
    return report


def _gist(line: str) -> str:
    """A line of a log, without what differs each time."""
    said = line.partition("]")[2].strip()
    said = re.sub(r"upload \S+", "upload …", said)
    said = re.sub(r"https?://\S+", "URL", said)
    return re.sub(r"\d+", "N", said)[:160]


async def _play(stage: Cluster, book: Logbook, spoil: Coroutine[Any, Any, None]) -> None:
    """Clients upload while things are done to the cluster, and until what they began is done."""
    ports = [server.port for server in stage.servers]
    async with AsyncExitStack() as stack:
        tours = []
        for each in range(CLIENTS):
            proxy = await stack.enter_async_context(relaying(round_robin(ports, each)))
            client = Client(book, proxy.port, str(each))
            tours.append(asyncio.create_task(client.tour(f"{book.seed} {each}")))
        faults = asyncio.create_task(spoil)
        try:
            await asyncio.wait([faults, *tours], return_when=asyncio.FIRST_COMPLETED)
            if faults.done():
                faults.result()
            book.finishing.set()
            try:
                async with asyncio.timeout(FINISH_WITHIN):
                    await asyncio.gather(*tours)
            except TimeoutError:
                book.broken.append(f"not done {FINISH_WITHIN} s after the last fault")
        finally:
            for task in (faults, *tours):
                task.cancel()
            await asyncio.gather(faults, *tours, return_exceptions=True)
            for server in stage.servers:
                server.database.mend()
                server.bucket.mend()


async def _look_at_all(stage: Cluster, book: Logbook, receiver: Receiver, report: Report) -> None:
    """Every upload that was not deleted, by any server and in the bucket; and what was told."""
    there = [known for known in book.known.values() if known.path and not known.gone]
    async with relaying(round_robin([server.port for server in stage.servers], 0)) as proxy:
        client = Client(book, proxy.port, "end")
        for known in there:
            try:
                await client.look(known)
                if known.shown_complete:
                    await client.read(known)
            except Broken as broken:
                book.broken.append(str(broken))
    complete = {
        k.path.rpartition("/")[2]: k for k in book.known.values() if k.path and k.shown_complete
    }
    await _hear_of_all(complete, receiver, report)
    await _compare_objects(stage, complete, receiver, report)


async def _hear_of_all(complete: dict[str, Known], receiver: Receiver, report: Report) -> None:
    """Every completion was told, after the creation."""
    deadline = time.monotonic() + TOLD_WITHIN
    while missing := complete.keys() - {
        upload for upload, what in _told(receiver) if what == "completed"
    }:
        if time.monotonic() > deadline:
            report.broken += [
                f"completion not told: {complete[each].key} {each}" for each in missing
            ]
            break
        await asyncio.sleep(0.1)
    report.told = len(complete) - len(missing)
    came = defaultdict[str, list[str]](list)
    for upload, what in _told(receiver):
        came[upload].append(what)
    for upload, kinds in came.items():
        # Told again one after another, but never after what followed.
        order = [kind for kind, _ in itertools.groupby(kinds)]
        # One that was refused while its first bytes came is taken back without being complete.
        if order != [kind for kind in ORDER if kind in order] or order[0] != ORDER[0]:
            report.broken.append(f"told in another order: {upload}: {kinds}")


def _told(receiver: Receiver) -> Iterator[tuple[str, str]]:
    for got in list(receiver.received):
        yield got.upload["id"], got.payload["type"].removeprefix("upload.")


async def _compare_objects(
    stage: Cluster, complete: dict[str, Known], receiver: Receiver, report: Report
) -> None:
    """The objects in the bucket, read without any server of ours."""
    keys = {
        got.upload["id"]: got.upload["storage"]["key"]
        for got in list(receiver.received)
        if got.payload["type"] == "upload.completed"
    }
    async with stage.bucket.client() as client:
        for upload, known in complete.items():
            if known.gone or upload not in keys:
                continue
            found = await client.get_object(Bucket=BUCKET, Key=keys[upload])
            if await found["Body"].read() != known.content(0, known.length):
                report.broken.append(f"{known.key}: its object has other bytes")
            report.compared += 1


async def _check(stage: Cluster, report: Report) -> None:
    """What `tidegate check` finds: remains that it deletes, perhaps, but nothing that is lost."""
    bucket_port = int(stage.bucket.endpoint.rpartition(":")[2])
    checking = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tidegate", "check", "--json", "--repair"),
        *_stores(stage.postgres.url(SCHEMA), bucket_port),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, **ENVIRONMENT},
    )
    said, _ = await checking.communicate()
    found = json.loads(said)
    report.checked = found["checked"]["uploads"]
    for finding in found["findings"]:
        # What was begun for an upload that was taken back is for a sweep, when it is old.
        orphan = "belong to no upload" in finding["problem"] and not finding["lost"]
        report.remains += finding["mended"] or orphan
        if not finding["mended"] and not orphan:
            report.broken.append(f"check: {finding}")


# ------------------------------------------------------------------------------- the command line


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults.cluster", description=str(__doc__).split("\n\n", maxsplit=1)[0]
    )
    parser.add_argument("--faults", type=int, default=200, help="how many")
    parser.add_argument("--seed", type=int, help="of the uploads and the faults")
    parser.add_argument("--s3", choices=("swift", "moto"), default="swift")
    parser.add_argument(
        "--longest", type=float, default=LONGEST, help="seconds that a fault lasts, at most"
    )
    parser.add_argument("--folder", help="where logs and objects go, and stay; else deleted")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """One run; the exit code."""
    options = arguments(argv)
    seed = secrets.randbits(32) if options.seed is None else options.seed
    with contextlib.ExitStack() as stack:
        folder = options.folder or stack.enter_context(
            tempfile.TemporaryDirectory(prefix="tidegate-cluster-")
        )
        report = asyncio.run(
            run(
                Path(folder),
                seed=seed,
                faults=options.faults,
                s3=options.s3,
                longest=options.longest,
            )
        )
    print(report, flush=True)
    return 1 if report.broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
