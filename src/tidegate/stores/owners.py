"""Whose a stored file is. Blocking, like `disk`.

A sweep deletes what no record speaks of, so a guess could delete a completed upload. Where a name
may be that of two uploads, by any template that was ever used here, only a signature tells; where
there is none, the file is nobody's and stays.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from typing import Final

from tidegate.ports import Stored
from tidegate.protocol.model import Upload, UploadId
from tidegate.stores import disk, naming
from tidegate.stores.layout import FINISHED, INCOMING, incoming

SIGNATURE: Final = "user.tidegate.id"
"""The extended attribute with the upload's id."""


def sign(fd: int, upload: Upload, place: str, templates: Sequence[naming.Template]) -> None:
    """Note in a file whose it is, when `place`, where it is to be, does not tell.

    Without extended attributes such a file can't be told, and is never swept.
    """
    if len(templates) == 1 and templates[0].tells and naming.token(upload.id) == upload.id:
        return
    if _candidates(place, templates) != {upload.id} and hasattr(os, "setxattr"):
        with suppress(OSError):
            os.setxattr(fd, SIGNATURE, upload.id.encode("utf-8", "surrogatepass"))


def walk(base: str, templates: Sequence[naming.Template]) -> Generator[Stored, None, None]:
    """All files whose upload is certain. Raises DataError."""
    with disk.translated("list"):
        # In this order: without its name in INCOMING the other would be taken for a whole upload's.
        for top in (FINISHED, INCOMING):
            for place, entry in _files(base, top):
                upload_id = _owner(base, place, templates)
                if upload_id is None:
                    continue
                try:
                    found = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                marked = found.st_nlink > 1 and (
                    top == INCOMING or _is_marked(base, upload_id, found)
                )
                whole = top == FINISHED and not marked
                yield Stored(upload_id, found.st_size, found.st_mtime, place, whole, marked)


def _is_marked(base: str, upload_id: UploadId, found: os.stat_result) -> bool:
    """Whether a finished file has its first name as well: there may be no record of it."""
    return disk.same_file(os.path.join(base, incoming(naming.token(upload_id))), found)


def _files(base: str, folder: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    try:
        entries = os.scandir(os.path.join(base, folder))
    except FileNotFoundError:
        return
    with entries:
        for entry in entries:
            place = f"{folder}/{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                yield from _files(base, place)
            elif entry.is_file(follow_symlinks=False):
                yield place, entry


def _owner(base: str, place: str, templates: Sequence[naming.Template]) -> UploadId | None:
    candidates = _candidates(place, templates)
    if len(candidates) == 1 and None not in candidates:
        return candidates.pop()
    signed = _signature(os.path.join(base, place)) if candidates else None
    return signed if signed in candidates or None in candidates else None


def _candidates(place: str, templates: Sequence[naming.Template]) -> set[UploadId | None]:
    """Every upload that may have been given this place; None is one whose id can't be told."""
    top, _, path = place.partition("/")
    if top == FINISHED:
        return {owner for template in templates for owner in template.ids(path)}
    try:
        return {naming.id_of(path.rpartition("/")[2])}
    except ValueError:
        return set()


def _signature(path: str) -> UploadId | None:
    if hasattr(os, "getxattr"):
        with suppress(OSError, UnicodeDecodeError):
            raw = os.getxattr(path, SIGNATURE, follow_symlinks=False)
            return UploadId(raw.decode("utf-8", "surrogatepass"))
    return None
