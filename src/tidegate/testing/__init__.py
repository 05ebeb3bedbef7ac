"""Public checks that any DataStore or MetadataStore can be run through, and a clock to test with.

No test runner is needed: a check is an async function that raises AssertionError.
"""

from tidegate.testing.clock import FakeClock
from tidegate.testing.data import DATA_STORE_CHECKS, check_data_store
from tidegate.testing.metadata import (
    METADATA_STORE_CHECKS,
    SHARED_METADATA_STORE_CHECKS,
    check_metadata_store,
)

__all__ = [
    "DATA_STORE_CHECKS",
    "METADATA_STORE_CHECKS",
    "SHARED_METADATA_STORE_CHECKS",
    "FakeClock",
    "check_data_store",
    "check_metadata_store",
]
