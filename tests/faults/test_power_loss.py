"""The power goes, at every point of every scenario, and what is left is made the most of.

`power.py` records what the local store and SQLite do to a disk; here the traces are cut off at every
point, what was not synced is lost in many ways, and the server is started on what is left, under
another boot. What it then says must be true: see `power_judge.Expected`.

What is tried at each point is a sample; TIDEGATE_POWER=every tries all that we can think of, and
takes about an hour.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest
from tests.faults import power
from tests.faults.power_builds import Build, builds
from tests.faults.power_judge import Effort, Verdict
from tests.support import sqlite_vfs

from tidegate.ports import Durability

if TYPE_CHECKING:
    from multiprocessing.pool import AsyncResult, Pool
    from pathlib import Path

pytestmark = [
    pytest.mark.timeout(3 * 3600 if os.environ.get("TIDEGATE_POWER") == "every" else 600),
    pytest.mark.skipif(
        sqlite_vfs.library() is None,
        reason="this Python's SQLite is linked in so that its writes can't be seen",
    ),
]

EFFORT = Effort.EVERY if os.environ.get("TIDEGATE_POWER") == "every" else Effort.SAMPLE
BUILDS = builds()
NAMES = [
    f"{name}-{mode}" for name in power.SCENARIOS for mode in (Durability.COMPLETE, Durability.ACK)
]


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, power.Trace]:
    """Recorded in another process, where nothing else writes."""
    target: Path = tmp_path_factory.mktemp("power") / "traces"
    subprocess.run([sys.executable, "-m", "tests.faults.power", target], check=True, timeout=120)
    return {str(trace): trace for trace in pickle.loads(target.read_bytes())}


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    """Processes that replay while the tests wait. What they run is not what coverage is about."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("COVERAGE_PROCESS")]:
            patch.delenv(name)
        started = multiprocessing.get_context("spawn").Pool(min(4, os.cpu_count() or 1))
    with started:
        yield started


@pytest.fixture(scope="module")
def replays(
    traces: dict[str, power.Trace], pool: Pool
) -> tuple[dict[str, AsyncResult[Verdict]], dict[Build, AsyncResult[Verdict]]]:
    """All under way at once: of the product, and of each build. (Workers of xdist should share a
    file's tests out by the file: each would replay all of it.)
    """
    every = list(traces.values())
    return (
        {name: pool.apply_async(power.replay_trace, (traces[name], EFFORT)) for name in NAMES},
        {build: pool.apply_async(power.replay_build, (every, build)) for build in BUILDS},
    )


@pytest.mark.parametrize("name", NAMES)
def test_whatever_a_loss_of_power_leaves_is_made_true(
    name: str,
    replays: tuple[dict[str, AsyncResult[Verdict]], object],
    record_property: Callable[[str, object], None],
) -> None:
    """No state lets the server say what is not so, get stuck, or fail."""
    verdict = replays[0][name].get()
    print(f"{name}: cut at {verdict.points} points, {verdict.different} different states")
    record_property("states", verdict.different)
    assert not verdict.lies, "\n".join(verdict.lies)
    assert verdict.different > 100


@pytest.mark.parametrize("build", BUILDS, ids=str)
def test_a_build_that_lacks_a_sync_is_caught(
    build: Build, replays: tuple[object, dict[Build, AsyncResult[Verdict]]]
) -> None:
    """Of every place that asks for a sync: without it some state is a lie."""
    verdict = replays[1][build].get()
    print(f"{build}: caught after {verdict.states} states: {verdict.lies}")
    assert verdict.lies
