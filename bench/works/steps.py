"""What several works do to a server."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from bench.client import METADATA, OFFSET_TYPE, Connection, request
from bench.process import BenchError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.load import Figures
    from bench.measure import Sample
    from bench.process import Server


def offers(server: Server) -> dict[str, list[str]]:
    """The extensions and algorithms that OPTIONS names."""
    with Connection(server) as connection:
        connection.sock.sendall(request(server, "OPTIONS", server.path, {}))
        found = connection.head()[0].fields
    return {
        name: [item.strip() for item in found.get(f"tus-{name}", "").split(",")]
        for name in ("extension", "checksum-algorithm")
    }


def creation(server: Server, *, body: bytes = b"") -> bytes:
    """A POST of an upload of 1 KiB."""
    fields = {
        "Upload-Length": "1024",
        "Upload-Metadata": METADATA,
        "Content-Length": str(len(body)),
    }
    if body:
        fields["Content-Type"] = OFFSET_TYPE
    return request(server, "POST", server.path, fields, body)


def stored(folder: Path, length: int) -> list[Path]:
    """The files in which all bytes of uploads of this length are."""
    found = []
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            status = path.stat()
            if status.st_size == length and status.st_blocks * 512 >= length:
                found.append(path)
    return found


def same(file: Path, digest: bytes) -> None:
    """Raise BenchError unless the file has this SHA-256."""
    with file.open("rb") as opened:
        if hashlib.file_digest(opened, "sha256").digest() != digest:
            raise BenchError("what was stored is not what was sent")


def forget(server: Server, paths: Sequence[str], files: Sequence[Path]) -> None:
    """Delete uploads, if need be behind the server's back."""
    with Connection(server) as connection:
        for path in paths:
            if not connection.delete(path):
                break
    for file in files:
        file.unlink(missing_ok=True)


def per_request(server: Server, cpu: float, found: Figures) -> Sample:
    """Rate, latency, and what a request costs."""
    return {
        "req/s": found.rate,
        "p99 ms": found.p99,
        "cpu us": (server.cpu() - cpu) / found.count * 1e6,
    }
