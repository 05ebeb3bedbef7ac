"""PATCH of large bodies: one, several at once, with a checksum."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

from bench.client import upload
from bench.measure import Absent
from bench.process import BenchError
from bench.works.steps import forget, offers, same, stored

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.measure import Outcome, Sample
    from bench.setting import Bench, Place, Take
    from bench.subjects import Subject


def one(bench: Bench, place: Place) -> list[Outcome]:
    """One upload."""
    return _measured(bench, place, "patch", at_once=1, length=bench.sizes.large)


def several(bench: Bench, place: Place) -> list[Outcome]:
    """Several uploads at once."""
    sizes = bench.sizes
    return _measured(bench, place, "parallel", at_once=sizes.at_once, length=sizes.part)


def checked(algorithm: str) -> Callable[[Bench, Place], list[Outcome]]:
    """One upload with a checksum of this algorithm."""

    def run(bench: Bench, place: Place) -> list[Outcome]:
        length = bench.sizes.large
        work = f"patch-{algorithm}"
        return _measured(bench, place, work, at_once=1, length=length, algorithm=algorithm)

    return run


def _measured(
    bench: Bench, place: Place, work: str, *, at_once: int, length: int, algorithm: str = ""
) -> list[Outcome]:
    def make(subject: Subject) -> Take:
        folder = bench.folder(place)
        server = bench.stack.enter_context(bench.served(subject, folder))
        checksum = ""
        if algorithm:
            if subject.kind != "raw" and algorithm not in offers(server)["checksum-algorithm"]:
                raise Absent(f"it does not offer {algorithm}")
            digest = base64.b64encode(bench.digest(algorithm, length)).decode()
            checksum = f"{algorithm} {digest}"

        def take(check: bool) -> Sample:  # noqa: FBT001
            server.check()
            spent, paths = upload(server, bench.source, length, at_once=at_once, checksum=checksum)
            files = stored(folder, length)
            if len(files) != at_once:
                raise BenchError(f"{len(files)} files of {length} bytes, not {at_once}")
            if check:
                for file in files:
                    same(file, bench.digest("sha256", length))
            forget(server, paths, files)
            return spent.rates(length * at_once)

        return take

    bounds = [algorithm] if algorithm else ["copy", "splice"]
    return bench.run(work, place, bench.rivals(*bounds), make)
