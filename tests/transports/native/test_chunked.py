"""Bodies out of their frames, however they are cut into pieces."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.transports.native.chunked import EXTENSIONS, LINE, TRAILERS, Chunked, Counted
from tidegate.transports.native.parser import Rejected


def decode(*pieces: bytes) -> tuple[bytes, Chunked]:
    framer = Chunked()
    return b"".join(bytes(view) for piece in pieces for view in framer.feed(piece)), framer


def feed_in_steps(wire: bytes, step: int) -> None:
    framer = Chunked()
    for at in range(0, len(wire), step):
        framer.feed(wire[at : at + step])


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=5), st.data())
def test_chunks_in_any_pieces(chunks: list[bytes], data: st.DataObject) -> None:
    wire = b"".join(b"%x;a=b\r\n%b\r\n" % (len(c), c) for c in chunks)
    wire += b"0\r\nUpload-Checksum: x\r\n\r\n"
    whole = wire + b"GET /"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire) - 1), max_size=8)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    content, framer = decode(*pieces)
    assert content == b"".join(chunks)
    assert framer.done
    assert framer.rest == b"GET /"
    assert framer.trailers == [(b"upload-checksum", b"x")]


@given(st.binary(max_size=60), st.integers(1, 9))
def test_garbage_is_rejected_or_waited_with(garbage: bytes, step: int) -> None:
    with suppress(Rejected):
        feed_in_steps(garbage, step)


@pytest.mark.parametrize(
    "wire",
    [
        b"5\nhello\r\n0\r\n\r\n",
        b"5\r\nhello\n0\r\n\r\n",
        b"5\r\nhello!\r\n0\r\n\r\n",
        b"5 \r\nhello\r\n0\r\n\r\n",
        b" 5\r\nhello\r\n0\r\n\r\n",
        b"+5\r\nhello\r\n0\r\n\r\n",
        b"-5\r\nhello\r\n0\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"5_0\r\nhello\r\n0\r\n\r\n",
        b"\r\nhello\r\n0\r\n\r\n",
        b"g\r\nhello\r\n0\r\n\r\n",
        b"5;a\rb\r\nhello\r\n0\r\n\r\n",
        b"5;a\x00b\r\nhello\r\n0\r\n\r\n",
        b"10000000000000000\r\n",
        b"5\r\nhello\r\n0\r\nno field\r\n\r\n",
        b"5\r\nhello\r\n0\r\nA: b\nC: d\r\n\r\n",
        b"5\r\nhello\r\n0\r\n A: b\r\n\r\n",
        b"5\r\nhello\r\n0\r\nA : b\r\n\r\n",
        b"5" + b";" * LINE + b"\r\n",
        b"1;" + b"a" * LINE,
        b"0\r\nA: " + b"b" * TRAILERS,
        (b"1;%b\r\nx\r\n" % (b"a" * 200)) * (EXTENSIONS // 200 + 1),
    ],
)
def test_what_is_no_chunk(wire: bytes) -> None:
    for step in (1, 7, len(wire)):
        with pytest.raises(Rejected):
            feed_in_steps(wire, step)


def test_zeros_before_a_size() -> None:
    content, framer = decode(b"00000000000000000000005\r\nhello\r\n000\r\n\r\n")
    assert (content, framer.done) == (b"hello", True)


def test_a_counted_body() -> None:
    framer = Counted(5)
    assert framer.want(100) == 5
    assert [bytes(view) for view in framer.feed(b"he")] == [b"he"]
    assert framer.want(100) == 3
    assert [bytes(view) for view in framer.feed(b"lloGET")] == [b"llo"]
    assert framer.done
    assert framer.rest == b"GET"
    assert Counted(0).done
