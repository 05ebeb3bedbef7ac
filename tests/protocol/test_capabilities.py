"""What is offered follows from what the parts can do, and from nothing else."""

from __future__ import annotations

from functools import reduce
from itertools import combinations
from operator import or_

import pytest

from tidegate.protocol.capabilities import IMPLIES, NEEDS, Capability, extensions

EVERYTHING = reduce(or_, Capability)
ALL = (
    "creation",
    "creation-with-upload",
    "creation-defer-length",
    "expiration",
    "checksum",
    "checksum-trailer",
    "termination",
    "concatenation",
    "concatenation-unfinished",
)


def test_everything() -> None:
    assert extensions(EVERYTHING) == ALL


def test_a_store_that_can_only_hold_bytes() -> None:
    assert extensions(Capability.NONE) == ("creation", "creation-with-upload")


@pytest.mark.parametrize(
    ("lacking", "missing"),
    [
        (Capability.GROW, {"creation-defer-length"}),
        (Capability.DISCARD, {"checksum", "checksum-trailer"}),
        (Capability.DELETE, {"expiration", "termination"}),
        (Capability.COPY, {"concatenation", "concatenation-unfinished"}),
        (Capability.READ, set()),
        (Capability.EXPIRY, {"expiration"}),
        (Capability.PENDING, {"concatenation", "concatenation-unfinished"}),
        (Capability.TRAILERS, {"checksum-trailer"}),
    ],
)
def test_what_is_not_offered_without(lacking: Capability, missing: set[str]) -> None:
    assert set(ALL) - set(extensions(EVERYTHING & ~lacking)) == missing


def test_every_capability_is_accounted_for() -> None:
    lacking = {Capability.GROW, Capability.DISCARD, Capability.DELETE, Capability.COPY}
    lacking |= {Capability.READ, Capability.EXPIRY, Capability.PENDING, Capability.TRAILERS}
    lacking |= {Capability.PEEK}
    assert set(Capability) == lacking


@pytest.mark.parametrize(
    ("disabled", "missing"),
    [
        # "if the Server does not offer the Creation extension, it MUST NOT offer the Creation With
        # Upload extension either"
        (
            "creation",
            {
                "creation",
                "creation-with-upload",
                "creation-defer-length",
                "concatenation",
                "concatenation-unfinished",
            },
        ),
        ("creation-with-upload", {"creation-with-upload"}),
        ("creation-defer-length", {"creation-defer-length"}),
        ("expiration", {"expiration"}),
        ("checksum", {"checksum", "checksum-trailer"}),
        ("checksum-trailer", {"checksum-trailer"}),
        ("termination", {"termination"}),
        ("concatenation", {"concatenation", "concatenation-unfinished"}),
        ("concatenation-unfinished", {"concatenation-unfinished"}),
    ],
)
def test_what_is_turned_off_takes_with_it_what_refines_it(disabled: str, missing: set[str]) -> None:
    assert set(ALL) - set(extensions(EVERYTHING, [disabled])) == missing


def test_no_choice_offers_an_extension_without_its_base() -> None:
    for size in range(4):
        for disabled in combinations(ALL, size):
            offered = extensions(EVERYTHING, disabled)
            assert not set(offered) & set(disabled)
            assert all(IMPLIES.get(name) in (None, *offered) for name in offered)
            assert list(offered) == [name for name in ALL if name in offered], "in order"


def test_everything_turned_off() -> None:
    assert extensions(EVERYTHING, NEEDS) == ()


def test_a_name_that_is_no_extension() -> None:
    with pytest.raises(
        ValueError,
        match=r"^Creation, checksums: not an extension of tus 1\.0\.0, which are creation, ",
    ):
        extensions(EVERYTHING, ["checksums", "creation", "Creation"])
