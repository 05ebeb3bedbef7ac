"""Many slow clients: their memory, their CPU, and a fast client beside them."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from bench import load
from bench.client import Source, upload
from bench.process import BenchError
from bench.setting import GIB, MIB
from bench.works.steps import forget

if TYPE_CHECKING:
    from bench.measure import Outcome, Sample
    from bench.process import Server
    from bench.setting import Bench, Place, Take
    from bench.subjects import Subject


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
