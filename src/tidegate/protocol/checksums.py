"""The table of checksum algorithms."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol

import msgspec


class Hash(Protocol):
    """A running checksum, as in hashlib."""

    def update(self, data: Any, /) -> None:
        """Add bytes-like `data`."""

    def digest(self) -> bytes:
        """The digest of all that was added."""


class Crc32:
    """CRC-32 as in zlib and gzip; the digest is four bytes, big-endian."""

    def __init__(self) -> None:
        self._value = 0

    def update(self, data: Any, /) -> None:
        """Add bytes-like `data`."""
        self._value = zlib.crc32(data, self._value)

    def digest(self) -> bytes:
        """Four bytes, big-endian."""
        return self._value.to_bytes(4, "big")


class Algorithm(msgspec.Struct, frozen=True):
    """One algorithm: its name on the wire, the size of its digest in bytes, how to start one."""

    name: str
    size: int
    start: Callable[[], Hash]


def _sha1() -> Hash:
    return hashlib.sha1(usedforsecurity=False)


def _md5() -> Hash:
    return hashlib.md5(usedforsecurity=False)


# "The names of the checksum algorithms MUST only consist of ASCII characters with the modification
# that uppercase characters are excluded."
_ALWAYS = (
    # "The Server MUST support at least the SHA1 checksum algorithm identified by sha1."
    Algorithm("sha1", 20, _sha1),
    Algorithm("sha256", 32, hashlib.sha256),
    Algorithm("sha512", 64, hashlib.sha512),
    Algorithm("md5", 16, _md5),
    Algorithm("crc32", 4, Crc32),
)
_EXTRA = (("crc32c", 4, "crc32c", "CRC32CHash"), ("blake3", 32, "blake3", "blake3"))
"""Name, size, module, attribute: offered where the `checksums` extra is installed."""


def algorithms() -> dict[str, Algorithm]:
    """The algorithms that this installation has, by name."""
    table = {algorithm.name: algorithm for algorithm in _ALWAYS}
    for name, size, module, attribute in _EXTRA:
        if find_spec(module) is not None:
            table[name] = Algorithm(name, size, getattr(import_module(module), attribute))
    return table
