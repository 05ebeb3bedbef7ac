"""GET of a large file."""

from __future__ import annotations

import os
import shutil
import time
from typing import TYPE_CHECKING

from bench.client import Connection, request, upload
from bench.measure import Absent
from bench.process import BenchError
from bench.setting import GIB
from bench.subjects import peer

if TYPE_CHECKING:
    from bench.measure import Outcome, Sample
    from bench.setting import Bench, Place, Take
    from bench.subjects import Subject


def download(bench: Bench, place: Place) -> list[Outcome]:
    """GET of a large file."""
    length = bench.sizes.large

    def make(subject: Subject) -> Take:
        folder = bench.folder(place)
        server = bench.stack.enter_context(bench.served(subject, folder))
        if subject.kind == "nginx":
            path = f"{server.path}file"
            shutil.copyfile(bench.source.path, folder / "file")
            os.truncate(folder / "file", length)
        else:
            _, (path,) = upload(server, bench.source, length)
            with Connection(server) as connection:
                connection.sock.sendall(request(server, "GET", path, {}))
                if (status := connection.head()[0].status) in {404, 405}:
                    raise Absent(f"it has no downloads ({status})")

        def take(check: bool) -> Sample:  # noqa: FBT001
            server.check()
            with Connection(server) as connection:
                if check and connection.digest(path) != bench.digest("sha256", length):
                    raise BenchError("what came back is not what was sent")
                cpu, start = server.cpu(), time.perf_counter()
                connection.download(path, length)
                took = time.perf_counter() - start
                spent = server.cpu() - cpu
            return {"MB/s": length / 1e6 / took, "cpu/GiB": spent / (length / GIB)}

        return take

    subjects = bench.rivals("copy")
    if "nginx" in bench.peers:
        subjects.append(peer("nginx"))
    return bench.run("download", place, subjects, make)
