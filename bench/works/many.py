"""HEAD and POST with few and with many uploads stored."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench import load
from bench.client import request
from bench.measure import note
from bench.process import BenchError, Command
from bench.subjects import HERE, Subject, Tidegate
from bench.works.steps import creation

if TYPE_CHECKING:
    from bench.measure import Outcome, Sample
    from bench.setting import Bench, Place, Take

SAMPLE: Final = 20_000
"""Uploads that are asked for, of all that are stored: more than any cache that is warm by chance."""


def many(bench: Bench, place: Place) -> list[Outcome]:
    """HEAD and POST with few and with many uploads stored, each sample on a copy of the database."""
    program, sizes = bench.program(), bench.sizes
    few = filled(bench.tidegate, sizes.few)
    much = filled(bench.tidegate, sizes.many)

    def rates(subject: Subject, database: Path) -> tuple[float, float]:
        folder = bench.folder(place)
        # Started by hand, since the folder has to be there before the server is.
        with bench.served(_prefilled(subject, database), folder) as server:
            ids = (database / "ids").read_text().split()
            heads = [request(server, "HEAD", f"{server.path}{one}", {}) for one in ids]
            found = []
            for requests, status, header in (
                (heads, 200, "Upload-Length: 1024"),
                ([creation(server)], 201, ""),
            ):
                answered = load.rate(
                    program,
                    server,
                    requests,
                    status=status,
                    header=header,
                    seconds=sizes.seconds,
                    connections=sizes.connections,
                )
                found.append(answered.rate)
        return found[0], found[1]

    def make(subject: Subject) -> Take:
        def take(_: bool) -> Sample:  # noqa: FBT001
            head_few, post_few = rates(subject, few)
            head_many, post_many = rates(subject, much)
            return {
                "HEAD/s few": head_few,
                "HEAD/s many": head_many,
                "HEAD ratio": head_many / head_few,
                "POST/s few": post_few,
                "POST/s many": post_many,
                "POST ratio": post_many / post_few,
            }

        return take

    return bench.run("many", place, bench.defaults, make)


def _prefilled(subject: Subject, database: Path) -> Subject:
    def start(folder: Path) -> Command:
        for file in database.glob("*.db*"):
            if file.is_file():
                shutil.copyfile(file, folder / file.name)
        return subject.start(folder)

    return Subject(subject.name, subject.kind, subject.version, start, subject.absent)


def filled(tidegate: Tidegate, count: int) -> Path:
    """A folder with a database of so many uploads; made once, and kept for later runs."""
    code = load_sources(tidegate)
    cache = Path(tempfile.gettempdir()) / f"tidegate-bench-{os.getuid()}"
    place = cache / f"{count}-{code}"
    if not (place / "ids").exists():
        note(f"  filling a database with {count} uploads")
        for older in cache.glob(f"{count}-*"):
            shutil.rmtree(older, ignore_errors=True)
        place.mkdir(parents=True)
        done = subprocess.run(
            [*tidegate.python, str(HERE / "fill.py"), str(place), str(count), str(SAMPLE)],
            capture_output=True,
            text=True,
            timeout=1800,
            check=False,
        )
        if done.returncode:
            shutil.rmtree(place)
            raise BenchError(f"the database could not be filled:\n{done.stderr[-2000:]}")
        (place / "ids").write_text(done.stdout)
    return place


def load_sources(tidegate: Tidegate) -> str:
    """A name for what decides how a filled database looks."""
    script = "import tidegate; print(tidegate.__path__[0])"
    done = subprocess.run(
        [*tidegate.python, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    root = Path(done.stdout.strip())
    files = [
        HERE / "fill.py",
        root / "protocol" / "model.py",
        *sorted(root.glob("metadata/**/*.py")),
    ]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
