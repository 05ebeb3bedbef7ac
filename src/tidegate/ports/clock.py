"""What time it is."""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    """What time it is."""

    def now(self) -> float:
        """Seconds since the epoch, for what is written down."""

    def monotonic(self) -> float:
        """Seconds since some instant, never going back, for measuring how long something took."""
