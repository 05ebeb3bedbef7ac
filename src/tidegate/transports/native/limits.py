"""How long, and how much, a client may make the server wait for."""

from __future__ import annotations

import msgspec

from tidegate.transports.body import PATIENT, Patience


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Times in seconds, sizes in bytes; None: no limit."""

    head_bytes: int = 64 * 1024
    """The longest head. A final upload names its parts in it; common proxies let some 8 to 32 KiB
    pass."""
    head_timeout: float | None = 20.0
    """For a head to arrive, from its first byte on (from the connection's beginning, for the first):
    what Apache's mod_reqtimeout begins with."""
    keep_alive: float = 75.0
    """For which an idle connection is kept: longer than proxies keep theirs (nginx, AWS: 60)."""
    patience: Patience = PATIENT
    """For which a body is waited for."""
    unread: float = 60.0
    """For which an answer may not be read at all: nginx's send_timeout."""
    discard: int = 256 * 1024
    """Of an unread body that are read for the sake of keeping the connection: Go's
    maxPostHandlerReadBytes."""
    linger: float = 5.0
    """For a client to see the answer to a body that nobody will read: nginx's lingering_timeout."""
    linger_at_stop: float = 1.0
    """The same when the server stops: a round trip or two."""
    linger_bytes: int = 64 * 1024 * 1024
    """Read meanwhile, and thrown away: what 100 Mbit/s bring in `linger`."""
    ahead: int = 64 * 1024
    """Of requests that came before the one at work was answered."""
