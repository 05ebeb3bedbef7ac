"""Range requests over ten bytes, as RFC 9110, 14 has them."""

from __future__ import annotations

import pytest

from tidegate.protocol import ranges
from tidegate.protocol.errors import Code, Refusal


@pytest.mark.parametrize(
    ("value", "pieces"),
    [
        ("bytes=0-0", [(0, 1)]),
        ("bytes=0-9", [(0, 10)]),
        ("bytes=0-", [(0, 10)]),
        ("bytes=3-5", [(3, 6)]),
        ("bytes=9-", [(9, 10)]),
        # "If the last-pos value is absent, or if the value is greater than or equal to the current
        # length of the representation data, the byte range is interpreted as the remainder"
        ("bytes=5-10", [(5, 10)]),
        ("bytes=5-99999999999999999999", [(5, 10)]),
        ("bytes=5-" + "9" * 38, [(5, 10)]),
        ("bytes=-1", [(9, 10)]),
        ("bytes=-10", [(0, 10)]),
        # "If the selected representation is shorter than the specified suffix-length, the entire
        # representation is used."
        ("bytes=-11", [(0, 10)]),
        ("bytes=0-1,4-5", [(0, 2), (4, 6)]),
        ("bytes=0-0,-1", [(0, 1), (9, 10)]),
        ("bytes=4-5,0-1", [(4, 6), (0, 2)]),
        ("bytes= 0-1 ,\t4-5 ", [(0, 2), (4, 6)]),
        # "A recipient MUST parse and ignore a reasonable number of empty list elements"
        ("bytes=,0-1,,", [(0, 2)]),
        ("BYTES=0-1", [(0, 2)]),
        # What can't be had is left out, as long as something can.
        ("bytes=0-1,10-", [(0, 2)]),
        ("bytes=-0,0-1", [(0, 2)]),
        ("bytes=0-4,5-9", [(0, 5), (5, 10)]),
        ("bytes=0-5,2-3", [(0, 6), (2, 4)]),
    ],
)
def test_ranges(value: str, pieces: list[tuple[int, int]]) -> None:
    assert ranges.parse(value, 10) == pieces


@pytest.mark.parametrize(
    "value",
    [
        # "MUST ignore a Range header field that contains a range unit it does not understand"
        *("", "bytes", "bytes 0-1", "0-1", "chars=0-1", "=0-1", "byte=0-1", "bytes:0-1"),
        # "MAY ignore or reject a Range header field that contains an invalid ranges-specifier"
        *("bytes=", "bytes=,", "bytes=-", "bytes=1", "bytes=a-b", "bytes=0-1-2", "bytes=--1"),
        *("bytes=5-4", "bytes=0-1,x", "bytes=0-1;4-5", "bytes=+1-2", "bytes=0x0-1", "bytes=0 - 1"),
        *("bytes=0-1,5-4", "bytes=²-", "bytes=0-" + "9" * 39, "bytes=" + "9" * 5000 + "-"),
        # More than there is
        *("bytes=0-,0-", "bytes=0-9,0-0", "bytes=-10,0-", "bytes=0-5,3-9"),
        "bytes=" + ",".join(["0-0"] * (ranges.MAX_RANGES + 1)),
    ],
)
def test_what_is_no_range_is_answered_whole(value: str) -> None:
    assert ranges.parse(value, 10) is None


@pytest.mark.parametrize(
    "value", ["bytes=10-", "bytes=10-20", "bytes=-0", "bytes=10-,11-", "bytes=99-"]
)
def test_a_range_past_the_end_cannot_be_had(value: str) -> None:
    with pytest.raises(Refusal, match="the upload has 10 bytes") as caught:
        ranges.parse(value, 10)
    assert (caught.value.code, caught.value.status) == (Code.RANGE_NOT_SATISFIABLE, 416)
    assert caught.value.size == 10


def test_as_many_ranges_as_are_allowed() -> None:
    many = ",".join(f"{2 * n}-{2 * n}" for n in range(ranges.MAX_RANGES))
    assert ranges.parse(f"bytes={many}", 1000) == [
        (2 * n, 2 * n + 1) for n in range(ranges.MAX_RANGES)
    ]
    assert ranges.parse(f"bytes={many},999-", 1000) is None


@pytest.mark.parametrize("value", ["bytes=0-", "bytes=0-0", "bytes=-1", "bytes=-0", "bytes=5-"])
def test_nothing_is_answered_whole(value: str) -> None:
    assert ranges.parse(value, 0) is None
