"""What tests of the transports share."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def logged() -> Iterator[list[str]]:
    """What tidegate logs; kept from pytest's handlers, which write to files on the event loop."""
    messages: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    logger, handler = logging.getLogger("tidegate"), Keep()
    logger.addHandler(handler)
    logger.propagate = False
    yield messages
    logger.propagate = True
    logger.removeHandler(handler)
