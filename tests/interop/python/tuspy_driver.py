"""tuspy: one upload, as the case on stdin asks."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from tusclient.client import TusClient
from tusclient.storage.filestorage import FileStorage

if TYPE_CHECKING:
    from collections.abc import Callable


def run(wanted: dict[str, Any]) -> dict[str, Any]:
    """Upload; `stop_at` is tuspy's own way to stop half way."""
    options: dict[str, Any] = {}
    if wanted.get("chunk_size"):
        options["chunk_size"] = wanted["chunk_size"]
    if wanted.get("retry"):
        options |= {"retries": 80, "retry_delay": 0.1}
    if wanted.get("store"):
        storage: Callable[[str], Any] = FileStorage  # untyped
        options |= {"store_url": True, "url_storage": storage(wanted["store"])}
    uploader = TusClient(wanted["endpoint"]).uploader(
        wanted["file"],
        metadata=wanted.get("metadata") or {},
        upload_checksum=wanted.get("checksum") == "header",
        **options,
    )
    try:
        uploader.upload(stop_at=wanted.get("stop_at"))
    except Exception as error:  # noqa: BLE001  (the result tells it)
        return {"url": uploader.url, "error": repr(error)}
    return {"url": uploader.url, "aborted": wanted.get("stop_at") is not None}


if __name__ == "__main__":
    print(json.dumps({"result": run(json.loads(sys.stdin.readline()))}), flush=True)
