"""The leases that this process holds, as far as the process itself knows.

The database says who has a lease; only the process knows whether one in its name is still in use,
or was abandoned. Everything here runs on the event loop, and nothing waits.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import anyio

from tidegate.metadata.postgres.holds import SHOWN
from tidegate.ports import Grant, Lease

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.metadata.postgres.holds import Taken
    from tidegate.protocol.model import UploadId

# Seconds for which a request is kept that came before the answer that granted the lease.
_EARLY = 30.0


class Leases:
    """Which leases this process holds."""

    def __init__(self, holder: str) -> None:
        self.holder = holder
        self._active: dict[int, tuple[UploadId, anyio.Event]] = {}
        """By token."""
        self.abandoned: dict[int, UploadId] = {}
        """Of tokens that nobody uses any more, and of which the database does not know that yet."""
        self.doubtful: dict[int, UploadId] = {}
        """Of calls that may have been granted a lease: the answer never came."""
        self._early: dict[int, float] = {}
        self._waiting: dict[str, set[anyio.Event]] = {}

    # ----------------------------------------------------------------------- taking, letting go

    def grant(self, upload_id: UploadId, taken: Taken) -> Grant:
        """Have a lease in use, and tell the task that had it before."""
        if taken.previous is not None:
            self.abandoned.pop(taken.previous, None)
            if previous := self._active.pop(taken.previous, None):
                previous[1].set()
        wanted = anyio.Event()
        self._active[taken.token] = (upload_id, wanted)
        if self._early.pop(taken.token, None) is not None:
            wanted.set()
        lease = Lease(upload_id, self.holder, taken.token)
        return Grant(lease, taken.upload, taken.settled, taken.boot_id, wanted)

    def holds(self, lease: Lease) -> bool:
        """Whether this process has this lease in use."""
        active = self._active.get(lease.token)
        return active is not None and active[0] == lease.upload_id and lease.holder == self.holder

    def drop(self, lease: Lease) -> bool:
        """Have a lease in use no more, and wake who waits for it. Whether it was in use."""
        held = self.holds(lease)
        if held:
            del self._active[lease.token]
        self.wake(lease.upload_id)
        return held

    def abandon(self, lease: Lease) -> bool:
        """Let go without a word. Whether the database is to be told."""
        held = self.drop(lease)
        if held:
            self.abandoned[lease.token] = lease.upload_id
        return held

    @property
    def tokens(self) -> dict[int, UploadId]:
        """All that are in use."""
        return {token: upload_id for token, (upload_id, _) in self._active.items()}

    # -------------------------------------------------------------------------------- requests

    def want(self, token: int) -> None:
        """Tell whoever has this lease in use to let go."""
        if active := self._active.get(token):
            active[1].set()
        else:
            now = time.monotonic()
            self._early = {t: at for t, at in self._early.items() if at > now - _EARLY}
            self._early[token] = now

    def want_upload(self, upload_id: UploadId) -> None:
        """Tell whoever holds this upload here to let go."""
        for held, wanted in self._active.values():
            if held == upload_id:
                wanted.set()

    def want_all(self) -> None:
        """Tell everybody to let go."""
        for _, wanted in self._active.values():
            wanted.set()

    def compare(
        self, tokens: dict[int, UploadId], found: dict[int, tuple[str | None, bool]]
    ) -> None:
        """Tell those of `tokens` that are wanted, or lost, by what the database says of them."""
        for token in tokens:
            holder, wanted = found.get(token, (None, True))
            if (wanted or holder != self.holder) and token in self._active:
                self.want(token)

    # --------------------------------------------------------------------------------- waiting

    @contextlib.contextmanager
    def waiter(self, upload_id: UploadId) -> Iterator[anyio.Event]:
        """An event that is set when a lease of `upload_id` may have been let go."""
        key, event = upload_id[:SHOWN], anyio.Event()
        self._waiting.setdefault(key, set()).add(event)
        try:
            yield event
        finally:
            self._waiting[key].discard(event)
            if not self._waiting[key]:
                del self._waiting[key]

    def wake(self, upload_id: str) -> None:
        """Wake who waits for `upload_id`, of which the beginning is enough."""
        for event in self._waiting.get(upload_id[:SHOWN], ()):
            event.set()

    def wake_all(self) -> None:
        """Wake all who wait."""
        for waiting in self._waiting.values():
            for event in waiting:
                event.set()
