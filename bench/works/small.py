"""Creation of small uploads, with their data."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from bench import load
from bench.measure import Absent
from bench.process import BenchError
from bench.works.steps import creation, offers, per_request, stored

if TYPE_CHECKING:
    from bench.measure import Outcome, Sample
    from bench.setting import Bench, Place, Take
    from bench.subjects import Subject


def small(bench: Bench, place: Place) -> list[Outcome]:
    """Creation with 1 KiB of data, each sample on a server and a folder of its own."""
    program, sizes = bench.program(), bench.sizes

    def make(subject: Subject) -> Take:
        def take(_: bool) -> Sample:  # noqa: FBT001
            folder = bench.folder(place)
            with bench.served(subject, folder) as server:
                if "creation-with-upload" not in offers(server)["extension"]:
                    raise Absent("it has no creation-with-upload")
                cpu = server.cpu()
                found = load.rate(
                    program,
                    server,
                    [creation(server, body=os.urandom(1024))],
                    status=201,
                    header="Upload-Offset: 1024",
                    seconds=sizes.seconds,
                    connections=sizes.connections,
                )
                sample = per_request(server, cpu, found)
                if (there := len(stored(folder, 1024))) != found.count:
                    raise BenchError(f"{found.count} were acknowledged, {there} files are there")
            return sample

        return take

    return bench.run("small", place, bench.rivals(), make)
