"""Assembling final uploads from their parts, in front of a request or behind it."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import anyio
from msgspec.structs import replace

from tidegate.engine.completion import complete
from tidegate.engine.core import log
from tidegate.engine.ending import free_parts
from tidegate.engine.sessions import Session, go_back, session
from tidegate.ports import (
    BytesMissingError,
    DataError,
    LeaseLostError,
    MetadataError,
    SyncFailedError,
    UnknownUploadError,
)
from tidegate.protocol.decide import length_of
from tidegate.protocol.errors import Code, Denied, Refusal
from tidegate.protocol.lifecycle import Transition, advance
from tidegate.protocol.model import MAX_LENGTH, Segment, State, Upload, UploadId

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tidegate.engine.core import Core
    from tidegate.hooks import UploadRequest
    from tidegate.ports import Flushed

AT_ONCE = 2
"""Finals assembled at the same time behind requests: copying is bound by the disk, not by waiting."""
RETRY_AFTER = 5.0
"""Seconds until an assembly that a store's failure stopped is tried again."""


class Assembler:
    """Makes finals whole. One task at a time works on a final: it holds its lease."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._slots = anyio.Semaphore(AT_ONCE)
        self._queued: set[UploadId] = set()

    async def assemble_soon(self, final: UploadId, request: UploadRequest | None) -> Upload | None:
        """Assemble within a few seconds, or leave it to the background; the record, if it moved.

        Raises Denied where a hook is against it.
        """
        try:
            with anyio.move_on_after(self._core.settings.assemble_within) as scope:
                upload = await self._assemble(final, request)
        except (Refusal, DataError, MetadataError) as error:
            if isinstance(error, Denied) and error.lasting:
                raise
            log.warning("final upload %s: not assembled yet: %s", final, error)
            self.wake(final)
            return None
        if scope.cancelled_caught:
            self.wake(final)
            return None
        return upload

    async def length_of(self, final: Upload) -> int | None:
        """A final's length, as soon as each of its parts has one."""
        if final.length is not None:
            return final.length
        parts = await self._parts(final)
        return None if parts is None else length_of(parts)

    def wake(self, final: UploadId) -> None:
        """Have another look at a final, in the background."""
        if final not in self._queued:
            self._queued.add(final)
            self._core.spawn(self._work, final)

    def part_changed(self, part: UploadId) -> None:
        """Have another look at the finals that wait for a part."""
        self._core.spawn(self._wake_waiting, part)

    async def wake_all(self) -> None:
        """Have another look at every final that is not whole: after a start, and now and then."""
        for final in await self._core.metadata.pending_finals():
            self.wake(final)

    async def _wake_waiting(self, part: UploadId) -> None:
        try:
            for final in await self._core.metadata.pending_finals(part):
                self.wake(final)
        except MetadataError as error:
            log.warning("finals that wait for %s: %s", part, error)

    async def _work(self, final: UploadId) -> None:
        try:
            async with self._slots:
                # From here on a wake means another look.
                self._queued.discard(final)
                again_when = await self._try(final)
            while again_when is not None and final not in self._queued:
                self._queued.add(final)
                await again_when()
                async with self._slots:
                    self._queued.discard(final)
                    again_when = await self._try(final)
        except BaseException:
            self._queued.discard(final)
            raise

    async def _try(self, final: UploadId) -> Callable[[], Awaitable[None]] | None:
        """Assemble; if that was in vain, how to wait until another try is worth it."""
        try:
            await self._assemble(final)
        except Refusal as refusal:
            if refusal.code is not Code.LOCKED:
                log.warning("final upload %s: not complete: %s", final, refusal)
                return partial(anyio.sleep, RETRY_AFTER)
            # Whoever has it may have looked at the parts before the last of them was whole.
            log.debug("final upload %s: someone else is at work on it", final)
            return partial(self._released, final)
        except UnknownUploadError:
            return None
        except LeaseLostError:
            log.info("final upload %s: someone else took it over", final)
            return partial(self._released, final)
        except (DataError, MetadataError) as error:
            log.error("final upload %s: not assembled: %s", final, error)
            return partial(anyio.sleep, RETRY_AFTER)
        return None

    async def _released(self, final: UploadId) -> None:
        try:
            await self._core.metadata.wait_released(final, RETRY_AFTER)
        except MetadataError:
            await anyio.sleep(RETRY_AFTER)

    async def _assemble(self, final: UploadId, request: UploadRequest | None = None) -> Upload:
        """Carry a final as far as its parts allow. Raises Refusal when someone else has it, or a
        hook does not agree.
        """
        core = self._core
        async with session(core, final, ask=False) as held:
            held.request = request
            if held.upload.state is not State.RECEIVING:
                return held.upload
            parts = await self._parts(held.upload)
            if parts is None:
                await self._fail(held, "one of its parts is gone")
                return held.upload
            length = length_of(parts)
            limits = (core.offer.max_size, held.upload.max_size)
            largest = min((n for n in limits if n is not None), default=MAX_LENGTH)
            if length is not None and length > largest:
                await self._fail(held, f"its parts have {length} bytes; at most {largest} may be")
                return held.upload
            if length != held.upload.length:
                await held.commit(replace(held.upload, length=length))
            if all(part.whole and part.state is not State.RECEIVING for part in parts):
                await self._copy(held, parts)
            return held.upload

    async def _parts(self, final: Upload) -> list[Upload] | None:
        """The records of the parts in order; None when one will never be whole."""
        found: dict[UploadId, Upload] = {}
        for part in set(final.parts):
            loaded = await self._core.metadata.load(part)
            # A part that was whole when it was terminated keeps its bytes while we need them.
            if loaded is None or (loaded.upload.gone and not loaded.upload.whole):
                return None
            found[part] = loaded.upload
        return [found[part] for part in final.parts]

    async def _fail(self, held: Session, why: str) -> None:
        log.warning("final upload %s failed: %s", held.upload.id, why)
        core = self._core
        failed = advance(held.upload, Transition.FAIL, core.clock.now())
        await held.commit(failed, release=True, durable=core.durable)
        await core.data.delete(failed)
        await free_parts(core, failed)

    async def _copy(self, held: Session, parts: list[Upload]) -> None:
        try:
            copied = await self._copy_parts(held, parts)
            if copied is None:
                return
            whole, segments = copied
            await complete(self._core, held, whole, segments=segments, release=True)
        except BytesMissingError as error:
            await self._fail(held, str(error))
            return
        except SyncFailedError:
            await go_back(self._core, held, held.upload.synced_offset)
            raise
        with suppress(MetadataError, DataError):
            await free_parts(self._core, held.upload)

    async def _copy_parts(
        self, held: Session, parts: list[Upload]
    ) -> tuple[Upload, tuple[Segment, ...]] | None:
        """Copy what is missing, step by step; None when someone wants the upload.

        Returns the whole record, and the pieces that are stored and not committed yet.
        """
        core, start = self._core, 0
        held.settled = False
        await held.hold()
        writer = await core.data.writer(held.upload, held)
        try:
            for part in parts:
                while (at := writer.offset - start) < part.offset:
                    if held.wanted.is_set():
                        return None
                    await writer.copy(part, at, min(part.offset, at + core.settings.copy_step))
                    # Not after each of many small parts: a crash costs a step at most.
                    step = writer.offset - held.upload.offset
                    if step >= core.settings.copy_step and writer.offset != held.upload.length:
                        flushed = await writer.progress()
                        await held.commit(
                            _moved(core, held, flushed), settled=False, segments=flushed.segments
                        )
                start += part.offset
            flushed = await writer.flush()
        finally:
            with anyio.CancelScope(shield=True):
                await writer.close()
        return _moved(core, held, flushed), flushed.segments


def _moved(core: Core, held: Session, flushed: Flushed) -> Upload:
    """A final's record with what was copied."""
    return replace(
        held.upload,
        offset=flushed.offset,
        synced_offset=max(held.upload.synced_offset, flushed.synced),
        storage=flushed.storage or held.upload.storage,
        boot_id=core.data.boot_id,
    )
