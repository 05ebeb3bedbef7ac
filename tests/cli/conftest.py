"""Every test of the command line has a folder and an environment of its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.cli.stores import DATA, Command

from tidegate import cli


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


@pytest.fixture
def tidegate(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run the command on the data; its exit code, output and errors."""

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.run([*arguments, "--data", str(DATA)])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run
