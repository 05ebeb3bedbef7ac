"""For tests: a server in memory, a clock, and checks that any store can be run through.

No test runner is needed: a server is an async context manager, a check an async function that
raises AssertionError.
"""

from tidegate.testing.clock import FakeClock
from tidegate.testing.data import DATA_STORE_CHECKS, check_data_store
from tidegate.testing.metadata import (
    METADATA_STORE_CHECKS,
    SHARED_METADATA_STORE_CHECKS,
    check_metadata_store,
)
from tidegate.testing.server import Server, served, told

__all__ = [
    "DATA_STORE_CHECKS",
    "METADATA_STORE_CHECKS",
    "SHARED_METADATA_STORE_CHECKS",
    "FakeClock",
    "Server",
    "check_data_store",
    "check_metadata_store",
    "served",
    "told",
]
