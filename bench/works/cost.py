"""What it costs to ask who comes in, to tell of events, to log and to count, on small requests."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from bench import load
from bench.client import METADATA, OFFSET_TYPE, Connection, request
from bench.process import BenchError, Command
from bench.subjects import HERE, Subject, Tidegate

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from bench.measure import Outcome, Sample
    from bench.process import Server
    from bench.setting import Bench, Place, Take

TOKEN: Final = "benchmarks-are-not-secret"
LARGE: Final = 1 << 40
"""Bytes of an upload that small appends don't fill."""
PIECE: Final = 1024
TOLD_WITHIN: Final = 60.0
"""Seconds."""


@dataclass(frozen=True)
class Side:
    """One of the two servers that are compared."""

    server: Server
    fields: Mapping[str, str]
    """What each request carries."""
    told: Path | None
    """Has a byte for each event that was told; None: none are."""

    def events(self) -> int:
        """How many were told so far."""
        return self.told.stat().st_size if self.told is not None else 0

    def request(
        self, method: str, path: str, fields: Mapping[str, str], body: bytes = b""
    ) -> bytes:
        """The bytes of a request."""
        return request(self.server, method, path, {**fields, **self.fields}, body)

    def create(self, connection: Connection, length: int) -> str:
        """Create an upload; the path of its URL."""
        return connection.create(length, dict(self.fields))


def cost(bench: Bench, place: Place) -> list[Outcome]:
    """HEAD, small creations and small appends: the same server with nothing on, and with all of it.

    On are a static token, a line of JSON about each request, metrics, and all events, to somebody
    who takes them at once (see `told`).
    """
    bench.program()  # raises Absent, as the other works that need it do

    def make(subject: Subject) -> Take:
        folder = bench.folder(place)
        told = folder.with_name(f"{folder.name}.told")
        off = bench.stack.enter_context(bench.served(subject, folder))
        on = bench.stack.enter_context(
            bench.served(_with_everything(subject, bench.tidegate, told), bench.folder(place))
        )
        sides = {
            "off": Side(off, {}, None),
            "on": Side(on, {"Authorization": f"Bearer {TOKEN}"}, told),
        }

        def take(_: bool) -> Sample:  # noqa: FBT001
            sample: Sample = {}
            for what, measure in (("HEAD", _heads), ("POST", _creations), ("PATCH", _appends)):
                for name, side in sides.items():
                    side.server.check()
                    sample[f"{what}/s {name}"] = measure(bench, side)
                sample[f"{what} ratio"] = sample[f"{what}/s on"] / sample[f"{what}/s off"]
            return sample

        return take

    return bench.run("cost", place, bench.defaults, make)


def _with_everything(subject: Subject, tidegate: Tidegate, told: Path) -> Subject:
    def start(folder: Path) -> Command:
        tokens = folder.with_name(f"{folder.name}.tokens")
        tokens.write_text(f"bench {TOKEN}\n")
        command = subject.start(folder)
        flags = ["info" if word == "warning" else word for word in command.argv]
        argv = [
            *(*tidegate.python, str(HERE / "told.py")),
            *flags[len(tidegate.argv) :],
            *("--auth", f"token:{tokens}", "--log-format", "json", "--metrics-listen", "main"),
        ]
        return replace(command, argv=argv, env={**command.env, "BENCH_TOLD": str(told)})

    return replace(subject, name=f"{subject.name} with everything", start=start)


def _heads(bench: Bench, side: Side) -> float:
    with Connection(side.server) as connection:
        paths = [side.create(connection, PIECE) for _ in range(bench.sizes.connections)]
    requests = [side.request("HEAD", path, {}) for path in paths]
    return _rate(bench, side, requests, status=200, header="Upload-Offset: 0").rate


def _creations(bench: Bench, side: Side) -> float:
    """The time until the last of their events was told counts, too."""
    fields = {
        "Upload-Length": str(PIECE),
        "Upload-Metadata": METADATA,
        "Content-Type": OFFSET_TYPE,
        "Content-Length": str(PIECE),
    }
    creation = side.request("POST", side.server.path, fields, os.urandom(PIECE))
    before = side.events()
    found = _rate(bench, side, [creation], status=201, header=f"Upload-Offset: {PIECE}")
    # That it was made, and that it is complete.
    behind = 0.0 if side.told is None else _await_events(side, before + 2 * found.count)
    return found.count / (found.seconds + behind)


def _await_events(side: Side, count: int) -> float:
    """Wait until so many were told; how long, in seconds."""
    begin = time.perf_counter()
    while (told := side.events()) < count:
        if time.perf_counter() - begin > TOLD_WITHIN:
            raise BenchError(f"{side.server.name}: {told} events were told, not {count}")
        time.sleep(0.005)
    return time.perf_counter() - begin


def _appends(bench: Bench, side: Side) -> float:
    with Connection(side.server) as connection:
        paths = [side.create(connection, LARGE) for _ in range(bench.sizes.connections)]
    fields = {
        "Upload-Offset": load.OFFSET,
        "Content-Type": OFFSET_TYPE,
        "Content-Length": str(PIECE),
    }
    body = os.urandom(PIECE // 2).hex().encode()
    requests = [side.request("PATCH", path, fields, body) for path in paths]
    header = f"Upload-Offset: {load.OFFSET}"
    return _rate(bench, side, requests, status=204, header=header, step=PIECE).rate


def _rate(
    bench: Bench, side: Side, requests: list[bytes], *, status: int, header: str, step: int = 0
) -> load.Figures:
    return load.rate(
        bench.program(),
        side.server,
        requests,
        status=status,
        header=header,
        seconds=bench.sizes.seconds,
        connections=bench.sizes.connections,
        step=step,
    )
