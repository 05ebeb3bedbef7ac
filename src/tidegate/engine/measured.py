"""The stores as the engine sees them, with a clock held to what they do.

What an implementation can do beyond its port (keep files, keep pieces, be written to by threads) it
can still do here. What is not measured goes straight through.
"""

from __future__ import annotations

from bisect import bisect_left
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from tidegate.measures import CALL_ERRORS, CALL_SECONDS, QUICK, Measures
from tidegate.ports import (
    BytesBusyError,
    DataError,
    MetadataError,
    NoRoomError,
    UnavailableError,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from tidegate.ports import (
        AheadStore,
        Buffer,
        Change,
        DataStore,
        Digest,
        Fence,
        Flushed,
        Grant,
        Held,
        Lease,
        Loaded,
        MetadataStore,
        Writer,
    )
    from tidegate.protocol.model import Upload, UploadId

T = TypeVar("T")

OPTIONAL: Final = ("open_file", "link", "speaks_of", "probe", "queued", "hand_over", "told")
"""What makes a store one of `ports.FileStore`, `LinkStore`, `PieceStore`, `ProbedStore`, `QueuedStore`,
`HandingStore`. (And `store_whole` a WholeStore, `store_ahead` an AheadStore, which are measured.)"""


class Call:
    """One kind of call to a store, and what is known of how long it takes."""

    def __init__(self, measures: Measures, store: str, operation: str) -> None:
        self._measures = measures
        self._seconds = CALL_SECONDS.cell(store, operation)
        self._errors = CALL_ERRORS.cell(store, operation)

    async def timed(self, work: Awaitable[T]) -> T:
        """Wait for a call, and count it. Raises what it raises."""
        began = perf_counter()
        try:
            return await work
        except (MetadataError, DataError) as error:
            if _is_failure(error):
                self._measures.add(self._errors)
            raise
        finally:
            self._measures.observe(CALL_SECONDS, self._seconds, perf_counter() - began)

    def add(self, tally: list[float]) -> None:
        """Add what a thread has counted, and begin its tally again."""
        for index, amount in enumerate(tally):
            if amount:
                self._measures.add(self._seconds + index, amount)
                tally[index] = 0


def _is_failure(error: MetadataError | DataError) -> bool:
    """Whether the store did not do its work, and not: it said no, as is its work."""
    if isinstance(error, MetadataError):
        return type(error) is MetadataError or isinstance(error, (UnavailableError, NoRoomError))
    return not isinstance(error, BytesBusyError)


class _Measured:
    """Lets everything through that a subclass does not measure."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        # A runtime-checkable protocol sees what an object has, not what its __getattr__ gives.
        for name in OPTIONAL:
            if hasattr(inner, name):
                setattr(self, name, getattr(inner, name))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _Metadata(_Measured):
    def __init__(self, inner: MetadataStore, measures: Measures) -> None:
        super().__init__(inner)
        self._load = Call(measures, "metadata", "load")
        self._insert = Call(measures, "metadata", "insert")
        self._acquire = Call(measures, "metadata", "acquire")
        self._commit = Call(measures, "metadata", "commit")
        self._renew = Call(measures, "metadata", "renew")
        self._release = Call(measures, "metadata", "release")

    def load(self, upload_id: UploadId) -> Awaitable[Loaded | None]:
        return self._load.timed(self._inner.load(upload_id))

    def insert(self, upload: Upload, **how: Any) -> Awaitable[Grant | None]:
        return self._insert.timed(self._inner.insert(upload, **how))

    def acquire(self, upload_id: UploadId, **how: Any) -> Awaitable[Grant | Held]:
        return self._acquire.timed(self._inner.acquire(upload_id, **how))

    def commit(self, lease: Lease, change: Change) -> Awaitable[Upload]:
        return self._commit.timed(self._inner.commit(lease, change))

    def renew(self, lease: Lease) -> Awaitable[None]:
        return self._renew.timed(self._inner.renew(lease))

    def release(self, lease: Lease) -> Awaitable[None]:
        return self._release.timed(self._inner.release(lease))


class _Data(_Measured):
    def __init__(self, inner: DataStore, measures: Measures) -> None:
        super().__init__(inner)
        self._writer = Call(measures, "data", "writer")
        self._measure = Call(measures, "data", "measure")
        self._finish = Call(measures, "data", "finish")
        self._delete = Call(measures, "data", "delete")
        self._whole = Call(measures, "data", "store_whole")
        self._calls = _WriterCalls(measures)
        if hasattr(inner, "store_whole"):
            self.store_whole = self._store_whole
        if hasattr(inner, "store_ahead"):
            self.store_ahead = self._store_ahead
            self.confirm = cast("AheadStore", inner).confirm

    def _store_ahead(
        self, upload: Upload, chunks: Sequence[Buffer], *, durable: bool
    ) -> Awaitable[bool]:
        return self._whole.timed(self._inner.store_ahead(upload, chunks, durable=durable))

    def _store_whole(
        self, upload: Upload, chunks: Sequence[Buffer], *, durable: bool
    ) -> Awaitable[dict[str, Any]]:
        return self._whole.timed(self._inner.store_whole(upload, chunks, durable=durable))

    async def writer(self, upload: Upload, fence: Fence) -> Writer:
        writer = await self._writer.timed(self._inner.writer(upload, fence))
        # Not isinstance: with a protocol it takes as long as all the rest here.
        kind = _PouredWriter if hasattr(writer, "write_blocking") else _Writer
        return cast("Writer", kind(writer, self._calls))

    def measure(self, upload: Upload) -> Awaitable[int]:
        return self._measure.timed(self._inner.measure(upload))

    def finish(self, upload: Upload, fence: Fence, *, durable: bool) -> Awaitable[dict[str, Any]]:
        return self._finish.timed(self._inner.finish(upload, fence, durable=durable))

    def delete(self, upload: Upload) -> Awaitable[None]:
        return self._delete.timed(self._inner.delete(upload))


class _WriterCalls:
    """What writers do, for all of them."""

    def __init__(self, measures: Measures) -> None:
        self.write = Call(measures, "data", "write")
        self.flush = Call(measures, "data", "flush")
        self.sync = Call(measures, "data", "sync")
        self.copy = Call(measures, "data", "copy")


class _Writer(_Measured):
    def __init__(self, inner: Writer, calls: _WriterCalls) -> None:
        super().__init__(inner)
        self._calls = calls

    @property
    def offset(self) -> int:
        return int(self._inner.offset)

    def write(self, chunks: Sequence[Buffer], digest: Digest | None = None) -> Awaitable[None]:
        return self._calls.write.timed(self._inner.write(chunks, digest))

    def copy(self, part: Upload, start: int, stop: int) -> Awaitable[None]:
        return self._calls.copy.timed(self._inner.copy(part, start, stop))

    def progress(self) -> Awaitable[Flushed]:
        return self._calls.flush.timed(self._inner.progress())

    def flush(self) -> Awaitable[Flushed]:
        return self._calls.flush.timed(self._inner.flush())

    def sync(self) -> Awaitable[int]:
        return self._calls.sync.timed(self._inner.sync())

    def close(self) -> Awaitable[None]:
        closing: Awaitable[None] = self._inner.close()
        return closing


class _PouredWriter(_Writer):
    """A writer that threads write to, one at a time: each keeps its tally here until the task that
    has the writer looks after it.
    """

    def __init__(self, inner: Writer, calls: _WriterCalls) -> None:
        super().__init__(inner, calls)
        self._tally = [0.0] * CALL_SECONDS.width
        if hasattr(inner, "splice_blocking"):
            self.splice_blocking = self._splice_blocking

    def write_blocking(self, chunks: Sequence[Buffer], digest: Digest | None = None) -> None:
        began = perf_counter()
        try:
            self._inner.write_blocking(chunks, digest)
        finally:
            self._took(perf_counter() - began)

    def _splice_blocking(self, pipe: int, count: int) -> None:
        began = perf_counter()
        try:
            self._inner.splice_blocking(pipe, count)
        finally:
            self._took(perf_counter() - began)

    def _took(self, seconds: float) -> None:
        self._tally[bisect_left(QUICK, seconds)] += 1
        self._tally[-1] += seconds

    def progress(self) -> Awaitable[Flushed]:
        self._calls.write.add(self._tally)
        return super().progress()

    def flush(self) -> Awaitable[Flushed]:
        self._calls.write.add(self._tally)
        return super().flush()

    def close(self) -> Awaitable[None]:
        self._calls.write.add(self._tally)
        return super().close()


def measured_metadata(store: MetadataStore, measures: Measures) -> MetadataStore:
    """A metadata store, measured."""
    return cast("MetadataStore", _Metadata(store, measures))


def measured_data(store: DataStore, measures: Measures) -> DataStore:
    """A data store, measured."""
    return cast("DataStore", _Data(store, measures))
