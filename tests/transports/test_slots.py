"""How many bodies at once: counted for all processes together, never one too many."""

from __future__ import annotations

import os
from contextlib import ExitStack

import pytest

from tidegate.protocol.errors import Refusal
from tidegate.transports.slots import RETRY_AFTER, Slots


def refused(slots: Slots, client: str | None) -> bool:
    try:
        with slots.taken(client):
            return False
    except Refusal as refusal:
        return (refusal.status, refusal.retry_after) == (503, RETRY_AFTER)


def test_without_a_limit_all_are_taken() -> None:
    slots = Slots()
    with ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(slots.taken("192.0.2.1"))


def test_a_slot_that_is_given_back_can_be_taken() -> None:
    slots = Slots(2)
    for _ in range(3):
        with slots.taken("192.0.2.1"):
            with slots.taken(None):
                assert refused(slots, "192.0.2.2")
                assert refused(slots, None)
            assert not refused(slots, "192.0.2.2")


def test_a_client_has_its_own_limit() -> None:
    slots = Slots(None, 2)
    with slots.taken("192.0.2.1"), slots.taken("::ffff:192.0.2.1"):
        assert refused(slots, "192.0.2.1")
        assert not refused(slots, "192.0.2.2")
        # One that is not known is not limited: all that come over a unix socket would be one.
        assert not refused(slots, None)
    assert not refused(slots, "192.0.2.1")


def test_a_client_that_is_refused_takes_no_slot_of_all() -> None:
    slots = Slots(2, 1)
    with slots.taken("192.0.2.1"):
        for _ in range(5):
            assert refused(slots, "192.0.2.1")
        assert not refused(slots, "192.0.2.2")


@pytest.mark.parametrize(
    ("other", "same"),
    [("2001:db8::2", True), ("2001:db8:0:0:ffff::1", True), ("2001:db8:0:1::1", False)],
)
def test_addresses_of_one_ipv6_network_are_one_client(other: str, *, same: bool) -> None:
    slots = Slots(None, 1)
    with slots.taken("2001:db8::1"):
        assert refused(slots, other) is same


def test_names_that_are_no_addresses_are_clients_too() -> None:
    slots = Slots(None, 1)
    with slots.taken("_hidden"):
        assert refused(slots, "_hidden")
        assert not refused(slots, "_other")


def in_another_process(slots: Slots, place: int, count: int) -> None:
    """A process that takes `count` slots, and dies without giving them back."""
    pid = os.fork()
    if pid == 0:
        slots.take_place(place)
        stack = ExitStack()
        for _ in range(count):
            stack.enter_context(slots.taken("192.0.2.1"))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_processes_count_together() -> None:
    slots = Slots(5, 5, places=3)
    slots.take_place(0)
    in_another_process(slots, 1, 3)
    in_another_process(slots, 2, 1)
    with slots.taken("192.0.2.1"):
        assert refused(slots, "192.0.2.1")
    # Who takes the place of a dead one has nothing yet.
    in_another_process(slots, 1, 0)
    with ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(slots.taken("192.0.2.1"))
        assert refused(slots, "192.0.2.1")
