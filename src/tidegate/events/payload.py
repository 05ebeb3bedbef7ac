"""What webhooks and commands are told, as JSON."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from tidegate.protocol.errors import Refusal
from tidegate.protocol.fields import metadata_pairs

if TYPE_CHECKING:
    from tidegate.ports import Delivery
    from tidegate.protocol.model import Upload

_encode = msgspec.json.Encoder().encode


def payload(delivery: Delivery) -> bytes:
    """An event as a JSON object, in the form that Standard Webhooks recommends.

    `type` is `upload.` and the event's type, `timestamp` is when it happened (RFC 3339, UTC), and
    `data` has

    - `key`: the idempotency key, the same however often this event is told;
    - `sequence`: grows with every event; 0 for progress;
    - `attempt`: 1, and more when it is told again;
    - `upload`: the record as the event left it: `id`, `kind`, `state`, `length` (bytes; null while
      it is not known), `offset` (bytes), `metadata` (decoded; null for a value that is not UTF-8),
      `metadata_raw` (Upload-Metadata to the letter), `parts` (of a final upload), `principal`,
      `storage` (where the data store keeps the bytes: paths below its folder, keys in its bucket),
      `created_at`, `expires_at` and `ended_at` (RFC 3339, or null).
    """
    event = delivery.event
    return _encode(
        {
            "type": f"upload.{event.type.value}",
            "timestamp": _time(event.at),
            "data": {
                "key": delivery.key,
                "sequence": delivery.sequence,
                "attempt": delivery.attempts + 1,
                "upload": describe(event.upload),
            },
        }
    )


def describe(upload: Upload) -> dict[str, Any]:
    """A record as it is told."""
    return {
        "id": upload.id,
        "kind": upload.kind.value,
        "state": upload.state.value,
        "length": upload.length,
        "offset": upload.offset,
        "metadata": _metadata(upload),
        "metadata_raw": upload.metadata,
        "parts": upload.parts,
        "principal": upload.principal,
        "storage": upload.storage,
        "created_at": _time(upload.created_at),
        "expires_at": _time(upload.expires_at),
        "ended_at": _time(upload.ended_at),
    }


def _metadata(upload: Upload) -> dict[str, str | None]:
    try:
        pairs = metadata_pairs(upload.metadata)
    except Refusal:  # an application's hook, or an older version, wrote something else
        return {}
    return {key: _text(value) for key, value in pairs.items()}


def _text(value: bytes) -> str | None:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None


def _time(at: float | None) -> str | None:
    if at is None:
        return None
    return datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")
