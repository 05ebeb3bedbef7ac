"""What may be lost when the power goes."""

from __future__ import annotations

import enum


class Durability(enum.StrEnum):
    """What an acknowledgement promises about a loss of power."""

    COMPLETE = "complete"
    """What was shown as complete survives it; the offset of an unfinished upload may go back to
    what was synced."""
    ACK = "ack"
    """Whatever was acknowledged survives it."""
    NONE = "none"
    """Nothing is ever synced. A crash of a process still loses nothing."""
