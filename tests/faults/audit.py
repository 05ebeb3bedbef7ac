"""After the last kill: records, bytes and events against what the client knows."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sqlite3
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, Final

from tests.faults.nursery import application
from tests.faults.sea import Known

from tidegate.engine.outbox import CLAIM_BEYOND
from tidegate.events.callable import TIMEOUT
from tidegate.metadata.sqlite.store import SQLiteMetadataStore
from tidegate.protocol.model import Kind, State, Upload
from tidegate.stores.local import LocalStore
from tidegate.transports.asgi import Tidegate

SWEPT_WITHIN: Final = 20.0
"""Seconds in which all that may go has gone."""
DELIVERED_WITHIN: Final = 60.0
LATER: Final = 1e8
"""Seconds, after which all that can expire did."""
SETTLED: Final = frozenset({State.COMPLETE})
TOLD: Final = {
    State.COMPLETE: "completed",
    State.TERMINATED: "terminated",
    State.EXPIRED: "expired",
}


class Audit:
    """Looks, lets the outbox catch up, sweeps, and looks again. `broken` says what is wrong."""

    def __init__(
        self, config: dict[str, Any], known: dict[str, Known], expire_after: float
    ) -> None:
        self._config = config
        self._known = known
        self._expire_after = expire_after
        self.broken: list[str] = []
        self.records = 0

    async def run(self, *, events: bool) -> None:
        before = await self._records()
        self.records = len(before)
        for upload in before.values():
            self._hold(upload)
        for known in self._known.values():
            self._find(known, before)
        if events:
            await self._deliver()
            self._check_events(before)
        await self._sweep(before)

    # -------------------------------------------------------------------------------- records

    async def _records(self) -> dict[str, Upload]:
        store = SQLiteMetadataStore(Path(self._config["database"]))
        await store.open()
        try:
            return {upload.id: upload async for upload in store.uploads()}
        finally:
            await store.close()

    def _hold(self, upload: Upload) -> None:
        """A record against the client's knowledge, and against the bytes."""
        key = base64.b64decode(upload.metadata.removeprefix("key ")).decode()
        known = self._known.get(key)
        if known is None:
            self.broken.append(f"record {upload.id}: of an upload that nobody made")
            return
        name = f"{known.kind} {key} at {upload.id} ({upload.state})"
        if known.path is not None and known.id != upload.id:
            # The client made a new one under each key, and was told of one.
            self.broken.append(f"{name}: another one than {known.path}")
        if upload.gone:
            return
        most = max(known.ceiling, known.lingering)
        if not known.acked <= upload.offset <= most:
            self.broken.append(f"{name}: at {upload.offset}, not in {known.acked}..{most}")
        if upload.complete and upload.offset != known.length:
            self.broken.append(f"{name}: complete with {upload.offset} of {known.length}")
        elif self._bytes_of(upload) != known.content(0, upload.offset):
            self.broken.append(f"{name}: its {upload.offset} bytes are not those that were sent")

    def _bytes_of(self, upload: Upload) -> bytes:
        """The first bytes on the disk, as many as count."""
        places = ("finished",) if upload.complete else ("incoming", "finished")
        for place in places:
            try:
                with Path(self._config["data"], upload.storage[place]).open("rb") as file:
                    return file.read(upload.offset)
            except FileNotFoundError:
                continue
        return b""

    def _find(self, known: Known, records: dict[str, Upload]) -> None:
        """An upload that the client knows of against its record."""
        if known.path is None:
            return
        upload = records.get(known.id)
        if upload is None:
            self.broken.append(f"{known.kind} {known.key}: no record, not even a tombstone")
        elif known.shown_complete and not known.deleting and not known.gone:
            if not upload.complete and not (known.may_expire() and upload.state is State.EXPIRED):
                self.broken.append(f"{known.key}: shown complete, and {upload.state}")
        elif known.deleted and not upload.gone:
            self.broken.append(f"{known.key}: deleted, and {upload.state}")

    # --------------------------------------------------------------------------------- events

    def _server(self, ahead: float) -> Tidegate:
        return application(
            self._config,
            clock_ahead=ahead,
            expire_after=self._expire_after,
            orphan_age=0.0,
            tombstone_age=0.0 if ahead >= LATER else LATER,
            sweep_every=3600.0,
        )

    async def _deliver(self) -> None:
        """Live until nothing is left to tell; claims of the dead are over."""
        deadline = time.monotonic() + DELIVERED_WITHIN
        async with self._server(TIMEOUT + CLAIM_BEYOND + 1):
            while left := self._undelivered():
                if time.monotonic() > deadline:
                    self.broken.append(f"{left} events are never delivered")
                    return
                await asyncio.sleep(0.05)

    def _undelivered(self) -> int:
        connection = sqlite3.connect(f"file:{self._config['database']}?mode=ro", uri=True)
        try:
            found: int = connection.execute("SELECT count(*) FROM event").fetchone()[0]
            return found
        finally:
            connection.close()

    def _check_events(self, records: dict[str, Upload]) -> None:
        """Each at least once, in order, and none that does not fit."""
        told: dict[str, list[tuple[int, str]]] = defaultdict(list)
        with Path(self._config["events"]).open() as file:
            for line in file:
                event = json.loads(line)
                told[event["id"]].append((event["sequence"], event["type"]))
        for upload_id, events in told.items():
            if events != sorted(events):
                self.broken.append(f"upload {upload_id}: events out of order: {events}")
        for upload in records.values():
            types = [kind for _, kind in dict.fromkeys(told[upload.id])]
            missing = {"created", TOLD.get(upload.state, "created")}.difference(types)
            if missing:
                self.broken.append(f"upload {upload.id}, {upload.state}: never told of {missing}")
            if len(set(types)) != len(types) or types[:1] != ["created"]:
                self.broken.append(f"upload {upload.id}, {upload.state}: told of {types}")
        for known in self._known.values():
            if known.path is None:
                continue
            types = [kind for _, kind in told[known.id]]
            if known.shown_complete and "completed" not in types:
                self.broken.append(f"upload {known.id}: was shown complete, told of {types}")
            if known.deleted and not {"terminated", "expired"}.intersection(types):
                self.broken.append(f"upload {known.id}: was deleted, told of {types}")

    # ---------------------------------------------------------------------------------- sweep

    async def _sweep(self, before: dict[str, Upload]) -> None:
        """All that may go goes, and nothing else; bytes without a record are not left."""
        async with self._server(LATER) as server:
            deadline = time.monotonic() + SWEPT_WITHIN
            # The server's own sweep may hold what this one would deal with.
            while self._to_sweep(await self._records()) and time.monotonic() < deadline:
                swept = await server.engine.sweep()
                if swept is not None and swept.failed:
                    self.broken.append(f"sweep: {swept.failed}")
                    return
                await asyncio.sleep(0.01)
            await server.engine.sweep()
        after = await self._records()
        kept = {
            upload.id
            for upload in before.values()
            if upload.complete and upload.kind is not Kind.PARTIAL
        }
        if lost := kept - after.keys():
            self.broken.append(f"complete uploads were swept: {lost}")
        if left := self._to_sweep(after):
            self.broken.append(f"not swept: {left}")
        await self._check_files(after)

    @staticmethod
    def _to_sweep(records: dict[str, Upload]) -> list[Upload]:
        """All but what was whole before the last start, though perhaps its record did not say so."""
        return [one for one in records.values() if not one.complete or one.kind is Kind.PARTIAL]

    async def _check_files(self, records: dict[str, Upload]) -> None:
        data = Path(self._config["data"])
        expected = {upload.storage["finished"] for upload in records.values()}
        found = {
            os.path.relpath(os.path.join(folder, name), data)
            for top in ("incoming", "finished")
            for folder, _, names in os.walk(data / top)
            for name in names
        }
        if found != expected:
            self.broken.append(f"leaked: {found - expected}; lost: {expected - found}")
        store = LocalStore(data)
        await store.open()
        stored = {each.place for each in [one async for one in store.stored()]}
        await store.close()
        if stored != expected:
            self.broken.append(f"stored() says {stored ^ expected} more or less")
        for upload in records.values():
            self._hold(upload)
        if alive := [p.name for p in data.glob("*-live/holder-*")]:
            self.broken.append(f"marks of the dead are left: {alive}")
