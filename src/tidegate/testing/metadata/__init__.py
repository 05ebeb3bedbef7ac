"""Checks that any MetadataStore can be run through. No test runner is needed.

A check is an async function that takes a factory (see MakeStore) and raises AssertionError when
the store does not do what `tidegate.ports.MetadataStore` says. Each wants a place of its own:

    for check in METADATA_STORE_CHECKS:
        place = tempfile.mkdtemp()
        await check(lambda: MyStore(place))

Python must not run with -O, which removes assertions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.testing.metadata import events, leases, records, sharing

if TYPE_CHECKING:
    from collections.abc import Callable

    from tidegate.testing.metadata.support import Check, MakeStore

METADATA_STORE_CHECKS: list[Check] = [
    *records.CHECKS,
    *leases.CHECKS,
    *events.CHECKS,
    *sharing.CHECKS,
]
"""For every store."""

SHARED_METADATA_STORE_CHECKS: list[Check] = [
    *leases.SHARED_CHECKS,
    *events.SHARED_CHECKS,
    *sharing.SHARED_CHECKS,
]
"""For stores whose `shared` is true, besides."""


async def check_metadata_store(new_place: Callable[[], MakeStore]) -> None:
    """Run a store through all checks that apply to it, until one fails.

    `new_place` is called for every check: it prepares an empty place, and returns what makes
    stores on it. Raises AssertionError, with the name of the check as a note.
    """
    shared = new_place()().shared
    for check in METADATA_STORE_CHECKS + SHARED_METADATA_STORE_CHECKS * shared:
        try:
            await check(new_place())
        except Exception as error:
            error.add_note(f"in check {check.__name__}: {check.__doc__}")
            raise
