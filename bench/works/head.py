"""HEAD, of one upload per connection."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from bench import load
from bench.client import Connection, request
from bench.process import BenchError
from bench.works.steps import per_request

if TYPE_CHECKING:
    from bench.measure import Outcome, Sample
    from bench.setting import Bench, Place, Take
    from bench.subjects import Subject


def head(bench: Bench, place: Place) -> list[Outcome]:
    """HEAD, of one upload per connection."""
    program, sizes = bench.program(), bench.sizes

    def make(subject: Subject) -> Take:
        server = bench.stack.enter_context(bench.served(subject, bench.folder(place)))

        def take(_: bool) -> Sample:  # noqa: FBT001
            server.check()
            # New ones: of those before some are still locked by a request that was broken off.
            with Connection(server) as connection:
                paths = [connection.create(1024) for _ in range(sizes.connections)]
            requests = [request(server, "HEAD", path, {}) for path in paths]
            cpu = server.cpu()
            found = load.rate(
                program,
                server,
                requests,
                status=200,
                header="Upload-Offset: 0",
                seconds=sizes.seconds / 3,
                connections=sizes.connections,
            )
            return per_request(server, cpu, found)

        return _again(take) if subject.kind == "peer" else take

    return bench.run("head", place, bench.rivals(), make)


def _again(take: Take) -> Take:
    """A sample that may fail: tusd 2.8.0's file lock breaks once in some 60,000 quick HEADs of an
    upload, which answers 500 after 20 s."""

    def again(counts: bool) -> Sample:  # noqa: FBT001
        for _ in range(9):
            with contextlib.suppress(BenchError):
                return take(counts)
        return take(counts)

    return again
