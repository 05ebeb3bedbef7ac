"""The tables of the SQLite store, how an older database becomes a newer one, and its errors.

A driver's exception becomes one of the port's here, and nowhere else.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from typing import TYPE_CHECKING, TypeAlias

from tidegate.metadata.sqlite import liveness
from tidegate.ports import MetadataError, NoRoomError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

APPLICATION_ID = 0x74696465  # "tide"

Migration: TypeAlias = "Sequence[str]"
"""The statements that take a database from one version to the next."""

MIGRATIONS: tuple[Migration, ...] = (
    (
        """
        CREATE TABLE upload (
            id TEXT PRIMARY KEY,
            version INTEGER NOT NULL,
            state TEXT NOT NULL,
            kind TEXT NOT NULL,
            expires_at REAL,
            ended_at REAL,
            record BLOB NOT NULL  -- JSON; holds all of the above, too
        ) STRICT
        """,
        "CREATE INDEX upload_expiring ON upload (expires_at) WHERE expires_at IS NOT NULL",
        """
        CREATE INDEX upload_gone ON upload (ended_at)
            WHERE state IN ('expired', 'terminated', 'failed')
        """,
        """
        CREATE INDEX upload_pending ON upload (id) WHERE kind = 'final' AND state = 'receiving'
        """,
        # AUTOINCREMENT: a token is never used twice, even when the upload is forgotten between.
        # A lease whose holder is '' was abandoned.
        """
        CREATE TABLE lease (
            token INTEGER PRIMARY KEY AUTOINCREMENT,
            upload_id TEXT NOT NULL UNIQUE,
            holder TEXT NOT NULL,
            boot_id TEXT NOT NULL,
            release_wanted INTEGER NOT NULL DEFAULT 0
        ) STRICT
        """,
        "CREATE INDEX lease_holder ON lease (holder, release_wanted)",
        """
        CREATE TABLE segment (
            upload_id TEXT NOT NULL,
            "index" INTEGER NOT NULL,
            record BLOB NOT NULL,
            PRIMARY KEY (upload_id, "index")
        ) STRICT, WITHOUT ROWID
        """,
        # Only while the final is receiving.
        """
        CREATE TABLE final_part (
            part_id TEXT NOT NULL,
            final_id TEXT NOT NULL,
            PRIMARY KEY (part_id, final_id)
        ) STRICT, WITHOUT ROWID
        """,
        "CREATE INDEX final_part_final ON final_part (final_id)",
        # Only the oldest undelivered event of an upload has a due_at; it is NULL for those that
        # wait behind it, and for those given up. So a claim reads what it takes and no more. A
        # claimed event is due when its claim ends.
        """
        CREATE TABLE event (
            sequence INTEGER PRIMARY KEY AUTOINCREMENT,
            upload_id TEXT NOT NULL,
            type TEXT NOT NULL,
            at REAL NOT NULL,
            attempts INTEGER NOT NULL DEFAULT 0,
            due_at REAL,
            given_up INTEGER NOT NULL DEFAULT 0,
            record BLOB NOT NULL
        ) STRICT
        """,
        "CREATE INDEX event_due ON event (due_at) WHERE due_at IS NOT NULL",
        "CREATE INDEX event_upload ON event (upload_id, sequence) WHERE given_up = 0",
    ),
    (
        # What an upload will come to, as far as is known, and what has come of it, in bytes. Both
        # are summed over all that are receiving, out of the index.
        "ALTER TABLE upload ADD COLUMN promised INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE upload ADD COLUMN stored INTEGER NOT NULL DEFAULT 0",
        """
        UPDATE upload SET
            stored = coalesce(CAST(record AS TEXT) ->> '$.offset', 0),
            promised = coalesce(
                CAST(record AS TEXT) ->> '$.length', CAST(record AS TEXT) ->> '$.offset', 0
            )
        """,
        "CREATE INDEX upload_room ON upload (promised, stored) WHERE state = 'receiving'",
        """
        CREATE TABLE turn (
            name TEXT PRIMARY KEY,
            holder TEXT NOT NULL,
            until REAL NOT NULL
        ) STRICT, WITHOUT ROWID
        """,
    ),
    (
        # The names of the sinks that have it, with spaces between.
        "ALTER TABLE event ADD COLUMN done TEXT NOT NULL DEFAULT ''",
    ),
    (
        # When what an upload has to tell is delivered; there while any of it was not given up. While
        # it is claimed it is due when the claim ends, and `more` says that something was added since.
        # What is due at once is due at -1 / sequence: before all times, and the older the sooner.
        """
        CREATE TABLE line (
            upload_id TEXT PRIMARY KEY,
            due_at REAL NOT NULL,
            claimed INTEGER NOT NULL DEFAULT 0,
            more INTEGER NOT NULL DEFAULT 0
        ) STRICT, WITHOUT ROWID
        """,
        "CREATE INDEX line_due ON line (due_at)",
        """
        INSERT INTO line (upload_id, due_at) SELECT upload_id, coalesce(max(due_at), 0)
            FROM event
            WHERE given_up = 0 GROUP BY upload_id ORDER BY min(sequence)
        """,
        # JSON: the sinks that failed to take it, with how often, and when they are told again. What
        # was noted of all sinks together is forgotten: each is told again as if it had never failed.
        "ALTER TABLE event ADD COLUMN retries TEXT NOT NULL DEFAULT ''",
        "DROP INDEX event_due",
        "ALTER TABLE event DROP COLUMN due_at",
        "ALTER TABLE event DROP COLUMN attempts",
    ),
    (
        # Upload.undone: which few are, however many there are.
        "ALTER TABLE upload ADD COLUMN undone INTEGER NOT NULL DEFAULT 0",
        """
        UPDATE upload SET undone = 1 WHERE state = 'receiving' AND (
            stored > coalesce(CAST(record AS TEXT) ->> '$.synced_offset', 0)
            OR stored = CAST(record AS TEXT) ->> '$.length'
        )
        """,
        "CREATE INDEX upload_undone ON upload (id) WHERE undone = 1",
    ),
    (
        # An upload's first events, which were handed to a process: as long as that lives it delivers
        # them. They have no line, and become events only if it does not.
        """
        CREATE TABLE handed (
            sequence INTEGER PRIMARY KEY,  -- of the last of them; they follow each other
            upload_id TEXT NOT NULL,
            holder TEXT NOT NULL,
            told INTEGER NOT NULL DEFAULT 0,  -- so many of them were, the first first
            records BLOB NOT NULL  -- JSON; of all of them
        ) STRICT
        """,
        "CREATE INDEX handed_upload ON handed (upload_id, holder)",
    ),
    (
        # The same by transactions, for a row and an index entry for each upload took as long as all
        # else about its events. Who of them was told is said elsewhere (handing.Marks).
        "ALTER TABLE handed RENAME TO handed_one_by_one",
        """
        CREATE TABLE handed (
            first INTEGER PRIMARY KEY,  -- a sequence that was drawn for it
            last INTEGER NOT NULL,  -- of its last event
            holder TEXT NOT NULL,
            records BLOB NOT NULL  -- JSON: for each upload [the sequence of its last event, events]
        ) STRICT
        """,
        # The row in which an upload's first events are, as long as there is one.
        "ALTER TABLE upload ADD COLUMN handed INTEGER",
        """
        INSERT INTO handed SELECT sequence, sequence, holder, CAST(json_array(json_array(
            sequence, json(CASE told WHEN 0 THEN CAST(records AS TEXT)
                ELSE json_remove(CAST(records AS TEXT), '$[0]') END))) AS BLOB)
            FROM handed_one_by_one
        """,
        """
        UPDATE upload SET handed = h.sequence FROM handed_one_by_one h WHERE h.upload_id = upload.id
        """,
        "DROP TABLE handed_one_by_one",
    ),
)


def connect(path: Path, *, busy_timeout: float, readonly: bool = False) -> sqlite3.Connection:
    """A connection that one thread at a time may use; nothing is begun that was not asked for.

    `busy_timeout` is in seconds. Raises sqlite3.Error.
    """
    connection = sqlite3.connect(
        path,
        timeout=busy_timeout,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=256,
    )
    try:
        if readonly:
            connection.execute("PRAGMA query_only = 1")
        # Never a temporary file: one more place that could be full, or forbidden.
        connection.execute("PRAGMA temp_store = MEMORY")
        # A burst of writes leaves a large log file behind; give its room back.
        connection.execute("PRAGMA journal_size_limit = 67108864")
    except BaseException:
        connection.close()
        raise
    return connection


def check_place(path: Path) -> None:
    """Raise MetadataError, in words for the operator, where no database can be."""
    folder = path.parent
    if not os.path.isdir(folder):
        raise MetadataError(f"{folder}: the directory of the database does not exist")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise MetadataError(f"{folder}: the directory of the database is not writable")
    if os.path.isdir(path):
        raise MetadataError(f"{path}: is a directory; a file is expected")
    if os.path.exists(path) and not os.access(path, os.R_OK | os.W_OK):
        raise MetadataError(f"{path}: the database is not writable")
    if network := liveness.network_filesystem(folder):
        raise MetadataError(
            f"{folder}: SQLite on a network file system ({network}) loses data; "
            "use a local disk, or another metadata store"
        )


def prepare(
    path: Path, *, busy_timeout: float, migrations: Sequence[Migration] = MIGRATIONS
) -> None:
    """Create the database, or bring it to the newest version. The caller has the turn.

    Raises MetadataError, in words for the operator.
    """
    try:
        with contextlib.closing(connect(path, busy_timeout=busy_timeout)) as connection:
            version = _check_version(path, connection, len(migrations))
            connection.execute("PRAGMA journal_mode = WAL")
            if version < len(migrations):
                _migrate(connection, migrations[version:], len(migrations))
    except sqlite3.Error as error:
        raise open_error(path, error) from error


def version(path: Path, busy_timeout: float) -> int:
    """The version of the database, 0 where there is none. Raises MetadataError."""
    if not path.exists():
        return 0
    try:
        with contextlib.closing(
            connect(path, busy_timeout=busy_timeout, readonly=True)
        ) as connection:
            return _checked(path, connection)
    except sqlite3.Error as error:
        raise open_error(path, error) from error


def _check_version(path: Path, connection: sqlite3.Connection, newest: int) -> int:
    found = _checked(path, connection)
    if found > newest:
        raise MetadataError(
            f"{path}: written by a newer tidegate (schema {found}, this one knows {newest})"
        )
    return found


def _checked(path: Path, connection: sqlite3.Connection) -> int:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if application != APPLICATION_ID and (application or found or tables):
        raise MetadataError(f"{path}: the database of another application")
    return int(found)


def _migrate(connection: sqlite3.Connection, steps: Sequence[Migration], newest: int) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        for step in steps:
            for statement in step:
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {newest}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", None) or 0


def is_busy(error: sqlite3.Error) -> bool:
    """Whether waiting may help."""
    return _code(error) & 0xFF in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


def is_of_statement(error: sqlite3.Error) -> bool:
    """Whether it was about one statement's values, and the transaction goes on."""
    return _code(error) & 0xFF in {
        0,
        sqlite3.SQLITE_CONSTRAINT,
        sqlite3.SQLITE_MISMATCH,
        sqlite3.SQLITE_RANGE,
        sqlite3.SQLITE_TOOBIG,
    }


def translate(error: sqlite3.Error | OSError) -> MetadataError:
    """What the port says instead of `error`."""
    if isinstance(error, OSError):
        return UnavailableError(f"the metadata database: {liveness.describe(error)}")
    code = _code(error)
    if code & 0xFF == sqlite3.SQLITE_FULL:
        return NoRoomError("the disk of the metadata database is full")
    if is_busy(error):
        return UnavailableError("the metadata database is locked by another program")
    name = getattr(error, "sqlite_errorname", None) or type(error).__name__
    return UnavailableError(f"the metadata database: {error} ({name})")


def open_error(path: Path, error: sqlite3.Error | OSError) -> MetadataError:
    """What the port says when `error` kept it from opening."""
    if isinstance(error, OSError):
        return MetadataError(f"{error.filename or path}: {liveness.describe(error)}")
    match _code(error) & 0xFF:
        case sqlite3.SQLITE_NOTADB:
            return MetadataError(f"{path}: not a SQLite database")
        case sqlite3.SQLITE_FULL:
            return NoRoomError(f"{path}: the disk is full")
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return UnavailableError(f"{path}: locked by another program")
        case _:
            return MetadataError(f"{path}: cannot be opened: {error}")
