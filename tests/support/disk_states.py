"""What a loss of power may leave of what was done to a disk: see `disk_trace`.

The rules are those of POSIX, which promises less than any file system that we know keeps:

- What was written to a file since its last sync is there or not, each write by itself, whole or up
  to, or from, some sector; where it is not, the file may have grown all the same, and reads zeros.
- Of what was done to the names in a folder since its last sync the first so many are there.
  Folders are independent of each other, and of the files. (A rename is one change.)
- A synced file whose name was not synced can't be found.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from tests.support.disk_trace import (
    ROOT,
    Attribute,
    Happening,
    Link,
    Make,
    Node,
    Note,
    Rename,
    Sync,
    Truncate,
    Unlink,
    Unnamed,
    Write,
)

SECTOR: Final = 512
"""What a disk writes whole, or not at all."""

Named = Make | Link | Unlink | Rename
Changed = Write | Truncate


@dataclass
class File:
    """What a file holds for sure, and what was done to it since."""

    sure: bytes = b""
    since: list[Changed] = field(default_factory=list)
    attributes: dict[str, bytes] = field(default_factory=dict)
    attributes_since: list[Attribute] = field(default_factory=list)


@dataclass
class Folder:
    """Which names are in a folder for sure, and what was done to them since."""

    sure: dict[str, Node] = field(default_factory=dict)
    since: list[Named] = field(default_factory=list)


class Kept(NamedTuple):
    """What becomes of one write or truncation: which of its bytes are there."""

    start: int = 0
    stop: int | None = None
    zeros: bool = False
    """Where they are not, the file has grown, and reads zeros."""


ALL: Final = Kept()
NONE: Final = Kept(0, 0)
ZEROS: Final = Kept(0, 0, zeros=True)


@dataclass
class Choice:
    """What becomes of what was not synced: one of many ways in which it can go."""

    label: str
    names: Callable[[Node, int], int]
    """Of a folder's so many changes, how many are there."""
    change: Callable[[Node, int, Changed], Kept]
    """Of a file, which change it is, and the change."""


State = Mapping[str, "bytes | str | None"]
"""What is found below the root: a file's bytes, `= path` for another name of an earlier one's, None
for a folder; attributes are under `path\\0name`."""


class Disk:
    """A disk on which things happen, and which may lose its power at any time."""

    def __init__(self, lost: Callable[[Sync], bool] = lambda _: False) -> None:
        """`lost` says which syncs do not happen."""
        self.files: dict[Node, File] = {}
        self.folders: dict[Node, Folder] = {ROOT: Folder()}
        self._lost = lost

    def apply(self, happening: Happening) -> None:
        """Let something happen."""
        match happening:
            case Note():
                return
            case Make(folder, _, node, is_folder):
                if is_folder:
                    self.folders[node] = Folder()
                else:
                    self.files[node] = File()
                self.folders[folder].since.append(happening)
            case Unnamed(node):
                self.files[node] = File()
            case Link(folder) | Unlink(folder):
                self.folders[folder].since.append(happening)
            case Rename(folder, _, old_folder):
                self.folders[folder].since.append(happening)
                if old_folder != folder:
                    self.folders[old_folder].since.append(happening)
            case Write(node) | Truncate(node):
                self.files[node].since.append(happening)
            case Attribute(node):
                self.files[node].attributes_since.append(happening)
            case Sync():
                if not self._lost(happening):
                    self._sync(happening)

    def _sync(self, sync: Sync) -> None:
        if sync.node in self.folders:
            folder = self.folders[sync.node]
            folder.sure = self._names(sync.node, len(folder.since), lambda _, count: count)
            folder.since.clear()
            return
        file = self.files[sync.node]
        file.sure = _content(file, lambda *_: ALL, sync.node)
        file.since.clear()
        if sync.whole:
            file.attributes.update({a.name: a.value for a in file.attributes_since})
            file.attributes_since.clear()

    def _names(self, node: Node, count: int, kept: Callable[[Node, int], int]) -> dict[str, Node]:
        folder = self.folders[node]
        names = folder.sure.copy()
        for change in folder.since[:count]:
            match change:
                case Unlink(_, name):
                    names.pop(name, None)
                case Rename(at, name, old_at, old_name, moved):
                    if at == node:
                        names[name] = moved
                    # One change: it is gone here only if it is there.
                    if old_at == node and (at == node or self._has_come(at, change, kept)):
                        names.pop(old_name, None)
                case Make(_, name, made) | Link(_, name, made):
                    names[name] = made
        return names

    def _has_come(self, node: Node, change: Rename, kept: Callable[[Node, int], int]) -> bool:
        since = self.folders[node].since
        if change not in since:
            return True
        return since.index(change) < kept(node, len(since))

    def pending(self) -> tuple[list[Node], list[Node]]:
        """The files, and the folders, of which something may be lost now."""
        return (
            [node for node, file in self.files.items() if file.since],
            [node for node, folder in self.folders.items() if folder.since],
        )

    def after_power_loss(self, choice: Choice) -> State:
        """What is found when the power is back, if it goes as `choice` says."""
        state: dict[str, bytes | str | None] = {}
        self._find(ROOT, "", choice, state, {})
        return state

    def _find(
        self,
        node: Node,
        place: str,
        choice: Choice,
        state: dict[str, bytes | str | None],
        found: dict[Node, str],
    ) -> None:
        folder = self.folders[node]
        names = self._names(node, choice.names(node, len(folder.since)), choice.names)
        for name, child in sorted(names.items()):
            path = f"{place}{name}"
            if child in self.folders:
                state[path] = None
                self._find(child, f"{path}/", choice, state, found)
            elif child in found:
                state[path] = f"= {found[child]}"
            else:
                found[child] = path
                file = self.files[child]
                state[path] = _content(file, choice.change, child)
                for key, value in file.attributes.items():
                    state[f"{path}\0{key}"] = value


def _content(file: File, kept: Callable[[Node, int, Changed], Kept], node: Node) -> bytes:
    if not file.since:
        return file.sure
    content = bytearray(file.sure)
    for number, change in enumerate(file.since):
        what = kept(node, number, change)
        if isinstance(change, Truncate):
            if what != NONE:
                del content[change.size :]
                content.extend(bytes(change.size - len(content)))
            continue
        stop = len(change.data) if what.stop is None else min(what.stop, len(change.data))
        start = min(what.start, stop)
        size = change.offset + (len(change.data) if what.zeros else stop)
        if (stop > start or what.zeros) and size > len(content):
            content.extend(bytes(size - len(content)))
        content[change.offset + start : change.offset + stop] = change.data[start:stop]
    return bytes(content)


def fingerprint(state: State) -> bytes:
    """The same for the same state."""
    digest = hashlib.blake2b(digest_size=16)
    for path, content in state.items():
        raw = content.encode() if isinstance(content, str) else content
        digest.update(f"{path}\0{-1 if raw is None else len(raw)}\0".encode())
        digest.update(raw or b"")
    return digest.digest()


def write_out(state: State, root: str) -> None:
    """Make a folder look like this."""
    for path, content in state.items():
        name, _, attribute = path.partition("\0")
        place = os.path.join(root, name)
        if attribute:
            assert isinstance(content, bytes)
            os.setxattr(place, attribute, content)
        elif content is None:
            os.mkdir(place)
        elif isinstance(content, str):
            os.link(os.path.join(root, content.removeprefix("= ")), place)
        else:
            with open(place, "wb") as file:
                file.write(content)


# ------------------------------------------------------------------------- the ways it can go

KEPT: Final = Choice("all kept", lambda _, count: count, lambda *_: ALL)
LOST: Final = Choice("all lost", lambda *_: 0, lambda *_: NONE)


def extremes(disk: Disk, kind_of: Callable[[Node], str]) -> Iterator[Choice]:
    """Each kind of file, and the names, lost altogether or kept altogether, in every combination;
    and what is lost of the files turned to zeros.
    """
    files, folders = disk.pending()
    kinds = sorted({kind_of(node) for node in files})
    for number in range(1 << len(kinds)):
        lost = {kind for at, kind in enumerate(kinds) if number >> at & 1}
        gone: tuple[Kept, ...] = (NONE, ZEROS) if lost else (NONE,)
        for instead in gone:
            for keep_names in (False, True) if folders else (True,):
                yield Choice(
                    f"lost: {', '.join(sorted(lost)) or 'no file'}"
                    f"{' (zeros)' if instead is ZEROS else ''}"
                    f"{'' if keep_names else ', names'}",
                    (lambda _, count: count) if keep_names else (lambda _, _count: 0),
                    _by_kind(kind_of, lost, instead),
                )


def _by_kind(
    kind_of: Callable[[Node], str], lost: set[str], instead: Kept
) -> Callable[[Node, int, Changed], Kept]:
    return lambda node, _, change: (
        (NONE if isinstance(change, Truncate) else instead) if kind_of(node) in lost else ALL
    )


def folder_prefixes(disk: Disk) -> Iterator[Choice]:
    """Of each folder every prefix of what was done to its names, the other folders' all or none."""
    for node in disk.pending()[1]:
        count = len(disk.folders[node].since)
        for others in (True, False):
            for first in range(count + 1):
                yield Choice(
                    f"{first} of {count} names of folder {node}, {'all' if others else 'none'}"
                    " of the others",
                    _prefix(node, first, all_others=others),
                    lambda *_: ALL,
                )


def _prefix(node: Node, first: int, *, all_others: bool) -> Callable[[Node, int], int]:
    return lambda folder, count: first if folder == node else (count if all_others else 0)


def singles(disk: Disk, most: int | None = None) -> Iterator[Choice]:
    """One write lost and all else kept; one write kept and all else lost.

    Of files to which no more than `most` changes were made.
    """
    for node in disk.pending()[0]:
        count = len(disk.files[node].since)
        for number in range(count if most is None or count <= most else 0):
            for keep in (True, False):
                yield Choice(
                    f"change {number} of file {node} {'alone kept' if keep else 'alone lost'}",
                    lambda _, count: count,
                    _single(node, number, keep=keep),
                )


def _single(node: Node, number: int, *, keep: bool) -> Callable[[Node, int, Changed], Kept]:
    return lambda file, at, _: ALL if ((file, at) == (node, number)) is keep else NONE


def at_random(seed: str) -> Choice:
    """Any subset of the writes, some of them torn, and any prefix of each folder's names.

    The same for the same seed.
    """

    def names(node: Node, count: int) -> int:
        return random.Random(f"{seed} folder {node}").randint(0, count)

    def change(node: Node, number: int, what: Changed) -> Kept:
        chance = random.Random(f"{seed} file {node} {number}")
        kept = chance.choice(("all", "all", "none", "zeros", "head", "tail"))
        if kept == "all":
            return ALL
        if kept == "none" or isinstance(what, Truncate):
            return NONE
        if kept == "zeros":
            return ZEROS
        # Sectors are counted from the start of the file.
        first = -(what.offset % SECTOR)
        edges = range(first, len(what.data) + SECTOR, SECTOR)
        edge = min(max(0, chance.choice(edges)), len(what.data))
        return Kept(0, edge) if kept == "head" else Kept(edge, None)

    return Choice(f"at random: {seed}", names, change)
