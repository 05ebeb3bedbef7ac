"""kill -9 at random instants, and nothing that the server said was untrue.

TIDEGATE_FAULT_KILLS says how often (500 under TIDEGATE_CI=1), TIDEGATE_FAULT_SEED with which seed.
`python -m tests.faults.crash --hours 2` goes on for longer.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import tempfile
from pathlib import Path
from typing import Final

import pytest
from tests.faults import crash

from tidegate.config import Transport

KILLS: Final = int(
    os.environ.get("TIDEGATE_FAULT_KILLS") or (500 if os.environ.get("TIDEGATE_CI") == "1" else 60)
)
SEED: Final = int(os.environ.get("TIDEGATE_FAULT_SEED") or secrets.randbits(32))

pytestmark = pytest.mark.timeout(240 + KILLS)


def _run(
    kills: int, *, workers: int, transport: Transport = "native", command: bool = False
) -> None:
    with tempfile.TemporaryDirectory(prefix="tidegate-crash-") as folder:
        report = asyncio.run(
            crash.run(
                Path(folder),
                seed=SEED,
                kills=kills,
                workers=workers,
                transport=transport,
                command=command,
            )
        )
    print(report)
    assert not report.broken, str(report)
    # It proves nothing that nobody did anything.
    assert report.kills.total() == kills
    assert report.seen["204"] > kills // 5
    assert report.seen["compared"] > kills // 5


def test_two_workers_are_killed_one_by_one_and_together() -> None:
    """What was acknowledged is there, nothing else is, nothing is stuck, all events are told."""
    _run(KILLS, workers=2)


def test_two_workers_on_the_portable_transport_are_killed() -> None:
    """The same; what differs is how bodies come, so a few are enough."""
    _run(max(10, KILLS // 8), workers=2, transport="asgi")


@pytest.mark.parametrize(("workers", "transport"), [(1, "native"), (3, "native"), (2, "asgi")])
def test_the_command_is_killed(workers: int, transport: Transport) -> None:
    """The same for `tidegate serve`: all of it, its parent alone, or one worker."""
    kills = max(5, KILLS // (20 if transport == "native" else 60))
    _run(kills, workers=workers, transport=transport, command=True)
