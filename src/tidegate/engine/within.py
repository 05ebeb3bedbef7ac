"""A time limit that costs nothing where there is nothing to wait for."""

from __future__ import annotations

import asyncio
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator


async def within(seconds: float, work: Coroutine[Any, Any, object]) -> bool:
    """Wait for a coroutine; False: it did not end in time, and was cancelled. Raises what it raises.

    The clock begins when it first waits: to start one costs more than most of what does not.
    """
    try:
        waits_for = work.send(None)
    except StopIteration:
        return True
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            await _rest(work, waits_for)
    except TimeoutError:
        if limit.expired():
            return False
        raise
    return True


@types.coroutine
def _rest(work: Coroutine[Any, Any, object], waits_for: object) -> Generator[object, Any, None]:
    """What is left of a coroutine that was begun, and waits for something. As `yield from` (PEP 380)."""
    try:
        while True:
            try:
                came = yield waits_for
            except BaseException as error:  # noqa: BLE001 - it is the coroutine's, cancellation included
                waits_for = work.throw(error)
            else:
                waits_for = work.send(came)
    except StopIteration:
        return
