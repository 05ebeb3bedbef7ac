"""The data store in an S3 bucket: see the package."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import anyio

from tidegate.ports import Buffer, BytesMissingError, DataError, Digest, Stored
from tidegate.protocol.capabilities import Capability
from tidegate.protocol.model import Segment, State, Upload, UploadId
from tidegate.stores import naming
from tidegate.stores.s3.budget import Budget
from tidegate.stores.s3.client import Client, Content
from tidegate.stores.s3.layout import Layout
from tidegate.stores.s3.objects import OWNER, fields_of
from tidegate.stores.s3.options import S3Options
from tidegate.stores.s3.pieces import Piece, Told, pieces, tails_in
from tidegate.stores.s3.writer import READ_CHUNK, SMALL, S3Writer
from tidegate.threads import Threads

if TYPE_CHECKING:
    from tidegate.ports import (
        DataStore,
        Fence,
        LinkStore,
        PieceStore,
        ProbedStore,
        Shown,
        WholeStore,
        Writer,
    )

T = TypeVar("T")

log = logging.getLogger("tidegate.s3")

THREADS: Final = 4
"""For digests only, which fill a core each."""


LINK_SECONDS: Final = 300
"""For which a link is good: a download that has begun goes on, and one that is resumed asks again."""


class S3Stored(Stored, frozen=True):
    """Something in the bucket."""

    key: str = ""
    multipart: str = ""
    """Its id, if it is a multipart upload; else it is an object."""


class S3Store:
    """Holds uploads in a bucket, below a prefix.

    `name` is the template of finished objects' names: see `naming.Template`; ValueError says what
    is wrong with it, or with the options. Several processes may use one prefix, with one metadata
    store: nobody else may write below it. A lifecycle rule of the bucket must not delete unfinished
    multipart uploads, or anything below `.tidegate`, before uploads expire.
    """

    capabilities = (
        Capability.GROW | Capability.DISCARD | Capability.DELETE | Capability.COPY | Capability.READ
    )
    boot_id = ""

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        name: str = "{shard}/{id}",
        options: S3Options | None = None,
    ) -> None:
        self.options = options or S3Options()
        self.options.check()
        prefix = prefix.strip("/")
        self.layout = Layout(f"{prefix}/" if prefix else "", naming.Template(name))
        self.client = Client(bucket, self.options)
        self.budget = Budget(self.options.memory)
        self.max_size: int | None = self.options.max_size
        self._writers: dict[UploadId, set[S3Writer]] = {}
        self._behind: set[asyncio.Task[None]] = set()
        self._threads: Threads | None = None

    # ---------------------------------------------------------------------------- life

    async def open(self) -> None:
        """Connect, and see that the bucket is there. Raises DataError."""
        self._threads = Threads(THREADS, "tidegate-s3")
        await self.client.open()

    async def close(self) -> None:
        """Finish deleting what is not needed, and close the connections."""
        with anyio.CancelScope(shield=True):
            with anyio.move_on_after(self.options.timeout):
                while self._behind:
                    await asyncio.wait(self._behind)
            for task in self._behind:
                task.cancel()
            if self._behind:
                await asyncio.wait(self._behind)
            await self.budget.close()
            await self.client.close()
        if self._threads is not None:
            self._threads.close()

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """Call what would hold up the event loop, in a thread."""
        if self._threads is None:
            raise DataError("the data store is not open")
        return await self._threads.run(function, *args)

    async def content(self, data: memoryview) -> Content:
        """Bytes ready to be sent."""
        if data.nbytes <= SMALL:
            return Content(data, self.options.checksums)
        return await self.run(Content, data, self.options.checksums)

    async def hash(self, digest: Digest, views: Sequence[memoryview]) -> None:
        """Add to a digest."""

        def add() -> None:
            for view in views:
                digest.update(view)

        if sum(view.nbytes for view in views) <= SMALL:
            add()
        else:
            await self.run(add)

    # ------------------------------------------------------------------------- writing

    def place(self, upload: Upload) -> dict[str, Any]:
        """The key of the upload's object. Pure."""
        return {"key": self.layout.key(upload)}

    async def writer(self, upload: Upload, fence: Fence) -> Writer:
        """Go on where the pieces end that were committed: see the port. Nothing has to be cut off,
        since what was not committed does not count.

        Raises BytesMissingError, DataError, and what `fence` raises.
        """
        if upload.complete:
            raise DataError(f"upload {upload.id} is complete; nothing may write to it")
        segments = await fence.segments()
        found = pieces(upload, segments)
        if found and not await self._is_there(upload, found[-1]):
            # By who has the upload now, if that is not us any more: then all is well.
            await fence.hold()
            raise BytesMissingError(f"what is stored of upload {upload.id} was deleted")
        writer = S3Writer(self, upload, fence, found, Told(segments))
        self._writers.setdefault(upload.id, set()).add(writer)
        return writer

    async def _is_there(self, upload: Upload, last: Piece) -> bool:
        if last.tail:
            return await self.client.head(last.tail) is not None
        storage = upload.storage
        return await self.client.has_multipart(storage["key"], storage["multipart"])

    def closed(self, upload_id: UploadId, writer: S3Writer) -> None:
        """A writer is at work no more."""
        writers = self._writers.get(upload_id, set())
        writers.discard(writer)
        if not writers:
            self._writers.pop(upload_id, None)

    async def start_multipart(self, upload: Upload) -> str:
        """Begin the multipart upload that becomes the upload's object; its id."""
        return await self.client.start_multipart(upload.storage["key"], **fields_of(upload))

    async def read_tail(self, tail: Piece, into: memoryview) -> None:
        """Read a tail back. Raises BytesMissingError, DataError."""
        at = 0
        async for chunk in self.client.read(tail.tail, 0, tail.length, READ_CHUNK):
            into[at : at + len(chunk)] = chunk
            at += len(chunk)

    async def measure(self, upload: Upload) -> int:
        """What the record says, if what it speaks of is there, as far as a request can tell; the
        object's size when it was put together.
        """
        key, multipart = upload.storage["key"], upload.storage.get("multipart")
        if not upload.complete and upload.offset:
            if multipart and await self.client.has_multipart(key, multipart):
                return upload.offset
            if not multipart and await self._tails_size(upload.id) >= upload.offset:
                return upload.offset
        found = await self._own_object(upload)
        return 0 if found is None else int(found["ContentLength"])

    async def _tails_size(self, upload_id: UploadId) -> int:
        prefix = self.layout.tails_of(upload_id)
        return sum([found["Size"] async for found in self.client.objects(prefix)])

    async def _own_object(self, upload: Upload) -> dict[str, Any] | None:
        """The upload's object, if it was put together for this upload."""
        found = await self.client.head(upload.storage["key"])
        if found is None or found.get("Metadata", {}).get(OWNER) != naming.token(upload.id):
            return None
        return found

    async def truncate(self, upload: Upload, offset: int, fence: Fence) -> None:
        """Nothing: what was not committed does not count. See `ports.PieceStore`."""

    # ----------------------------------------------------------------------- finishing

    async def store_whole(
        self,
        upload: Upload,
        chunks: Sequence[Buffer],
        *,
        durable: bool,  # noqa: ARG002 - the service keeps what it has acknowledged
    ) -> dict[str, Any]:
        """Store a small upload in one request: see `ports.WholeStore`. Raises DataError."""
        await self._put_whole(upload, memoryview(b"".join(chunks)))
        return {"key": upload.storage["key"]}

    async def _put_whole(self, upload: Upload, data: memoryview) -> None:
        fields = fields_of(upload) | self.client.kept_as()
        await self.client.put(upload.storage["key"], await self.content(data), **fields)

    async def finish(
        self,
        upload: Upload,
        fence: Fence,
        *,
        durable: bool,  # noqa: ARG002 - the service keeps what it has acknowledged
    ) -> dict[str, Any]:
        """Put together exactly the pieces that were committed: see the port.

        Raises BytesMissingError, DataError, and what `fence` raises.
        """
        key = upload.storage["key"]
        if not upload.whole:
            raise BytesMissingError(f"{upload.offset} of {upload.length} bytes of {upload.id}")
        if upload.complete:
            return dict(upload.storage)
        segments = await fence.segments()
        if not segments:
            # Empty, or stored at once.
            if not await self._is_finished(upload):
                if upload.length:
                    raise BytesMissingError(f"nothing is stored of upload {upload.id}")
                await self._put_whole(upload, memoryview(b""))
            return {"key": key}
        found = pieces(upload, segments)
        try:
            await self._put_together(upload, found, fence)
        except DataError as failure:
            # Whoever tried before us may have succeeded, and nobody was told.
            if not await self._is_finished(upload):
                storage = upload.storage
                multipart = storage.get("multipart")
                if multipart and not await self.client.has_multipart(storage["key"], multipart):
                    raise BytesMissingError(f"upload {upload.id}: {failure}") from failure
                raise
        self.delete_soon([k for piece in found for k in (piece.tail, *piece.left) if k])
        return {"key": key}

    async def _is_finished(self, upload: Upload) -> bool:
        found = await self._own_object(upload)
        return found is not None and found["ContentLength"] == upload.length

    async def _put_together(self, upload: Upload, found: Sequence[Piece], fence: Fence) -> None:
        parts = [(piece.part, piece.etag) for piece in found if piece.part]
        tails = [piece for piece in found if piece.tail]
        storage: dict[str, Any] = dict(upload.storage)
        done = partial(self._is_finished, upload)
        if tails:
            if "multipart" in storage and await done():
                return
            number = storage.get("next_part", 1)
            if "multipart" not in storage:
                storage["multipart"] = await self.start_multipart(upload)
            storage["next_part"] = number + 1
            await fence.reserve(storage)
            parts.append((number, await self._send_last(storage, tails, number)))
        await self.client.complete(storage["key"], storage["multipart"], parts, done)

    async def _send_last(self, storage: dict[str, Any], tails: Sequence[Piece], number: int) -> str:
        """Make the tails the last part, whatever its size; its ETag."""
        size = sum(tail.length for tail in tails)
        await self.budget.take(size)
        try:
            data = memoryview(bytearray(size))
            at = 0
            for tail in tails:
                await self.read_tail(tail, data[at : at + tail.length])
                at += tail.length
            content = await self.content(data)
            return await self.client.put_part(storage["key"], storage["multipart"], number, content)
        finally:
            self.budget.give(size)

    # ------------------------------------------------------------------------- reading

    async def read(self, upload: Upload, start: int, stop: int) -> AsyncIterator[bytes]:
        """Bytes [start, stop) in chunks of READ_CHUNK. Raises BytesMissingError, DataError."""
        async for chunk in self.client.read(upload.storage["key"], start, stop, READ_CHUNK):
            yield chunk

    async def link(self, upload: Upload, shown: Shown) -> str | None:
        """A signed address of the upload's object: see `ports.LinkStore`."""
        if not self.options.redirect_downloads:
            return None
        return await self.client.link(
            upload.storage["key"],
            LINK_SECONDS,
            ResponseContentType=shown.content_type,
            ResponseContentDisposition=shown.content_disposition,
            ResponseCacheControl=shown.cache_control,
        )

    # ------------------------------------------------------------------------ deleting

    async def delete(self, upload: Upload) -> None:
        """Delete the upload's pieces and its object. Raises DataError."""
        for writer in self._writers.get(upload.id, ()):
            writer.fail(BytesMissingError(f"upload {upload.id} was deleted"))
        key, multipart = upload.storage["key"], upload.storage.get("multipart")
        if multipart:
            await self.client.abort(key, multipart)
        prefix = self.layout.tails_of(upload.id)
        tails = [found["Key"] async for found in self.client.objects(prefix)]
        await self.client.delete([*tails, key])

    def delete_soon(self, keys: Sequence[str]) -> None:
        """Delete tails that nothing needs, behind whoever asks. What fails is left to the sweep."""
        if keys:
            task = asyncio.create_task(self._delete(keys), name="tidegate-s3-delete")
            self._behind.add(task)
            task.add_done_callback(self._behind.discard)

    async def _delete(self, keys: Sequence[str]) -> None:
        try:
            await self.client.delete(keys)
        except DataError as failure:
            log.warning("%d tails are left to the sweep: %s", len(keys), failure)

    async def stored(self) -> AsyncIterator[Stored]:
        """All multipart uploads, tails and finished objects below the prefix whose upload is sure."""
        async for found in self.client.multiparts(self.layout.prefix):
            key, multipart = found["Key"], found["UploadId"]
            owner = self.layout.owner(key)
            if owner is None:
                continue
            size = await self.client.size_of_parts(key, multipart)
            if size is not None:
                place = f"{self._place(key)} (multipart upload {multipart})"
                at = found["Initiated"].timestamp()
                yield S3Stored(owner, size, at, place, key=key, multipart=multipart)
        async for found in self.client.objects(self.layout.prefix):
            key, at = found["Key"], found["LastModified"].timestamp()
            tail = key.startswith(self.layout.tails)
            owner = self.layout.tail_owner(key) if tail else self.layout.owner(key)
            if owner is not None:
                place = self._place(key)
                yield S3Stored(owner, found["Size"], at, place, whole=not tail, key=key)

    def _place(self, key: str) -> str:
        return f"s3://{self.client.bucket}/{key}"

    def speaks_of(self, upload: Upload, segments: Sequence[Segment], stored: Stored) -> bool:
        """Whether a record needs it: see `ports.PieceStore`."""
        if not isinstance(stored, S3Stored):
            return True
        if stored.multipart:
            current = upload.storage.get("multipart") == stored.multipart
            return upload.state is State.RECEIVING and current
        if stored.whole:
            return bool(upload.storage["key"] == stored.key)
        return upload.state is State.RECEIVING and stored.key in tails_in(segments)

    async def discard(self, stored: Stored) -> None:
        """Delete something that `stored` found. Raises DataError."""
        if not isinstance(stored, S3Stored):
            raise DataError(f"{stored.place} was not found here")
        if stored.multipart:
            await self.client.abort(stored.key, stored.multipart)
        else:
            await self.client.delete([stored.key])

    async def free_space(self) -> int | None:
        """Without a meaning here."""
        return None

    async def probe(self) -> None:
        """See whether the bucket answers. Raises DataError."""
        await self.client.probe()


if TYPE_CHECKING:
    _: type[DataStore] = S3Store
    __: type[PieceStore] = S3Store
    ___: type[WholeStore] = S3Store
    ____: type[LinkStore] = S3Store
    _____: type[ProbedStore] = S3Store
