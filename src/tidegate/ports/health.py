"""What a store of either kind may tell of how it does."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class ProbedStore(Protocol):
    """A store that can say whether it is reached, better than what is asked of it otherwise can."""

    async def probe(self) -> None:
        """Return when it can do its work, as far as a quick look tells. Raises DataError, or
        MetadataError.
        """


@runtime_checkable
class QueuedStore(Protocol):
    """A store whose calls may have to wait for their turn."""

    def queued(self) -> int:
        """How many wait, or are at work, in this process. Quick."""
