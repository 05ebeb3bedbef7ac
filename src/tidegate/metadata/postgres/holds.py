"""What the PostgreSQL store does to leases: one statement per operation.

A lease stands in the row of its upload. A statement sees what was committed before it began,
however long it then waits for a row. So what it decides on is the row itself, which PostgreSQL
looks at again after such a wait, or what it compares that row with; where it is anything else, the
row is locked by a statement before it.

`call` is a number that nobody else uses. It is written with what the call did, so that a call whose
answer was lost and that is made again finds that it was done already.
"""

# ruff: noqa: S608  (made of our own words; what comes from outside is a value)

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tidegate.metadata.encoding import decode_upload
from tidegate.ports import UnknownUploadError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tidegate.metadata.postgres.link import Link
    from tidegate.ports import Lease
    from tidegate.protocol.model import Upload, UploadId

RELEASED = "tidegate released "
"""The channel on which waiting processes hear of a lease that was let go, before the schema."""
HOLDER = "tidegate holder "
"""The channel of a process, before its holder: a token of its own that somebody wants."""
SHOWN = 1900
"""How many characters of an id are in a notification, which may have 8,000 bytes."""


class Holder(NamedTuple):
    """Who takes leases."""

    id: str
    boot_id: str


class Taken(NamedTuple):
    """A lease that was taken."""

    token: int
    upload: Upload
    settled: bool
    boot_id: str = ""
    """Under which boot the last holder wrote, when it never let go."""
    previous: int | None = None
    """The token of the lease that it took the place of."""


# What a commit, a release or an abandonment tells those who asked for the lease. (In a statement the
# schema is written `tidegate.`, also in here.)
TELL = (
    "CASE WHEN wanted THEN"
    f" pg_notify('{RELEASED}' || 'tidegate.', left(id, {SHOWN}))::text END AS told"
)

DEAD = (
    "(u.holder IS NOT NULL AND (u.token = ANY({0}::bigint[]) OR h.id IS NULL"
    " OR h.expires_at <= statement_timestamp()))"
)
"""Whether the holder's time was over when the statement came, or its row is gone; or the token is
one of those that this process abandoned, whether the upload's row says so yet or not."""

# `seen` is what the decision is made on. The row is taken only if it still has the token and the
# holder that were seen: every lease has a new token, and nobody who was dead comes back to life
# under another one.
_ACQUIRE = f"""
    WITH seen AS MATERIALIZED (
        SELECT u.record, u.token, u.holder, u.boot_id, u.granted_by,
            u.holder IS NULL AS free, {DEAD.format("$6")} AS dead
        FROM tidegate.upload u LEFT JOIN tidegate.holder h ON h.id = u.holder
        WHERE u.id = $1::text
    ), taken AS (
        UPDATE tidegate.upload u
        SET token = nextval('tidegate.token'), holder = $2::text, wanted = false,
            boot_id = CASE WHEN s.free THEN $3::text ELSE s.boot_id END, granted_by = $4::bigint
        FROM seen s
        WHERE u.id = $1 AND u.token = s.token AND u.holder IS NOT DISTINCT FROM s.holder
            AND (s.free OR s.dead OR ($5::boolean AND s.granted_by IS DISTINCT FROM $4))
        RETURNING u.token, u.record
    )
    SELECT s.free, s.dead, s.token AS previous, s.holder, s.boot_id, s.granted_by,
        t.token, coalesce(t.record, s.record) AS record,
        CASE WHEN t.token IS NOT NULL AND NOT s.free AND NOT s.dead AND s.holder <> $2
            THEN pg_notify('{HOLDER}' || s.holder, s.token::text)::text END AS told
    FROM seen s LEFT JOIN taken t ON true
"""


async def acquire(
    link: Link,
    upload_id: UploadId,
    holder: Holder,
    abandoned: Sequence[int],
    call: int,
    *,
    force: bool,
) -> Taken | Upload:
    """Take the lease, or return the record when someone alive has it.

    `abandoned` are tokens that nobody in this process uses any more. Raises UnknownUploadError.
    """
    while True:
        row = await link.row(_ACQUIRE, upload_id, holder.id, holder.boot_id, call, force, abandoned)
        if row is None:
            raise UnknownUploadError(upload_id)
        upload = decode_upload(row["record"])
        if row["token"] is not None:
            if row["free"]:
                return Taken(row["token"], upload, settled=True)
            return Taken(
                row["token"],
                upload,
                settled=False,
                boot_id=row["boot_id"],
                previous=row["previous"],
            )
        if row["granted_by"] == call and row["holder"] == holder.id:
            # An answer was lost, and with it whether the last holder let go: recovering does no
            # harm.
            return Taken(row["previous"], upload, settled=False, boot_id=row["boot_id"])
        if not (row["free"] or row["dead"] or force):
            return upload
        # Somebody was quicker: look again.


_RELEASE = (
    "UPDATE tidegate.upload SET holder = NULL"
    f" WHERE id = $1 AND token = $2 AND holder = $3 RETURNING {TELL}"
)
_ABANDON = (
    "UPDATE tidegate.upload SET holder = ''"
    " FROM unnest($1::text[], $2::bigint[]) AS a (upload_id, lease)"
    f" WHERE id = a.upload_id AND token = a.lease AND holder = $3 RETURNING {TELL}"
)
# Should the call come after this after all, it finds another token.
_FORGET_CALL = (
    "UPDATE tidegate.upload SET token = nextval('tidegate.token'),"
    " holder = CASE WHEN granted_by = $2::bigint AND holder = $3::text THEN '' ELSE holder END"
    " WHERE id = $1 AND (holder IS NULL OR holder = '' OR (granted_by = $2 AND holder = $3))"
    f" RETURNING {TELL}"
)
_WANT = f"""
    WITH asked AS (
        UPDATE tidegate.upload SET wanted = true
        WHERE id = $1 AND holder <> '' AND holder <> $2 AND NOT wanted
        RETURNING holder, token
    )
    SELECT pg_notify('{HOLDER}' || holder, token::text)::text FROM asked
"""
_LEASES = "SELECT id, token, holder, wanted FROM tidegate.upload WHERE id = ANY($1::text[])"


async def release(link: Link, lease: Lease) -> None:
    """Let a lease go, settled."""
    await link.fetch(_RELEASE, lease.upload_id, lease.token, lease.holder)


async def abandon(link: Link, holder: str, tokens: dict[int, UploadId]) -> None:
    """Show other processes that nobody holds these leases any more."""
    await link.fetch(_ABANDON, list(tokens.values()), list(tokens), holder)


async def forget_call(link: Link, upload_id: UploadId, holder: str, call: int) -> None:
    """See that a call, whose answer never came, has no lease, now or later."""
    await link.fetch(_FORGET_CALL, upload_id, call, holder)


async def want_release(link: Link, upload_id: UploadId, holder: str) -> None:
    """Ask whoever holds the lease, unless it is `holder`, to let go."""
    await link.fetch(_WANT, upload_id, holder)


async def leases(link: Link, upload_ids: Sequence[UploadId]) -> dict[int, tuple[str | None, bool]]:
    """Of these uploads the last lease's token, its holder, and whether it is wanted."""
    rows = await link.fetch(_LEASES, upload_ids)
    return {row["token"]: (row["holder"], row["wanted"]) for row in rows}
