"""`tidegate ls`."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec
from cyclopts import Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tidegate.cli import offline
from tidegate.cli.errors import printable
from tidegate.config import StoreConfig
from tidegate.config.flags import one
from tidegate.config.parsers import parse_count, parse_duration
from tidegate.protocol import fields
from tidegate.protocol.errors import Refusal
from tidegate.protocol.model import Kind, State, Upload, UploadId

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tidegate.ports import MetadataStore

Sort = Literal["created", "active", "size", "offset", "id"]
StateName = Literal["receiving", "complete", "expired", "terminated", "failed"]
KindName = Literal["regular", "partial", "final"]

SHOWN = 100
"""A terminal's worth of history, and no wait for a million."""
_KEYS: dict[Sort, Callable[[Upload], Any]] = {
    "created": lambda upload: upload.created_at,
    "active": lambda upload: upload.active_at,
    "size": lambda upload: upload.promised,
    "offset": lambda upload: upload.offset,
    "id": lambda upload: upload.id,
}


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Which uploads. Times are seconds since the epoch."""

    state: State | None = None
    kind: Kind | None = None
    principal: str | None = None
    before: float | None = None
    after: float | None = None
    name: str | None = None

    def takes(self, upload: Upload) -> bool:
        """Whether an upload is one of them."""
        return (
            (self.state is None or upload.state is self.state)
            and (self.kind is None or upload.kind is self.kind)
            and (self.principal is None or upload.principal == self.principal)
            and (self.before is None or upload.created_at <= self.before)
            and (self.after is None or upload.created_at >= self.after)
            and (self.name is None or self.name.lower() in file_name(upload).lower())
        )


def ls(
    stores: StoreConfig = StoreConfig(),  # noqa: B008 - immutable
    *,
    state: Annotated[
        StateName | None, Parameter(metavar="STATE", help="Only in this state")
    ] = None,
    kind: Annotated[
        KindName | None, Parameter(metavar="KIND", help="Only regular, partial or final ones")
    ] = None,
    principal: Annotated[str | None, Parameter(metavar="NAME", help="Only of this owner")] = None,
    older: Annotated[
        float | None,
        Parameter(
            converter=one(parse_duration), metavar="TIME", help="Only made so long ago, as 7d"
        ),
    ] = None,
    newer: Annotated[
        float | None,
        Parameter(converter=one(parse_duration), metavar="TIME", help="Only made since, as 24h"),
    ] = None,
    name: Annotated[
        str | None, Parameter(metavar="TEXT", help="Only with this in the name of the file")
    ] = None,
    sort: Annotated[
        Sort, Parameter(metavar="BY", help="created, active, size, offset or id")
    ] = "created",
    reverse: Annotated[bool, Parameter(negative=(), help="The smallest, or oldest, first")] = False,
    limit: Annotated[
        int | None,
        Parameter(converter=one(parse_count), metavar="N", help="How many at most, or unlimited"),
    ] = SHOWN,
    json: offline.Lines = False,
    config: offline.ConfigFile = None,
) -> int:
    """List uploads: the newest, or largest, first; by id in its order.

    Exit code 0, also when there are none; 1: the records cannot be read; 2: wrong use.
    """
    del config  # read with the other sources of settings
    now = time.time()
    wanted = Filter(
        state=State(state) if state else None,
        kind=Kind(kind) if kind else None,
        principal=principal,
        before=None if older is None else now - older,
        after=None if newer is None else now - newer,
        name=name,
    )
    descending = (sort != "id") != reverse
    found, matching = offline.run(
        _find(offline.records(stores), wanted, _KEYS[sort], limit, descending=descending)
    )
    if json:
        for upload in found:
            offline.show(as_json(upload))
        return 0
    _print(found, now)
    if matching > len(found):
        Console(stderr=True, highlight=False).print(
            f"{len(found)} of {matching} uploads; --limit unlimited shows all"
        )
    return 0


async def _find(
    metadata: MetadataStore,
    wanted: Filter,
    key: Callable[[Upload], Any],
    limit: int | None,
    *,
    descending: bool,
) -> tuple[list[Upload], int]:
    """The first of them, in order, and how many there are. Holds no more than are shown."""
    matching = 0
    best: list[tuple[Any, UploadId, Upload]] = []
    console = Console(stderr=True)
    with console.status("reading") as status:
        async with offline.opened(metadata) as records:
            async for batch in _batches(records, wanted):
                matching += len(batch)
                status.update(f"reading: {matching} uploads")
                best += [(key(upload), upload.id, upload) for upload in batch]
                if limit is not None and len(best) > limit:
                    pick = heapq.nlargest if descending else heapq.nsmallest
                    best = pick(limit, best, key=lambda row: row[:2])
    best.sort(key=lambda row: row[:2], reverse=descending)
    return [upload for *_, upload in best], matching


async def _batches(metadata: MetadataStore, wanted: Filter) -> AsyncIterator[list[Upload]]:
    batch: list[Upload] = []
    async for upload in metadata.uploads(state=wanted.state, kind=wanted.kind):
        if wanted.takes(upload):
            batch.append(upload)
        if len(batch) >= 1000:
            yield batch
            batch = []
    yield batch


_COLUMNS: Final = ("id", "state", "kind", "size", "here", "made", "active", "name")
_NUMBERS: Final = frozenset({"size", "here", "made", "active"})
_GAP: Final = 2
_SHORTEST: Final = 8
"""Characters of a name, if there is no more room."""


def _print(uploads: list[Upload], now: float) -> None:
    rows = [_cells(upload, now) for upload in uploads]
    widths = [max(map(len, cells)) for cells in zip(_COLUMNS, *rows, strict=True)]
    console = offline.console()
    # What is left for names: all else is to be copied, or means nothing if it is cut off.
    room = max(_SHORTEST, console.width - sum(widths[:-1]) - _GAP * (len(widths) - 1))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column, width in zip(_COLUMNS, widths, strict=True):
        table.add_column(
            column,
            justify="right" if column in _NUMBERS else "left",
            no_wrap=True,
            width=min(width, room) if column == "name" else width,
            overflow="ellipsis" if column == "name" else "fold",
        )
    for cells in rows:
        table.add_row(*(Text(cell) for cell in cells))
    console.print(table)


def _cells(upload: Upload, now: float) -> tuple[str, ...]:
    return (
        printable(upload.id),
        upload.state.value,
        upload.kind.value,
        "?" if upload.length is None else short(upload.length),
        here(upload),
        age(now - upload.created_at),
        age(now - upload.active_at),
        printable(file_name(upload)),
    )


def file_name(upload: Upload) -> str:
    """What the client called the file; empty where it did not say."""
    pairs = metadata_of(upload)
    return pairs.get("filename") or pairs.get("name") or ""


def metadata_of(upload: Upload) -> dict[str, str]:
    """What the client said of its file, as text."""
    try:
        pairs = fields.metadata_pairs(upload.metadata)
    except Refusal:
        return {}  # of an older, or a foreign, server
    return {key: value.decode("utf-8", "replace") for key, value in pairs.items()}


def as_json(upload: Upload) -> dict[str, Any]:
    """A record, for programs: times are seconds since the epoch, sizes bytes."""
    record = {name: getattr(upload, name) for name in upload.__struct_fields__}
    found: dict[str, Any] = msgspec.to_builtins(record)
    return found | {"metadata": metadata_of(upload), "upload_metadata": upload.metadata}


def short(count: int) -> str:
    """Bytes in six characters or so: `1.5G`."""
    amount, units = float(count), iter("KMGTPE")
    unit = ""
    while amount >= 999.5 and (larger := next(units, None)):
        amount, unit = amount / 1024, larger
    return (
        f"{count}"
        if not unit
        else f"{amount:.1f}{unit}"
        if amount < 99.5
        else f"{amount:.0f}{unit}"
    )


def here(upload: Upload) -> str:
    """How much of it has come."""
    if upload.length:
        return f"{upload.offset * 100 // upload.length}%"
    return "100%" if upload.complete else short(upload.offset)


def age(seconds: float) -> str:
    """How long ago: `3d`."""
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f}{unit}"
    return f"{max(0.0, seconds):.0f}s"
