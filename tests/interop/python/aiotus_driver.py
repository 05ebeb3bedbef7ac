"""aiotus: one upload, as the case on stdin asks."""

from __future__ import annotations

import asyncio
import importlib
import io
import json
import logging
import sys
from pathlib import Path
from typing import Any

import aiohttp
import yarl

# By name, for the type checker must be content also where it is not installed.
aiotus: Any = importlib.import_module("aiotus")
core: Any = importlib.import_module("aiotus.core")
creation: Any = importlib.import_module("aiotus.creation")


async def _transfer(wanted: dict[str, Any]) -> str | None:
    config = aiotus.RetryConfiguration(
        retry_attempts=80 if wanted.get("retry") else 1, max_retry_period_seconds=0.15
    )
    metadata = {key: value.encode() for key, value in (wanted.get("metadata") or {}).items()}
    # It always sends in chunks: one that holds all, unless the case asks for less.
    options = {"chunksize": wanted.get("chunk_size") or 1 << 30}
    store = Path(wanted["store"]) if wanted.get("store") else None
    with open(wanted["file"], "rb") as file:
        if wanted.get("parallel"):
            data = file.read()
            size = -(-len(data) // wanted["parallel"])
            pieces = [io.BytesIO(data[at : at + size]) for at in range(0, len(data), size)]
            location = await aiotus.upload_multiple(
                wanted["endpoint"],
                pieces,
                metadata,
                config=config,
                parallel_uploads=wanted["parallel"],
                **options,
            )
        elif store is None:
            location = await aiotus.upload(
                wanted["endpoint"], file, metadata, config=config, **options
            )
        else:
            # To come back later one has to know the address: the parts that `upload` is made of.
            async with aiohttp.ClientSession() as session:
                if wanted.get("resume"):
                    location = yarl.URL(store.read_text())
                else:
                    endpoint = yarl.URL(wanted["endpoint"])
                    location = await creation.create(session, endpoint, file, metadata)
                    store.write_text(str(location))
                await core.upload_buffer(session, location, file, **options)
    return None if location is None else str(location)


async def run(wanted: dict[str, Any]) -> dict[str, Any]:
    """Upload until it is done, or until a line on stdin says to abort."""
    transfer = asyncio.create_task(_transfer(wanted))
    stopper = asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    await asyncio.wait((transfer, stopper), return_when=asyncio.FIRST_COMPLETED)
    store = wanted.get("store")
    if not transfer.done():
        transfer.cancel()
        await asyncio.wait((transfer,))
        return {"url": Path(store).read_text() if store else None, "aborted": True}
    try:
        url = transfer.result()
    except Exception as error:  # noqa: BLE001  (the result tells it)
        return {"url": None, "error": repr(error)}
    return {"url": url} if url else {"url": None, "error": "aiotus gave up; see its log"}


def main() -> None:
    """Read the case, run it, tell the result."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    wanted = json.loads(sys.stdin.readline())
    loop = asyncio.new_event_loop()
    print(json.dumps({"result": loop.run_until_complete(run(wanted))}), flush=True)
    sys.stderr.flush()
    # asyncio.run() would wait for the thread that reads stdin


if __name__ == "__main__":
    main()
