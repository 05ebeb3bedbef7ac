"""What tests of sinks share."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
from tests.support.logs import logs_kept

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def logged() -> Iterator[list[logging.LogRecord]]:
    with logs_kept() as records:
        yield records
