"""Every state, kind and transition."""

from __future__ import annotations

from itertools import product

import pytest
from msgspec.structs import replace
from tests.protocol.samples import NOW, upload

from tidegate.protocol.lifecycle import (
    TRANSITIONS,
    ForbiddenTransitionError,
    Transition,
    advance,
    may_expire,
)
from tidegate.protocol.model import GONE, Kind, State, Upload

ALLOWED: dict[tuple[State, Transition], tuple[State, set[Kind]]] = {
    (State.RECEIVING, Transition.COMPLETE): (State.COMPLETE, set(Kind)),
    (State.RECEIVING, Transition.EXPIRE): (State.EXPIRED, set(Kind)),
    (State.RECEIVING, Transition.TERMINATE): (State.TERMINATED, set(Kind)),
    (State.RECEIVING, Transition.FAIL): (State.FAILED, set(Kind)),
    (State.COMPLETE, Transition.TERMINATE): (State.TERMINATED, set(Kind)),
    # Nothing that is complete is ever given up, but a partial.
    (State.COMPLETE, Transition.EXPIRE): (State.EXPIRED, {Kind.PARTIAL}),
}


@pytest.mark.parametrize(("state", "transition", "kind"), list(product(State, Transition, Kind)))
def test_transitions(state: State, transition: Transition, kind: Kind) -> None:
    before = upload(state=state, kind=kind, offset=100, expires_at=NOW + 5)
    after_state, kinds = ALLOWED.get((state, transition), (state, set()))
    if kind not in kinds:
        with pytest.raises(
            ForbiddenTransitionError, match=f"a {kind} upload that is {state}: {transition}"
        ):
            advance(before, transition, NOW)
        return
    after = advance(before, transition, NOW)
    still_expires = kind is Kind.PARTIAL and after_state is State.COMPLETE
    assert after == replace(
        before,
        state=after_state,
        ended_at=NOW,
        expires_at=NOW + 5 if still_expires else None,
    )


def test_the_table_has_a_row_for_every_state() -> None:
    assert set(TRANSITIONS) == set(State)


def test_a_tombstone_stays_one() -> None:
    assert {state for state, ways in TRANSITIONS.items() if not ways} == GONE
    assert {after for ways in TRANSITIONS.values() for after in ways.values()} == {
        State.COMPLETE,
        *GONE,
    }


@pytest.mark.parametrize(
    ("length", "offset"), [(100, 99), (100, 0), (None, 0), (None, 100), (1, 2)]
)
def test_what_is_not_whole_is_not_completed(length: int | None, offset: int) -> None:
    with pytest.raises(ForbiddenTransitionError, match=f"complete at {offset} of {length} bytes"):
        advance(upload(length=length, offset=offset), Transition.COMPLETE, NOW)


def test_an_empty_upload_is_whole() -> None:
    assert advance(upload(length=0, offset=0), Transition.COMPLETE, NOW).complete


@pytest.mark.parametrize(("state", "kind"), list(product(State, Kind)))
def test_what_may_expire(state: State, kind: Kind) -> None:
    expected = state is State.RECEIVING or (state is State.COMPLETE and kind is Kind.PARTIAL)
    assert may_expire(upload(state=state, kind=kind)) == expected


def test_what_a_record_says_of_itself() -> None:
    receiving, done = upload(), upload(offset=100, state=State.COMPLETE)
    terminated = upload(state=State.TERMINATED)

    def said(of: Upload) -> tuple[bool, bool, bool]:
        return of.whole, of.complete, of.gone

    assert said(receiving) == (False, False, False)
    assert said(replace(receiving, offset=100)) == (True, False, False)
    assert said(replace(receiving, length=None)) == (False, False, False)
    assert said(done) == (True, True, False)
    assert said(terminated) == (False, False, True)


def test_what_an_upload_will_come_to() -> None:
    assert upload().promised == 100
    assert upload(length=0, offset=0).promised == 0
    assert upload(length=None).promised == 70
