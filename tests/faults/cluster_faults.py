"""What is done to a cluster, by a seed, some at a time."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

from tests.faults.cluster_stage import Relay, Server
from tests.support.postgres import Postgres
from tests.support.s3_server import S3Server

AT_ONCE: Final = 4
"""Faults at a time, at most: mostly fewer."""
LONGEST: Final = 4.0
"""Seconds that one lasts, at most."""


class Cluster:
    """The servers and what they share, and for how long somebody could have answered."""

    def __init__(self, postgres: Postgres, bucket: S3Server, servers: list[Server]) -> None:
        self.postgres = postgres
        self.bucket = bucket
        self.servers = servers
        self.afflicted: set[str] = set()
        """What is being done to what they share."""
        self._able = 0.0
        self._looked = time.monotonic()
        self._was_able = False

    def able(self) -> float:
        """Seconds so far in which PostgreSQL ran, and a server that could reach all."""
        now = time.monotonic()
        if self._was_able:
            self._able += now - self._looked
        self._looked = now
        self._was_able = not self.afflicted and any(server.healthy for server in self.servers)
        return self._able

    async def watch(self) -> None:
        """Keep the clock, and see who ends by himself."""
        while True:
            for server in self.servers:
                server.check()
            self.able()
            await asyncio.sleep(0.01)


class Faults:
    """Does things to a cluster, by a seed, some at a time; none lasts longer than `longest` seconds,
    but for what a server takes to start."""

    def __init__(
        self, cluster: Cluster, seed: int, counted: Counter[str], *, longest: float
    ) -> None:
        self._cluster = cluster
        self._rng = random.Random(f"{seed} faults")
        self._counted = counted
        self._longest = longest
        self._kinds: dict[str, tuple[int, str, Callable[[Server, float], Awaitable[None]]]] = {
            # How often, what it is done to, and how.
            "killed": (3, "process", self._kill),
            "stopped": (2, "process", self._stop),
            "paused": (6, "process", self._pause),
            "cut off from PostgreSQL": (5, "database", self._cut_database),
            "PostgreSQL silent": (5, "database", self._hush_database),
            "cut off from S3": (5, "bucket", self._cut_bucket),
            "S3 silent": (5, "bucket", self._hush_bucket),
        }

    async def run(self, number: int) -> None:
        """So many faults. When it returns, everything is mended."""
        rng = self._rng
        under_way = set[asyncio.Task[None]]()
        try:
            for _ in range(number):
                at_once = rng.choices(range(1, AT_ONCE + 1), (1, 3, 4, 2))[0]
                while len(under_way) >= at_once:
                    done, under_way = await asyncio.wait(
                        under_way, return_when=asyncio.FIRST_COMPLETED
                    )
                    for task in done:
                        task.result()
                under_way.add(asyncio.create_task(self._next()))
                await asyncio.sleep(rng.uniform(0.0, 0.3))
            await asyncio.gather(*under_way)
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    def _next(self) -> Coroutine[Any, Any, None]:
        """Chosen here, not as it comes: so that a seed gives the same."""
        rng = self._rng
        lasts = rng.uniform(0.2, 0.7) if rng.random() < 0.75 else rng.uniform(0.7, self._longest)
        servers = rng.sample(self._cluster.servers, len(self._cluster.servers))
        name = rng.choices(list(self._kinds), [often for often, *_ in self._kinds.values()])[0]
        hard = rng.random() < 0.5
        if rng.random() < 0.05:
            return self._restart_postgres(hard=hard, lasts=min(lasts, 1.0))
        return self._afflict(name, servers, lasts)

    async def _afflict(self, name: str, servers: list[Server], lasts: float) -> None:
        _, what, how = self._kinds[name]
        while all(what in each.afflicted for each in servers):
            await asyncio.sleep(0.02)
        server = next(each for each in servers if what not in each.afflicted)
        server.afflicted.add(what)
        self._counted[name] += 1
        try:
            await how(server, lasts)
        finally:
            server.afflicted.discard(what)

    @staticmethod
    async def _kill(server: Server, lasts: float) -> None:
        await server.end(signal.SIGKILL)
        await asyncio.sleep(lasts / 4)
        await server.start()

    @staticmethod
    async def _stop(server: Server, lasts: float) -> None:
        await server.end(signal.SIGTERM)
        await asyncio.sleep(lasts / 4)
        await server.start()

    @staticmethod
    async def _pause(server: Server, lasts: float) -> None:
        server.pause()
        await asyncio.sleep(lasts)
        server.resume()

    async def _cut_database(self, server: Server, lasts: float) -> None:
        await self._spoil(server.database, server.database.cut, lasts)

    async def _hush_database(self, server: Server, lasts: float) -> None:
        await self._spoil(server.database, server.database.hush, lasts)

    async def _cut_bucket(self, server: Server, lasts: float) -> None:
        await self._spoil(server.bucket, server.bucket.cut, lasts)

    async def _hush_bucket(self, server: Server, lasts: float) -> None:
        await self._spoil(server.bucket, server.bucket.hush, lasts)

    @staticmethod
    async def _spoil(line: Relay, spoil: Callable[[], None], lasts: float) -> None:
        spoil()
        await asyncio.sleep(lasts)
        line.mend()

    async def _restart_postgres(self, *, hard: bool, lasts: float) -> None:
        cluster = self._cluster
        while cluster.afflicted:
            await asyncio.sleep(0.02)
        self._counted[f"PostgreSQL {'killed' if hard else 'restarted'}"] += 1
        cluster.afflicted.add("postgres")
        try:
            await asyncio.to_thread(cluster.postgres.stop, hard=hard)
            await asyncio.sleep(lasts)
            await asyncio.to_thread(cluster.postgres.start)
        finally:
            cluster.afflicted.discard("postgres")
