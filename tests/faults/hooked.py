"""An application with a hook, as a process to be killed: `python -m tests.faults.hooked`.

The hook writes a line to `asked` in the data folder, with the bytes that it read, and whether there
was a request. Then it waits as long as there is a file `wait`, and refuses as long as there is a
file `refuse`.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
from pathlib import Path

import uvicorn

from tidegate.asgi import Tidegate
from tidegate.hooks import Bytes, Denied, Hooks, Upload, UploadRequest
from tidegate.metadata.sqlite.store import SQLiteMetadataStore
from tidegate.stores.local import LocalStore


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int)
    parser.add_argument("--data", type=Path)
    given = parser.parse_args()
    folder: Path = given.data
    folder.mkdir(exist_ok=True)

    async def before_complete(
        upload: Upload, content: Bytes, request: UploadRequest | None
    ) -> None:
        found = (await content.first(100)).decode()
        with (folder / "asked").open("a") as file:
            file.write(f"{upload.id} {found} {'request' if request else 'nobody'}\n")
        while (folder / "wait").exists():
            await asyncio.sleep(0.01)
        if (folder / "refuse").exists():
            raise Denied(422, "refused")

    app = Tidegate(
        LocalStore(folder),
        SQLiteMetadataStore(folder / "tidegate.db"),
        base_path="/files/",
        hooks=Hooks(before_complete=before_complete),
    )
    with socket.create_server(("127.0.0.1", given.port), backlog=128) as listener:
        port = listener.getsockname()[1]
        print(f"listening on http://127.0.0.1:{port}/files/", flush=True)
        config = uvicorn.Config(app, http="h11", log_level="error", lifespan="on")
        asyncio.run(uvicorn.Server(config).serve([listener]))


if __name__ == "__main__":
    main()
