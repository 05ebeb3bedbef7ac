"""Files that a URL names, for TLS: the drivers say that one can't be read, but not which."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

if TYPE_CHECKING:
    from collections.abc import Collection


def unreadable(url: str, names: Collection[str]) -> str:
    """Which file that a parameter of one of these names gives can't be read, and why; empty: all
    can be. Blocks.
    """
    for name, path in parse_qsl(urlsplit(url).query):
        if name in names:
            try:
                with open(path, "rb"):
                    pass
            except OSError as error:
                return f"{name}={path}: {error.strerror}"
    return ""
