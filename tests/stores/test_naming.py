"""What files are called: whatever a client or an operator says, a name is safe, and tells its id."""

from __future__ import annotations

import base64
import unicodedata
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tidegate.protocol.model import Upload, UploadId
from tidegate.stores import naming
from tidegate.stores.naming import Template, client_name, id_of, shard, token

TEMPLATES = [
    "{id}",
    "{shard}/{id}",
    "{id}/{filename}",
    "{id}{ext}",
    "{year}/{month}/{day}/{id}-{filename}",
    "{filename} {id}",
    "{stem}-{id}-{day}{ext}",
    "{filename}/{stem}{ext}/{id}",
    "a-{id}/{id}.{shard}.bin",
    "{{{id}}}",
]
IDS = st.one_of(
    st.text(),
    st.text("ab.-_~", max_size=6),
    st.text("a-", min_size=100, max_size=200),
    st.sampled_from(["..", ".", "", "/", "~", "\ud800", "con", "templates", "\0"]),
)
NAMES = st.one_of(
    st.text(),
    st.text("ab. /\\-~\0\u202e:é", max_size=12),
    st.text("é🦆", min_size=100, max_size=300),
    st.from_regex(r"\A(con|NUL|com1|a)(\.[a-z]{0,40}){0,3}\Z"),
    st.sampled_from(
        ["..", "../../etc/passwd", ".bashrc", "C:\\x\\y.txt", "/", "a.tar.gz", ". .", ""]
    ),
)


def metadata(name: bytes | str, key: str = "filename") -> str:
    raw = name if isinstance(name, bytes) else name.encode("utf-8", "surrogatepass")
    return f"{key} {base64.b64encode(raw).decode()}"


def upload(name: str, **fields: Any) -> Upload:
    return Upload(id=UploadId(name), active_at=0, **{"created_at": 0.0} | fields)


def is_safe(component: str) -> bool:
    return (
        0 < len(component.encode()) <= 255
        and not component.startswith(".")
        and "/" not in component
        and "\\" not in component
        and not any(unicodedata.category(c) in {"Cc", "Cf", "Cs", "Zl", "Zp"} for c in component)
    )


@pytest.mark.parametrize("template", TEMPLATES)
@given(name=IDS, filename=NAMES)
def test_no_name_leaves_its_folder_or_is_hidden_or_is_too_long(
    template: str, name: str, filename: str
) -> None:
    made = Template(template)
    path = made.render(upload(name, metadata=metadata(filename)))
    assert all(is_safe(component) for component in path.split("/")), path
    assert path.count("/") == template.count("/")
    # The true id is always among those that the path may mean, or the path says that it can't tell.
    found = set(made.ids(path))
    assert name in found or (None in found and token(UploadId(name)).startswith("~~"))


@given(name=IDS)
def test_an_id_can_be_told_from_its_token(name: str) -> None:
    made = token(UploadId(name))
    assert is_safe(made)
    assert len(made) <= naming.TOKEN_BYTES
    assert id_of(made) == (None if made.startswith("~~") else name)


@given(first=IDS, second=IDS)
@example("~YQ", "a")
@example("~" + "~" * 200, "~~" + "0" * 64)
def test_two_ids_never_share_a_token(first: str, second: str) -> None:
    assert (token(UploadId(first)) == token(UploadId(second))) == (first == second)


@pytest.mark.parametrize("name", ["", ".a", "~!", "~a", "a b", "a" * 129, "~~zz", "~YQ", "~YQ=="])
def test_what_is_no_token_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no upload's id"):
        id_of(name)


@given(filename=NAMES, key=st.sampled_from(["filename", "name"]))
def test_a_client_name_is_always_usable(filename: str, key: str) -> None:
    stem, ext = client_name(metadata(filename, key))
    assert is_safe(stem + ext)
    assert stem
    assert not stem.endswith((" ", "."))
    assert len((stem + ext).encode()) <= naming.CLIENT_BYTES
    assert ext == "" or (ext[0] == "." and "." not in ext[1:] and 1 < len(ext.encode()) <= 32)
    assert stem.lower() not in {"con", "nul", "com1"}


@given(name=st.text(min_size=1), size=st.integers(6, 40))
def test_no_character_is_cut_in_two(name: str, size: int) -> None:
    raw = name.encode("utf-8", "replace").decode()
    short = naming.cut(raw, size)
    assert len(short.encode()) <= size
    assert raw.startswith(short) or short == "upload"


@pytest.mark.parametrize(
    ("given_name", "expected"),
    [
        ("photo.jpg", ("photo", ".jpg")),
        ("archive.tar.gz", ("archive.tar", ".gz")),
        ("../../etc/passwd", ("passwd", "")),
        ("C:\\fakepath\\report.pdf", ("report", ".pdf")),
        ("folder/", ("folder", "")),
        (".bashrc", ("bashrc", "")),
        ("...", ("upload", "")),
        ("", ("upload", "")),
        ("NUL.txt", ("_NUL", ".txt")),
        ("com1", ("_com1", "")),
        ("a\r\nb\0c.txt", ("abc", ".txt")),
        ("evil\u202egpj.exe", ("evilgpj", ".exe")),
        ("e\u0301te\u0301.txt", ("\u00e9t\u00e9", ".txt")),
        ("no-break\u00a0space", ("no-break space", "")),
        ("what?*.txt", ("what__", ".txt")),
        ("x." + "y" * 40, ("x." + "y" * 40, "")),
        ("trailing. . ", ("trailing", "")),
    ],
)
def test_client_names(given_name: str, expected: tuple[str, str]) -> None:
    assert client_name(metadata(given_name)) == expected


def test_where_a_client_name_comes_from() -> None:
    """`filename` before `name`; bytes that are no text, and metadata that is none, are survived."""
    both = f"{metadata('a.txt', 'name')},{metadata('b.txt')}"
    assert client_name(both) == ("b", ".txt")
    assert client_name(metadata("a.txt", "name")) == ("a", ".txt")
    assert client_name(f"{metadata('a.txt', 'name')},filename") == ("a", ".txt")
    assert client_name(metadata(b"\xff\xfe.txt")) == ("\ufffd\ufffd", ".txt")
    assert client_name("not base64!,,") == ("upload", "")
    assert client_name("") == ("upload", "")


def test_fields() -> None:
    template = Template("{year}/{month}/{day}/{shard}/{stem}+{id}{ext}")
    made = template.render(upload("abc", created_at=1_700_000_000, metadata=metadata("a b.txt")))
    assert made == f"2023/11/14/{shard('abc')}/a b+abc.txt"


def test_a_long_name_keeps_its_extension_and_leaves_room_for_the_id() -> None:
    made = Template("{id}-{filename}").render(
        upload("i" * 128, metadata=metadata("ä" * 300 + ".jpeg"))
    )
    assert made.endswith("ä.jpeg")
    assert 250 < len(made.encode()) <= 255


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("", r"empty component"),
        ("{filename}", r"lacks \{id\}"),
        ("{{id}}", r"lacks \{id\}"),
        ("/{id}", "absolute"),
        ("../{id}", "'..' or hidden"),
        ("a/../{id}", "'..' or hidden"),
        ("./{id}", "'..' or hidden"),
        (".{id}", "'..' or hidden"),
        ("{id}/{ext}", "'..' or hidden"),
        ("a//{id}", "empty component"),
        ("{id}/", "empty component"),
        ("{id}\n", "control character"),
        ("a\\{id}", "backslash"),
        ("{id}{", "can't be read"),
        ("{id}{user}", r"has \{user\}; the fields are \{id\} \{shard\}"),
        ("{id!r}", r"has \{id\}"),
        ("{id:>3}", r"has \{id\}"),
        ("{id.__class__}", r"has \{id.__class__\}"),
        ("{}{id}", r"has \{\}"),
        ("x" * 200 + "{id}", "over 255 bytes"),
        ("{filename}{stem}{filename}{id}", "over 255 bytes"),
        ("a/b/c/d/e/f/g/h/{id}", "8 folders deep"),
    ],
)
def test_a_bad_template_is_refused(template: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Template(template)


@pytest.mark.parametrize(
    ("template", "path", "ids"),
    [
        ("{id}-{filename}", "a-b-c", {"a", "a-b"}),
        ("{id}-{filename}", "a-b", {"a"}),
        ("{filename} {id}", "a b c", {"c"}),
        ("{id}{ext}", "a.mp4", {"a", "a.mp4"}),
        ("{id}", "a/b", set()),
        ("{id}", "a b", set()),
        ("{id}/{filename}", "a/b-c.d", {"a"}),
        ("{shard}/{id}", f"{shard('abc')}/abc", {"abc"}),
        ("{shard}/{id}", f"{shard('abd')}/abc", set()),
        ("{id}/{id}.bin", "a/a.bin", {"a"}),
        ("{id}/{id}.bin", "a/b.bin", set()),
        ("{id}", "~YSBi", {"a b"}),
        ("{id}", "~~" + "0" * 64, {None}),
    ],
)
def test_whose_a_path_may_be(template: str, path: str, ids: set[str | None]) -> None:
    assert set(Template(template).ids(path)) == ids
