"""What is logged on purpose goes nowhere: pytest's handlers write to files, on the loop."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def logged() -> Iterator[list[logging.LogRecord]]:
    """The records of `tidegate.engine`, which go nowhere else."""
    records: list[logging.LogRecord] = []

    class Listed(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    logger, handler = logging.getLogger("tidegate.engine"), Listed()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    yield records
    logger.propagate = True
    logger.setLevel(level)
    logger.removeHandler(handler)
