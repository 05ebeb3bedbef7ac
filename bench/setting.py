"""What every work is given: sizes, a place, who is measured, and what they are sent."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench import measure
from bench.client import Source
from bench.measure import Absent, Contestant, Sample
from bench.process import BenchError
from bench.subjects import NAMES, Subject, Tidegate, bound, peer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from bench.measure import Outcome
    from bench.process import Server

MIB: Final = 1024 * 1024
GIB: Final = 1024 * MIB


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    large: int = GIB
    """Bytes of the one large upload, and of the download."""
    part: int = 256 * MIB
    """Bytes of each of several at once."""
    at_once: int = 8
    long: int = 10 * GIB
    """Bytes of the upload beside which latency is measured."""
    seconds: float = 3.0
    """How long small requests are sent, per sample."""
    connections: int = 16
    few: int = 1_000
    """Uploads stored, to compare with ..."""
    many: int = 1_000_000
    """... so many."""
    slow: int = 1_000
    """Slow clients."""
    slow_rate: int = 100_000
    """Bytes per second of each."""
    slow_window: float = 8.0
    """Seconds over which the CPU that they cost is measured ..."""
    slow_ramp: float = 2.0
    """... after as many until all are at it ..."""
    slow_beside: float = 10.0
    """... and as many in which a fast client is measured beside them."""


SMOKE: Final = Sizes(
    large=4 * MIB,
    part=MIB,
    at_once=2,
    long=64 * MIB,
    seconds=0.2,
    connections=4,
    few=10,
    many=1_000,
    slow=20,
    slow_window=0.6,
    slow_ramp=0.3,
    slow_beside=1.5,
)


@dataclass(frozen=True)
class Place:
    """A folder to work in, and what its file system is called in the tables."""

    name: str
    folder: Path

    @property
    def in_memory(self) -> bool:
        """Whether nothing has to be written back."""
        return self.name.startswith("tmpfs")


@dataclass
class Bench:
    """What every work needs."""

    sizes: Sizes
    runs: int
    source: Source
    tidegate: Tidegate
    variants: Sequence[Subject]
    peers: Sequence[str]
    generator: Path | None
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    """Closed after each work: servers, folders."""
    _digests: dict[tuple[str, int], bytes] = field(default_factory=dict)
    _count: int = 0

    def rivals(self, *bounds: str) -> list[Subject]:
        """The bounds of these names, then tidegate, then the peers."""
        peers = [peer(name) for name in NAMES if name in self.peers and name != "nginx"]
        return [*(bound(name) for name in bounds), *self.variants, *peers]

    @property
    def defaults(self) -> list[Subject]:
        """The variants that keep their promises about power, to be measured against themselves.

        All of them, when none does.
        """
        syncing = [one for one in self.variants if one.traits["durability"] != "none"]
        return syncing or list(self.variants)

    def folder(self, place: Place) -> Path:
        """A name that nothing has yet."""
        self._count += 1
        return place.folder / f"data{self._count}"

    def digest(self, algorithm: str, length: int) -> bytes:
        """Of the first bytes of the source, over and over where it is shorter."""
        key = algorithm, length
        if key not in self._digests:
            from crc32c import CRC32CHash  # noqa: PLC0415  (an extra of tidegate)

            digest = CRC32CHash() if algorithm == "crc32c" else hashlib.new(algorithm)
            done = 0
            while done < length:
                at = done % self.source.size
                piece = os.pread(self.source.fd, min(4 * MIB, length - done), at)
                digest.update(piece)
                done += len(piece)
            self._digests[key] = digest.digest()
        return self._digests[key]

    def program(self) -> Path:
        """The load generator."""
        if self.generator is None:
            raise Absent("there is no go to build the load generator with")
        return self.generator

    def run(
        self, work: str, place: Place, subjects: Sequence[Subject], make: Make
    ) -> list[Outcome]:
        """Make a contestant of each subject that is there, and run them."""
        contestants = []
        with self.stack:
            for subject in subjects:
                take = _absent(subject.absent)
                if not subject.absent:
                    try:
                        take = make(subject)
                    except Absent as reason:
                        take = _absent(str(reason))
                    except (BenchError, OSError) as error:
                        take = _broken(str(error))
                contestants.append(Contestant(subject, take))
            return measure.paired(
                work, place.name, contestants, self.runs, settle=not place.in_memory
            )

    @contextlib.contextmanager
    def served(self, subject: Subject, folder: Path) -> Iterator[Server]:
        """A server on a new folder, which is deleted afterwards."""
        server = subject.serve(folder)
        try:
            with server:
                yield server
        finally:
            for left in folder.parent.glob(f"{folder.name}*"):
                if left.is_dir():
                    shutil.rmtree(left, ignore_errors=True)
                else:
                    left.unlink(missing_ok=True)


if TYPE_CHECKING:
    from typing import TypeAlias

    Take: TypeAlias = Callable[[bool], Sample]
    Make: TypeAlias = Callable[[Subject], Take]


def _absent(reason: str) -> Take:
    def take(_: bool) -> Sample:  # noqa: FBT001
        raise Absent(reason)

    return take


def _broken(reason: str) -> Take:
    def take(_: bool) -> Sample:  # noqa: FBT001
        raise BenchError(reason)

    return take
