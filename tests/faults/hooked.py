"""An application with a hook, as a process to be killed: `python -m tests.faults.hooked`.

The hook writes a line to `asked` in the data folder, with the bytes that it read, and whether there
was a request. Then it waits as long as there is a file `wait`, and refuses as long as there is a
file `refuse`. Without `--records` and `--bucket` records and bytes are in that folder, too.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import sys
from pathlib import Path

from tests.support.s3_server import S3Server

from tidegate.asgi import Tidegate
from tidegate.cli import logs, server
from tidegate.hooks import Bytes, Denied, Hooks, Upload, UploadRequest
from tidegate.metadata.postgres.store import PostgresMetadataStore
from tidegate.metadata.sqlite.store import SQLiteMetadataStore
from tidegate.stores.local import LocalStore


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--transport", default="native")
    parser.add_argument("--records", help="the URL of a PostgreSQL")
    parser.add_argument("--bucket", help="the endpoint of an S3")
    parser.add_argument("--no-hook", action="store_true")
    given = parser.parse_args()
    folder: Path = given.data
    folder.mkdir(exist_ok=True)
    logs.configure("warning", "console")

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
        S3Server(given.bucket).store("hooks") if given.bucket else LocalStore(folder),
        PostgresMetadataStore(given.records)
        if given.records
        else SQLiteMetadataStore(folder / "tidegate.db"),
        base_path="/files/",
        hooks=Hooks(before_complete=None if given.no_hook else before_complete),
    )
    with socket.create_server(("127.0.0.1", given.port), backlog=128) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/files/"
        code = server.run(
            app,
            [listener],
            announce=lambda: print(f"listening on {url}", flush=True),
            tls=None,
            transport=given.transport,
            shutdown_timeout=5.0,
        )
    sys.exit(code)


if __name__ == "__main__":
    main()
