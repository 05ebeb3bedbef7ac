"""Every test of the command line has a folder and an environment of its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def clean_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No settings but the test's own: none in the environment, no file in the folder."""
    for name in list(os.environ):
        if name.startswith("TIDEGATE_") and name != "TIDEGATE_CI":
            monkeypatch.delenv(name)
    # Messages and help are as wide as a terminal that tells its width.
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    return tmp_path
