"""How large parts are, and what is told of pieces that take others' place."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.ports import BytesMissingError, NoSpaceError
from tidegate.protocol.model import Segment, Upload, UploadId
from tidegate.stores.s3.options import MIB, MOST_PARTS, S3Options
from tidegate.stores.s3.pieces import Piece, Told, part_size, pieces

OPTIONS = S3Options()


def upload(offset: int) -> Upload:
    return Upload(id=UploadId("one"), offset=offset, created_at=0, active_at=0)


@pytest.mark.parametrize("length", [1, OPTIONS.part_size, 10**9, 10**11, OPTIONS.max_size])
def test_ten_thousand_parts_are_enough(length: int) -> None:
    """With half of them burnt on the way."""
    start, number = 0, 1
    while start < length:
        size = part_size(OPTIONS, start, length, number)
        assert OPTIONS.part_size <= size <= OPTIONS.most_part
        start += size
        number += 2
    assert number <= MOST_PARTS + 2


def test_so_they_are_for_an_upload_of_unknown_length() -> None:
    start, number = 0, 1
    while start < OPTIONS.max_size:
        start += part_size(OPTIONS, start, None, number)
        number += 1
    assert number <= MOST_PARTS


def test_no_number_is_left() -> None:
    with pytest.raises(NoSpaceError):
        part_size(OPTIONS, 0, None, MOST_PARTS + 1)
    with pytest.raises(NoSpaceError, match="--s3-memory"):
        part_size(OPTIONS, 0, 100 * OPTIONS.most_part, MOST_PARTS - 50)


@pytest.mark.parametrize(
    "options",
    [{"part_size": MIB}, {"memory": 8 * MIB}, {"concurrency": 0}],
    ids=lambda options: next(iter(options)),
)
def test_options_that_do_not_fit_together(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"parts|memory"):
        S3Options(**options).check()  # type: ignore[arg-type]


def piece(number: int, length: int) -> Piece:
    return Piece(length, part=number, etag=f"e{number}")


def tail(name: str, length: int) -> Piece:
    return Piece(length, tail=name)


@given(
    st.lists(
        st.lists(st.tuples(st.integers(1, 9), st.booleans()), max_size=6),
        min_size=1,
        max_size=6,
    )
)
def test_what_was_told_is_what_there_is(states: list[list[tuple[int, bool]]]) -> None:
    """By the segments of all that was told, whatever took whose place."""
    told = Told([])
    kept: dict[int, Segment] = {}
    for state in states:
        parts = [piece(n, size) for n, (size, is_part) in enumerate(state, 1) if is_part]
        tails = [tail(f"t{n}", size) for n, (size, is_part) in enumerate(state) if not is_part]
        now = parts + tails
        news = told.update(now)
        kept |= {segment.index: segment for segment in news}
        segments = [kept[index] for index in sorted(kept)]
        size = sum(p.length for p in now)
        assert pieces(upload(size), segments) == now
        assert told.update(now) == ()
        again = Told(segments)
        assert again.update(now) == ()


@pytest.mark.parametrize(
    "segments",
    [
        [Segment(0, 0, 5, {"part": 1, "etag": ""})],
        [Segment(0, 0, 5, {"part": 1, "etag": ""}), Segment(1, 6, 5, {"part": 2, "etag": ""})],
        [Segment(0, 0, 5, {"tail": "t", "etag": ""}), Segment(1, 5, 5, {"part": 2, "etag": ""})],
        [],
    ],
)
def test_a_gap_is_never_guessed(segments: list[Segment]) -> None:
    with pytest.raises(BytesMissingError):
        pieces(upload(10), segments)
