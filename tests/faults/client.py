"""A client that knows what it sent, and holds every answer against it.

It takes part in no measure of speed: bodies are paced so that a kill hits them in the middle.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import random
import sqlite3
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.faults.sea import Broken, Kind, Known, Sea
from tests.faults.wire import Answer, Call, Lost, Silence, pieces, send

from tidegate.protocol.model import UploadId
from tidegate.stores import naming

PATIENCE: Final = 20.0
"""Seconds in which a request has an answer, and an upload a definite one, whatever is killed."""
BASE: Final = "/files/"
TUS: Final = {"Tus-Resumable": "1.0.0"}
STREAM: Final = {"Content-Type": "application/offset+octet-stream"}

_DIGESTS: Final[dict[str, Callable[[bytes], bytes]]] = {
    "sha1": lambda data: hashlib.sha1(data, usedforsecurity=False).digest(),
    "sha256": lambda data: hashlib.sha256(data).digest(),
    "crc32": lambda data: zlib.crc32(data).to_bytes(4, "big"),
}


class Client:
    """Makes uploads, one after the other or many at once, until it is told to finish.

    Args:
        address: where the server listens, whoever that is at the moment.
        data: the local store's folder, to look at the bytes themselves.
    """

    def __init__(
        self, address: tuple[str, int], data: Path, *, seed: int, expire_after: float
    ) -> None:
        self.address = address
        self.data = data
        self.sea = Sea(seed)
        self.expire_after = expire_after
        self.known: dict[str, Known] = {}
        """All uploads by their keys, also those whose Location never arrived."""
        self.seen: Counter[str] = Counter()
        """What happened how often."""
        self.broken: list[str] = []
        """Every promise that the server broke."""
        self.finishing = asyncio.Event()

    # ---------------------------------------------------------------------------------- tours

    async def tour(self, seed: int) -> None:
        """Upload, one after the other, until told to finish."""
        rng = random.Random(seed)
        while not self.finishing.is_set() and not self.broken:
            scenario = rng.choices(
                (self._regular, self._concatenation, self._forsake, self._delete), (6, 2, 2, 2)
            )[0]
            try:
                await scenario(rng)
            except Broken as broken:
                self.broken.append(str(broken))

    async def _regular(self, rng: random.Random) -> None:
        known = await self._create(rng)
        if await self._upload(rng, known) and rng.random() < 0.5:
            await self.read(known)

    async def _forsake(self, rng: random.Random) -> None:
        """Begin, and come back perhaps when its time is up."""
        known = await self._create(rng, length=rng.randint(1, 300_000))
        if not known.gone:
            await self._append(rng, known)
        if rng.random() < 0.3:
            left = known.active_at + self.expire_after - time.time()
            await asyncio.sleep(max(0.0, left) + rng.random())
            await self.look(known)

    async def _delete(self, rng: random.Random) -> None:
        known = await self._create(rng, kind=rng.choice(("regular", "partial")))
        for _ in range(rng.randint(0, 3)):
            if not known.shown_complete and not known.gone:
                await self._append(rng, known)
        await self.delete(known)
        await self.look(known)

    async def _concatenation(self, rng: random.Random) -> None:
        parts = [await self._create(rng, kind="partial") for _ in range(rng.randint(1, 4))]
        before = rng.random() < 0.3
        if not before and not await self._upload_all(rng, parts):
            return
        final = await self._join(rng, parts)
        if final is None:
            return
        if before and not await self._upload_all(rng, parts):
            return
        for part in parts:
            if rng.random() < 0.2 and not part.gone:
                await self.delete(part)
        if rng.random() < 0.1:
            await self.delete(final)
            return
        if await self._assembled(final):
            await self.read(final)

    async def _upload_all(self, rng: random.Random, parts: list[Known]) -> bool:
        return all(
            await asyncio.gather(
                *(self._upload(random.Random(rng.random()), part) for part in parts)
            )
        )

    # ------------------------------------------------------------------------------- creating

    def _new(self, rng: random.Random, kind: Kind, length: int) -> Known:
        known = Known(
            self.sea,
            key=f"{len(self.known)}",
            length=length,
            shift=rng.randrange(2**32),
            expire_after=self.expire_after,
            kind=kind,
        )
        self.known[known.key] = known
        return known

    async def _create(
        self, rng: random.Random, kind: Kind = "regular", length: int | None = None
    ) -> Known:
        """Until a Location arrives; each attempt is another upload, for the last may exist."""
        began = time.monotonic()
        while True:
            size = _length(rng) if length is None else length
            known = self._new(rng, kind, size)
            known.deferred = rng.random() < 0.2
            call = Call("POST", BASE, {**TUS, "Upload-Metadata": known.metadata})
            call.fields |= (
                {"Upload-Defer-Length": "1"} if known.deferred else {"Upload-Length": str(size)}
            )
            if kind == "partial":
                call.fields["Upload-Concat"] = "partial"
            stop, corrupt, checked = 0, False, False
            if rng.random() < 0.5 and size:
                stop, checked, corrupt = self._body(rng, known, call, 0)
                call.fields |= STREAM
            since = time.time()
            try:
                answer = await self._send(known, call)
            except Lost:
                self._unanswered(known, call, 0, stop, checked=checked, corrupt=corrupt)
                answer = Answer(0, {})
            if answer.status == 201:
                self._created(known, answer, stop, corrupt=corrupt, since=since)
                return known
            if answer.status == 460 and corrupt:
                self.seen["460"] += 1
            elif answer.status not in (0, 423, 503):
                raise known.fail(f"POST: {answer.status} {answer.body!r}")
            self._within(known, began)

    def _created(
        self, known: Known, answer: Answer, stop: int, *, corrupt: bool, since: float
    ) -> None:
        known.path = answer.fields["location"]
        if corrupt:
            raise known.fail("a body with a wrong checksum was accepted")
        if stop and answer.offset != stop:
            raise known.fail(f"201 at {answer.offset}; {stop} bytes were sent")
        complete = not known.deferred and stop == known.length
        known.acknowledged(stop, complete=complete, since=since)
        self.seen["created"] += 1

    async def _join(self, rng: random.Random, parts: list[Known]) -> Known | None:
        """A final upload; None when a part's time was up meanwhile."""
        began = time.monotonic()
        while True:
            final = self._new(rng, "final", sum(part.length for part in parts))
            final.parts = parts
            paths = " ".join(str(part.path) for part in parts)
            fields = {**TUS, "Upload-Concat": f"final;{paths}", "Upload-Metadata": final.metadata}
            # It exists from the first byte of the request on, so far as its client knows.
            final.ceiling, since = final.length, time.time()
            try:
                answer = await self._send(final, Call("POST", BASE, fields))
            except Lost:
                answer = Answer(0, {})
            if answer.status == 201:
                final.path = answer.fields["location"]
                final.acknowledged(0, complete=False, since=since)
                final.ceiling = final.length
                self.seen["joined"] += 1
                return final
            if answer.status in (404, 410) and any(part.may_expire() for part in parts):
                return None
            if answer.status not in (0, 423, 503):
                raise final.fail(f"POST: {answer.status} {answer.body!r}")
            self._within(final, began)

    # ------------------------------------------------------------------------------ appending

    async def _upload(self, rng: random.Random, known: Known) -> bool:
        """All that is missing; False when its time was up."""
        while not known.shown_complete and not known.gone:
            await self._append(rng, known)
        return not known.gone

    async def _append(self, rng: random.Random, known: Known) -> None:
        """One PATCH, and a look when there was no answer or no success."""
        if known.path is None:
            raise AssertionError
        offset = known.acked
        call = Call("PATCH", known.path, {**TUS, **STREAM, "Upload-Offset": str(offset)})
        if known.deferred and (offset == known.length or rng.random() < 0.4):
            call.fields["Upload-Length"] = str(known.length)
        stop, checked, corrupt = offset, False, False
        if offset < known.length:
            stop, checked, corrupt = self._body(rng, known, call, offset)
            if rng.random() < 0.1:
                call.cut = rng.randint(0, stop - offset)
        exact = len(self._stored(known, known.length) or b"") == offset
        since = time.time()
        try:
            answer = await self._send(known, call)
        except Lost:
            self._unanswered(known, call, offset, stop, checked=checked, corrupt=corrupt)
            known.was_cut = known.was_cut or call.cut is not None
            if exact and not checked and not known.was_cut and not known.may_expire(margin=1.0):
                known.kept = len(self._stored(known, known.length) or b"")
                known.hear(f"kept {known.kept}")
        else:
            if answer.status == 204:
                if corrupt:
                    raise known.fail("a body with a wrong checksum was accepted")
                if answer.offset != stop:
                    raise known.fail(f"204 at {answer.offset}; sent up to {stop}")
                known.deferred = known.deferred and "Upload-Length" not in call.fields
                complete = not known.deferred and stop == known.length
                known.acknowledged(stop, complete=complete, since=since)
                self._compare_record(known)
                self.seen["204"] += 1
                return
            if answer.status in (404, 410):
                known.is_gone(answer.status)
                return
            if answer.status == 460 and corrupt:
                known.hear("460")
                self.seen["460"] += 1
            elif answer.status in {423, 503}:
                self._unanswered(known, call, offset, stop, checked=checked, corrupt=corrupt)
            elif answer.status == 409 and known.lingering > offset:
                known.hear("409")
            else:
                raise known.fail(f"PATCH at {offset}: {answer.status} {answer.body!r}")
        await self.look(known)

    def _body(
        self, rng: random.Random, known: Known, call: Call, offset: int
    ) -> tuple[int, bool, bool]:
        """Give a call a body: where it ends, whether it has a checksum, and a wrong one."""
        rest = known.length - offset
        size = rest if rng.random() < 0.5 else rng.randint(1, rest)
        data = known.content(offset, offset + size)
        checked = rng.random() < 0.4
        corrupt = checked and rng.random() < 0.3
        if checked:
            name = rng.choice(list(_DIGESTS))
            digest = base64.b64encode(_DIGESTS[name](data)).decode()
            call.fields["Upload-Checksum"] = f"{name} {digest}"
        if corrupt:
            spoilt = bytearray(data)
            spoilt[rng.randrange(size)] ^= 0xFF
            data = bytes(spoilt)
        count = rng.randint(1, 12)
        step = max(1, -(-size // count))
        chunks = [data[at : at + step] for at in range(0, size, step)]
        slow = rng.random() < 0.6
        call.pieces = pieces(chunks, rng.uniform(0.001, 0.03) if slow else 0.0)
        call.length = None if rng.random() < 0.3 else size
        return offset + size, checked, corrupt

    @staticmethod
    def _unanswered(
        known: Known, call: Call, offset: int, stop: int, *, checked: bool, corrupt: bool
    ) -> None:
        if corrupt or (checked and call.sent < stop - offset):
            known.hear("sent unverifiable")
            known.either = (offset,)
        elif checked:
            known.sent_checked(offset, stop)
        else:
            known.sent_plain(offset + call.sent, lingers=call.cut is not None)

    # -------------------------------------------------------------------- looking, reading, ending

    async def look(self, known: Known) -> None:
        """HEAD until there is a definite answer, which is held against what is known."""
        if known.path is None:
            return
        answer = await self._persist(known, "HEAD")
        if answer.status in (404, 410):
            known.is_gone(answer.status)
            return
        if answer.status != 200:
            raise known.fail(f"HEAD: {answer.status}")
        if known.kind == "final":
            self._look_at_final(known, answer)
            return
        offset = answer.offset
        if offset is None:
            raise known.fail("HEAD without an offset")
        length = answer.fields.get("upload-length")
        if length not in (None, str(known.length)):
            raise known.fail(f"HEAD says length {length}; it has {known.length}")
        known.shows(offset, complete=length is not None and offset == known.length)
        known.deferred = length is None
        self._compare_record(known)
        if not known.may_expire(margin=1.0):
            self._compare_file(known, offset)

    @staticmethod
    def _look_at_final(known: Known, answer: Answer) -> None:
        if answer.offset is not None:
            known.shows(answer.offset, complete=True)
            if answer.offset != known.length:
                raise known.fail(f"it is shown with {answer.offset} of {known.length} bytes")
        elif known.shown_complete:
            raise known.fail("it was complete, and is not any more")

    async def _assembled(self, final: Known) -> bool:
        began = time.monotonic()
        while not final.shown_complete and not final.gone:
            await self.look(final)
            if not final.shown_complete:
                await asyncio.sleep(0.02)
            # Copies go on where they were, but each life has to look for them first.
            self._within(final, began, PATIENCE * 2)
        return not final.gone

    def _compare_file(self, known: Known, offset: int) -> None:
        """The bytes on the disk, which nobody writes to at this moment."""
        found = self._stored(known, offset)
        if (found or b"") != known.content(0, offset):
            raise known.fail(f"the file has not the {offset} bytes that were sent")
        self.seen["compared"] += 1

    def _stored(self, known: Known, size: int) -> bytes | None:
        """The first bytes of its file; None when there is none."""
        # Under its finished name it may be as well, when a completion was cut short.
        for top in ("finished",) if known.shown_complete else ("incoming", "finished", "incoming"):
            found = _read(self.data / top / _place(known.id), size)
            if found is not None:
                return found
        return None

    def _compare_record(self, known: Known) -> None:
        """What is shown as complete is committed as such: what is not could not survive all."""
        if not known.shown_complete:
            return
        try:
            with contextlib.closing(
                sqlite3.connect(f"file:{self.data / 'tidegate.db'}?mode=ro", uri=True)
            ) as database:
                row = database.execute(
                    "SELECT state FROM upload WHERE id = ?", (known.id,)
                ).fetchone()
        except sqlite3.Error:  # busy, or nobody has it open at this moment
            self.seen["records not read"] += 1
            return
        states = ("complete", "expired") if known.kind == "partial" else ("complete",)
        if row is None or row[0] not in states:
            raise known.fail(f"it is shown as complete, and its record says {row}")
        self.seen["records compared"] += 1

    async def read(self, known: Known) -> None:
        """GET, and compare."""
        answer = await self._persist(known, "GET")
        if answer.status in (404, 410):
            known.is_gone(answer.status)
        elif answer.status != 200:
            raise known.fail(f"GET: {answer.status} {answer.body[:200]!r}")
        elif answer.body != known.content(0, known.length):
            raise known.fail("GET gives other bytes than were sent")
        else:
            self.seen["read"] += 1

    async def delete(self, known: Known) -> None:
        """DELETE, until it is answered or the upload is gone."""
        known.deleting = True
        answer = await self._persist(known, "DELETE")
        if answer.status in (404, 410):
            # By an answer that was lost, or since its time was up.
            known.is_gone(answer.status)
            known.deleted = not known.may_expire()
            return
        if answer.status != 204:
            raise known.fail(f"DELETE: {answer.status} {answer.body!r}")
        if known.kind != "partial" and self._stored(known, 1) is not None:
            # (A final may need a partial's.)
            raise known.fail("DELETE: its bytes are still there")
        known.hear("deleted")
        known.deleted = known.gone = True
        self.seen["deleted"] += 1

    async def _persist(self, known: Known, method: str) -> Answer:
        """A request without a body, again and again until it is answered definitely."""
        assert known.path is not None
        began = time.monotonic()
        while True:
            try:
                answer = await self._send(known, Call(method, known.path, dict(TUS)))
            except Lost:
                pass
            else:
                if answer.status not in (423, 503):
                    return answer
                await asyncio.sleep(0.02)
            self._within(known, began)

    # ----------------------------------------------------------------------------------- sending

    async def _send(self, known: Known, call: Call) -> Answer:
        try:
            answer = await send(self.address, call, patience=PATIENCE)
        except Lost as lost:
            self.seen["lost"] += 1
            known.hear(f"{call.method} lost")
            if lost.unconnected:
                await asyncio.sleep(0.02)
            raise
        except Silence as silence:
            raise known.fail(str(silence)) from None
        self.seen[f"{call.method} {answer.status}"] += 1
        if answer.status == 503:
            self.seen[f"503 {answer.body.decode(errors='replace').strip()!r}"] += 1
        if answer.status >= 500 and answer.status not in (503, 507):
            raise known.fail(f"{call.method}: {answer.status} {answer.body!r}")
        return answer

    @staticmethod
    def _within(known: Known, began: float, patience: float = PATIENCE) -> None:
        if time.monotonic() - began > patience:
            raise known.fail(f"stuck: nothing definite for {patience} s")


def _place(upload_id: str) -> str:
    name = naming.token(UploadId(upload_id))
    return f"{naming.shard(name)}/{name}"


def _read(path: Path, size: int) -> bytes | None:
    try:
        with path.open("rb") as file:
            return file.read(size)
    except FileNotFoundError:
        return None


def _length(rng: random.Random) -> int:
    """Mostly small, sometimes none, sometimes large enough for many checkpoints and steps."""
    largest = rng.choices((0, 1, 5_000, 300_000, 1_500_000), (1, 1, 4, 4, 2))[0]
    return rng.randint(min(1, largest), largest)
