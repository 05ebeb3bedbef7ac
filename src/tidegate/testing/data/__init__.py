"""What any data store must do, as checks that need no test runner.

    from tidegate.testing import check_data_store
    anyio.run(check_data_store, lambda: opened(MyStore(...)))

or, to see each by its name, parametrise a test over DATA_STORE_CHECKS. A check takes an open and
empty store, asks only for what the store's capabilities promise, and raises AssertionError.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Final, TypeAlias

import anyio

from tidegate.testing.data import basics, deleting, going_back, reading
from tidegate.testing.data.support import ALONE, DataStoreCheck, Journal

if TYPE_CHECKING:
    from tidegate.ports import DataStore

__all__ = [
    "ALONE",
    "DATA_STORE_CHECKS",
    "DataStoreCheck",
    "Journal",
    "MakeDataStore",
    "check_data_store",
]

MakeDataStore: TypeAlias = Callable[[], "AbstractAsyncContextManager[DataStore]"]
"""Gives an empty store, opened; closes it at the end."""

PATIENCE: Final = 60.0
"""Seconds after which a check that hangs has failed; a store far away needs some."""

DATA_STORE_CHECKS: list[DataStoreCheck] = [
    *basics.CHECKS,
    *going_back.CHECKS,
    *reading.CHECKS,
    *deleting.CHECKS,
]
"""Every check, in an order in which the first failure tells most."""


async def check_data_store(make: MakeDataStore) -> None:
    """Run every check, each on a store of its own. Raises AssertionError at the first failure."""
    for check in DATA_STORE_CHECKS:
        try:
            with anyio.fail_after(PATIENCE):
                async with make() as store:
                    await check(store)
        except TimeoutError:
            raise AssertionError(f"{_name(check)}: not done after {PATIENCE} seconds") from None
        except AssertionError as failure:
            failure.add_note(f"in the check {_name(check)}: {check.__doc__}")
            raise


def _name(check: DataStoreCheck) -> str:
    return getattr(check, "__name__", repr(check))
