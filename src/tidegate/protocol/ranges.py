"""Range requests (RFC 9110, 14) over a complete upload."""

from __future__ import annotations

import re

from tidegate.protocol.errors import Code, Refusal

MAX_RANGES = 64
"""Ranges in one request. RFC 9110, 17.15 warns of many small or overlapping ones; a browser or a
media player asks for one, a PDF reader for a few dozen."""

_SPEC = re.compile(r"([0-9]*)-([0-9]*)")


def parse(value: str, size: int) -> list[tuple[int, int]] | None:
    """The [start, stop) byte ranges that `value` asks for, of a whole of `size` bytes.

    None: serve the whole (the unit is unknown, the syntax is wrong, or it is not worth ranges).
    Raises Refusal (range_not_satisfiable) when no range overlaps the whole.
    """
    # "A server that supports range requests MAY ignore or reject a Range header field that contains
    # an invalid ranges-specifier"; "An origin server MUST ignore a Range header field that contains
    # a range unit it does not understand."
    unit, equals, specs = value.partition("=")
    if not equals or unit.strip().lower() != "bytes":
        return None
    ranges: list[tuple[int, int]] = []
    listed = [spec.strip() for spec in specs.split(",")]
    asked = [spec for spec in listed if spec]
    # (Of nothing there is no range to give: to a client that asks for one of every file, an empty
    # one is answered whole.)
    if not asked or len(asked) > MAX_RANGES or size == 0:
        return None
    for spec in asked:
        match = _SPEC.fullmatch(spec)
        if match is None or spec == "-" or len(spec) > 40:
            return None
        first, last = match.groups()
        if not first:
            # "a suffix-range ... If the selected representation is shorter than the specified
            # suffix-length, the entire representation is used."
            start, stop = max(0, size - int(last)), size
        else:
            start, stop = int(first), min(size, int(last) + 1) if last else size
            if last and int(last) < int(first):
                return None
        if start < stop:
            ranges.append((start, stop))
    if not ranges:
        raise Refusal(Code.RANGE_NOT_SATISFIABLE, f"Range: the upload has {size} bytes", size=size)
    return _worth_it(ranges, size)


def _worth_it(ranges: list[tuple[int, int]], size: int) -> list[tuple[int, int]] | None:
    """None where overlapping ranges ask for more than the whole has."""
    # "A server that supports range requests MAY ignore a Range header field when ... ranges ...
    # overlap" (14.2): more than two of them, or more bytes than there are, is no one's wish.
    if sum(stop - start for start, stop in ranges) > size:
        return None
    return ranges
