"""What is logged, kept from pytest's handlers: those write to files on the event loop."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMES = ("tidegate", "uvicorn", "asyncio")


class _Keep(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        self.records.append(record)


@contextmanager
def logs_kept() -> Iterator[list[logging.LogRecord]]:
    """The records of tidegate and of what it runs on, tracebacks as text in `exc_text`."""
    keep = _Keep()
    loggers = [logging.getLogger(name) for name in NAMES]
    for logger in loggers:
        logger.addHandler(keep)
        logger.propagate = False
    try:
        yield keep.records
    finally:
        for logger in loggers:
            logger.propagate = True
            logger.removeHandler(keep)
