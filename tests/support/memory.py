"""Folders in memory, for tests that sync a great deal and don't ask what becomes of it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

SHM: Final = "/dev/shm"
PLACE: Final = SHM if os.path.isdir(SHM) and os.access(SHM, os.W_OK) else None
"""Where such folders are; None: where the others are, too."""


@contextmanager
def folder_in_memory(prefix: str) -> Iterator[Path]:
    """A folder for as long as it is entered; in memory where there is such a place."""
    with tempfile.TemporaryDirectory(prefix=prefix, dir=PLACE) as folder:
        yield Path(folder)
