"""What a finished object tells whoever reads it from the bucket. Pure."""

from __future__ import annotations

import re
from typing import Any, Final

from tidegate.protocol import fields
from tidegate.protocol.errors import Refusal
from tidegate.protocol.model import Upload
from tidegate.stores import naming

OWNER: Final = "tidegate-upload"
"""The entry of an object's metadata that says whose bytes they are."""

_TYPE_KEYS: Final = ("filetype", "contentType", "content-type", "mimetype", "type")
_MEDIA_TYPE: Final = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,63}/[a-z0-9][a-z0-9!#$&^_.+-]{0,63}")


def fields_of(upload: Upload) -> dict[str, Any]:
    """The parameters with which an upload's object is made: type, name, and whose it is.

    A client's words, as far as they are harmless in a header. What a browser does with the type is
    up to whoever lets it read the bucket; it is always told to save, not to show.
    """
    try:
        pairs = fields.metadata_pairs(upload.metadata)
    except Refusal:
        pairs = {}
    typed = next((pairs[key] for key in _TYPE_KEYS if pairs.get(key)), b"")
    media_type = typed.decode("latin-1").partition(";")[0].strip().lower()
    if not _MEDIA_TYPE.fullmatch(media_type):
        media_type = "application/octet-stream"
    name = (pairs.get("filename") or pairs.get("name") or b"").decode("utf-8", "replace")
    return {
        "ContentType": media_type,
        "ContentDisposition": fields.content_disposition("attachment", name),
        "Metadata": {OWNER: naming.token(upload.id)},
    }
