"""Cells that processes share."""

from __future__ import annotations

import os

import pytest

from tidegate import measures
from tidegate.measures import (
    CREATED,
    FAMILIES,
    IN_FLIGHT,
    LONG,
    QUEUED,
    REQUEST_SECONDS,
    UPLOADS,
    WORKERS,
    Measures,
)


def test_no_two_things_are_counted_in_one_cell() -> None:
    taken = [
        range(family.start, family.start + family.width * len(family.rows)) for family in FAMILIES
    ]
    cells = [cell for each in taken for cell in each]
    assert len(cells) == len(set(cells)) == measures._SIZE
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)


def test_an_observation_is_in_the_first_bucket_that_holds_it() -> None:
    found = Measures()
    row = REQUEST_SECONDS.cell("HEAD")
    for seconds in (0.0, LONG[0], LONG[0] * 1.01, LONG[-1], LONG[-1] + 1):
        found.observe(REQUEST_SECONDS, row, seconds)
    cells = found.totals()[row : row + REQUEST_SECONDS.width]
    assert cells[:2] == [2, 1]
    assert cells[len(LONG) - 1 : len(LONG) + 1] == [1, 1]  # the last bound; infinity
    assert cells[-1] == pytest.approx(LONG[0] * 2.01 + LONG[-1] * 2 + 1)


def test_what_processes_count_is_added_up() -> None:
    """A process that follows one that died goes on where that stopped."""
    found = Measures(places=2)
    for place, times in ((0, 2), (1, 3), (0, 4)):
        child = os.fork()
        if child == 0:
            found.take_place(place)
            for _ in range(times):
                found.add(CREATED.start)
            os._exit(0)
        os.waitpid(child, 0)
    assert found.totals()[CREATED.start] == 9


def test_what_a_process_said_of_itself_is_forgotten_when_it_is_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr("tidegate.measures.time.monotonic", lambda: now)
    found = Measures(places=2)
    for place in (0, 1):
        found.take_place(place)
        found.say({IN_FLIGHT.start: 5, QUEUED.cell("data"): 2})
    assert found.totals()[IN_FLIGHT.start] == 10
    assert found.totals()[WORKERS.start] == 2
    now += measures.FRESH - 1
    found.say({IN_FLIGHT.start: 1})
    now += 2
    assert found.totals()[IN_FLIGHT.start] == 1
    assert found.totals()[QUEUED.cell("data")] == 2
    assert found.totals()[WORKERS.start] == 1


def test_what_one_found_out_holds_for_all_until_another_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr("tidegate.measures.time.monotonic", lambda: now)
    found = Measures(places=2)
    assert found.noted_for() == float("inf")
    cell = UPLOADS.cell("receiving")
    found.note({cell: 7})
    assert found.totals()[cell] == 7
    now += 5
    assert found.noted_for() == 5
    found.take_place(1)
    found.note({cell: 8})
    assert found.noted_for() == 0
    assert found.totals()[cell] == 8
