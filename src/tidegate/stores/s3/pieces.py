"""What is stored of an upload, in order: parts of the multipart upload, then tails. Pure.

A tail is an object of its own, for bytes that are too few for a part. Once there are enough, the
part that they become takes the place of all tails at once; the places that this leaves over are
void: pieces of no bytes, since what was committed can be replaced, but not taken back.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final

import msgspec

from tidegate.ports import BytesMissingError, NoSpaceError
from tidegate.protocol.model import Segment, Upload
from tidegate.stores.s3.options import MOST_PARTS, S3Options

GROWTH: Final = 1000
"""While the length is not known, every part is at least this fraction of what there is already: a
thousand parts more than double it, and ten thousand are enough for any size."""


class Piece(msgspec.Struct, frozen=True):
    """Some bytes that are stored: a part, or a tail."""

    length: int
    part: int = 0
    """Its number; 0: it is a tail."""
    tail: str = ""
    """Its key."""
    etag: str = ""
    left: tuple[str, ...] = ()
    """Tails whose bytes are in this piece now: to be deleted when it is committed."""

    def segment(self, index: int, start: int) -> Segment:
        """As it is committed."""
        storage: dict[str, Any] = {"part": self.part} if self.part else {"tail": self.tail}
        storage["etag"] = self.etag
        if self.left:
            storage["left"] = list(self.left)
        return Segment(index, start, self.length, storage)

    def without(self, gone: Collection[str]) -> Piece:
        """The same, once some tails were deleted."""
        left = tuple(key for key in self.left if key not in gone)
        return self if left == self.left else msgspec.structs.replace(self, left=left)


def pieces(upload: Upload, segments: Sequence[Segment]) -> list[Piece]:
    """What was committed. Raises BytesMissingError when it is not exactly the upload's bytes."""
    found: list[Piece] = []
    end = 0
    for segment in segments:
        if not segment.length:
            continue
        if segment.start != end or (found and found[-1].tail and "part" in segment.storage):
            raise BytesMissingError(f"upload {upload.id}: no piece has the bytes from {end}")
        end += segment.length
        told = segment.storage
        found.append(
            Piece(
                segment.length,
                told.get("part", 0),
                told.get("tail", ""),
                told.get("etag", ""),
                tuple(told.get("left", ())),
            )
        )
    if end != upload.offset:
        raise BytesMissingError(
            f"upload {upload.id}: {end} bytes are stored, {upload.offset} were acknowledged"
        )
    return found


def tails_in(segments: Iterable[Segment]) -> set[str]:
    """The keys of all tails that count."""
    return {segment.storage["tail"] for segment in segments if segment.storage.get("tail")}


class Told:
    """The pieces that the caller was told of, by index: what it has committed, or is about to."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        self._segments = list(segments)

    @property
    def end(self) -> int:
        """How many bytes they are."""
        return sum(segment.length for segment in self._segments)

    def update(self, now: Sequence[Piece]) -> tuple[Segment, ...]:
        """What to tell, when `now` is all there is."""
        segments: list[Segment] = []
        end = 0
        for index, piece in enumerate(now):
            segments.append(piece.segment(index, end))
            end += piece.length
        segments += [Segment(index, end, 0) for index in range(len(segments), len(self._segments))]
        news = segments[len(self._segments) :]
        changed = [
            new for new, old in zip(segments, self._segments, strict=False) if _differ(new, old)
        ]
        self._segments = segments
        return (*changed, *news)


def _differ(new: Segment, old: Segment) -> bool:
    return new != old and bool(new.length or old.length)


def part_size(options: S3Options, start: int, length: int | None, number: int) -> int:
    """How large the part from `start` on should be, if it gets `number`.

    So that half of the numbers that are left would do: sessions that die burn some. Raises
    NoSpaceError when no size that fits into memory is enough.
    """
    left = MOST_PARTS + 1 - number
    missing = 0 if length is None else length - start
    if left <= 0 or missing > left * options.most_part:
        raise NoSpaceError(
            f"{left} part numbers of at most {options.most_part} bytes are left,"
            f" and {missing or 'unknown'} bytes are still to come: --s3-memory decides"
        )
    return min(max(options.part_size, least_size(start, length, number)), options.most_part)


def least_size(start: int, length: int | None, number: int) -> int:
    """How small the part from `start` on may be, for the numbers that are left to suffice."""
    if length is None:
        return start // GROWTH
    left = max(1, MOST_PARTS + 1 - number)
    return -(-2 * (length - start) // left)
