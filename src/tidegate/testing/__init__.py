"""Public checks that any DataStore or MetadataStore can be run through, and a clock to test with.

No test runner is needed: a check is an async function that raises AssertionError.
"""

from tidegate.testing.clock import FakeClock

__all__ = ["FakeClock"]
