"""How many bodies are received at once: by all, and by each client."""

from __future__ import annotations

import hashlib
import ipaddress
import mmap
import secrets
from typing import Final

from tidegate.protocol.errors import Code, Refusal

CELLS: Final = 1 << 16
"""Counters for clients, of which each has two by chance: with a thousand clients at work, one in
four thousand shares both of its own with others."""
RETRY_AFTER: Final = 5
"""Seconds after which a client may try again: some of the bodies at work will be over by then."""
ONE_CUSTOMER: Final = 64
"""The bits of an IPv6 address that tell one customer of a network from another (RFC 6177)."""


class Slots:
    """Room for `most` bodies at once, and `most_per_client` of each client; None: any number.

    The counters are in memory that processes share when they are forked after this was made, so
    that the limits hold for all of them together. Each of `places` processes writes to counters of
    its own, so no lock is needed; when two take the last slot at the same instant, neither may get
    it.
    """

    def __init__(
        self, most: int | None = None, most_per_client: int | None = None, *, places: int = 1
    ) -> None:
        self.most = most
        self.most_per_client = most_per_client
        self._places = places
        self._place = 0
        self._width = 1 + (CELLS if most_per_client is not None else 0)
        self._counters = memoryview(mmap.mmap(-1, 4 * self._width * places)).cast("I")
        # Nobody can choose an address that shares its counters with another's.
        self._key = secrets.token_bytes(16)

    def take_place(self, place: int) -> None:
        """Be the process number `place`, in which nothing is received yet."""
        self._place = place
        start = place * self._width
        self._counters[start : start + self._width] = memoryview(bytes(4 * self._width)).cast("I")

    def in_use(self) -> int:
        """How many bodies are being received, by all processes."""
        return self._count(0)

    def taken(self, client: str | None) -> Taken:
        """What holds a slot for as long as it is entered. Entering raises Refusal when there is none.

        503, also for the one client: the clients that are most in use give up on any other status
        that says "not now" (tus-js-client on 429).
        """
        return Taken(self, client)

    def take(self, client: str | None) -> list[int]:
        """Take a slot; the cells to `give_back`. Raises Refusal."""
        cells = [0]
        self._add(cells, 1)
        refusal = None
        if self.most is not None and self._count(0) > self.most:
            refusal = f"the server receives {self.most} uploads already; try again soon"
        elif client is not None and self.most_per_client is not None:
            own = self._cells(client)
            self._add(own, 1)
            cells += own
            if min(map(self._count, own)) > self.most_per_client:
                refusal = (
                    f"your address sends {self.most_per_client} uploads already;"
                    " wait for one of them to end"
                )
        if refusal is not None:
            self.give_back(cells)
            raise Refusal(Code.UNAVAILABLE, refusal, retry_after=RETRY_AFTER)
        return cells

    def give_back(self, cells: list[int]) -> None:
        """Have a slot no more."""
        self._add(cells, -1)

    def _add(self, cells: list[int], count: int) -> None:
        start = self._place * self._width
        for cell in cells:
            self._counters[start + cell] += count

    def _count(self, cell: int) -> int:
        return sum(self._counters[place * self._width + cell] for place in range(self._places))

    def _cells(self, client: str) -> list[int]:
        digest = hashlib.blake2b(_customer(client).encode(), digest_size=8, key=self._key).digest()
        first, second = (int.from_bytes(half) % CELLS for half in (digest[:4], digest[4:]))
        return [1 + first] if first == second else [1 + first, 1 + second]


class Taken:
    """A slot, held for as long as it is entered."""

    __slots__ = ("_cells", "_client", "_slots")

    def __init__(self, slots: Slots, client: str | None) -> None:
        self._slots = slots
        self._client = client
        self._cells: list[int] = []

    def __enter__(self) -> None:
        self._cells = self._slots.take(self._client)

    def __exit__(self, *_: object) -> None:
        self._slots.give_back(self._cells)


def _customer(client: str) -> str:
    """A client's address; of an IPv6 one the part that the client can't choose."""
    try:
        address = ipaddress.ip_address(client)
    except ValueError:
        return client
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(int(address) >> (128 - ONE_CUSTOMER))
    return client
