"""What is recorded, and what is judged, in the tests of power loss.

Run as a program it records the traces, since what it puts in the place of SQLite's and Python's
input and output is for the whole process:

    python -m tests.faults.power FILE
"""

from __future__ import annotations

import errno
import logging
import os
import pickle
import sqlite3
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import anyio
from tests.faults.power_builds import BEST_SEEN, Build
from tests.faults.power_client import CHUNK, DATABASE, Client, Content, Killed
from tests.faults.power_judge import Effort, Verdict, replay
from tests.support.disk_states import KEPT, Disk, write_out
from tests.support.disk_trace import Happening, Stack, Sync, Tracer, product_stack

from tidegate.metadata.sqlite import schema as sqlite_schema
from tidegate.metadata.sqlite import writer as sqlite_writer
from tidegate.metadata.sqlite.store import SQLiteMetadataStore
from tidegate.ports import BodyEnd, Durability, UnavailableError
from tidegate.protocol.errors import Code, Denied, Refusal
from tidegate.protocol.model import Kind
from tidegate.stores import disk
from tidegate.stores.tree import Tree

OFTEN, NEVER = 24, 100_000
"""After how many pages SQLite's log is copied into the database and begun anew: in the middle of
every trace; and not at all, since that syncs what a commit should have synced."""


@dataclass
class Trace:
    """A scenario, and what it did to the disk."""

    name: str
    durability: Durability
    checkpoint: int
    template: str
    """By which the server names files after the loss of power."""
    hooked: bool
    """Whether a hook is asked about whole uploads."""
    happened: list[Happening]
    contents: dict[str, Content]

    def __str__(self) -> str:
        return f"{self.name}-{self.durability}{'-no checkpoint' * (self.checkpoint == NEVER)}"


# ------------------------------------------------------------------------------------- scenarios

Scenario = Callable[[Client], Awaitable[None]]
SCENARIOS: dict[str, Scenario] = {}


def scenario(function: Scenario) -> Scenario:
    SCENARIOS[function.__name__] = function
    return function


@scenario
async def plain(client: Client) -> None:
    """Uploads in one piece and in several, one of them empty, one of deferred length."""
    async with client.server():
        await client.create("plain-a", 5 * CHUNK)
        await client.append("plain-a", 0, 3 * CHUNK, ending=BodyEnd.DROPPED, announced=5 * CHUNK)
        await client.inspect("plain-a")
        await client.append("plain-a", 3 * CHUNK)
        await client.create("plain-b", 2 * CHUNK, sends=2 * CHUNK)
        await client.create("plain-c", 0)
        await client.create("plain-d", 4 * CHUNK, deferred=True)
        await client.append("plain-d", 0, 3 * CHUNK)
        await client.append("plain-d", 3 * CHUNK, length=4 * CHUNK)
        await client.create("plain-e", 4 * CHUNK, sends=CHUNK)
        await client.append("plain-e", CHUNK, 2 * CHUNK)


@scenario
async def checksums(client: Client) -> None:
    """Appends with checksums, some of them wrong, around appends without."""
    async with client.server():
        await client.create("sums-a", 6 * CHUNK)
        await client.append("sums-a", 0, CHUNK, checked=True)
        with refused(Code.CHECKSUM_MISMATCH):
            await client.append("sums-a", CHUNK, 3 * CHUNK, checked=True, garbled=True)
        await client.append("sums-a", CHUNK, 4 * CHUNK)
        with refused(Code.CHECKSUM_MISMATCH):
            await client.append("sums-a", 4 * CHUNK, checked=True, garbled=True)
        await client.inspect("sums-a")
        await client.append("sums-a", 4 * CHUNK, checked=True)


@scenario
async def joined(client: Client) -> None:
    """Finals of partials: whole already, still coming, ended while they are needed."""
    async with client.server():
        await client.create("join-a", 2 * CHUNK, kind=Kind.PARTIAL, sends=2 * CHUNK)
        await client.create("join-b", 3 * CHUNK, kind=Kind.PARTIAL, sends=CHUNK)
        await client.join("join-c", ["join-a", "join-a"])
        await client.until_complete("join-c")
        await client.join("join-d", ["join-a", "join-b"])
        await client.terminate("join-a")
        await client.append("join-b", CHUNK)
        await client.until_complete("join-d")
        await client.terminate("join-b")


@scenario
async def failed(client: Client) -> None:
    """A final that can't be made, since one of its parts was ended before it was whole."""
    async with client.server():
        await client.create("fail-a", 2 * CHUNK, kind=Kind.PARTIAL, sends=2 * CHUNK)
        await client.create("fail-b", 3 * CHUNK, kind=Kind.PARTIAL, sends=CHUNK)
        await client.join("fail-c", ["fail-a", "fail-b"], doomed=True)
        await client.terminate("fail-b")
        with refused(Code.GONE):
            await client.until_complete("fail-c")
        client.tracer.note("gone", "fail-c")


@scenario
async def ended(client: Client) -> None:
    """Terminated and expired uploads, complete and not, until they are forgotten."""
    async with client.server():
        await client.create("end-a", 2 * CHUNK, sends=2 * CHUNK)
        await client.create("end-b", 5 * CHUNK, sends=3 * CHUNK)
        await client.create("end-c", 2 * CHUNK, kind=Kind.PARTIAL, sends=2 * CHUNK)
        await client.create("end-d", 5 * CHUNK, sends=3 * CHUNK)
        await client.terminate("end-a")
        await client.terminate("end-b")
        client.tracer.note("to end", "end-c")
        client.tracer.note("to end", "end-d")
        client.wait(8 * 86_400)
        await client.engine.sweep()
        await client.create("end-e", CHUNK, sends=CHUNK)
        client.wait(8 * 86_400)
        await client.engine.sweep()


@scenario
async def stopped(client: Client) -> None:
    """A graceful stop in the middle, while another worker goes on using the database."""
    async with client.server():
        await client.create("stop-a", 4 * CHUNK, sends=CHUNK)
        await client.create("stop-b", 4 * CHUNK)
        await client.append("stop-b", 0, CHUNK, checked=True)
        with closing(sqlite3.connect(client.root / DATABASE)) as other:
            other.execute("SELECT count(*) FROM upload").fetchone()
            client.engine.drain()
            await client.engine.__aexit__(None, None, None)
            client.tracer.note("stopped")
    async with client.server():
        await client.inspect("stop-b")
        await client.append("stop-a", CHUNK, 3 * CHUNK)
        await client.append("stop-b", CHUNK)


@scenario
async def restarted(client: Client) -> None:
    """A server that is killed; its successor, which no client asks anything, stops gracefully."""
    async with client.server(dies=True):
        await client.create("restart-a", 4 * CHUNK, sends=CHUNK)
        await client.create("restart-b", 4 * CHUNK)
        await client.append("restart-b", 0, 3 * CHUNK)
    async with client.server():
        pass


@scenario
async def killed(client: Client) -> None:
    """Requests that end as with their process, before, at and behind a checkpoint."""
    async with client.server():
        for number, (checked, chunks) in enumerate(
            [(False, 1), (False, 2), (False, 3), (True, 2), (False, 4)]
        ):
            key = f"kill-{number}"
            await client.create(key, 4 * CHUNK)
            await killing(
                client.append(
                    key,
                    0,
                    chunks * CHUNK,
                    ending=Killed,
                    checked=checked,
                    announced=4 * CHUNK,
                )
            )
            upload = await client.inspect(key)
            if chunks == 3:
                await client.append(key, upload.offset)


@scenario
async def uncommitted(client: Client) -> None:
    """Completions that were carried out and not committed: some count later, some do not."""
    async with client.server():
        for number, checked in enumerate((False, True)):
            key = f"uncommitted-{number}"
            await client.create(key, 4 * CHUNK)
            await client.append(key, 0, 3 * CHUNK)
            commit = client.metadata.commit

            async def fail(lease: Any, change: Any, commit: Any = commit) -> Any:
                if change.upload.complete:
                    raise UnavailableError("injected")
                return await commit(lease, change)

            with mock.patch.object(client.metadata, "commit", fail), refused(Code.UNAVAILABLE):
                await client.append(key, 3 * CHUNK, checked=checked)
            await client.inspect(key)
        await client.append("uncommitted-1", 3 * CHUNK)


@scenario
async def unsynced(client: Client) -> None:
    """Syncs that fail: what was written since the one before does not count."""
    async with client.server():
        await client.create("unsynced-a", 6 * CHUNK)
        for start in (0, 2 * CHUNK):
            FAILING_SYNCS.append(OSError(errno.EIO, "injected"))
            if start:
                FAILING_SYNCS.insert(0, None)
            with refused(Code.UNAVAILABLE):
                await client.append("unsynced-a", start)
            FAILING_SYNCS.clear()
            upload = await client.inspect("unsynced-a")
            await client.append("unsynced-a", upload.offset, 2 * CHUNK)
        upload = await client.inspect("unsynced-a")
        await client.append("unsynced-a", upload.offset)


@scenario
async def hooked(client: Client) -> None:
    """Uploads that a hook is asked about: it agrees, refuses, puts them off, and dies meanwhile."""
    answers: list[BaseException | None] = []

    def decide(key: str) -> None:
        answer = answers.pop(0)
        if isinstance(answer, Denied) and answer.lasting:
            client.tracer.note("to end", key)
        if answer is not None:
            raise answer

    client.decide = decide
    async with client.server():
        answers[:] = [None]
        await client.create("hook-a", 5 * CHUNK)
        await client.append("hook-a", 0, 3 * CHUNK)
        await client.append("hook-a", 3 * CHUNK)
        answers[:] = [None]
        await client.create("hook-b", 2 * CHUNK, sends=2 * CHUNK)
        answers[:] = [Denied(422)]
        await client.create("hook-c", 3 * CHUNK)
        with refused(Code.DENIED):
            await client.append("hook-c", 0)
        client.tracer.note("gone", "hook-c")
        answers[:] = [Denied(503), Killed(), None]
        await client.create("hook-d", 4 * CHUNK)
        with refused(Code.DENIED):
            await client.append("hook-d", 0)
        await killing(client.inspect("hook-d"))
        await client.inspect("hook-d")
        assert not answers


@scenario
async def renamed(client: Client) -> None:
    """Where there are no hard links, a file is renamed; one process dies right after it."""

    def no_link(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, "injected")

    with mock.patch.object(os, "link", no_link):
        async with client.server():
            await client.create("rename-a", 2 * CHUNK, sends=2 * CHUNK)
            await client.create("rename-b", 2 * CHUNK)
            # As good as dead: nothing is carried out behind it.
            with mock.patch.object(Tree, "sync_names", side_effect=Killed):
                await killing(client.append("rename-b", 0))
            await client.inspect("rename-b")


@scenario
async def first_start(client: Client) -> None:
    """A first start that is killed in the middle, and another one."""
    for lives in range(4):
        sync, left = disk.sync_directory, [lives]

        def dying(path: str, sync: Any = sync, left: Any = left) -> None:
            if not left[0]:
                raise Killed
            left[0] -= 1
            sync(path)

        with mock.patch.object(disk, "sync_directory", dying):
            await killing(_start(client))
    async with client.server():
        await client.create("first-a", 2 * CHUNK, sends=2 * CHUNK)


async def _start(client: Client) -> None:
    async with client.server():
        pass


@scenario
async def ahead(client: Client) -> None:
    """Small uploads that are stored ahead of their records; one process dies between the two."""
    client.names = False
    async with client.server():
        await client.create("ahead-a", 2 * CHUNK, sends=2 * CHUNK)
        await client.create("ahead-b", CHUNK, kind=Kind.PARTIAL, sends=CHUNK)
        await client.join("ahead-c", ["ahead-b", "ahead-b"])
        await client.until_complete("ahead-c")
        with mock.patch.object(SQLiteMetadataStore, "insert", side_effect=Killed):
            await killing(client.create("ahead-d", CHUNK, sends=CHUNK))
        await client.create("ahead-e", CHUNK, sends=CHUNK)
        client.tracer.note("to end", "ahead-b")
        client.wait(8 * 86_400)
        await client.engine.sweep()
        await client.create("ahead-f", CHUNK, sends=CHUNK)


@scenario
async def templates(client: Client) -> None:
    """Files named by one template, which another would take for those of other uploads."""
    for number, client.template in enumerate(("{id}", "x{id}")):
        async with client.server():
            await client.create(f"xtemplates-{number}", 2 * CHUNK, sends=2 * CHUNK)


@contextmanager
def refused(code: Code) -> Iterator[None]:
    try:
        yield
    except Refusal as refusal:
        assert refusal.code is code, refusal  # noqa: PT017
        return
    raise AssertionError(f"expected {code}")


async def killing(awaitable: Awaitable[object]) -> None:
    try:
        await awaitable
    except Killed:
        return
    except BaseExceptionGroup as group:
        if group.split(Killed)[1] is not None:
            raise


# ------------------------------------------------------------------------------------- recording

FAILING_SYNCS: list[OSError | None] = []
"""What the next syncs of files raise; None: nothing."""


def record(name: str, durability: Durability, checkpoint: int) -> Trace:
    """Carry out a scenario. No two at a time in a process."""
    with tempfile.TemporaryDirectory() as folder:
        root = os.path.realpath(folder)
        tracer = Tracer(root)
        client = Client(tracer, Path(root), durability)
        with ExitStack() as stack:
            stack.enter_context(mock.patch.object(os, "fdatasync", _failing(os.fdatasync)))
            stack.enter_context(tracer.tracing())
            stack.enter_context(_commits_noted(tracer))
            stack.enter_context(
                mock.patch.object(
                    sqlite_schema, "connect", _connect(sqlite_schema.connect, checkpoint)
                )
            )
            os.mkdir(os.path.dirname(client.root / DATABASE))
            disk.sync_directory(root)
            anyio.run(SCENARIOS[name], client)
        trace = Trace(
            name,
            durability,
            checkpoint,
            client.template,
            client.decide is not None,
            tracer.happened,
            client.contents,
        )
        _check(trace, root)
    return trace


def _failing(original: Any) -> Callable[[int], None]:
    def fdatasync(fd: int) -> None:
        if FAILING_SYNCS and (error := FAILING_SYNCS.pop(0)) is not None:
            raise error
        original(fd)

    return fdatasync


def _connect(original: Any, checkpoint: int) -> Any:
    def connect(*args: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = original(*args, **options)
        connection.execute(f"PRAGMA wal_autocheckpoint = {checkpoint}")
        return connection

    return connect


@contextmanager
def _commits_noted(tracer: Tracer) -> Iterator[None]:
    """Tell the tracer which calls asked for the commit that is under way to be durable."""
    asked: dict[int, Stack] = {}
    post, carry_out = sqlite_writer.Writer.post, sqlite_writer.Writer._carry_out

    def noting_post(self: Any, operation: Any) -> Any:
        if operation.durable:
            asked[id(operation)] = product_stack()
        return post(self, operation)

    def noting_carry_out(self: Any, batch: Any) -> None:
        with tracer.durable([asked.pop(id(o)) for o in batch if o.durable]):
            carry_out(self, batch)

    with (
        mock.patch.object(sqlite_writer.Writer, "post", noting_post),
        mock.patch.object(sqlite_writer.Writer, "_carry_out", noting_carry_out),
    ):
        yield


def _check(trace: Trace, root: str) -> None:
    """The trace has missed nothing: all of it carried out makes what is there."""
    traced = Disk()
    for happening in trace.happened:
        traced.apply(happening)
    state = traced.after_power_loss(KEPT)
    with tempfile.TemporaryDirectory() as copy:
        write_out(state, copy)
        there, here = _listing(root), _listing(copy)
        assert there == here, {
            path for path in {*there, *here} if there.get(path) != here.get(path)
        }


def _listing(root: str) -> dict[str, bytes | None]:
    found: dict[str, bytes | None] = {}
    for folder, folders, files in os.walk(root):
        for name in folders:
            found[os.path.relpath(os.path.join(folder, name), root)] = None
        for name in files:
            path = os.path.join(folder, name)
            if not name.endswith("-shm"):
                found[os.path.relpath(path, root)] = Path(path).read_bytes()
    return found


def record_all(target: str) -> None:
    """Carry out all scenarios in both modes that promise anything, and write the traces down."""
    logging.disable()
    traces = [
        record(name, durability, checkpoint)
        for checkpoint in (NEVER, OFTEN)
        for name in SCENARIOS
        for durability in (Durability.COMPLETE, Durability.ACK)
    ]
    Path(target).write_bytes(pickle.dumps(traces))


def replay_trace(trace: Trace, effort: Effort) -> Verdict:
    """In a process of a pool: judge the product."""
    logging.disable()
    return anyio.run(replay, trace, effort)


def replay_build(traces: list[Trace], build: Build) -> Verdict:
    """In a process of a pool: judge a build until it is caught."""
    logging.disable()
    verdict = Verdict()
    lacking = [t for t in traces if any(isinstance(h, Sync) and build.lacks(h) for h in t.happened)]
    lacking.sort(key=lambda trace: trace.name != BEST_SEEN.get(build.name))
    # A client that was told something is the likeliest to be found to be told a lie.
    for effort in (Effort.ANSWERS, Effort.SAMPLE):
        for trace in lacking:
            found = anyio.run(replay, trace, effort, build.lacks, 1)
            verdict.states += found.states
            verdict.lies += found.lies
            if found.lies:
                return verdict
    return verdict


if __name__ == "__main__":
    # Under the name by which pickle finds its classes again.
    from tests.faults import power

    power.record_all(sys.argv[1])
