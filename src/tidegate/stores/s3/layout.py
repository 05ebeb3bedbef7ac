"""Keys: what is called what in a bucket, and which upload a key belongs to. Pure.

Below the prefix finished objects are named by the template; `.tidegate/tails/<id>/<random>` holds
what is too small for a part. No name of the template's begins with a dot.
"""

from __future__ import annotations

from typing import Final

from tidegate.protocol.model import Upload, UploadId
from tidegate.stores import naming

TAILS: Final = ".tidegate/tails/"


class Layout:
    """The keys below one prefix, which is empty or ends with a slash."""

    def __init__(self, prefix: str, template: naming.Template) -> None:
        self.prefix = prefix
        self.tails = prefix + TAILS
        self._template = template

    def key(self, upload: Upload) -> str:
        """Of the finished object. Unique, since the id is in it."""
        return self.prefix + self._template.render(upload)

    def tails_of(self, upload_id: UploadId) -> str:
        """What the keys of an upload's tails begin with."""
        return f"{self.tails}{naming.token(upload_id)}/"

    def owner(self, key: str) -> UploadId | None:
        """The upload that a finished object, or one on its way, belongs to, where that is sure."""
        if not key.startswith(self.prefix) or key.startswith(self.tails):
            return None
        ids = set(self._template.ids(key.removeprefix(self.prefix)))
        return ids.pop() if len(ids) == 1 else None

    def tail_owner(self, key: str) -> UploadId | None:
        """The same of a tail."""
        name, slash, rest = key.removeprefix(self.tails).partition("/")
        if not (key.startswith(self.tails) and slash and rest):
            return None
        try:
            return naming.id_of(name)
        except ValueError:
            return None
