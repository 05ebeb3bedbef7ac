"""Clients of a cluster: each request of an upload goes to another server, and any may hang or die.

They know what they sent, hold every answer against it, and measure for how long they get none.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import math
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from tests.faults.sea import Broken, Kind, Known, Sea
from tests.faults.wire import Answer, Call, Lost, Silence, pieces, send

PATIENCE: Final = 4.0
"""Seconds after which a client gives a request up and tries elsewhere."""
SLOWEST: Final = 4 * 1024 * 1024
"""Bytes per second at which a download comes at least."""
STUCK: Final = 15.0
"""Seconds, of those in which a server was there to be asked, that an upload may get no answer."""
MOST: Final = 8 * 1024 * 1024
"""Bytes of one request."""
KEPT: Final = 3
"""Complete uploads of a client that are looked at again before most of them are deleted."""
BASE: Final = "/files/"
TUS: Final = {"Tus-Resumable": "1.0.0"}
STREAM: Final = {"Content-Type": "application/offset+octet-stream"}


@dataclass
class Logbook:
    """What all clients of a run know and have seen."""

    seed: int
    able: Callable[[], float]
    """Seconds so far in which a server could have answered."""
    known: dict[str, Known] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    longest_silence: float = 0.0
    """Seconds in which an upload got nothing but refusals and time-outs, though a server could."""
    longest_standstill: float = 0.0
    """Seconds in which it got answers at most, and no byte further."""
    finishing: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.sea = Sea(self.seed)


class Client:
    """One that makes uploads, one after the other, and sends one request at a time.

    Args:
        port: of a proxy that sends each connection to another server than the last.
    """

    def __init__(self, book: Logbook, port: int, name: str) -> None:
        self.book = book
        self._address = ("127.0.0.1", port)
        self._name = name
        self._made = 0
        self._silent_since: float | None = None
        self._still_since = 0.0
        self._complete: list[Known] = []

    async def tour(self, seed: str) -> None:
        """Upload until told to finish; what was begun is finished."""
        rng = random.Random(seed)
        book = self.book
        while not book.finishing.is_set() and not book.broken:
            scenario = rng.choices((self._regular, self._concatenation), (6, 1))[0]
            try:
                self._complete += await scenario(rng)
                while len(self._complete) > KEPT:
                    await self._revisit(rng, self._complete.pop(0))
            except Broken as broken:
                book.broken.append(str(broken))

    async def _regular(self, rng: random.Random) -> list[Known]:
        known = await self._create(rng, "regular", _length(rng))
        await self._upload(rng, known)
        await self.read(known)
        return [known]

    async def _concatenation(self, rng: random.Random) -> list[Known]:
        parts = [
            await self._create(rng, "partial", rng.randint(1, 6 * 1024 * 1024))
            for _ in range(rng.randint(1, 3))
        ]
        before = rng.random() < 0.4
        final = await self._join(parts) if before else None
        for part in parts:
            await self._upload(rng, part)
        if final is None:
            final = await self._join(parts)
        self._still_since = self.book.able()
        while not final.shown_complete:
            await self.look(final)
            self._standstill()
            if not final.shown_complete:
                await asyncio.sleep(0.1)
        await self.read(final)
        for part in parts:
            await self._delete(part)
        return [final]

    async def _revisit(self, rng: random.Random, known: Known) -> None:
        await self.look(known)
        self.book.seen["looked at again"] += 1
        if rng.random() < 0.8:
            await self._delete(known)

    # ----------------------------------------------------------------------- creating

    def _new(self, kind: Kind, length: int, shift: int) -> Known:
        self._made += 1
        known = Known(
            self.book.sea,
            key=f"{self._name}.{self._made}",
            length=length,
            shift=shift,
            expire_after=math.inf,
            kind=kind,
        )
        self.book.known[known.key] = known
        return known

    async def _create(self, rng: random.Random, kind: Kind, length: int) -> Known:
        """Until a Location arrives; each attempt is another upload, for the last may exist."""
        self._still_since = self.book.able()
        while True:
            known = self._new(kind, length, rng.randrange(2**32))
            known.deferred = rng.random() < 0.25
            call = Call("POST", BASE, {**TUS, "Upload-Metadata": known.metadata})
            call.fields |= (
                {"Upload-Defer-Length": "1"} if known.deferred else {"Upload-Length": str(length)}
            )
            if kind == "partial":
                call.fields["Upload-Concat"] = "partial"
            stop = 0
            if rng.random() < 0.5 and length:
                stop, _ = self._body(rng, known, call, 0, correct=True)
                call.fields |= STREAM
            answer = await self._send(known, call)
            if answer is None:
                continue
            if answer.status != 201:
                raise known.fail(f"POST: {answer.status} {answer.body!r}")
            known.path = answer.fields["location"]
            if stop and answer.offset != stop:
                raise known.fail(f"201 at {answer.offset}; {stop} bytes were sent")
            complete = not known.deferred and stop == length
            known.acknowledged(stop, complete=complete, since=time.time())
            self.book.seen["created"] += 1
            return known

    async def _join(self, parts: list[Known]) -> Known:
        while True:
            final = self._new("final", sum(part.length for part in parts), 0)
            final.parts, final.ceiling = parts, sum(part.length for part in parts)
            paths = " ".join(str(part.path) for part in parts)
            fields = {**TUS, "Upload-Concat": f"final;{paths}", "Upload-Metadata": final.metadata}
            answer = await self._send(final, Call("POST", BASE, fields))
            if answer is None:
                continue
            if answer.status != 201:
                raise final.fail(f"POST of a final: {answer.status} {answer.body!r}")
            final.path = answer.fields["location"]
            self.book.seen["finals"] += 1
            return final

    # ---------------------------------------------------------------------- appending

    async def _upload(self, rng: random.Random, known: Known) -> None:
        self._still_since = self.book.able()
        while not known.shown_complete:
            before = known.acked
            await self._append(rng, known)
            if known.acked > before or known.shown_complete:
                self._standstill()
                self._still_since = self.book.able()

    async def _append(self, rng: random.Random, known: Known) -> None:
        offset = known.acked
        call = Call("PATCH", str(known.path), {**TUS, **STREAM, "Upload-Offset": str(offset)})
        stop, corrupt = self._body(rng, known, call, offset)
        if known.deferred and (stop == known.length or rng.random() < 0.3):
            call.fields["Upload-Length"] = str(known.length)
        if stop > offset and rng.random() < 0.15:
            call.cut = rng.randrange(stop - offset)
        answer = await self._send(known, call)
        if answer is None:
            if not corrupt:
                # It may be read, or carried out, whenever a server or a line comes back.
                known.sent_plain(offset + call.sent, lingers=True)
        elif answer.status == 204:
            if corrupt:
                raise known.fail("a body with a wrong checksum was accepted")
            if answer.offset != stop:
                raise known.fail(f"204 at {answer.offset}; sent up to {stop}")
            if "Upload-Length" in call.fields:
                known.deferred = False
            complete = not known.deferred and stop == known.length
            known.acknowledged(stop, complete=complete, since=time.time())
            return
        elif answer.status == 460 and corrupt:
            known.hear("460")
        elif answer.status == 409 and known.lingering > offset:
            known.hear("409")
        else:
            raise known.fail(f"PATCH at {offset}: {answer.status} {answer.body!r}")
        await self.look(known)

    @staticmethod
    def _body(
        rng: random.Random, known: Known, call: Call, offset: int, *, correct: bool = False
    ) -> tuple[int, bool]:
        """Give a call a body: where it ends, and whether its checksum is wrong."""
        rest = min(known.length - offset, MOST)
        size = rest if rng.random() < 0.5 else rng.randint(min(1, rest), rest)
        data = known.content(offset, offset + size)
        corrupt = False
        if size and rng.random() < 0.25:
            digest = hashlib.sha1(data, usedforsecurity=False).digest()
            call.fields["Upload-Checksum"] = f"sha1 {base64.b64encode(digest).decode()}"
            corrupt = not correct and rng.random() < 0.2
        if corrupt:
            spoilt = bytearray(data)
            spoilt[rng.randrange(size)] ^= 0xFF
            data = bytes(spoilt)
        step = max(1, -(-size // rng.randint(1, 12)))
        chunks = [data[at : at + step] for at in range(0, size, step)]
        call.pieces = pieces(chunks, rng.uniform(0.0, 0.05) if rng.random() < 0.5 else 0.0)
        call.length = None if rng.random() < 0.3 else size
        return offset + size, corrupt

    # ------------------------------------------------------- looking, reading, deleting

    async def look(self, known: Known) -> None:
        """HEAD until there is a definite answer, which is held against what is known."""
        answer = await self._persist(known, "HEAD")
        if answer.status != 200:
            raise known.fail(f"HEAD: {answer.status}")
        if known.kind == "final":
            if answer.offset is not None:
                known.shows(answer.offset, complete=True)
                if answer.offset != known.length:
                    raise known.fail(f"shown with {answer.offset} of {known.length} bytes")
            elif known.shown_complete:
                raise known.fail("it was complete, and is not any more")
            return
        if answer.offset is None:
            raise known.fail("HEAD without an offset")
        length = answer.fields.get("upload-length")
        if length not in (None, str(known.length)):
            raise known.fail(f"HEAD says length {length}; it has {known.length}")
        known.shows(answer.offset, complete=length is not None and answer.offset == known.length)
        known.deferred = length is None

    async def read(self, known: Known) -> None:
        """GET, and compare."""
        answer = await self._persist(known, "GET")
        if answer.status != 200:
            raise known.fail(f"GET: {answer.status} {answer.body[:200]!r}")
        if answer.body != known.content(0, known.length):
            raise known.fail("GET gives other bytes than were sent")
        self.book.seen["read"] += 1

    async def _delete(self, known: Known) -> None:
        known.deleting = True
        answer = await self._persist(known, "DELETE")
        # Gone already by one whose answer was lost.
        if answer.status not in (204, 404, 410):
            raise known.fail(f"DELETE: {answer.status} {answer.body!r}")
        known.hear("deleted")
        known.deleted = known.gone = True
        self.book.seen["deleted"] += 1

    async def _persist(self, known: Known, method: str) -> Answer:
        while True:
            answer = await self._send(known, Call(method, str(known.path), dict(TUS)))
            if answer is not None:
                return answer

    # ------------------------------------------------------------------------ sending

    async def _send(self, known: Known, call: Call) -> Answer | None:
        """The answer, if it is a definite one. Raises Broken when that takes too long."""
        book = self.book
        if self._silent_since is None:
            self._silent_since = book.able()
        answer, why = None, ""
        try:
            patience = PATIENCE + (known.length / SLOWEST if call.method == "GET" else 0.0)
            answer = await send(self._address, call, patience=patience)
        except Lost as lost:
            why = "cut" if call.cut is not None and "cut by" in str(lost) else "lost"
        except Silence:
            why = "timed out"
        else:
            why = str(answer.status)
            if answer.status >= 500 and answer.status not in (503, 507):
                raise known.fail(f"{call.method}: {answer.status} {answer.body!r}")
        book.seen[f"{call.method} {why}"] += 1
        if answer is not None and answer.status not in (423, 503):
            self._silence()
            self._silent_since = None
            return answer
        if answer is not None:
            why = f"{answer.status} {answer.body.decode(errors='replace').strip()}"
        known.hear(f"{call.method} {why}")
        if self._silence() > STUCK:
            raise known.fail(f"stuck: nothing definite for {STUCK} s")
        if why != "cut":
            await asyncio.sleep(0.1)
        return None

    def _silence(self) -> float:
        assert self._silent_since is not None
        lasted = self.book.able() - self._silent_since
        self.book.longest_silence = max(self.book.longest_silence, lasted)
        return lasted

    def _standstill(self) -> None:
        lasted = self.book.able() - self._still_since
        self.book.longest_standstill = max(self.book.longest_standstill, lasted)


def _length(rng: random.Random) -> int:
    """Mostly less than a part of S3, and often several."""
    least, most = rng.choices(
        ((0, 1), (1, 300_000), (300_000, 3_000_000), (6_000_000, 20_000_000)), (1, 6, 4, 4)
    )[0]
    return rng.randint(least, most)
