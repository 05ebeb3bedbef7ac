"""The tables of the PostgreSQL store, and how older ones become newer ones."""

# ruff: noqa: S608  (made of our own words; what comes from outside is a value)

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Final, TypeAlias

from tidegate.ports import MetadataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tidegate.metadata.postgres.link import Link

Migration: TypeAlias = str
"""The statements that take the tables from one version to the next."""

MIGRATIONS: Final[tuple[Migration, ...]] = (
    """
    CREATE SEQUENCE tidegate.token;

    -- A process that takes leases. It is alive until `expires_at`, by this database's clock. Who
    -- has its row no more is dead.
    CREATE TABLE tidegate.holder (
        id text COLLATE "C" PRIMARY KEY,
        late_at timestamptz NOT NULL,  -- its next heartbeat should have come
        expires_at timestamptz NOT NULL,
        session bigint  -- the key of the advisory lock that it holds while it is connected
    ) WITH (fillfactor = 50);

    -- With its lease: one row, and so one lock, is all that a commit needs. `holder` is NULL while
    -- the lease is free, '' when it was abandoned. `token` is of the last lease, which may be over,
    -- so that a statement that was sent long ago finds another one.
    CREATE TABLE tidegate.upload (
        id text COLLATE "C" PRIMARY KEY,
        version bigint NOT NULL,
        state text NOT NULL,
        kind text NOT NULL,
        expires_at double precision,
        ended_at double precision,
        promised bigint NOT NULL,
        stored bigint NOT NULL,
        token bigint NOT NULL DEFAULT 0,
        holder text COLLATE "C",
        boot_id text NOT NULL DEFAULT '',
        wanted boolean NOT NULL DEFAULT false,
        granted_by bigint,  -- the call that granted the lease
        written_by bigint NOT NULL,  -- the call that wrote this version
        record bytea NOT NULL  -- JSON; holds all above but the lease, too
    ) WITH (fillfactor = 80);
    CREATE INDEX upload_state ON tidegate.upload (state, id);
    CREATE INDEX upload_expiring ON tidegate.upload (expires_at) WHERE expires_at IS NOT NULL;
    CREATE INDEX upload_gone ON tidegate.upload (ended_at)
        WHERE state IN ('expired', 'terminated', 'failed');
    CREATE INDEX upload_pending ON tidegate.upload (id)
        WHERE kind = 'final' AND state = 'receiving';

    CREATE TABLE tidegate.segment (
        upload_id text COLLATE "C" NOT NULL,
        number bigint NOT NULL,
        record bytea NOT NULL,
        PRIMARY KEY (upload_id, number)
    );

    -- Only while the final is receiving.
    CREATE TABLE tidegate.final_part (
        part_id text COLLATE "C" NOT NULL,
        final_id text COLLATE "C" NOT NULL,
        PRIMARY KEY (part_id, final_id)
    );
    CREATE INDEX final_part_final ON tidegate.final_part (final_id);

    -- Only the oldest undelivered event of an upload has a due_at; it is NULL for those that wait
    -- behind it, and for those given up. So a claim reads what it takes and little more. A claimed
    -- event is due when its claim ends.
    CREATE TABLE tidegate.event (
        sequence bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        upload_id text COLLATE "C" NOT NULL,
        type text NOT NULL,
        at double precision NOT NULL,
        attempts integer NOT NULL DEFAULT 0,
        due_at double precision,
        given_up boolean NOT NULL DEFAULT false,
        done text NOT NULL DEFAULT '',  -- names of sinks that have it, with spaces between
        record bytea NOT NULL
    );
    CREATE INDEX event_due ON tidegate.event (due_at, sequence) WHERE due_at IS NOT NULL;
    CREATE INDEX event_upload ON tidegate.event (upload_id, sequence) WHERE NOT given_up;

    CREATE TABLE tidegate.turn (
        name text PRIMARY KEY,
        holder text NOT NULL,
        until double precision NOT NULL
    );
    """,
    """
    -- When what an upload has to tell is delivered; there while any of it was not given up. While it
    -- is claimed it is due when the claim ends, and `more` says that something was added since.
    -- What is due at once is due at -1 / sequence: before all times, and the older the sooner.
    CREATE TABLE tidegate.line (
        upload_id text COLLATE "C" PRIMARY KEY,
        due_at double precision NOT NULL,
        claimed boolean NOT NULL DEFAULT false,
        more boolean NOT NULL DEFAULT false
    );
    INSERT INTO tidegate.line (upload_id, due_at) SELECT upload_id, coalesce(max(due_at), 0)
        FROM tidegate.event WHERE NOT given_up GROUP BY upload_id ORDER BY min(sequence);
    CREATE INDEX line_due ON tidegate.line (due_at);

    -- JSON: the sinks that failed to take it, with how often, and when they are told again. What was
    -- noted of all sinks together is forgotten: each is told again as if it had never failed.
    ALTER TABLE tidegate.event
        ADD COLUMN retries text NOT NULL DEFAULT '', DROP COLUMN due_at, DROP COLUMN attempts;
    """,
    """
    -- Upload.undone: which few are, however many there are. A server of the version before that is
    -- still at work does not keep it: what it leaves undone waits for its client, what it has done is
    -- looked at in vain.
    ALTER TABLE tidegate.upload ADD COLUMN undone boolean NOT NULL DEFAULT false;
    -- Of the records only numbers are read. What stands in the strings need not have a place in this
    -- database's encoding, so their bytes are taken as they are; and \\u0000 has none in any.
    UPDATE tidegate.upload u SET undone = true
        FROM (
            SELECT id, replace(convert_from(record, 'SQL_ASCII'), 'u0000', 'u0001')::json AS record
            FROM tidegate.upload WHERE state = 'receiving'
        ) r
        WHERE r.id = u.id AND (
            u.stored > coalesce((r.record -> 'synced_offset')::text::bigint, 0)
            OR u.stored = (r.record -> 'length')::text::bigint
        );
    CREATE INDEX upload_undone ON tidegate.upload (id) WHERE undone;
    """,
)

# The first key of our advisory locks; the second is made of the schema's name. A lock of one long
# key, as each holder has, is never the same as one of two.
MIGRATE: Final = 0x7469646D  # "tidm"
ROOM: Final = 0x74696472  # "tidr"

# Not to_regclass(): that looks into a cache, which knows nothing yet of what another one made while
# we waited for the lock.
_TABLE = """
    SELECT 1 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = $1 AND c.relname = 'schema_version'
"""
_VERSION = "SELECT version FROM tidegate.schema_version"
_SCHEMA = "SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = $1"


def second_key(schema: str) -> int:
    """The second key of our advisory locks, as the signed number that they take."""
    return zlib.crc32(schema.encode()) - 2**31


async def version(link: Link) -> int:
    """The version of the tables; 0 when there are none."""
    if await link.row(_TABLE, link.schema) is None:
        return 0
    row = await link.row(_VERSION)
    return 0 if row is None else int(row["version"])


async def prepare(link: Link, migrations: Sequence[Migration]) -> None:
    """Make the tables, or bring them to the newest version, whoever else does the same.

    Raises MetadataError when they are newer than that.
    """
    schema, newest = link.schema, len(migrations)
    if await _checked(link, newest) == newest:
        return
    async with link.transaction():
        await link.script(f"SELECT pg_advisory_xact_lock({MIGRATE}, {second_key(schema)})")
        found = await _checked(link, newest)
        # An operator may have made it, and not let us.
        if await link.row(_SCHEMA, schema) is None:
            await link.script(f'CREATE SCHEMA "{schema}"')
        if found == 0:
            await link.script(
                "CREATE TABLE IF NOT EXISTS tidegate.schema_version (version integer NOT NULL)"
            )
        for step in migrations[found:]:
            await link.script(step)
        if found < newest:
            await link.script(
                "DELETE FROM tidegate.schema_version;"
                f" INSERT INTO tidegate.schema_version VALUES ({newest})"
            )


async def _checked(link: Link, newest: int) -> int:
    found = await version(link)
    if found > newest:
        raise MetadataError(
            f"schema {link.schema}: written by a newer tidegate (version {found}, this one knows"
            f" {newest})"
        )
    return found
