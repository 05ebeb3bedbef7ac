"""Reading all of a long list, a page at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
K = TypeVar("K")


async def paged(
    first: K, page: Callable[[K], Awaitable[Sequence[T]]], key: Callable[[T], K]
) -> AsyncIterator[T]:
    """All that `page` gives after `first`, then after the key of its last, until it gives none."""
    after = first
    while found := await page(after):
        for each in found:
            yield each
        after = key(found[-1])
