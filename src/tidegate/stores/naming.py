"""Names of files: what an upload's bytes are called on a disk, and whose a file is.

Everything here is pure. A client's file name is never trusted: it may decorate a name, but the
upload's id is what makes it unique, and no name leaves its folder, is hidden, or is over-long.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import hashlib
import re
import string
import unicodedata
import zlib
from collections.abc import Iterator
from typing import Final, NamedTuple

from tidegate.protocol.errors import Refusal
from tidegate.protocol.fields import metadata_pairs
from tidegate.protocol.model import Upload, UploadId

NAME_BYTES: Final = 255
"""What ext4, XFS, Btrfs, ZFS and tmpfs allow for one component of a path (NAME_MAX)."""
CLIENT_BYTES: Final = 200
"""What a client's file name may take of it."""
LEAST_CLIENT_BYTES: Final = 48
"""What a template must leave to each name that comes from a client."""
TOKEN_BYTES: Final = 128
"""The longest form of an upload's id in a file name."""
EXTENSION_BYTES: Final = 32
"""A longer extension, with its dot, is none: no format has one."""
DEEPEST: Final = 8
"""How many components a template may have: all of them together stay far below PATH_MAX."""

# ------------------------------------------------------------------------------ ids in file names

_LITERAL = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._~-]{0,127}")
_HASHED = re.compile(r"~~[0-9a-f]{64}")


def token(upload_id: UploadId) -> str:
    """The id as a file name: itself when that is safe, else encoded; unique, at most 128 bytes.

    An operator's naming function may return anything. What is not safe, or starts with a dot or
    with the mark of an encoded one, is encoded so that it can be read back; what is too long for
    that is hashed.
    """
    if _LITERAL.fullmatch(upload_id):
        return upload_id
    raw = upload_id.encode("utf-8", "surrogatepass")
    encoded = "~" + base64.urlsafe_b64encode(raw).decode().rstrip("=")
    if len(encoded) <= TOKEN_BYTES:
        return encoded
    return "~~" + hashlib.sha256(raw).hexdigest()


def id_of(name: str) -> UploadId | None:
    """The id that `token` made `name` of; None when it can't be told. ValueError: of none."""
    if _LITERAL.fullmatch(name):
        return UploadId(name)
    if _HASHED.fullmatch(name):
        return None
    if not name.startswith("~"):
        raise ValueError(f"{name!r} is no upload's id")
    raw = name[1:]
    try:
        decoded = base64.urlsafe_b64decode(raw + "=" * (-len(raw) % 4))
        upload_id = UploadId(decoded.decode("utf-8", "surrogatepass"))
    except (binascii.Error, UnicodeError) as error:
        raise ValueError(f"{name!r} is no upload's id") from error
    if token(upload_id) != name:
        raise ValueError(f"{name!r} is no upload's id")
    return upload_id


def shard(name: str) -> str:
    """One of 256 folders, so that a folder with a million uploads' files has four thousand."""
    return f"{zlib.crc32(name.encode()) & 0xFF:02x}"


# -------------------------------------------------------------------------- what a client calls it

_RESERVED = frozenset(
    ["con", "prn", "aux", "nul"] + [f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10)]
)
_EVADED = frozenset('<>:"|?*')
_DROPPED = frozenset(["Cc", "Cf", "Cs", "Zl", "Zp"])


class ClientName(NamedTuple):
    """A client's file name, made safe: `stem` is never empty, `ext` is empty or has its dot."""

    stem: str
    ext: str

    def fit(self, size: int) -> str:
        """The whole name in at most `size` bytes of UTF-8, its extension kept."""
        return cut(self.stem, size - len(self.ext.encode())) + self.ext


def cut(name: str, size: int) -> str:
    """`name` in at most `size` bytes of UTF-8, no character cut in two."""
    raw = name.encode()
    if len(raw) <= size:
        return name
    return raw[:size].decode(errors="ignore").rstrip(" .") or "upload"[:size]


def client_name(metadata: str) -> ClientName:
    """The file name in an Upload-Metadata value (`filename`, else `name`), made safe.

    Folders are cut off; what separates, hides, steers a terminal or is reserved somewhere is taken
    out. What is left is at most CLIENT_BYTES; where nothing is left it is "upload".
    """
    try:
        pairs = metadata_pairs(metadata)
    except Refusal:
        pairs = {}
    raw = (pairs.get("filename") or pairs.get("name") or b"").decode(errors="replace")
    # NFC: a name typed on a Mac and the same name typed elsewhere are the same name.
    last = unicodedata.normalize("NFC", raw).replace("\\", "/").rstrip("/").rpartition("/")[2]
    kept = "".join(_clean(character) for character in last).strip(" .")
    if kept.partition(".")[0].rstrip().lower() in _RESERVED:
        kept = f"_{kept}"
    stem, dot, ext = kept.rpartition(".")
    ext = dot + ext.strip()
    if not stem.rstrip(" .") or len(ext.encode()) > EXTENSION_BYTES:
        stem, ext = kept, ""
    return ClientName(cut(stem.rstrip(" .") or "upload", CLIENT_BYTES - len(ext.encode())), ext)


def _clean(character: str) -> str:
    category = unicodedata.category(character)
    if category in _DROPPED:
        return ""
    if category == "Zs":
        return " "
    return "_" if character in _EVADED else character


# --------------------------------------------------------------------------- an operator's template

_CLIENT_FIELDS = frozenset(["filename", "stem"])
_LONGEST = {"id": TOKEN_BYTES, "shard": 2, "year": 4, "month": 2, "day": 2, "ext": EXTENSION_BYTES}
_PATTERNS = {
    "id": r"[A-Za-z0-9._~-]{1,128}",
    "shard": "[0-9a-f]{2}",
    "year": "[0-9]{4}",
    "month": "[0-9]{2}",
    "day": "[0-9]{2}",
    "filename": "[^/]+",
    "stem": "[^/]+",
    "ext": r"(?:\.[^/.]+)?",
}


class _Piece(NamedTuple):
    """A literal, or a field's name."""

    text: str
    field: bool

    @property
    def pattern(self) -> str:
        return _PATTERNS[self.text] if self.field else re.escape(self.text)


class Template:
    """How finished files are named: `{year}/{month}/{id}-{filename}`, say.

    Fields: {id} {shard} {year} {month} {day} (of the upload's creation, UTC) {filename} {stem}
    {ext} (with its dot, or empty). {id} must be there, since it alone is unique. Raises ValueError
    saying what is wrong.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._components = _parse(text)
        self._fields = fields = {
            piece.text for pieces in self._components for piece in pieces if piece.field
        }
        self._plain = fields <= {"id", "shard"}
        if "id" not in fields:
            raise ValueError(f"the name template {text!r} lacks {{id}}, which makes names unique")
        # Where the id stands, and what surrounds it there: see `ids`.
        self._id_at, pieces = next(
            (number, pieces)
            for number, pieces in enumerate(self._components)
            if _Piece("id", field=True) in pieces
        )
        at = pieces.index(_Piece("id", field=True))
        self._before = re.compile("".join(piece.pattern for piece in pieces[:at]))
        self._after = re.compile("".join(piece.pattern for piece in pieces[at + 1 :]))
        # Matched against "<token>/<shard>/<path>": no part of a path contains a separator.
        bound = {"id": r"(?P=id)", "shard": r"(?P=shard)"}
        self._whole = re.compile(
            r"(?P<id>[^/]+)/(?P<shard>[^/]+)/"
            + "/".join(
                "".join(
                    bound.get(piece.text, piece.pattern) if piece.field else piece.pattern
                    for piece in pieces
                )
                for pieces in self._components
            ),
        )

    def render(self, upload: Upload) -> str:
        """The relative path of the upload's finished file. Pure."""
        name = token(upload.id)
        values = {"id": name, "shard": shard(name)}
        if not self._plain:
            created = datetime.datetime.fromtimestamp(upload.created_at, datetime.UTC)
            values["year"] = f"{created.year:04}"
            values["month"] = f"{created.month:02}"
            values["day"] = f"{created.day:02}"
        if self._fields <= values.keys():
            return self.text.format_map(values)
        client = client_name(upload.metadata)
        return "/".join(_render(pieces, values, client) for pieces in self._components)

    @property
    def tells(self) -> bool:
        """Whether the id of every file can be told from its path: it has a component of its own."""
        return len(self._components[self._id_at]) == 1

    def ids(self, path: str) -> Iterator[UploadId | None]:
        """Every id whose upload may have been given `path` by this template; None for unknown.

        The true one is among them. There can be several: `a-b-c` under `{id}-{filename}`.
        """
        parts = path.split("/")
        if len(parts) != len(self._components):
            return
        text = parts[self._id_at]
        places = range(len(text) + 1)
        starts = [at for at in places if self._before.fullmatch(text, 0, at)]
        ends = [at for at in places if self._after.fullmatch(text, at)]
        for start in starts:
            for end in ends:
                name = text[start:end]
                try:
                    upload_id = id_of(name)
                except ValueError:
                    continue
                if self._whole.fullmatch(f"{name}/{shard(name)}/{path}"):
                    yield upload_id


def _parse(text: str) -> list[list[_Piece]]:
    where = f"the name template {text!r}"
    try:
        parsed = list(string.Formatter().parse(text))
    except ValueError as error:
        raise ValueError(f"{where} can't be read: {error}") from None
    components: list[list[_Piece]] = [[]]
    for literal, field, spec, conversion in parsed:
        for number, part in enumerate(literal.split("/")):
            if number:
                components.append([])
            if part:
                components[-1].append(_Piece(part, field=False))
        if field is None:
            continue
        if field not in _PATTERNS or spec or conversion:
            known = " ".join(f"{{{name}}}" for name in _PATTERNS)
            raise ValueError(f"{where} has {{{field}}}; the fields are {known}")
        components[-1].append(_Piece(field, field=True))
    if text.startswith("/"):
        raise ValueError(f"{where} is absolute; names are below the store's folder")
    if len(components) > DEEPEST:
        raise ValueError(f"{where} is more than {DEEPEST} folders deep")
    for pieces in components:
        _check_component(where, pieces)
    return components


def _check_component(where: str, pieces: list[_Piece]) -> None:
    if not pieces:
        raise ValueError(f"{where} has an empty component")
    if pieces[0].text.startswith(".") or pieces[0] == _Piece("ext", field=True):
        raise ValueError(f"{where} has a component that is '..' or hidden: it starts with a dot")
    literal = "".join(piece.text for piece in pieces if not piece.field)
    if not literal.isprintable() or "\\" in literal:
        raise ValueError(f"{where} has a control character or a backslash")
    clients = sum(piece.field and piece.text in _CLIENT_FIELDS for piece in pieces)
    if _size(pieces, None) + clients * LEAST_CLIENT_BYTES > NAME_BYTES:
        raise ValueError(f"{where} has a component that can be over {NAME_BYTES} bytes")


def _size(pieces: list[_Piece], values: dict[str, str] | None) -> int:
    """Bytes of a component without what comes from a client: with `values`, or the most."""
    size = 0
    for piece in pieces:
        if not piece.field:
            size += len(piece.text.encode())
        elif piece.text not in _CLIENT_FIELDS:
            size += _LONGEST[piece.text] if values is None else len(values[piece.text].encode())
    return size


def _render(pieces: list[_Piece], values: dict[str, str], client: ClientName) -> str:
    values = {**values, "ext": client.ext}
    clients = sum(piece.field and piece.text in _CLIENT_FIELDS for piece in pieces)
    if clients:
        room = min(CLIENT_BYTES, (NAME_BYTES - _size(pieces, values)) // clients)
        values["filename"] = client.fit(room)
        values["stem"] = cut(client.stem, room)
    return "".join(values[piece.text] if piece.field else piece.text for piece in pieces)
