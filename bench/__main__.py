"""The one command: measure, and say what was found."""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import chart, facts, goals, report
from bench.client import Source
from bench.measure import Absent, Outcome, note
from bench.process import BenchError
from bench.setting import GIB, MIB, SMOKE, Bench, Place, Sizes
from bench.subjects import BOUNDS as MODES
from bench.subjects import HERE, NAMES, Tidegate, bound, load_generator, peer, tidegates
from bench.works import works

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.subjects import Subject

MEMORY = Path("/dev/shm")


def parser() -> argparse.ArgumentParser:
    """The flags."""
    found = argparse.ArgumentParser(
        prog="bench/run",
        description="Measure tidegate against its peers and against what the machine can do.",
        epilog="Peers are installed by bench/setup; those that are not there are left out.",
    )
    add = found.add_argument
    names = ", ".join(works(Sizes()))
    add("--only", action="append", metavar="WORK", help=f"of {names}; may be repeated")
    add("--runs", type=int, default=7, metavar="N", help="rounds that count [7]")
    add(
        "--peers",
        default="all",
        metavar="NAMES",
        help=f"all, none, or of {','.join(NAMES)} [all]; the bounds always run",
    )
    add(
        "--data",
        action="append",
        type=Path,
        metavar="DIR",
        help="where servers keep data; may be repeated [a tmpfs, and bench/.data for a disk]",
    )
    add("--json", type=Path, metavar="FILE", help="write all of it there, too")
    add(
        "--keep",
        action="store_true",
        help="what the JSON file has of works and places that are not measured now stays in it",
    )
    add("--chart", type=Path, metavar="FILE", help="draw it there, as SVG")
    add("--smoke", action="store_true", help="seconds: tiny sizes, one round, no peers")
    group = found.add_argument_group("tidegate")
    group.add_argument(
        "--tidegate",
        default="",
        metavar="COMMAND",
        help="up to `serve`, say '/other/.venv/bin/python -m tidegate' [this checkout]",
    )
    group.add_argument(
        "--transport", default="", metavar="NAMES", help="native,asgi [the server's default]"
    )
    group.add_argument("--workers", metavar="LIST", help="[1,2; smoke: 1]")
    group.add_argument("--durability", metavar="LIST", help="[none,complete; smoke: none]")
    group = found.add_argument_group("sizes")
    group.add_argument("--large", type=int, metavar="MIB", help="of one upload [1024]")
    group.add_argument("--part", type=int, metavar="MIB", help="of each of 8 at once [256]")
    group.add_argument("--long", type=int, metavar="MIB", help="beside latency [10240]")
    group.add_argument("--seconds", type=float, metavar="S", help="of small requests [3]")
    group.add_argument("--many", type=int, metavar="N", help="uploads stored [1000000]")
    return found


def sizes_of(options: argparse.Namespace) -> Sizes:
    """The sizes that were asked for."""
    sizes = SMOKE if options.smoke else Sizes()
    for name, unit in (("large", MIB), ("part", MIB), ("long", MIB)):
        if (value := getattr(options, name)) is not None:
            sizes = replace(sizes, **{name: value * unit})
    if options.seconds is not None:
        sizes = replace(sizes, seconds=options.seconds)
    if options.many is not None:
        sizes = replace(sizes, many=options.many)
    return sizes


def places_of(options: argparse.Namespace, stack: contextlib.ExitStack) -> list[Place]:
    """A new folder in each of the places, deleted at the end; their names are all different."""
    roots = options.data
    if roots is None:
        (disk := HERE / ".data").mkdir(exist_ok=True)
        roots = [MEMORY, disk] if MEMORY.is_dir() else [disk]
        roots = roots[:1] if options.smoke else roots
    places: list[Place] = []
    for root in roots:
        root.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="tidegate-bench-", dir=root.resolve()))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        kind = facts.file_system(folder)
        name = kind if kind == "tmpfs" else f"disk ({kind})"
        count = sum(place.name.startswith(name) for place in places)
        places.append(Place(f"{name} {count + 1}" if count else name, folder))
    return places


def check_room(places: Sequence[Place], sizes: Sizes) -> None:
    """Raise BenchError where the largest upload, or several at once, would not fit."""
    need = max(sizes.long, sizes.part * sizes.at_once, sizes.large) + 4 * sizes.large
    for place in places:
        if (free := shutil.disk_usage(place.folder).free) < need:
            raise BenchError(
                f"{place.name}: {free / GIB:.1f} GiB are free, {need / GIB:.1f} are needed;"
                " see --long, --large, --part"
            )


def chosen_peers(options: argparse.Namespace) -> list[str]:
    """Names; raises BenchError when one is unknown."""
    if options.smoke and options.peers == "all":
        return []
    if options.peers in {"all", "none"}:
        return list(NAMES) if options.peers == "all" else []
    names = [name.strip() for name in options.peers.split(",")]
    if unknown := set(names) - set(NAMES):
        raise BenchError(f"no such peers: {', '.join(sorted(unknown))}: of {', '.join(NAMES)}")
    return names


def kept(path: Path, measured: Sequence[Outcome]) -> list[Outcome]:
    """What an earlier run wrote down of works and places that `measured` has nothing of."""
    anew = {(one.work, one.place) for one in measured}
    earlier = [Outcome.of_json(one) for one in json.loads(path.read_text())["outcomes"]]
    return [one for one in earlier if (one.work, one.place) not in anew]


def main() -> int:
    """Run; 1 when anything could not be measured that is there."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit("bench: stopped"))  # servers, folders: cleaned up
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # 1,000 connections; servers inherit
    options = parser().parse_args()
    sizes = sizes_of(options)
    known = works(sizes)
    chosen = options.only or list(known)
    if unknown := set(chosen) - set(known):
        raise BenchError(f"no such works: {', '.join(sorted(unknown))}: of {', '.join(known)}")
    runs = 1 if options.smoke else options.runs
    peers = chosen_peers(options)
    tidegate = Tidegate.parse(options.tidegate)
    variants = tidegates(
        tidegate,
        [name for name in options.transport.split(",") if name],
        [int(n) for n in (options.workers or ("1" if options.smoke else "1,2")).split(",")],
        (options.durability or ("none" if options.smoke else "none,complete")).split(","),
    )
    outcomes: list[Outcome] = []
    start = time.monotonic()
    with contextlib.ExitStack() as stack:
        places = places_of(options, stack)
        check_room(places, sizes)
        memory = MEMORY if MEMORY.is_dir() else None
        root = Path(tempfile.mkdtemp(prefix="tidegate-bench-", dir=memory))
        stack.callback(shutil.rmtree, root, ignore_errors=True)
        source = Source(f"{root}/source", sizes.large)
        stack.callback(source.close)
        bench = Bench(sizes, runs, source, tidegate, variants, peers, load_generator())
        subjects: list[Subject] = [
            *(bound(mode) for mode in MODES),
            *variants,
            *(peer(name) for name in peers),
        ]
        found: dict[str, Any] = {
            "machine": facts.machine(),
            "run": {
                "runs": runs,
                "places": ", ".join(place.name for place in places),
                "sizes": str(sizes),
                "at": time.strftime("%Y-%m-%d %H:%M:%S %z"),
            },
            "subjects": facts.versions(subjects),
        }
        for name in chosen:
            for place in places:
                note(f"{name}: {known[name].title}; {place.name}")
                try:
                    outcomes += known[name].run(bench, place)
                except Absent as reason:
                    note(f"  left out: {reason}")
        found["run"]["minutes"] = round((time.monotonic() - start) / 60, 1)
    if options.keep and options.json and options.json.exists():
        outcomes = sorted(
            [*kept(options.json, outcomes), *outcomes], key=lambda one: list(known).index(one.work)
        )
    verdicts = goals.judge(outcomes)
    print(report.text(found, known, outcomes, verdicts))
    if options.json:
        everything = {
            **found,
            "outcomes": [outcome.as_json() for outcome in outcomes],
            "goals": [verdict.as_json() for verdict in verdicts],
        }
        options.json.write_text(json.dumps(everything, indent=1) + "\n")
    if options.chart:
        options.chart.write_text(chart.svg(found, known, outcomes))
    return 1 if any(outcome.error for outcome in outcomes) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BenchError as error:
        sys.exit(f"bench: {error}")
