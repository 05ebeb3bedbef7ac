"""A cluster under faults: nothing acknowledged is lost, nothing is stuck, every completion is told.

TIDEGATE_CLUSTER_FAULTS says how many (200 under TIDEGATE_CI=1), TIDEGATE_FAULT_SEED with which seed.
`python -m tests.faults.cluster --faults 1000` goes on for longer.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import tempfile
from pathlib import Path
from typing import Final

import pytest
from tests.faults import cluster

FAULTS: Final = int(
    os.environ.get("TIDEGATE_CLUSTER_FAULTS")
    or (200 if os.environ.get("TIDEGATE_CI") == "1" else 20)
)
SEED: Final = int(os.environ.get("TIDEGATE_FAULT_SEED") or secrets.randbits(32))

pytestmark = pytest.mark.timeout(300 + 2 * FAULTS)


def test_servers_that_share_all_fail_in_all_ways() -> None:
    with tempfile.TemporaryDirectory(prefix="tidegate-cluster-") as folder:
        report = asyncio.run(cluster.run(Path(folder), seed=SEED, faults=FAULTS))
    print(report)
    assert not report.broken, str(report)
    # It proves nothing that nobody did anything.
    assert report.faults.total() == FAULTS
    assert report.seen["PATCH 204"] > FAULTS // 2
    assert report.told > FAULTS // 5
    assert report.compared
    # No server could answer while no server ran.
    assert report.able > report.seconds / 3
