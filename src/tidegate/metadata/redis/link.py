"""The line to Redis: scripts and commands that are sent again when it breaks, errors translated."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import secrets
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from redis import exceptions as errors
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from tidegate.ports import MetadataError, NoRoomError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tidegate.metadata.redis.scripts import Script
    from tidegate.metadata.redis.url import Address

T = TypeVar("T")

# Connections at most: more wait for their turn. Redis does one thing at a time, but answers all
# that came together after one sync of its log.
_CONNECTIONS = 32
# Seconds of the first pause before another attempt, and of the longest.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 0.5
# Seconds in which scripts share one list of those that were done. Redis forgets it after 180.
_GENERATION = 60.0
# How many answers that were heard are told of with one script, to be forgotten at once.
_HEARD = 500

# Errors that pass, by their first word, where the driver has no class for them.
_PASSING = ("BUSY ", "LOADING ", "MASTERDOWN ", "MISCONF ", "NOREPLICAS ", "READONLY ", "TRYAGAIN ")

_encode = msgspec.msgpack.Encoder().encode


class Once(msgspec.Struct, frozen=True):
    """What makes a script run once, however often it is sent."""

    generation: str
    op: str


class Link:
    """Connections to one Redis, and what every script is told.

    `patience` is how many seconds an outage is borne before UnavailableError is raised.
    """

    def __init__(self, address: Address, *, boot_id: str, patience: float) -> None:
        self.address = address
        self.holder = secrets.token_hex(12)
        self._patience = patience
        # Short enough for two within the patience, and for a few signs of life within a ttl.
        self._attempt = min(patience / 2, address.lease_ttl / 4)
        self._common = {
            "holder": self.holder,
            "boot": boot_id,
            "ttl": str(round(address.lease_ttl * 1000)),
        }
        # One slot for all keys, should this be a cluster of one.
        self._prefix = f"{{{address.prefix}}}"
        tcp = {} if address.driver_url.startswith("unix") else {"socket_keepalive": True}
        self._pool: BlockingConnectionPool = BlockingConnectionPool.from_url(
            address.driver_url,
            max_connections=_CONNECTIONS,
            # Every attempt has a time limit of our own, and the only retries are ours: the driver
            # would send a script again that may have been done.
            timeout=None,
            socket_timeout=None,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            # Else it looks its own version up on the disk, for every connection.
            driver_info=None,
            **tcp,
        )
        self.client: Redis = Redis(connection_pool=self._pool)
        self._send: Callable[..., Awaitable[Any]] = self.client.execute_command
        self._ops = itertools.count(1)
        self._generation = ""
        self._heard: list[str] = []
        self._closed = False

    async def close(self) -> None:
        """Close all connections. What is asked from now on raises UnavailableError."""
        self._closed = True
        await self._pool.disconnect()

    def key(self, *names: str) -> str:
        """A key, as the scripts make them."""
        return ":".join((self._prefix, *names))

    # ----------------------------------------------------------------------------------- scripts

    async def run(self, script: Script, **arguments: Any) -> Any:
        """Run a script that may run twice. Raises MetadataError."""
        packed = _encode(self._common | arguments)
        return await self._retried(lambda: self._evaluate(script, packed), self._patience)

    async def try_to_run(self, script: Script, **arguments: Any) -> Any:
        """The same, sent only once. Raises MetadataError."""
        packed = _encode(self._common | arguments)
        return await self._retried(lambda: self._evaluate(script, packed), 0)

    async def run_once(self, script: Script, once: Once, **arguments: Any) -> Any:
        """Run a script whose answer is remembered, so that it is the same when it is sent again.

        After UnavailableError it may have been done, or may be done yet.
        """
        heard = self._heard[:_HEARD] if once.generation == self._generation else []
        packed = _encode(
            self._common
            | {"generation": once.generation, "op": once.op, "heard": heard}
            | arguments
        )
        # Taken out now, lest two tell of them; should this fail, they are forgotten in time.
        del self._heard[: len(heard)]
        answer = await self._retried(lambda: self._evaluate(script, packed), self._patience)
        if once.generation == self._generation:
            self._heard.append(once.op)
        return answer

    def once(self) -> Once:
        """For one script."""
        generation = str(int(asyncio.get_running_loop().time() / _GENERATION))
        if generation != self._generation:
            self._generation = generation
            self._heard.clear()
        return Once(generation, f"{generation}.{next(self._ops)}")

    async def _evaluate(self, script: Script, packed: bytes) -> Any:
        try:
            return await self._send("EVALSHA", script.sha, 1, self._prefix, packed)
        except errors.NoScriptError:  # nothing was done, and from now on Redis knows it
            return await self._send("EVAL", script.text, 1, self._prefix, packed)

    async def command(self, *words: str | bytes) -> Any:
        """Send a command that only reads. Raises MetadataError."""
        return await self._retried(lambda: self._send(*words), self._patience)

    # ----------------------------------------------------------------------------------- outages

    async def _retried(self, send: Callable[[], Awaitable[T]], patience: float) -> T:
        loop = asyncio.get_running_loop()
        started = loop.time()
        pause = _FIRST_PAUSE
        while True:
            if self._closed:
                raise UnavailableError(f"{self.address.shown}: the metadata store is closed")
            try:
                async with asyncio.timeout(self._attempt):
                    return await send()
            except (errors.RedisError, OSError) as error:
                translated = self.translated(error)
                left = started + patience - loop.time()
                if not isinstance(translated, UnavailableError) or left < pause:
                    raise translated from error
                if isinstance(error, errors.ReadOnlyError):
                    # Its name may stand for another server by now.
                    await self._pool.disconnect(inuse_connections=False)
            await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311
            pause = min(2 * pause, _LONGEST_PAUSE)

    def translated(self, error: Exception) -> MetadataError:
        """The port's exception for one of the driver's."""
        message = f"{self.address.shown}: {str(error) or type(error).__name__}"
        if isinstance(error, errors.AuthenticationError | errors.AuthorizationError):
            return MetadataError(f"{self.address.shown}: refuses the name or the password")
        if isinstance(error, errors.NoPermissionError):
            return MetadataError(f"{message} (it must be allowed scripts and all keys of ours)")
        if isinstance(error, errors.OutOfMemoryError):
            return NoRoomError(message)
        if isinstance(
            error,
            # TimeoutError is an OSError.
            errors.ConnectionError | errors.TimeoutError | errors.ClusterDownError
            | errors.ReadOnlyError | OSError,
        ) or str(error).startswith(_PASSING):  # fmt: skip
            return UnavailableError(message)
        return MetadataError(message)


def score(seconds: float) -> str:
    """A time as Redis is told it. Raises MetadataError where it is no time at all."""
    if math.isnan(seconds):
        raise MetadataError("a time that is not a number")
    return repr(float(seconds))
