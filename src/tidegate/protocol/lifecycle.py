"""The one table of states and transitions. Nothing else assigns a state."""

from __future__ import annotations

import enum

from msgspec.structs import replace

from tidegate.protocol.model import Kind, State, Upload


class Transition(enum.StrEnum):
    """What can happen to an upload as a whole."""

    COMPLETE = "complete"
    EXPIRE = "expire"
    TERMINATE = "terminate"
    FAIL = "fail"


TRANSITIONS: dict[State, dict[Transition, State]] = {
    State.RECEIVING: {
        Transition.COMPLETE: State.COMPLETE,
        Transition.EXPIRE: State.EXPIRED,
        Transition.TERMINATE: State.TERMINATED,
        Transition.FAIL: State.FAILED,
    },
    State.COMPLETE: {
        # Only a partial: see `may_expire`.
        Transition.EXPIRE: State.EXPIRED,
        Transition.TERMINATE: State.TERMINATED,
    },
    State.EXPIRED: {},
    State.TERMINATED: {},
    State.FAILED: {},
}


class ForbiddenTransitionError(Exception):
    """A transition was asked of a state that does not have it. A bug, never a client's fault."""


def may_expire(upload: Upload) -> bool:
    """Whether time alone can end this upload.

    What is unfinished can; a completed regular or final upload never does; a partial does, complete
    or not (whether a pending final still needs it is for the metadata store to say).
    """
    if upload.state is State.RECEIVING:
        return True
    return upload.state is State.COMPLETE and upload.kind is Kind.PARTIAL


def advance(upload: Upload, transition: Transition, now: float) -> Upload:
    """The record after `transition`. Raises ForbiddenTransitionError where the table has none."""
    state = TRANSITIONS[upload.state].get(transition)
    if state is None or (transition is Transition.EXPIRE and not may_expire(upload)):
        raise ForbiddenTransitionError(
            f"a {upload.kind} upload that is {upload.state}: {transition}"
        )
    if transition is Transition.COMPLETE and not upload.whole:
        raise ForbiddenTransitionError(f"complete at {upload.offset} of {upload.length} bytes")
    keeps_expiring = state is State.COMPLETE and upload.kind is Kind.PARTIAL
    return replace(
        upload,
        state=state,
        ended_at=now,
        expires_at=upload.expires_at if keeps_expiring else None,
    )
