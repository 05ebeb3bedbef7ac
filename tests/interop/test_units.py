"""The units of `deploy/systemd`, read by systemd itself."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

UNITS = sorted((Path(__file__).parents[2] / "deploy/systemd").glob("*.service"))


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_finds_nothing_wrong(unit: Path, tmp_path: Path) -> None:
    """No directive is unknown, no value wrong; the program alone is another one here."""
    verify = shutil.which("systemd-analyze")
    if verify is None:
        pytest.skip("systemd-analyze is not installed: run tests/interop/setup")
    text = unit.read_text()
    assert "/opt/tidegate/bin/tidegate " in text
    here = tmp_path / unit.name
    here.write_text(text.replace("/opt/tidegate/bin/tidegate ", f"{sys.executable} "))
    done = subprocess.run(
        [verify, "verify", "--man=no", str(here)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    said = [line for line in done.stderr.splitlines() if unit.name in line or str(here) in line]
    assert (done.returncode, said) == (0, [])
