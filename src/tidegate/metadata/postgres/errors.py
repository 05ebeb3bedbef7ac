"""What the driver and PostgreSQL raise, and what the port says instead. Translated here only."""

from __future__ import annotations

import enum

import asyncpg

from tidegate.metadata.postgres.address import secrets_of
from tidegate.ports import MetadataError, NoRoomError, UnavailableError

TROUBLE = (
    OSError,
    TimeoutError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)
"""All that a connection may raise. The last is raised, too, by one that is used at the moment at
which the server ends it."""


class Outcome(enum.Enum):
    """What an error tells of the transaction that it ended, and of another attempt."""

    UNKNOWN = enum.auto()
    """The connection is lost, or no answer came: it may be committed. Try again elsewhere."""
    UNDONE = enum.auto()
    """It was rolled back, or never began, and may succeed when it is tried again."""
    REFUSED = enum.auto()
    """It was rolled back, and would be again."""


# By class or code of SQLSTATE.
_OUTCOMES: dict[str, Outcome] = {
    "08": Outcome.UNKNOWN,  # connection exception
    "57P01": Outcome.UNKNOWN,  # admin_shutdown
    "57P02": Outcome.UNKNOWN,  # crash_shutdown
    "57P05": Outcome.UNKNOWN,  # idle_session_timeout
    "25P03": Outcome.UNKNOWN,  # idle_in_transaction_session_timeout
    "25P04": Outcome.UNKNOWN,  # transaction_timeout
    "XX": Outcome.UNKNOWN,  # internal_error: nothing is promised
    "58": Outcome.UNKNOWN,  # system_error, also of a pooler that lost its server
    "57P03": Outcome.UNDONE,  # cannot_connect_now
    "57P04": Outcome.REFUSED,  # database_dropped
    "57014": Outcome.UNDONE,  # query_canceled, by a statement_timeout
    "53300": Outcome.UNDONE,  # too_many_connections
    "55P03": Outcome.UNDONE,  # lock_not_available
    "40": Outcome.UNDONE,  # serialization_failure, deadlock_detected
    "40003": Outcome.UNKNOWN,  # statement_completion_unknown
    "26000": Outcome.UNDONE,  # invalid_sql_statement_name: see `is_of_pooler`
    "42P05": Outcome.UNDONE,  # duplicate_prepared_statement
    "25006": Outcome.UNDONE,  # read_only_sql_transaction: a standby; elsewhere it may go on
}
_SETUP = frozenset({"28", "3D", "42", "0A"})
"""A password, a name or a right that is wrong: waiting does not help."""


def outcome(error: BaseException) -> Outcome:
    """What is known of the transaction that `error` ended."""
    if isinstance(error, asyncpg.DataError | asyncpg.exceptions.ClientConfigurationError):
        return Outcome.REFUSED  # of the driver, about a value or the URL
    if not isinstance(error, asyncpg.PostgresError):
        return Outcome.UNKNOWN
    if isinstance(error, asyncpg.InvalidCachedStatementError):
        return Outcome.UNDONE  # the tables were migrated
    code = error.sqlstate or ""
    return _OUTCOMES.get(code, _OUTCOMES.get(code[:2], Outcome.REFUSED))


def ends_connection(error: BaseException) -> bool:
    """Whether the connection is not to be used again: it is lost, or not what it was."""
    if not isinstance(error, TROUBLE):
        return False
    if isinstance(error, asyncpg.InvalidCachedStatementError) or is_of_pooler(error):
        return True
    code = getattr(error, "sqlstate", None)
    return outcome(error) is Outcome.UNKNOWN or code in {"25006", "57P03"}


def is_of_pooler(error: BaseException) -> bool:
    """Whether a prepared statement was not in the session where it was looked for: a pooler, that
    did not look like one, has changed it.
    """
    return getattr(error, "sqlstate", None) in {"26000", "42P05"}


def translate(error: BaseException, dsn: str) -> MetadataError:
    """What the port says instead of `error`; no password of `dsn` is in it."""
    if isinstance(error, MetadataError):
        return error
    code = getattr(error, "sqlstate", None) or ""
    if code in {"53100", "53400", "54000"}:
        return NoRoomError(f"the metadata database has no room: {_words(error, dsn)}")
    if code[:2] in _SETUP:
        return MetadataError(f"the metadata database: {_words(error, dsn)}")
    return UnavailableError(f"the metadata database: {_words(error, dsn)}")


def _words(error: BaseException, dsn: str) -> str:
    if isinstance(error, TimeoutError) and not str(error):
        return "no answer in time"
    words = " ".join(str(error).split()) or type(error).__name__
    for secret in secrets_of(dsn):
        words = words.replace(secret, "***")
    code = getattr(error, "sqlstate", None)
    return f"{words} ({code})" if code else words
