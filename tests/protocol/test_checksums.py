"""The algorithms, against values that others computed."""

from __future__ import annotations

import hashlib
import zlib
from importlib.util import find_spec

import pytest

from tidegate.protocol import checksums
from tidegate.protocol.checksums import Algorithm, algorithms

# FIPS 180-4 and RFC 1321 for `abc`; the check values of the CRC catalogue for `123456789`; the
# BLAKE3 team's own for `abc`.
VECTORS = [
    ("sha1", b"", "da39a3ee5e6b4b0d3255bfef95601890afd80709"),
    ("sha1", b"abc", "a9993e364706816aba3e25717850c26c9cd0d89d"),
    ("sha1", b"hello world", "2aae6c35c94fcfb415dbe95f408b9ce91ee846ed"),
    ("sha256", b"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
    (
        "sha512",
        b"abc",
        (
            "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a"
            "2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f"
        ),
    ),
    ("md5", b"abc", "900150983cd24fb0d6963f7d28e17f72"),
    ("crc32", b"", "00000000"),
    ("crc32", b"123456789", "cbf43926"),
    ("crc32", b"a", "e8b7be43"),
    ("crc32c", b"", "00000000"),
    ("crc32c", b"123456789", "e3069283"),
    ("crc32c", bytes(32), "8a9136aa"),  # RFC 3720, B.4
    ("blake3", b"abc", "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85"),
    ("blake3", b"", "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"),
]
TABLE = algorithms()


def digest(algorithm: Algorithm, *pieces: bytes | bytearray | memoryview) -> str:
    running = algorithm.start()
    for piece in pieces:
        running.update(piece)
    return running.digest().hex()


def test_every_algorithm_has_a_vector() -> None:
    assert set(TABLE) == {name for name, _, _ in VECTORS}
    assert list(TABLE) == ["sha1", "sha256", "sha512", "md5", "crc32", "crc32c", "blake3"]


@pytest.mark.parametrize(("name", "data", "expected"), VECTORS)
def test_known_values(name: str, data: bytes, expected: str) -> None:
    assert digest(TABLE[name], data) == expected


@pytest.mark.parametrize("algorithm", TABLE.values(), ids=lambda a: a.name)
def test_a_digest_has_the_size_that_the_table_says(algorithm: Algorithm) -> None:
    assert len(algorithm.start().digest()) == algorithm.size
    running = algorithm.start()
    running.update(b"x" * 1000)
    assert len(running.digest()) == algorithm.size


@pytest.mark.parametrize("algorithm", TABLE.values(), ids=lambda a: a.name)
def test_pieces_of_any_buffer_are_as_the_whole(algorithm: Algorithm) -> None:
    """As a transport hands them over: slices of a large buffer that is used again."""
    whole = bytes(range(256)) * 40
    buffer = bytearray(b"-" * 7 + whole + b"-" * 9)
    view = memoryview(buffer)[7:-9]
    expected = digest(algorithm, whole)
    assert digest(algorithm, view) == expected
    assert digest(algorithm, view.toreadonly()) == expected
    assert digest(algorithm, bytearray(whole)) == expected
    assert digest(algorithm, view[:1], view[1:1], b"", view[1:4096], bytes(view[4096:])) == expected

    running = algorithm.start()
    running.update(view)
    buffer[:] = bytes(len(buffer))
    assert running.digest().hex() == expected, "nothing of the buffer is kept"


@pytest.mark.parametrize("algorithm", TABLE.values(), ids=lambda a: a.name)
def test_each_start_is_a_new_one(algorithm: Algorithm) -> None:
    first, second = algorithm.start(), algorithm.start()
    first.update(b"abc")
    assert second.digest() == algorithm.start().digest() != first.digest()


@pytest.mark.parametrize("algorithm", TABLE.values(), ids=lambda a: a.name)
def test_a_digest_may_be_asked_for_twice(algorithm: Algorithm) -> None:
    running = algorithm.start()
    running.update(b"ab")
    assert running.digest() == running.digest()
    running.update(b"c")
    assert running.digest().hex() == digest(algorithm, b"abc")


def test_crcs_are_big_endian() -> None:
    value = zlib.crc32(b"tide")
    assert digest(TABLE["crc32"], b"tide") == f"{value:08x}"
    assert digest(TABLE["crc32"], b"\0" * 7) == f"{zlib.crc32(bytes(7)):08x}", "with leading zeros"


@pytest.mark.parametrize("name", ["sha1", "sha256", "sha512", "md5"])
def test_hashes_are_those_of_hashlib(name: str) -> None:
    data = b"tide" * 1000
    assert digest(TABLE[name], data) == hashlib.new(name, data).hexdigest()


@pytest.mark.parametrize("missing", [{"crc32c"}, {"blake3"}, {"crc32c", "blake3"}])
def test_without_an_extra_its_algorithms_are_not_offered(
    missing: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        checksums, "find_spec", lambda name: None if name in missing else find_spec(name)
    )
    assert set(algorithms()) == set(TABLE) - missing


def test_names_have_no_upper_case() -> None:
    assert all(name == a.name == name.lower() and name.isascii() for name, a in TABLE.items())
