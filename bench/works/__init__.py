"""The works: what is measured, of whom, and how one sample of it is taken.

A file each. A new one is a function as in its neighbours, and a row in `works`; what it must reach
goes to `bench/goals.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.setting import MIB
from bench.works import cost, download, head, latency, many, patch, slow, small

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.measure import Outcome
    from bench.setting import Bench, Place, Sizes


@dataclass(frozen=True)
class Work:
    """Something to measure.

    Args:
        title: in words.
        metric: the one that charts show.
        run: measures it.
    """

    title: str
    metric: str
    run: Callable[[Bench, Place], list[Outcome]]


def works(sizes: Sizes) -> dict[str, Work]:
    """All works by name, with their sizes in their titles."""
    one, part, long = (f"{size // MIB} MiB" for size in (sizes.large, sizes.part, sizes.long))
    return {
        "patch": Work(f"one PATCH of {one}", "MB/s", patch.one),
        **{
            f"patch-{name}": Work(f"one PATCH of {one} with {name}", "MB/s", patch.checked(name))
            for name in ("sha1", "sha256", "crc32c")
        },
        "parallel": Work(f"{sizes.at_once} at once, {part} each", "MB/s", patch.several),
        "small": Work(
            f"creation with 1 KiB of data, {sizes.connections} connections", "req/s", small.small
        ),
        "head": Work(f"HEAD, {sizes.connections} connections", "req/s", head.head),
        "cost": Work(
            "small requests with a token, a log line, metrics and events, against without,"
            f" {sizes.connections} connections",
            "HEAD ratio",
            cost.cost,
        ),
        "many": Work(
            f"HEAD and POST with {sizes.few} (few) and {sizes.many} (many) uploads stored",
            "HEAD/s many",
            many.many,
        ),
        "slow": Work(
            f"{sizes.slow} connections at {sizes.slow_rate // 1000} kB/s each,"
            f" and a fast one with {one}",
            "cpu/GiB",
            slow.slow,
        ),
        "latency": Work(f"HEAD every 2 ms while {long} are uploaded", "p99 ms", latency.latency),
        "download": Work(f"GET of {one}", "MB/s", download.download),
    }
