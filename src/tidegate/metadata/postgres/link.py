"""One connection to PostgreSQL.

A pooler may give every transaction another session. Behind one nothing is kept in a session:
statements have no name on the server, and are sent with their values. Where there is none they are
prepared, which is half the work for the server. One is one round trip either way, but for the first
time.
"""

from __future__ import annotations

import contextlib
import inspect
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import anyio.to_thread
import asyncpg
from asyncpg import connect_utils

from tidegate.metadata.certificates import unreadable
from tidegate.metadata.postgres.errors import ends_connection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from tidegate.metadata.postgres.address import Address

# What a connection needs to come about at most, so that a second server in the URL gets its try.
_CONNECT: Final = 3.0
_FILES: Final = frozenset({"sslrootcert", "sslcert", "sslkey", "sslcrl"})


class Link:
    """One connection, used by one task at a time.

    Statements name tables of the schema `tidegate`; they go to the schema of the address.
    """

    def __init__(self, connection: Any, schema: str, *, direct: bool, prepares: bool) -> None:
        self.connection = connection
        self.direct = direct
        """Whether the session is ours: no pooler is between."""
        self.again = False
        """Whether an earlier attempt of the same call may have been committed."""
        self.schema = schema
        self._prepares = prepares
        self._statements: dict[str, Any] = {}

    async def fetch(self, sql: str, *values: object) -> Sequence[Any]:
        """The rows of a statement: one round trip, two the first time. Raises TROUBLE."""
        statement = self._statements.get(sql)
        if statement is None:
            name = f"tidegate_{len(self._statements)}" if self._prepares else ""
            statement = await self.connection.prepare(self.named(sql), name=name)
            self._statements[sql] = statement
        rows: Sequence[Any] = await statement.fetch(*values)
        return rows

    async def row(self, sql: str, *values: object) -> Any:
        """The first row of a statement, or None."""
        rows = await self.fetch(sql, *values)
        return rows[0] if rows else None

    async def script(self, sql: str) -> None:
        """Run statements that have no values and no answer, in one round trip."""
        await self.connection.execute(self.named(sql))

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        """Several statements, each of which sees what was committed before it."""
        await self.script("BEGIN ISOLATION LEVEL READ COMMITTED")
        try:
            yield
        except Exception as error:
            if not ends_connection(error):
                await self.script("ROLLBACK")
            raise
        await self.script("COMMIT")

    def named(self, sql: str) -> str:
        """A statement on the tables that are meant."""
        return sql.replace("tidegate.", f'"{self.schema}".')

    @property
    def usable(self) -> bool:
        """Whether another transaction may begin."""
        return not self.connection.is_closed() and not self.connection.is_in_transaction()


async def connect(address: Address, *, prepares: bool = True) -> Link:
    """A new connection, that prepares statements where it can. Raises TROUBLE."""
    resolved = await anyio.to_thread.run_sync(_resolve, address.dsn)
    timeout = min(_CONNECT, address.patience)
    connection = await _connect(resolved, timeout)
    try:
        # A pooler greets us in a server's place, and with a number of its own.
        pid = await connection.fetchval("SELECT pg_backend_pid()", timeout=timeout)
    except BaseException:
        connection.terminate()
        raise
    direct = pid == connection.get_server_pid()
    return Link(connection, address.schema, direct=direct, prepares=direct and prepares)


async def _connect(resolved: _Resolved, timeout: float) -> Any:
    """Connect with TLS or without, as is allowed, in the order that is preferred."""
    *others, last = resolved.tls
    for tls in others:
        with contextlib.suppress(ConnectionError, asyncpg.InvalidAuthorizationSpecificationError):
            return await asyncpg.connect(**resolved.values, ssl=tls, timeout=timeout)
    return await asyncpg.connect(**resolved.values, ssl=last, timeout=timeout)


class _Resolved(NamedTuple):
    values: dict[str, Any]
    tls: list[Any]


def _resolve(dsn: str) -> _Resolved:
    """What a URL, the environment and the files of libpq say. Blocks: there may be certificates.

    The driver would do the same by itself, but on the event loop.
    """
    if why := unreadable(dsn, _FILES):
        raise asyncpg.exceptions.ClientConfigurationError(why)
    parse = connect_utils._parse_connect_arguments  # noqa: SLF001  (there is no other way in)
    arguments: dict[str, Any] = dict.fromkeys(inspect.signature(parse).parameters)
    arguments |= {name: 0 for name in arguments if name.startswith(("max_", "statement_"))}
    addresses, found, _ = parse(**arguments | {"dsn": dsn})
    values = {
        "host": [at if isinstance(at, str) else at[0] for at in addresses],
        "port": [5432 if isinstance(at, str) else at[1] for at in addresses],
        "user": found.user,
        "password": lambda: found.password,  # called, so that none is looked for
        "database": found.database,
        "server_settings": found.server_settings,
        "target_session_attrs": found.target_session_attrs.value,
        "direct_tls": found.ssl_negotiation is connect_utils.SSLNegotiation.direct,
        "statement_cache_size": 0,
    }
    tls = {
        connect_utils.SSLMode.disable: [False],
        connect_utils.SSLMode.allow: [False, found.ssl],
        connect_utils.SSLMode.prefer: [found.ssl, False],
    }
    if isinstance(addresses[0], str):  # a socket has none
        return _Resolved(values, [False])
    return _Resolved(values, tls.get(found.sslmode, [found.ssl]))
