"""What the checks of metadata stores share."""

# ruff: noqa: S101

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import anyio
from msgspec.structs import replace

from tidegate.ports import Change, Ended, Grant, Line, MetadataStore
from tidegate.protocol.model import Event, EventType, Kind, State, Upload, UploadId

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

E = TypeVar("E", bound=Exception)

MakeStore: TypeAlias = Callable[[], MetadataStore]
"""Gives a store that is not open yet; every time on the same, at first empty, place."""

Check: TypeAlias = Callable[[MakeStore], Awaitable[None]]
"""Raises AssertionError when the store does not do what the port says."""

NOW = 1_700_000_000.0

PATIENCE = 20.0
"""Seconds that a check waits for what has to come: far more than it takes, on a busy machine."""


@asynccontextmanager
async def opened(make: MakeStore, boot_id: str = "") -> AsyncIterator[MetadataStore]:
    """A store that is open."""
    store = make()
    await store.open(boot_id)
    try:
        yield store
    finally:
        with anyio.CancelScope(shield=True):
            await store.close()


@contextmanager
def raises(expected: type[E]) -> Iterator[list[E]]:
    """Expect an exception of this type; it is put into the list."""
    caught: list[E] = []
    try:
        yield caught
    except expected as error:
        caught.append(error)
        return
    raise AssertionError(f"{expected.__name__} was not raised")


@asynccontextmanager
async def patience() -> AsyncIterator[None]:
    """Wait for what has to come, but not for ever."""
    try:
        with anyio.fail_after(PATIENCE):
            yield
    except TimeoutError:
        raise AssertionError(f"did not happen within {PATIENCE} seconds") from None


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until a condition holds."""
    async with patience():
        while not await condition():  # noqa: ASYNC110  (of a store, which has no event for it)
            await anyio.sleep(0.005)


def new_id(prefix: str = "") -> UploadId:
    """An id that nobody has used."""
    return UploadId(prefix + secrets.token_urlsafe(16))


def upload(upload_id: str = "", **fields: Any) -> Upload:
    """A record, of 100 bytes unless `fields` say otherwise."""
    fields.setdefault("length", 100)
    return Upload(
        id=UploadId(upload_id) if upload_id else new_id(), created_at=NOW, active_at=NOW, **fields
    )


def partial(upload_id: str = "", **fields: Any) -> Upload:
    """The record of a partial upload."""
    return upload(upload_id, kind=Kind.PARTIAL, concat="partial", **fields)


def final(*parts: Upload, **fields: Any) -> Upload:
    """The record of a final upload."""
    return upload(kind=Kind.FINAL, parts=tuple(part.id for part in parts), **fields)


def event(about: Upload, kind: EventType = EventType.CREATED) -> Event:
    """Something to tell of an upload."""
    return Event(type=kind, at=NOW, upload=about)


async def add(store: MetadataStore, *records: Upload) -> None:
    """Insert records, with nobody holding them."""
    for record in records:
        assert await store.insert(record) is None


async def hold(store: MetadataStore, upload_id: UploadId, *, force: bool = False) -> Grant:
    """Take a lease that can be had."""
    grant = await store.acquire(upload_id, force=force)
    assert isinstance(grant, Grant), f"{upload_id} is held"
    return grant


async def change(store: MetadataStore, upload_id: UploadId, **fields: Any) -> Upload:
    """Change a record that nobody holds."""
    grant = await hold(store, upload_id)
    return await store.commit(
        grant.lease, Change(upload=replace(grant.upload, **fields), release=True)
    )


async def end_claim(store: MetadataStore, line: Line, **what: Any) -> bool:
    """End a claim, whose events were told, but for those that `what` says; whether it was held."""
    return await store.end_claims([Ended(line=line, **what)]) == []


async def end(store: MetadataStore, upload_id: UploadId, state: State, at: float) -> Upload:
    """Bring an upload to an end."""
    return await change(store, upload_id, state=state, ended_at=at, expires_at=None)
