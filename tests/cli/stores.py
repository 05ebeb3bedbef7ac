"""The stores that a server left in a folder, and what tests do to them behind everyone's back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from msgspec.structs import replace
from tests.support.bodies import ScriptedBody

from tidegate.engine.engine import Engine
from tidegate.metadata.sqlite.store import SQLiteMetadataStore
from tidegate.ports import Change, Grant
from tidegate.protocol.commands import Create, Payload
from tidegate.protocol.model import Upload, UploadId
from tidegate.protocol.results import Created
from tidegate.stores.local import LocalStore

DATA = Path("data")
Command = Callable[..., tuple[int, str, str]]
"""Of the fixture `tidegate`."""


@asynccontextmanager
async def records() -> AsyncIterator[SQLiteMetadataStore]:
    """The records, with nobody else at work on them."""
    store = SQLiteMetadataStore(DATA / "tidegate.db")
    await store.open(LocalStore(DATA).boot_id)
    try:
        yield store
    finally:
        await store.close()


def with_engine(work: Callable[[Engine], Awaitable[None]]) -> None:
    """Let an engine work on the stores, and stop it in order."""

    async def run() -> None:
        DATA.mkdir(exist_ok=True)
        metadata = SQLiteMetadataStore(DATA / "tidegate.db")
        async with Engine(LocalStore(DATA), metadata, tending=False) as engine:
            await work(engine)

    asyncio.run(run())


async def create(engine: Engine, content: bytes, length: int | None, **fields: Any) -> Upload:
    """An upload of `length` bytes, of which `content` has come."""
    command = Create(
        length=length, deferred=length is None, payload=Payload(length=len(content)), **fields
    )
    result = await engine.handle(command, ScriptedBody(content))
    assert isinstance(result, Created)
    return result.upload


def uploaded(content: bytes, *, length: int) -> Upload:
    """An upload of `length` bytes, of which `content` has come."""
    made: list[Upload] = []

    async def work(engine: Engine) -> None:
        made.append(await create(engine, content, length))

    with_engine(work)
    return made[0]


def change(upload_id: UploadId, **fields: Any) -> None:
    """Alter a record."""

    async def run() -> None:
        async with records() as store:
            grant = await store.acquire(upload_id)
            assert isinstance(grant, Grant)
            changed = Change(upload=replace(grant.upload, **fields), release=True)
            await store.commit(grant.lease, changed)

    asyncio.run(run())


def die_writing(upload: Upload, content: bytes) -> None:
    """Be a writer that dies after its last byte and before it could tell anyone."""

    async def run() -> None:
        async with records() as store:
            grant = await store.acquire(upload.id)
            assert isinstance(grant, Grant)
            with incoming(upload).open("ab") as file:
                file.write(content)
            store.abandon(grant.lease)

    asyncio.run(run())


def incoming(upload: Upload) -> Path:
    """Where its bytes are while it is unfinished."""
    return DATA / str(upload.storage["incoming"])


def finished(upload: Upload) -> Path:
    """Where its bytes are once it is complete."""
    return DATA / str(upload.storage["finished"])
