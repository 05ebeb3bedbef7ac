"""Header values: what is read, what is refused, what is written."""

from __future__ import annotations

import pytest
from tests.protocol.samples import b64

from tidegate.protocol import fields
from tidegate.protocol.errors import Code, Refusal
from tidegate.protocol.model import MAX_LENGTH

CONTROLS = [chr(c) for c in (*range(0x20), 0x7F)]


# ------------------------------------------------------------------------------------ integers


@pytest.mark.parametrize(
    ("value", "number"),
    [
        ("0", 0),
        ("1", 1),
        ("00", 0),
        ("007", 7),
        ("1073741824", 2**30),
        (str(MAX_LENGTH), MAX_LENGTH),
        ("0" * 5000 + "12", 12),
    ],
)
def test_an_integer_is_one_or_more_ascii_digits(value: str, number: int) -> None:
    assert fields.integer("Upload-Offset", value) == number


@pytest.mark.parametrize(
    "value",
    [
        *("", " ", "-1", "-0", "+5", "1e3", "0x1", "1.0", "1_000", "1,1", "1 1", " 1", "1\n", "a"),
        *("²", "\xb9", "١", "１", "1\x00", "0" * 10 + "x", "NaN", "None"),
    ],
)
def test_anything_else_is_no_integer(value: str) -> None:
    with pytest.raises(
        Refusal, match=r"^Upload-Offset: .* is not a non-negative integer"
    ) as caught:
        fields.integer("Upload-Offset", value)
    assert (caught.value.code, caught.value.status) == (Code.BAD_HEADER, 400)


@pytest.mark.parametrize(
    "value",
    [str(MAX_LENGTH + 1), "0" + str(MAX_LENGTH + 1), "9" * 19, "1" + "0" * 19, "9" * 10_000],
)
def test_an_integer_is_at_most_what_64_bits_hold(value: str) -> None:
    with pytest.raises(Refusal, match=r"over the largest possible, 2\^63-1$") as caught:
        fields.integer("Upload-Length", value)
    assert caught.value.code is Code.BAD_HEADER
    assert len(caught.value.message) < 120


# ------------------------------------------------------------------------------------ metadata


@pytest.mark.parametrize(
    ("value", "pairs"),
    [
        ("", {}),
        (
            "filename d29ybGRfZG9taW5hdGlvbl9wbGFuLnBkZg==,is_confidential",
            {"filename": b"world_domination_plan.pdf", "is_confidential": b""},
        ),
        # "The value MAY be empty. In these cases, the space ... MAY be left out."
        ("a", {"a": b""}),
        ("a ", {"a": b""}),
        ("a ,b ", {"a": b"", "b": b""}),
        ("a,b,c", {"a": b"", "b": b"", "c": b""}),
        # "metadata can contain arbitrary binary values"
        (f"bin {b64(bytes(range(256)))}", {"bin": bytes(range(256))}),
        ("crlf DQpTZXQtQ29va2llOiBh", {"crlf": b"\r\nSet-Cookie: a"}),
        ("plus +/+/", {"plus": b"\xfb\xff\xbf"}),
        # Keys are told apart by their letters.
        ("a YQ==,A Yg==", {"a": b"a", "A": b"b"}),
        ("a=b;c YQ==", {"a=b;c": b"a"}),
        # "The key SHOULD be ASCII encoded": É in UTF-8, and in Latin-1
        ("\xc3\x89 YQ==", {"\xc3\x89": b"a"}),
        ("\xc9 YQ==", {"\xc9": b"a"}),
    ],
)
def test_metadata(value: str, pairs: dict[str, bytes]) -> None:
    assert fields.metadata_pairs(value) == pairs
    assert fields.metadata(value) == value, "kept to the letter"


@pytest.mark.parametrize(
    "value",
    [
        # "consist of one or more comma-separated key-value pairs"; "The key ... MUST NOT be empty."
        *(",", ",,", "a,", ",a", "a YQ==,", "a YQ==,,b", " ", " YQ==", "a, YQ=="),
        # White space after a comma, or anywhere but between key and value
        *("a YQ==, b YQ==", "a, b", "a YQ==,\tb", "a YQ== ,b", "a  YQ==", "a YQ== ", "a\tYQ=="),
        # "the value MUST be Base64 encoded"
        *("a YQ", "a YQ=", "a YQ===", "a =", "a ====", "a Y", "a YQ==YQ==", "a YW-_", "a YQ==\n"),
        *(
            "a YWJj=",
            "a YWJj==",
            "a YWJj====",
            "a !",
            "a Y Q=",
            "a \xe9\xe9==",
            "a YQ==;",
            "a Y=Q=",
        ),
        # "All keys MUST be unique."
        *("a YQ==,a YQ==", "a,a", "a YQ==,b YQ==,a"),
        *(f"a{c} YQ==" for c in CONTROLS),
        *(f"{c} YQ==" for c in CONTROLS),
        "a YQ==\r\nSet-Cookie: b",
    ],
)
def test_metadata_that_is_refused(value: str) -> None:
    with pytest.raises(Refusal, match=r"^Upload-Metadata: ") as caught:
        fields.metadata(value)
    assert (caught.value.code, caught.value.status) == (Code.BAD_METADATA, 400)
    assert caught.value.message.isprintable()


def test_metadata_is_bounded() -> None:
    longest = "kkk " + "A" * (fields.MAX_METADATA - 4)
    assert len(longest) == fields.MAX_METADATA
    assert fields.metadata(longest) == longest
    with pytest.raises(Refusal, match="16385 bytes; expected at most 16384") as caught:
        fields.metadata("k" + longest)
    assert caught.value.code is Code.BAD_METADATA


# ------------------------------------------------------------------------------------ checksum


def test_a_checksum_is_a_name_a_space_and_base64() -> None:
    value = fields.checksum("sha1 Kq5sNclPz7QV2+lfQIuc6R7oRu0=")
    assert value.algorithm == "sha1"
    assert value.digest.hex() == "2aae6c35c94fcfb415dbe95f408b9ce91ee846ed"
    # Whether there is such an algorithm is not a matter of syntax.
    assert fields.checksum("SHA-1 AAAA").algorithm == "SHA-1"
    assert fields.checksum("sha1 ").digest == b""


@pytest.mark.parametrize(
    "value",
    [
        *("", " ", "sha1", " Kq5s", "sha1  Kq5s", "sha1 Kq5", "sha1 Kq5s=", "sha1 Kq5s Kq5s"),
        *(
            "sha1 2aae6c35c",
            "sha1 Kq-_",
            "sha1\tKq5s",
            "sha1,md5",
            "sha1 Kq5s,md5 Kq5s",
            "sha1 \xe9",
        ),
    ],
)
def test_a_checksum_that_is_refused(value: str) -> None:
    with pytest.raises(Refusal, match=r"^Upload-Checksum: ") as caught:
        fields.checksum(value)
    assert (caught.value.code, caught.value.status) == (Code.BAD_CHECKSUM, 400)


# -------------------------------------------------------------------------------------- concat


@pytest.mark.parametrize(
    ("value", "urls"),
    [
        ("partial", None),
        ("final;/files/a", ["/files/a"]),
        ("final;/files/a /files/b /files/a", ["/files/a", "/files/b", "/files/a"]),
        ("final;http://h/a;v=1 b", ["http://h/a;v=1", "b"]),
    ],
)
def test_concat(value: str, urls: list[str] | None) -> None:
    assert fields.concat(value) == urls


@pytest.mark.parametrize(
    "value",
    [
        *("", "final", "final;", "final; ", "final; /a", "final;/a ", "final;/a  /b", "final /a"),
        *(
            "Partial",
            "PARTIAL",
            "partial;",
            "partial;/a",
            "partial ",
            "Final;/a",
            "final,/a",
            ";/a",
        ),
        *("finale;/a", "1", "final;/a\t/b", "final;/a\n", "final;/a\xa0/b"),
        *(f"final;/a{c}b" for c in CONTROLS),
    ],
)
def test_a_concat_that_is_refused(value: str) -> None:
    with pytest.raises(Refusal, match=r"^Upload-Concat: ") as caught:
        fields.concat(value)
    assert (caught.value.code, caught.value.status) == (Code.BAD_CONCAT, 400)


# ------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize(
    ("at", "text"),
    [
        (1403712000.0, "Wed, 25 Jun 2014 16:00:00 GMT"),
        (1403712000.9, "Wed, 25 Jun 2014 16:00:00 GMT"),
        (0.0, "Thu, 01 Jan 1970 00:00:00 GMT"),
        (784111777.0, "Sun, 06 Nov 1994 08:49:37 GMT"),
    ],
)
def test_dates_are_those_of_http(at: float, text: str) -> None:
    assert fields.http_date(at) == text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (None, "attachment"),
        ("", "attachment"),
        ("report.pdf", 'attachment; filename="report.pdf"'),
        ("a b;c=d.txt", 'attachment; filename="a b;c=d.txt"'),
        ("naïve.txt", "attachment; filename=\"na_ve.txt\"; filename*=UTF-8''na%C3%AFve.txt"),
        ("🦆", "attachment; filename=\"_\"; filename*=UTF-8''%F0%9F%A6%86"),
        ('a"b', "attachment; filename=\"a_b\"; filename*=UTF-8''a%22b"),
        ("100%", "attachment; filename=\"100_\"; filename*=UTF-8''100%25"),
        ("a\r\nX: b", 'attachment; filename="a__X: b"'),
        ("a\\", 'attachment; filename="a_"'),
        ("../../etc/passwd", 'attachment; filename=".._.._etc_passwd"'),
        ("C:\\boot.ini", 'attachment; filename="C:_boot.ini"'),
        ("exe.\u202efdp", 'attachment; filename="exe._fdp"'),
        ("a\0b", 'attachment; filename="a_b"'),
        ("a\ud800b", 'attachment; filename="a_b"'),
    ],
)
def test_a_file_name_is_made_harmless(name: str | None, value: str) -> None:
    assert fields.content_disposition("attachment", name) == value


def test_a_file_name_is_bounded() -> None:
    assert len(fields.content_disposition("inline", "é" * 10_000)) < 1600


def test_what_a_client_sent_is_shown_as_printable_ascii_and_bounded() -> None:
    assert fields.shown("abc") == "abc"
    assert fields.shown("a\r\nb\x00c\x7fd\xa0é") == "a??b?c?d??"
    assert fields.shown("x" * 40) == "x" * 40
    assert fields.shown("x" * 41) == "x" * 40 + "…"
