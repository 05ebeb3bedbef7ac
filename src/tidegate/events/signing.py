"""Signatures of webhooks: Standard Webhooks 1.0.0, symmetric ones."""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Sequence

PREFIX = "whsec_"
FEWEST_BYTES, MOST_BYTES = 24, 64
"""'Random. At least 24 bytes (192 bits, 512 maximum).'"""


def parse_secret(text: str) -> bytes:
    """The key that `whsec_` and base64 say. Raises ValueError, without showing what it got."""
    encoded = text.strip()
    how = "make one with: echo whsec_$(openssl rand -base64 32)"
    if not encoded.startswith(PREFIX):
        raise ValueError(f"a secret of webhooks begins with {PREFIX}; {how}")
    try:
        key = base64.b64decode(encoded.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(
            f"a secret of webhooks is {PREFIX} and base64, which this is not"
        ) from None
    if not FEWEST_BYTES <= len(key) <= MOST_BYTES:
        raise ValueError(
            f"a secret of webhooks has {FEWEST_BYTES} to {MOST_BYTES} random bytes, this one has"
            f" {len(key)}; {how}"
        )
    return key


def sign(keys: Sequence[bytes], key: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The header fields of one webhook: with a signature by each of `keys`, the first one first.

    `key` is what is the same whenever this event is told, `timestamp` when it is told now, in
    seconds since the epoch.
    """
    # "The content to be signed is therefore: {msg_id}.{timestamp}.{payload}."
    content = b"%s.%d.%s" % (key.encode(), timestamp, body)
    signatures = (base64.b64encode(hmac.digest(each, content, "sha256")).decode() for each in keys)
    return {
        "webhook-id": key,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }
