"""Kill the server at random instants, again and again, and hold it to what it said.

    python -m tests.faults.crash --hours 2 --seed 7
    python -m tests.faults.crash --kills 500
    python -m tests.faults.crash --kills 50 --command

A seed gives the same uploads, bodies and kinds of kills again; when exactly a kill hits is up to
the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import re
import secrets
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.faults.audit import Audit
from tests.faults.client import Client
from tests.faults.prey import Command, Nursery, Prey
from tests.faults.sea import Broken

from tidegate.config import Transport

TOURS: Final = 10
"""Uploads, or groups of them, at a time."""
ROUND: Final = 500
"""Kills on one data folder; then it is audited, and another one begun."""
EXPIRE_AFTER: Final = 4.0
"""Short, so that sweeps have something to do; long enough for most uploads between kills."""
FINISH_WITHIN: Final = 120.0
"""Seconds in which all that was begun is done, once the killing has stopped."""
LIES: Final = re.compile(r".*(?:acknowledged \d+ bytes, found|Traceback|never retrieved).*")
"""What the server must never have to write."""


@dataclass
class Report:
    """What a run did."""

    seed: int
    kills: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)
    records: int = 0
    seconds: float = 0.0
    broken: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [
            f"seed {self.seed}: {self.kills.total()} kills ({_counts(self.kills)})",
            f"  in {self.seconds:.0f} s, {self.records} records",
            f"  {_counts(self.seen)}",
            *(f"  BROKEN: {each}" for each in self.broken),
        ]
        return "\n".join(lines)


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in sorted(counter.items()))


async def run(
    folder: Path,
    *,
    seed: int,
    kills: int,
    workers: int,
    transport: Transport = "native",
    command: bool,
) -> Report:
    """Kill a server so many times while it is used, then audit what is left.

    With `command` it is `tidegate serve`; without, servers forked by a nursery.
    """
    report = Report(seed)
    began = time.monotonic()
    rng = random.Random(f"{seed} kills")
    if command:
        real = Command(folder, workers=workers, transport=transport, expire_after=EXPIRE_AFTER)
        async with real:
            client = await _hunt(real, report, rng, folder, kills=kills)
    else:
        lives = random.Random(f"{seed} lives")
        nursery = Nursery(
            folder, lives, workers=workers, transport=transport, expire_after=EXPIRE_AFTER
        )
        async with nursery:
            client = await _hunt(nursery, report, rng, folder, kills=kills)
    if not report.broken:
        config = {
            "data": str(folder / "data"),
            "database": str(folder / "data" / "tidegate.db"),
            "events": str(folder / "events"),
            "base_path": "/files/",
        }
        audit = Audit(config, client.known, EXPIRE_AFTER)
        await audit.run(events=not command)
        report.broken += audit.broken
        report.records = audit.records
    report.seconds = time.monotonic() - began
    return report


async def _hunt(
    prey: Prey, report: Report, rng: random.Random, folder: Path, *, kills: int
) -> Client:
    client = Client(prey.address, folder / "data", seed=report.seed, expire_after=EXPIRE_AFTER)
    tours = [
        asyncio.create_task(client.tour(random.Random(f"{report.seed} {n}").getrandbits(64)))
        for n in range(TOURS)
    ]
    try:
        while report.kills.total() < kills and not client.broken:
            if failed := [tour for tour in tours if tour.done()]:
                failed[0].result()
                break
            await asyncio.sleep(rng.choice((rng.uniform(0.0, 0.1), rng.uniform(0.1, 0.4))))
            report.kills[await prey.kill(rng)] += 1
        client.finishing.set()
        try:
            async with asyncio.timeout(FINISH_WITHIN):
                await asyncio.gather(*tours)
        except TimeoutError:
            client.broken.append(f"not done {FINISH_WITHIN} s after the last kill")
        if not client.broken:
            await _look_at_all(client)
            # The end of some uploads has not been committed by anyone but the one that is killed.
            await prey.kill(rng)
            await prey.rest()
    finally:
        for tour in tours:
            tour.cancel()
        await asyncio.gather(*tours, return_exceptions=True)
    report.seen = client.seen
    report.broken += client.broken
    report.broken += [f"log: {line}" for line in LIES.findall(prey.log())]
    return client


async def _look_at_all(client: Client) -> None:
    """Every upload that the client ever knew of, with nobody killed any more."""
    for known in list(client.known.values()):
        try:
            await client.look(known)
            if known.shown_complete and not known.gone:
                await client.read(known)
        except Broken as broken:
            client.broken.append(str(broken))


# ------------------------------------------------------------------------------- the command line


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults.crash", description=str(__doc__).split("\n\n", maxsplit=1)[0]
    )
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument("--hours", type=float, help="how long to go on")
    amount.add_argument("--kills", type=int, default=ROUND, help="how many kills")
    parser.add_argument("--seed", type=int, help="of the first round; the next has the next")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--transport", choices=("native", "asgi"), default="native")
    parser.add_argument("--command", action="store_true", help="tidegate serve, not forked servers")
    parser.add_argument("--folder", help="where the data goes, and stays; else it is deleted")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Round after round, each on a folder of its own; the exit code."""
    options = arguments(argv)
    seed = secrets.randbits(32) if options.seed is None else options.seed
    until = None if options.hours is None else time.monotonic() + options.hours * 3600
    left = options.kills
    total = 0
    while left > 0 if until is None else time.monotonic() < until:
        kills = ROUND if until is not None else min(ROUND, left)
        with tempfile.TemporaryDirectory(prefix="tidegate-crash-") as temporary:
            folder = Path(options.folder or temporary) / f"seed-{seed}"
            os.makedirs(folder)
            report = asyncio.run(
                run(
                    folder,
                    seed=seed,
                    kills=kills,
                    workers=options.workers,
                    transport=options.transport,
                    command=options.command,
                )
            )
        print(report, flush=True)
        if report.broken:
            return 1
        total += report.kills.total()
        left -= kills
        seed += 1
    print(f"{total} kills, nothing broken")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
