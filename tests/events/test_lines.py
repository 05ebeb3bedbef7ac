"""Sinks don't wait for one another: over each metadata store, with a real receiver and command."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.engine.stage import until
from tests.support import postgres
from tests.support.bodies import ScriptedBody
from tests.support.receiver import SECRET, Answer, Receiver

from tidegate.engine.engine import Engine
from tidegate.events.callable import CallableSink
from tidegate.events.command import CommandSink
from tidegate.events.webhook import WebhookSink
from tidegate.metadata.memory import MemoryMetadataStore
from tidegate.metadata.postgres.store import PostgresMetadataStore
from tidegate.metadata.redis.store import RedisMetadataStore
from tidegate.metadata.sqlite.store import SQLiteMetadataStore
from tidegate.protocol.commands import Append, Create, Payload, Terminate
from tidegate.protocol.results import Created
from tidegate.stores.memory import MemoryStore
from tidegate.testing import FakeClock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.valkey import Valkey

    from tidegate.ports import Delivery, EventSink, MetadataStore

pytestmark = pytest.mark.anyio

ORDER = ["created", "completed", "terminated"]
DAY = 86_400.0


@pytest.fixture(params=["sqlite", "postgresql", "redis", "memory"])
def records(request: pytest.FixtureRequest, tmp_path: Path) -> MetadataStore:
    match request.param:
        case "sqlite":
            return SQLiteMetadataStore(tmp_path / "tidegate.db")
        case "postgresql":
            return PostgresMetadataStore(postgres.server().url())
        case "redis":
            valkey: Valkey = request.getfixturevalue("valkey")
            return RedisMetadataStore(valkey.url())
        case _:
            return MemoryMetadataStore()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as started:
        yield started


async def test_a_webhook_that_is_down_for_a_day(
    records: MetadataStore, receiver: Receiver, tmp_path: Path
) -> None:
    """A callable and a command get everything at once; it gets everything, in order, after that."""
    receiver.answer = lambda _: Answer(503)
    script, file = tmp_path / "tell.py", tmp_path / "told"
    script.write_text(
        "import os, sys\nprint(os.environ['TIDEGATE_EVENT'], file=open(sys.argv[1], 'a'))\n"
    )
    file.touch()
    called: list[str] = []

    async def call(delivery: Delivery) -> None:
        called.append(delivery.event.type.value)

    clock = FakeClock()
    sinks: list[EventSink] = [
        WebhookSink(receiver.url, [SECRET]),
        CallableSink(call),
        CommandSink([sys.executable, "-S", str(script), str(file)]),
    ]
    engine = Engine(MemoryStore(), records, sinks=sinks, clock=clock, expire_after=7 * DAY)

    async def told(kinds: list[str]) -> None:
        await until(lambda: called == kinds and written() == kinds)

    def written() -> list[str]:
        return file.read_text().split()

    def tries() -> list[tuple[str, int]]:
        payloads = [got.payload for got in receiver.received]
        return [(p["type"].removeprefix("upload."), p["data"]["attempt"]) for p in payloads]

    async with engine:
        created = await engine.handle(Create(length=3), ScriptedBody())
        assert isinstance(created, Created)
        upload_id = created.upload.id
        await told(ORDER[:1])
        for tried in range(1, 5):
            await until(lambda: len(receiver.received) == tried)  # noqa: B023
            await until(lambda: _waits(records, clock))
            clock.advance(DAY / 4)
            engine._outbox.wake()
        await until(lambda: len(receiver.received) == 5)
        command = Append(id=upload_id, payload=Payload(length=3))
        await engine.handle(command, ScriptedBody(b"abc"))
        await told(ORDER[:2])
        await engine.handle(Terminate(id=upload_id), ScriptedBody())
        await told(ORDER)
        await until(lambda: _waits(records, clock))
        assert tries() == [("created", attempt) for attempt in range(1, 6)]
        receiver.answer = lambda _: Answer()
        clock.advance(DAY)
        engine._outbox.wake()
        await until(lambda: _nothing_left(records))
        assert tries()[5:] == [("created", 6), ("completed", 1), ("terminated", 1)]
        assert called == ORDER
        assert written() == ORDER


async def _waits(records: MetadataStore, clock: FakeClock) -> bool:
    """Whether all that is left was tried, and is claimed by nobody, and not due."""
    left = [each async for each in records.events()]
    due_at = left[0].due_at if left else None
    failed = [retry.due_at for each in left for retry in each.delivery.retries]
    return due_at is not None and due_at > clock.now() and failed == [due_at]


async def _nothing_left(records: MetadataStore) -> bool:
    return not [each async for each in records.events()]
