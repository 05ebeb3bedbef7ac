"""The machine's clock."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tidegate.ports import Clock


class SystemClock:
    """What the operating system says."""

    @staticmethod
    def now() -> float:
        """Seconds since the epoch."""
        return time.time()

    @staticmethod
    def monotonic() -> float:
        """Seconds since some instant, never going back."""
        return time.monotonic()


if TYPE_CHECKING:
    _: type[Clock] = SystemClock
