"""Folders in memory, for tests that sync a great deal and don't ask what becomes of it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

SHM: Final = "/dev/shm"


def _is_fit(folder: str) -> bool:
    """Whether files there have the attributes that they have on a disk."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            os.setxattr(file.name, "user.tidegate", b"")
    except (OSError, AttributeError):
        return False
    return True


PLACE: Final = SHM if _is_fit(SHM) else None
"""Where such folders are; None: where the others are, too."""


@contextmanager
def folder_in_memory(prefix: str) -> Iterator[Path]:
    """A folder for as long as it is entered; in memory where there is such a place."""
    with tempfile.TemporaryDirectory(prefix=prefix, dir=PLACE) as folder:
        yield Path(folder)
