"""HEAD of one upload while a fast client sends another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench import load
from bench.client import Connection, request, upload
from bench.measure import Absent
from bench.subjects import RUSTUS_LARGEST
from bench.works.steps import forget, stored

if TYPE_CHECKING:
    from bench.measure import Outcome, Sample
    from bench.setting import Bench, Place, Take
    from bench.subjects import Subject


def latency(bench: Bench, place: Place) -> list[Outcome]:
    """HEAD of one upload while a fast client sends another."""
    program, sizes = bench.program(), bench.sizes

    def make(subject: Subject) -> Take:
        if subject.name == "rustus" and sizes.long > RUSTUS_LARGEST:
            raise Absent("it holds a whole body in memory")
        folder = bench.folder(place)
        server = bench.stack.enter_context(bench.served(subject, folder))
        with Connection(server) as connection:
            path = connection.create(1024)
        task = {
            "requests": load.packed([request(server, "HEAD", path, {})]),
            "status": 200,
            "header": "Upload-Offset: 0",
            "interval": 0.002,
        }

        def take(_: bool) -> Sample:  # noqa: FBT001
            server.check()
            with load.Load(program, server, "latency", seconds=sizes.seconds, **task) as generator:
                rest = generator.figures(sizes.seconds + 60)
            with load.Load(program, server, "latency", **task) as generator:
                spent, paths = upload(server, bench.source, sizes.long)
                busy = generator.figures(60)
            forget(server, paths, stored(folder, sizes.long))
            return {
                "p50 ms": busy.p50,
                "p99 ms": busy.p99,
                "max ms": busy.max,
                "p99 ms at rest": rest.p99,
                "MB/s": spent.rates(sizes.long)["MB/s"],
            }

        return take

    rivals = [one for one in bench.rivals() if one.kind != "tidegate"]
    return bench.run("latency", place, [*bench.defaults, *rivals], make)
