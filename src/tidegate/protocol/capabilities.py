"""What a server can do, derived from what its parts can do; never configured by hand."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

import msgspec

from tidegate.protocol.checksums import Algorithm

if TYPE_CHECKING:
    from collections.abc import Iterable


class Capability(enum.Flag):
    """What a data store, a metadata store or a transport declares that it can do."""

    NONE = 0
    # Data stores
    GROW = enum.auto()
    """Holds an upload whose length is not known yet."""
    DISCARD = enum.auto()
    """Can cut an upload back, so that bytes that fail their checksum leave no trace."""
    DELETE = enum.auto()
    """Can delete an upload's bytes."""
    COPY = enum.auto()
    """Can append another upload's bytes without sending them through the client."""
    READ = enum.auto()
    """Can give the bytes back."""
    PEEK = enum.auto()
    """... also those of a whole upload before `finish`, to who holds it."""
    # Metadata stores
    EXPIRY = enum.auto()
    """Can find what has expired."""
    PENDING = enum.auto()
    """Remembers which finals wait for which partials."""
    # Transports
    TRAILERS = enum.auto()
    """Delivers the trailer section of a request."""


NEEDS: dict[str, Capability] = {
    "creation": Capability.NONE,
    "creation-with-upload": Capability.NONE,
    "creation-defer-length": Capability.GROW,
    "expiration": Capability.DELETE | Capability.EXPIRY,
    "checksum": Capability.DISCARD,
    "checksum-trailer": Capability.DISCARD | Capability.TRAILERS,
    "termination": Capability.DELETE,
    "concatenation": Capability.COPY | Capability.PENDING,
    "concatenation-unfinished": Capability.COPY | Capability.PENDING,
}
"""The extensions of tus 1.0.0, in the order of the specification, and what each needs."""

IMPLIES: dict[str, str] = {
    # "if the Server does not offer the Creation extension, it MUST NOT offer the Creation With
    # Upload extension either" (and the same holds for what only refines another).
    "creation-with-upload": "creation",
    "creation-defer-length": "creation",
    "checksum-trailer": "checksum",
    "concatenation": "creation",
    "concatenation-unfinished": "concatenation",
}


def extensions(capabilities: Capability, disabled: Iterable[str] = ()) -> tuple[str, ...]:
    """The extensions to offer, in the specification's order.

    Raises ValueError for a name in `disabled` that is no extension.
    """
    disabled = frozenset(disabled)
    unknown = sorted(disabled - NEEDS.keys())
    if unknown:
        raise ValueError(
            f"{', '.join(unknown)}: not an extension of tus 1.0.0, which are {', '.join(NEEDS)}"
        )
    offered: list[str] = []
    for name, needs in NEEDS.items():
        base = IMPLIES.get(name)
        if name not in disabled and needs in capabilities and (base is None or base in offered):
            offered.append(name)
    return tuple(offered)


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """What a server offers: what `decide` holds a command against, and what OPTIONS tells."""

    extensions: tuple[str, ...]
    algorithms: dict[str, Algorithm]
    max_size: int | None = None
    """The largest upload, in bytes; None: no known limit."""
    expire_after: float | None = None
    """Seconds without activity after which an unfinished upload is given up; None: never."""
    downloads: bool = True
    owners: bool = True
    """An upload that has an owner is there for its owner alone; False: for whoever may come in."""
