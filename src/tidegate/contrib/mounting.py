"""Where a request was sent, below which root: servers say it in more than one way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

if TYPE_CHECKING:
    from collections.abc import Mapping


def whole(scope: Mapping[str, Any]) -> dict[str, Any]:
    """The scope of an HTTP request, with paths that begin with its root path.

    "path (...) may include root_path" says ASGI, and servers differ; Litestar has the path of a
    mounted application begin where it is mounted, and leaves root_path as it was.
    """
    root = scope.get("root_path", "").rstrip("/")
    raw = scope.get("raw_path") or quote(scope["path"]).encode()
    path = unquote(raw.partition(b"?")[0].decode("latin-1"))
    if not is_below(root, path):
        raw, path = quote(root).encode() + raw, root + path
    return {**scope, "path": path, "raw_path": raw, "root_path": root}


def is_below(root: str, path: str) -> bool:
    """Whether `path` is `root`, which has no slash at its end, or something below it."""
    return path == root or path.startswith(f"{root}/")
