"""Stand-ins for what a cluster has: leases that expire or are lost, and a store that needs no lock.

`FencedStore` keeps each writer's bytes apart, as parts of their own, and only the record says which
of them count, so that a writer whose lease is gone writes nothing that counts.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

import anyio.to_thread

from tidegate.metadata.memory import MemoryMetadataStore
from tidegate.metadata.sqlite.store import SQLiteMetadataStore
from tidegate.ports import (
    Buffer,
    BytesMissingError,
    Change,
    DataError,
    Digest,
    Flushed,
    Grant,
    Held,
    Lease,
    LeaseLostError,
    Stored,
    UnavailableError,
)
from tidegate.protocol.capabilities import Capability
from tidegate.protocol.model import Upload, UploadId
from tidegate.stores.local import LocalStore

if TYPE_CHECKING:
    from tidegate.ports import DataStore, Fence, Writer

Part = tuple[int, int]
"""A number of a part, and how many of its bytes count."""


class FencedStore:
    """Bytes in numbered parts, of which the record's `storage` lists those that count."""

    capabilities = Capability.GROW | Capability.DISCARD | Capability.DELETE | Capability.READ
    boot_id = ""
    max_size: int | None = None

    def __init__(self) -> None:
        self.parts: list[bytearray] = []

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass

    def place(self, upload: Upload) -> dict[str, Any]:
        return {"parts": []}

    async def writer(self, upload: Upload, fence: Fence) -> Writer:
        return FencedWriter(self, _cut(upload, upload.offset), upload.offset)

    async def measure(self, upload: Upload) -> int:
        return sum(size for _, size in upload.storage["parts"])

    async def truncate(self, upload: Upload, offset: int, fence: Fence) -> None:
        """The next writer leaves them out."""

    async def finish(self, upload: Upload, fence: Fence, *, durable: bool) -> dict[str, Any]:
        if not upload.whole or await self.measure(upload) < upload.offset:
            raise BytesMissingError(f"upload {upload.id} is not whole")
        return {"parts": _cut(upload, upload.offset)}

    def content(self, upload: Upload) -> bytes:
        return b"".join(self.parts[at][:size] for at, size in _cut(upload, upload.offset))

    async def read(self, upload: Upload, start: int, stop: int) -> AsyncIterator[bytes]:
        yield self.content(upload)[start:stop]

    async def delete(self, upload: Upload) -> None:
        for at, _ in upload.storage["parts"]:
            self.parts[at] = bytearray()

    async def stored(self) -> AsyncIterator[Stored]:
        return
        yield

    async def discard(self, stored: Stored) -> None:
        raise DataError("nothing was found")

    async def free_space(self) -> int | None:
        return None


def _cut(upload: Upload, offset: int) -> list[Part]:
    kept: list[Part] = []
    for at, size in upload.storage["parts"]:
        if offset <= 0:
            break
        kept.append((at, min(size, offset)))
        offset -= size
    return kept


class FencedWriter:
    """Writes one part of its own."""

    def __init__(self, store: FencedStore, before: list[Part], offset: int) -> None:
        self._before = before
        self._at = len(store.parts)
        self._part = bytearray()
        self.offset = offset
        store.parts.append(self._part)

    async def write(self, chunks: Sequence[Buffer], digest: Digest | None = None) -> None:
        for chunk in chunks:
            if digest is not None:
                await anyio.to_thread.run_sync(digest.update, chunk)
            self._part += chunk
            self.offset += len(chunk)

    async def copy(self, part: Upload, start: int, stop: int) -> None:
        raise NotImplementedError

    async def flush(self) -> Flushed:
        parts = [*self._before, (self._at, len(self._part))]
        return Flushed(self.offset, storage={"parts": parts})

    progress = flush

    async def sync(self) -> int:
        return self.offset

    async def close(self) -> None:
        pass


class Expiring(MemoryMetadataStore):
    """Leases of the uploads in `over` are over, though their holder knows nothing of it."""

    def __init__(self) -> None:
        super().__init__()
        self.over: set[UploadId] = set()

    async def acquire(self, upload_id: UploadId, *, force: bool = False) -> Grant | Held:
        expired = upload_id in self.over
        self.over.discard(upload_id)
        return await super().acquire(upload_id, force=force or expired)


class Thieving(SQLiteMetadataStore):
    """Loses leases, by `rng`: others take them by force, before a commit or between two of them."""

    thief: SQLiteMetadataStore
    """On the same file: what another process would do."""

    def __init__(self, *args: Any, rng: random.Random, **options: Any) -> None:
        super().__init__(*args, **options)
        self._rng = rng
        self.stealing = True
        self.stolen = 0

    async def _steal(self, lease: Lease) -> None:
        taken = await self.thief.acquire(lease.upload_id, force=True)
        assert isinstance(taken, Grant)
        self.stolen += 1
        # It went as it came: whoever comes next must recover.
        self.thief.abandon(taken.lease)

    async def commit(self, lease: Lease, change: Change) -> Upload:
        chance = self._rng.random() if self.stealing else 1.0
        if chance < 0.2:
            await self._steal(lease)
        if chance < 0.1:
            raise LeaseLostError(lease.upload_id)
        upload = await super().commit(lease, change)
        if 0.2 <= chance < 0.3 and not change.release and not change.forget:
            await self._steal(lease)
        if 0.3 <= chance < 0.35:
            raise UnavailableError("the answer to the commit was lost")
        return upload

    async def renew(self, lease: Lease) -> None:
        if self.stealing and self._rng.random() < 0.1:
            await self._steal(lease)
        await super().renew(lease)


class Dozing(LocalStore):
    """Falls asleep just before it opens an upload's bytes."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.asleep = anyio.Event()
        self.wake = anyio.Event()

    async def writer(self, upload: Upload, fence: Fence) -> Writer:
        self.asleep.set()
        await self.wake.wait()
        return await super().writer(upload, fence)


if TYPE_CHECKING:
    _: type[DataStore] = FencedStore
    __: type[Writer] = FencedWriter
