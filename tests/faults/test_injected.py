"""Disks and databases that fail: at every call of a scenario, once, and from then on.

Whatever fails, no answer tells of bytes that are not there; and once nothing fails any more every
upload can be finished, its bytes are right, its events are told, and nothing is held.

TIDEGATE_FAULTS=every tries every call; by default some eighty of each case are tried.
"""

from __future__ import annotations

import base64
import hashlib
import os
import random
import resource
import shutil
import sys
import threading
from collections.abc import AsyncIterator, Awaitable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest
from tests.support import sqlite_vfs
from tests.support.disk_faults import Trouble
from tests.support.exchange import AsgiClient, Reply, path_of
from tests.support.logs import logs_kept
from tests.support.memory import folder_in_memory

from tidegate.asgi import Tidegate
from tidegate.engine import concat
from tidegate.engine.core import Settings
from tidegate.metadata.sqlite.store import SQLiteMetadataStore
from tidegate.ports import DataError, Delivery, Durability, Hold
from tidegate.protocol.model import UploadId
from tidegate.stores.local import LocalStore
from tidegate.testing import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.timeout(600),
    pytest.mark.usefixtures("events_at_once"),
]

EVERY = os.environ.get("TIDEGATE_FAULTS") == "every"
SAMPLE = 80
"""Calls that are failed in each case, some 40 ms apiece."""
CHUNK = 10_000
PATIENCE = 20.0
"""Seconds after which something that should happen will not."""


# ------------------------------------------------------------------------------------- the server


@dataclass
class Server:
    """A server in this process, and all that is told of what it does."""

    folder: Path
    durability: Durability = Durability.COMPLETE
    clock: FakeClock = field(default_factory=FakeClock)
    told: set[tuple[str, str]] = field(default_factory=set)
    busy_timeout: float = 5.0
    database: Path | None = None
    app: Tidegate = field(init=False)
    client: AsgiClient = field(init=False)
    data: LocalStore = field(init=False)
    metadata: SQLiteMetadataStore = field(init=False)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        self.data = LocalStore(self.folder / "data", threads=4, sync_threads=2)
        self.metadata = SQLiteMetadataStore(
            self.database or self.folder / "tidegate.db", busy_timeout=self.busy_timeout
        )
        self.app = Tidegate(
            self.data,
            self.metadata,
            base_path="/files/",
            settings=Settings(
                durability=self.durability,
                checkpoint_bytes=CHUNK,
                checkpoint_seconds=1e9,
                copy_step=CHUNK,
                lease_wait=2.0,
            ),
            on_event=[self._tell],
            clock=self.clock,
        )
        self.client = AsgiClient(self.app)
        async with self.app:
            # So often that its log is copied into the database in the middle of a scenario.
            self.metadata._writer._connection.execute("PRAGMA wal_autocheckpoint = 24")
            yield

    async def _tell(self, delivery: Delivery) -> None:
        self.told.add((delivery.event.type.value, delivery.event.upload.id))

    async def deliver(self) -> None:
        """Tell all events, also those that someone claimed who failed."""
        self.clock.advance(3600)
        with anyio.fail_after(PATIENCE):
            while await self.app.engine._outbox.deliver_due():
                pass

    def stored(self, path: str) -> bytes:
        """What the disk has of an upload."""
        name = path.rpartition("/")[2]
        for place in self.data.root.rglob(name):
            return place.read_bytes()
        return b""


@dataclass
class Sent:
    """An upload, as its client knows it."""

    content: bytes
    path: str = ""
    offset: int = 0
    complete: bool = False
    ended: bool = False


class User:
    """A client that takes no for an answer, and checks every yes."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.uploads: list[Sent] = []
        self.refused: list[Reply] = []

    async def go(self) -> None:
        """Everything that a server does to a disk."""
        plain = await self.create(4 * CHUNK)
        await self.append(plain, 2 * CHUNK)
        await self.look(plain)
        await self.append(plain, 3 * CHUNK, checked=True)
        await self.append(plain, 4 * CHUNK)
        await self.read(plain)
        await self.create(0)
        ended = await self.create(2 * CHUNK, sends=CHUNK)
        await self.end(ended)
        parts = [
            await self.create(CHUNK, sends=CHUNK, Upload_Concat="partial"),
            await self.create(2 * CHUNK, sends=CHUNK, Upload_Concat="partial"),
        ]
        await self.append(parts[1], 2 * CHUNK)
        await self.join(parts)

    def _yes(self, reply: Reply) -> bool:
        if reply.status < 300:
            return True
        assert reply.status in {404, 409, 410, 423, 503, 507}, reply
        self.refused.append(reply)
        return False

    def _shown(self, upload: Sent, offset: int) -> None:
        """An offset was shown: the bytes must be there, now."""
        assert offset <= len(upload.content)
        assert self.server.stored(upload.path)[:offset] == upload.content[:offset]
        upload.offset = offset
        upload.complete = offset == len(upload.content)

    async def create(self, size: int, sends: int | None = None, **headers: str) -> Sent:
        upload = Sent(random.Random(len(self.uploads)).randbytes(size))
        body = None if sends is None else upload.content[:sends]
        reply = await self.server.client.post(body, Upload_Length=str(size), **headers)
        if self._yes(reply):
            upload.path = path_of(reply)
            self.uploads.append(upload)
            self._shown(upload, sends or 0)
        return upload

    async def append(self, upload: Sent, stop: int, *, checked: bool = False) -> None:
        if not upload.path:
            return
        body = upload.content[upload.offset : stop]
        headers = {}
        if checked:
            digest = base64.b64encode(hashlib.sha1(body).digest()).decode()
            headers["Upload_Checksum"] = f"sha1 {digest}"
        reply = await self.server.client.patch(upload.path, upload.offset, body, **headers)
        if self._yes(reply):
            assert int(reply["Upload-Offset"]) == stop
            self._shown(upload, stop)
        else:
            await self.look(upload)

    async def look(self, upload: Sent) -> bool:
        if not upload.path:
            return False
        reply = await self.server.client.head(upload.path)
        if not self._yes(reply):
            return False
        # What was shown as complete stays so; what was acknowledged may be lost with a sync.
        offset = int(reply["Upload-Offset"])
        assert not upload.complete or offset == len(upload.content)
        self._shown(upload, offset)
        return True

    async def read(self, upload: Sent) -> None:
        if upload.complete and upload.path:
            try:
                reply = await self.server.client.request("GET", upload.path)
            except ExceptionGroup as group:
                # Broken off, which a server shows by closing the connection.
                if group.split(DataError)[1] is not None:
                    raise
                return
            if self._yes(reply):
                assert reply.body == upload.content

    async def end(self, upload: Sent) -> None:
        if upload.path:
            upload.ended = True
            if self._yes(await self.server.client.delete(upload.path)):
                self.uploads.remove(upload)

    async def join(self, parts: list[Sent]) -> None:
        if not all(part.path for part in parts):
            return
        whole = Sent(b"".join(part.content for part in parts))
        urls = " ".join(part.path for part in parts)
        reply = await self.server.client.post(Upload_Concat=f"final;{urls}")
        if self._yes(reply):
            whole.path = path_of(reply)
            self.uploads.append(whole)

    # ------------------------------------------------------------------ when nothing fails now

    async def _is_held(self, upload_id: UploadId) -> bool:
        loaded = await self.server.metadata.load(upload_id)
        assert loaded is not None
        assert loaded.hold is not Hold.ABANDONED
        return loaded.hold is Hold.HELD

    async def finish(self) -> None:
        """Go on with every upload until it is whole, and compare."""
        with anyio.fail_after(PATIENCE):
            for upload in self.uploads:
                await self._finish(upload)
        await self.server.deliver()
        wanted = set()
        for upload in self.uploads:
            upload_id = UploadId(upload.path.rpartition("/")[2])
            with anyio.fail_after(PATIENCE):
                # Who concatenates in the background lets go after it is seen to be complete.
                while await self._is_held(upload_id):
                    await anyio.sleep(0.001)
            if not upload.ended:
                wanted |= {("created", upload_id), ("completed", upload_id)}
        with anyio.move_on_after(PATIENCE):
            # The engine may have claimed some, and be about to tell them.
            while not wanted <= self.server.told:
                await anyio.sleep(0.001)
        assert wanted <= self.server.told

    async def _finish(self, upload: Sent) -> None:
        client = self.server.client
        if upload.ended:
            await client.delete(upload.path)
            assert (await client.head(upload.path)).status == 410
            return
        while True:
            reply = await client.head(upload.path)
            if reply.status == 200 and "Upload-Offset" in reply:
                offset = int(reply["Upload-Offset"])
                assert offset == len(upload.content) or not upload.complete
                self._shown(upload, offset)
                if upload.complete:
                    break
                reply = await client.patch(upload.path, offset, upload.content[offset:])
            # A final that is assembled; a request whose end is not written down yet.
            assert reply.status in {200, 204, 423, 503}, reply
            await anyio.sleep(0.001)
        assert await client.content(upload.path) == upload.content


@pytest.fixture(autouse=True)
def logged() -> Iterator[None]:
    with logs_kept():
        yield


@pytest.fixture(autouse=True)
def soon_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(concat, "RETRY_AFTER", 0.005)


# ------------------------------------------------------------------------------- every single call


@pytest.fixture
def folder() -> Iterator[Path]:
    """For servers that are started some eighty times: what a disk takes to sync is not asked here."""
    with folder_in_memory("tidegate-injected-") as folder:
        yield folder / "server"


async def troubled(
    folder: Path, trouble: Trouble, kind: str, durability: Durability
) -> tuple[User, int]:
    """Go through the scenario with a trouble, get over it, and restart."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    server = Server(folder, durability)
    user = User(server)
    descriptors = _descriptors()
    around: Callable[[], AbstractContextManager[None]] = getattr(trouble, f"of_{kind}")
    with around() if kind == "sqlite" else nullcontext():
        trouble.gone = True
        async with server.open():
            trouble.gone = False
            with around() if kind == "calls" else nullcontext():
                await user.go()
                trouble.gone = True
            calls = trouble.count
            await user.finish()
    with anyio.fail_after(PATIENCE):
        while _descriptors() > descriptors:  # a thread may be closing its last one
            await anyio.sleep(0.001)
    async with server.open():
        await user.finish()
    return user, calls


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


CASES = [
    ("calls", "EIO", False, Durability.COMPLETE),
    ("calls", "EIO", True, Durability.ACK),
    ("calls", "ENOSPC", False, Durability.ACK),
    ("calls", "ENOSPC", True, Durability.COMPLETE),
    ("calls", "short", False, Durability.COMPLETE),
    ("sqlite", "EIO", False, Durability.COMPLETE),
    ("sqlite", "EIO", True, Durability.ACK),
    ("sqlite", "ENOSPC", False, Durability.ACK),
    ("sqlite", "ENOSPC", True, Durability.COMPLETE),
]


@pytest.mark.parametrize(
    ("kind", "error", "lasting", "durability"),
    CASES,
    ids=[f"{k}-{e}{'-lasting' * lasting}-{d}" for k, e, lasting, d in CASES],
)
async def test_a_call_that_fails(
    kind: str, error: str, lasting: bool, durability: Durability, folder: Path
) -> None:
    """No 2xx tells of bytes that are not there; then all can be finished; nothing is held."""
    if kind == "sqlite" and sqlite_vfs.library() is None:
        pytest.skip("this Python's SQLite is linked in so that its writes can't be seen")
    untroubled = Trouble(error, -1)
    user, calls = await troubled(folder, untroubled, kind, durability)
    assert not user.refused
    assert calls > 3
    step = 1 if EVERY else max(1, calls // SAMPLE)
    hits: set[str] = set()
    refused = 0
    for at in range(random.Random(f"{kind} {error}").randrange(step), calls + step, step):
        trouble = Trouble(error, at, lasting=lasting)
        try:
            user, _ = await troubled(folder, trouble, kind, durability)
        except BaseException as failure:
            failure.add_note(f"call {at} of {calls} failed: {trouble.hits}")
            raise
        hits.update(trouble.hits)
        refused += bool(user.refused)
    print(f"{calls} calls; {refused} times refused; failed: {sorted(hits)}")
    assert hits
    assert refused or error == "short"


# ------------------------------------------------------------------------------- a locked database


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    started = Server(tmp_path, busy_timeout=0.3)
    async with started.open():
        yield started


LOCKER = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute(f"BEGIN {sys.argv[2]}")
db.execute("CREATE TABLE IF NOT EXISTS other (a)")
print("locked", flush=True)
sys.stdin.read()
db.execute("ROLLBACK")
"""


@asynccontextmanager
async def locked(server: Server, how: str) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Another process holds the database; what is yielded lets it go."""
    command = [sys.executable, "-c", LOCKER, str(server.folder / "tidegate.db"), how]
    async with await anyio.open_process(command, stderr=None) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        with anyio.fail_after(PATIENCE):
            assert await process.stdout.receive(1) == b"l"  # and so on

        async def let_go() -> None:
            assert process.stdin is not None
            await process.stdin.aclose()
            with anyio.fail_after(PATIENCE):
                await process.wait()

        yield let_go
        await let_go()


@pytest.mark.parametrize("how", ["IMMEDIATE", "EXCLUSIVE"])
async def test_a_database_that_is_locked_for_ever(server: Server, how: str) -> None:
    """Every request is answered, within a bound, and none with success; then all goes on."""
    user = User(server)
    upload = await user.create(3 * CHUNK)
    await user.append(upload, CHUNK)
    async with locked(server, how) as let_go:
        with anyio.fail_after(PATIENCE):
            await user.append(upload, 2 * CHUNK)
            await user.append(upload, 2 * CHUNK, checked=True)
            await user.create(CHUNK)
            await user.create(CHUNK, sends=CHUNK)
        assert upload.offset == CHUNK
        assert {reply.status for reply in user.refused} == {503}
        assert len(user.uploads) == 1
        await let_go()
    await user.go()
    await user.finish()


async def test_a_database_that_is_locked_for_a_while(server: Server) -> None:
    """Requests wait; those that can have what they want before their time is up get it."""
    server.metadata._writer._busy_timeout = PATIENCE
    server.metadata._writer._connection.execute(f"PRAGMA busy_timeout = {PATIENCE * 1000:.0f}")
    user = User(server)
    upload = await user.create(3 * CHUNK)
    async with locked(server, "IMMEDIATE") as let_go, anyio.create_task_group() as tasks:
        tasks.start_soon(user.append, upload, 2 * CHUNK)
        # It waits behind the lock; what it does not need a lock for goes on.
        await user.look(upload)
        await let_go()
    assert upload.offset == 2 * CHUNK
    assert not user.refused
    await user.finish()


async def test_a_request_at_work_when_the_database_is_locked(server: Server) -> None:
    """What it has stored is not shown before it is written down, and not lost either."""
    user = User(server)
    upload = await user.create(5 * CHUNK)
    exchange = await server.client.start_patch(upload.path, 0, 3 * CHUNK)
    await exchange.send(upload.content[: CHUNK // 2])
    with anyio.fail_after(PATIENCE):
        while not server.stored(upload.path):
            await anyio.sleep(0.001)
    async with locked(server, "IMMEDIATE") as let_go:
        await exchange.send(upload.content[CHUNK // 2 : 3 * CHUNK])
        await exchange.end()
        reply = await exchange.reply()
        assert reply.status == 503
        await let_go()
    await user.finish()


# ------------------------------------------------------------------------------- no room for records


async def test_a_database_that_is_full(server: Server) -> None:
    """507, and nothing is changed; it goes on when there is room."""
    user = User(server)
    upload = await user.create(3 * CHUNK)
    await user.append(upload, CHUNK)
    db = server.metadata._writer._connection

    def limit(pages: int) -> None:
        db.execute(f"PRAGMA max_page_count = {pages}")

    (pages,) = await anyio.to_thread.run_sync(lambda: db.execute("PRAGMA page_count").fetchone())
    await anyio.to_thread.run_sync(limit, pages)
    for _ in range(100):
        await user.create(CHUNK, sends=CHUNK)
        if user.refused:
            break
    assert {reply.status for reply in user.refused} == {507}
    assert await user.look(upload)
    await anyio.to_thread.run_sync(limit, 2**30)
    await user.append(upload, 2 * CHUNK)
    assert upload.offset == 2 * CHUNK
    await user.finish()


# ----------------------------------------------------------------------------------- slow and full


async def test_syncs_that_take_long(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever needs no sync is not held up by those that are stuck, and completion waits for its."""
    user = User(server)
    go = threading.Event()
    stuck = threading.Event()
    sync = os.fdatasync

    def slow(fd: int) -> None:
        stuck.set()
        assert go.wait(PATIENCE)
        sync(fd)

    monkeypatch.setattr(os, "fdatasync", slow)
    whole, other = await user.create(CHUNK), await user.create(4 * CHUNK)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(user.append, whole, CHUNK)
        with anyio.fail_after(PATIENCE):
            while not stuck.is_set():
                await anyio.sleep(0.001)
            await user.append(other, CHUNK // 2)
            assert other.offset == CHUNK // 2
            assert await user.look(other)
        assert not whole.complete
        go.set()
    assert whole.complete
    await user.finish()


@asynccontextmanager
async def small_disk(folder: Path, size: int) -> AsyncIterator[Callable[[int], Awaitable[None]]]:
    """A file system of so many bytes; what is yielded gives it another size."""

    async def mount(options: str) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        try:
            done = await anyio.run_process(command, check=False)
        except FileNotFoundError:
            return False
        return done.returncode == 0

    async def resize(size: int) -> None:
        assert await mount(f"remount,size={size}")

    folder.mkdir()
    if not await mount(f"size={size}"):
        pytest.skip("not allowed to mount anything")
    try:
        yield resize
    finally:
        await anyio.run_process(["umount", "-l", str(folder)], check=False)


@pytest.mark.parametrize("durability", [Durability.COMPLETE, Durability.ACK])
@pytest.mark.parametrize("records", ["beside", "elsewhere"])
async def test_a_disk_that_fills(tmp_path: Path, durability: Durability, records: str) -> None:
    """What fitted is kept, the client is told 507, and goes on from there when there is room.

    Where the records are on the same disk nothing can be written down, and so HEAD is told 507, too.
    """
    size = 8 * 1024 * 1024
    async with small_disk(tmp_path / "disk", size) as resize:
        server = Server(tmp_path / "disk", durability)
        if records == "elsewhere":
            server.database = tmp_path / "tidegate.db"
        user = User(server)
        async with server.open():
            upload = await user.create(2 * size)
            await user.append(upload, CHUNK)
            await user.append(upload, 2 * size)
            await user.append(upload, upload.offset + size // 8, checked=True)
            assert {reply.status for reply in user.refused} == {507}
            if records == "elsewhere":
                assert size - 64 * 1024 < upload.offset < size
                assert len(user.refused) == 2
            await resize(4 * size)
            assert await user.look(upload)
            # All but what SQLite has.
            assert size // 2 < upload.offset <= size
            await user.append(upload, 2 * size)
            assert upload.complete
            await user.go()
            await user.finish()


async def test_a_file_that_may_not_grow(server: Server) -> None:
    """The same where nothing can be mounted: the system refuses what is past a size."""
    size = 2 * 1024 * 1024
    user = User(server)
    upload = await user.create(2 * size)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        await user.append(upload, 2 * size)
        assert [reply.status for reply in user.refused] == [507]
        assert upload.offset == size
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    await user.finish()
