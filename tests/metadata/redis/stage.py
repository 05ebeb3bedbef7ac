"""Stores on a server, or at the end of a line, as a test wants them."""

from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

from tests.support.lossy import LossyLine

from tidegate.metadata.redis.store import RedisMetadataStore
from tidegate.testing.metadata.support import opened

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tidegate.ports import MetadataStore
    from tidegate.protocol.model import UploadId


def through(line: LossyLine, url: str) -> RedisMetadataStore:
    """A store that talks over a line."""
    _, _, rest = url.partition("/0?")
    return RedisMetadataStore(f"redis://127.0.0.1:{line.port}/0?{rest}")


@asynccontextmanager
async def at(
    url: str, line: LossyLine | None = None, boot_id: str = ""
) -> AsyncIterator[RedisMetadataStore]:
    """A store that is open, over a line if there is one."""
    store = RedisMetadataStore(url) if line is None else through(line, url)
    async with opened(lambda: store, boot_id):
        yield store


@contextmanager
def impatient(store: RedisMetadataStore) -> Iterator[None]:
    """What can't be had is not waited for. Not for what must succeed: the machine may be busy."""
    link = store._open
    kept = link._patience, link._attempt
    link._patience, link._attempt = 0.3, 0.15
    yield
    link._patience, link._attempt = kept


async def loaded(store: MetadataStore, upload_id: UploadId) -> Any:
    found = await store.load(upload_id)
    assert found is not None
    return found


async def told(store: Any) -> bool:
    """Whether Redis knows what was given up."""
    return not store._leases._unheard and not store._leases._abandoned
