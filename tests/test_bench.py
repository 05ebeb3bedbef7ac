"""The benchmarks still run: every work once, at sizes that say nothing about speed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from bench.subjects import load_generator

ROOT = Path(__file__).parents[1]
LOADED = {"small", "head", "cost", "many", "slow", "latency"}
"""Works for which a load generator is built with Go."""
ALWAYS = {"patch", "patch-sha1", "patch-sha256", "patch-crc32c", "parallel", "download"}


@pytest.mark.timeout(240)
def test_every_work_is_measured_and_verified(tmp_path: Path) -> None:
    """No subject fails (a wrong status, offset or file would be a failure), and nothing is left."""
    said = run(tmp_path)
    found = json.loads((tmp_path / "found.json").read_text())
    works = {outcome["work"] for outcome in found["outcomes"] if outcome["samples"]}
    loads = shutil.which("go") or load_generator() is not None  # which may be there from before
    assert works == ALWAYS | (LOADED if loads else set())
    assert not any(outcome["error"] or outcome["absent"] for outcome in found["outcomes"])
    assert {goal["work"] for goal in found["goals"]} == works
    assert "# Goals" in said
    assert (tmp_path / "found.svg").read_text().startswith("<svg")

    # One of them again: of the others stays what was found.
    run(tmp_path, "--only", "patch", "--keep")
    again = json.loads((tmp_path / "found.json").read_text())
    kept, measured = (
        [
            [one for one in each["outcomes"] if (one["work"] == "patch") is new]
            for each in (found, again)
        ]
        for new in (False, True)
    )
    assert kept[0] == kept[1]
    assert measured[0] != measured[1]
    assert {goal["work"] for goal in again["goals"]} == works


def run(folder: Path, *arguments: str) -> str:
    """What it prints; the folder for data is empty then."""
    data = folder / "data"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "bench", "--smoke"),
            *("--data", str(data)),
            *("--json", str(folder / "found.json")),
            *("--chart", str(folder / "found.svg")),
            *arguments,
        ],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=220,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(data.iterdir()) == []
    return done.stdout
