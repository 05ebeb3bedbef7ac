"""The works: what is measured, of whom, and how one sample of it is taken."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import shutil
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench import load, measure
from bench.client import METADATA, OFFSET_TYPE, Connection, Source, request, upload
from bench.measure import Absent, Contestant, Sample, note
from bench.process import BenchError, Command
from bench.subjects import HERE, NAMES, RUSTUS_LARGEST, Subject, Tidegate, bound, peer

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


def offers(server: Server) -> dict[str, list[str]]:
    """The extensions and algorithms that OPTIONS names."""
    with Connection(server) as connection:
        connection.sock.sendall(request(server, "OPTIONS", server.path, {}))
        found = connection.head()[0].fields
    return {
        name: [item.strip() for item in found.get(f"tus-{name}", "").split(",")]
        for name in ("extension", "checksum-algorithm")
    }


# -------------------------------------------------------------------------------------- large bodies


def large(
    bench: Bench, place: Place, work: str, *, at_once: int, length: int, algorithm: str = ""
) -> list[Outcome]:
    """PATCH: one, or several at once; with a checksum, or without."""

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


def stored(folder: Path, length: int) -> list[Path]:
    """The files in which all bytes of uploads of this length are."""
    found = []
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            status = path.stat()
            if status.st_size == length and status.st_blocks * 512 >= length:
                found.append(path)
    return found


def same(file: Path, digest: bytes) -> None:
    """Raise BenchError unless the file has this SHA-256."""
    with file.open("rb") as opened:
        if hashlib.file_digest(opened, "sha256").digest() != digest:
            raise BenchError("what was stored is not what was sent")


def forget(server: Server, paths: Sequence[str], files: Sequence[Path]) -> None:
    """Delete uploads, if need be behind the server's back."""
    with Connection(server) as connection:
        for path in paths:
            if not connection.delete(path):
                break
    for file in files:
        file.unlink(missing_ok=True)


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


# ------------------------------------------------------------------------------------ small requests


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


def creation(server: Server, *, body: bytes = b"") -> bytes:
    """A POST of an upload of 1 KiB."""
    fields = {
        "Upload-Length": "1024",
        "Upload-Metadata": METADATA,
        "Content-Length": str(len(body)),
    }
    if body:
        fields["Content-Type"] = OFFSET_TYPE
    return request(server, "POST", server.path, fields, body)


def per_request(server: Server, cpu: float, found: load.Figures) -> Sample:
    """Rate, latency, and what a request costs."""
    return {
        "req/s": found.rate,
        "p99 ms": found.p99,
        "cpu us": (server.cpu() - cpu) / found.count * 1e6,
    }


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


# -------------------------------------------------------------------------------- many uploads stored

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


# --------------------------------------------------------------------------------- slow ones, latency


def slow(bench: Bench, place: Place) -> list[Outcome]:
    """Many slow clients: their memory, their CPU, and a fast client beside them."""
    program, sizes = bench.program(), bench.sizes

    def make(subject: Subject) -> Take:
        def take(_: bool) -> Sample:  # noqa: FBT001
            with bench.served(subject, bench.folder(place)) as server:
                alone, paths = upload(server, bench.source, sizes.large)
                forget(server, paths, ())
                time.sleep(0.3)
                return {
                    "fast MB/s alone": alone.rates(sizes.large)["MB/s"],
                    **beside(server, alone.cpu / (sizes.large / GIB)),
                }

        def beside(server: Server, cpu_of_fast: float) -> Sample:
            rest, most = server.memory(), 0
            begin, outlasted = 0.0, False
            marks: list[tuple[float, float, int]] = []
            fast = _Fast(server, bench.source, sizes.large)
            total = sizes.slow_ramp + sizes.slow_window + sizes.slow_beside
            with load.Load(
                program,
                server,
                "slow",
                path=server.path,
                connections=sizes.slow,
                rate=sizes.slow_rate,
                interval=0.1,
                seconds=total,
            ) as generator:
                watch = threading.Timer(total + 60, generator.kill)
                watch.start()
                try:
                    for event in generator.events():
                        if event["event"] == "connected":
                            begin = time.perf_counter()
                        elif event["event"] == "done":
                            outlasted = fast.running
                            if event["error"] or event["whole"] != sizes.slow:
                                raise BenchError(
                                    f"{event['whole']} of {sizes.slow} slow uploads:"
                                    f" {event['error']}"
                                )
                        else:
                            most = max(most, server.memory())
                            passed = time.perf_counter() - begin
                            if (passed > sizes.slow_ramp and not marks) or (
                                passed > sizes.slow_ramp + sizes.slow_window and len(marks) == 1
                            ):
                                marks.append((passed, server.cpu(), event["bytes"]))
                            if len(marks) == 2:
                                fast.start()
                finally:
                    watch.cancel()
            if len(marks) < 2:
                raise BenchError("the slow clients ended too early")
            seconds, cpu, sent = (after - before for before, after in zip(*marks, strict=True))
            each = cpu / (sent / GIB)
            fast_rate = fast.rate()
            return {
                "memory MiB": (most - rest) / MIB,
                "cpu/GiB": each,
                "cpu ratio": each / cpu_of_fast,
                "slow MB/s": sent / 1e6 / seconds,
                "fast MB/s beside": fast_rate,
                # It had the rest of the time for itself, and so its speed is too good.
                "fast outlasted": float(outlasted),
            }

        def whole(check: bool) -> Sample:  # noqa: FBT001
            sample = take(check)
            sample["fast ratio"] = sample["fast MB/s beside"] / sample["fast MB/s alone"]
            return sample

        return whole

    return bench.run("slow", place, bench.defaults, make)


class _Fast:
    """A fast client beside slow ones, in a thread."""

    def __init__(self, server: Server, source: Source, length: int) -> None:
        self._arguments = server, source, length
        self._length = length
        self._seconds = 0.0
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            spent, _ = upload(*self._arguments)
            self._seconds = spent.seconds
        except BaseException as error:  # noqa: BLE001  (raised by `rate`)
            self._error = error

    def start(self) -> None:
        """Begin, unless it has begun."""
        if self._thread.ident is None:
            self._thread.start()

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._thread.is_alive()

    def rate(self) -> float:
        """MB/s."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._length / 1e6 / self._seconds


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


# -------------------------------------------------------------------------------------- all of them


@dataclass(frozen=True)
class Work:
    """Something to measure.

    Args:
        title: in words.
        metric: the one that charts show.
        run: measures it.
    """

    title: str
    metric: str
    run: Callable[[Bench, Place], list[Outcome]]


def _one(bench: Bench, place: Place) -> list[Outcome]:
    return large(bench, place, "patch", at_once=1, length=bench.sizes.large)


def _several(bench: Bench, place: Place) -> list[Outcome]:
    sizes = bench.sizes
    return large(bench, place, "parallel", at_once=sizes.at_once, length=sizes.part)


def _with(algorithm: str) -> Callable[[Bench, Place], list[Outcome]]:
    def run(bench: Bench, place: Place) -> list[Outcome]:
        length = bench.sizes.large
        work = f"patch-{algorithm}"
        return large(bench, place, work, at_once=1, length=length, algorithm=algorithm)

    return run


def works(sizes: Sizes) -> dict[str, Work]:
    """All works by name, with their sizes in their titles."""
    one, part, long = (f"{size // MIB} MiB" for size in (sizes.large, sizes.part, sizes.long))
    return {
        "patch": Work(f"one PATCH of {one}", "MB/s", _one),
        **{
            f"patch-{name}": Work(f"one PATCH of {one} with {name}", "MB/s", _with(name))
            for name in ("sha1", "sha256", "crc32c")
        },
        "parallel": Work(f"{sizes.at_once} at once, {part} each", "MB/s", _several),
        "small": Work(
            f"creation with 1 KiB of data, {sizes.connections} connections", "req/s", small
        ),
        "head": Work(f"HEAD, {sizes.connections} connections", "req/s", head),
        "many": Work(
            f"HEAD and POST with {sizes.few} (few) and {sizes.many} (many) uploads stored",
            "HEAD/s many",
            many,
        ),
        "slow": Work(
            f"{sizes.slow} connections at {sizes.slow_rate // 1000} kB/s each,"
            f" and a fast one with {one}",
            "cpu/GiB",
            slow,
        ),
        "latency": Work(f"HEAD every 2 ms while {long} are uploaded", "p99 ms", latency),
        "download": Work(f"GET of {one}", "MB/s", download),
    }
