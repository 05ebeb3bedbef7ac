"""A clock that stands still until it is told to move."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tidegate.ports import Clock


class FakeClock:
    """Implements `tidegate.ports.Clock`; both of its times move by `advance` only."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self._now = now
        self._monotonic = 0.0

    def now(self) -> float:
        """Seconds since the epoch."""
        return self._now

    def monotonic(self) -> float:
        """Seconds since the clock was made."""
        return self._monotonic

    def advance(self, seconds: float) -> None:
        """Let time pass. Raises ValueError for a negative number: a clock never goes back."""
        if seconds < 0:
            raise ValueError(f"cannot go back by {-seconds} seconds")
        self._now += seconds
        self._monotonic += seconds


if TYPE_CHECKING:
    _: type[Clock] = FakeClock
