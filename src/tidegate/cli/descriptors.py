"""How many files and connections a process may have open."""

from __future__ import annotations

import logging
import resource
from typing import Final

PER_UPLOAD: Final = 3
"""A connection, a file of bytes, and for a moment a folder."""
BESIDE: Final = 1024
"""The database, locks, downloads, and connections that send no body now."""

log = logging.getLogger("tidegate.server")


def allow(uploads: int | None) -> None:
    """Raise this process's limit to what so many uploads at once need (None: as far as it goes).

    Any one of several workers may come to serve all of them.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    need = BESIDE + PER_UPLOAD * uploads if uploads is not None else hard
    if soft == unlimited or (need != unlimited and soft >= need):
        return
    reached = need if hard == unlimited else min(need, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (reached, hard))
    except (ValueError, OSError):
        reached = soft  # some systems have another limit yet
    if uploads is not None and reached < need:
        log.warning(
            "%d uploads at once need %d open files, and this process may have %d: raise the limit"
            " (ulimit -Hn, LimitNOFILE=), or lower --max-concurrent to %d",
            uploads,
            need,
            reached,
            max(1, (reached - BESIDE) // PER_UPLOAD),
        )
