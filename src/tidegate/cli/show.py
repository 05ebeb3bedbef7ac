"""`tidegate show`."""

from __future__ import annotations

import json as json_module
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from cyclopts import Parameter
from rich.table import Table
from rich.text import Text

from tidegate.cli import offline
from tidegate.cli.config import masked
from tidegate.cli.errors import Failure, printable
from tidegate.cli.ls import as_json, metadata_of
from tidegate.config import StoreConfig
from tidegate.ports import Hold
from tidegate.protocol.model import UploadId

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engine.engine import Described, Engine

_LEASES: Final = {
    Hold.FREE: "nobody writes to it",
    Hold.HELD: "a server is at work on it",
    Hold.ABANDONED: "left by a server that died; the next request recovers it",
}


def show(
    upload_id: Annotated[
        str, Parameter(name="ID", allow_leading_hyphen=True, help="The end of its URL")
    ],
    stores: StoreConfig = StoreConfig(),  # noqa: B008 - immutable
    *,
    json: offline.Json = False,
    config: offline.ConfigFile = None,
) -> int:
    """Say all that is known of one upload: its record, who writes to it, where its bytes are.

    Exit code 0; 1: there is no such upload, or the stores cannot be read; 2: wrong use.
    """
    del config  # read with the other sources of settings
    found = offline.run(_describe(offline.engine(stores), UploadId(upload_id)))
    if found is None:
        raise Failure(f"there is no upload {upload_id}")
    place = masked("data", stores.data)
    if json:
        offline.show(
            as_json(found.upload)
            | {
                "lease": found.hold.name.lower(),
                "segments": msgspec.to_builtins(found.segments),
                "data": place,
                "stored_bytes": found.stored,
            }
        )
        return 0
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, value in _rows(found, place):
        table.add_row(Text(name), Text(printable(value)))
    offline.console().print(table)
    return 0


async def _describe(engine: Engine, upload_id: UploadId) -> Described | None:
    async with engine:
        return await engine.describe(upload_id)


def _rows(found: Described, place: str) -> Iterator[tuple[str, str]]:
    upload = found.upload
    yield "id", upload.id
    yield "state", upload.state
    yield "kind", upload.kind
    if upload.length is None:
        yield "length", "not known yet"
    else:
        yield "length", _bytes(upload.length)
    yield "offset", _bytes(upload.offset)
    yield "synced", _bytes(upload.synced_offset)
    yield "made", _time(upload.created_at)
    yield "active", _time(upload.active_at)
    if upload.expires_at is not None:
        yield "expires", _time(upload.expires_at)
    if upload.ended_at is not None:
        yield "ended", _time(upload.ended_at)
    if upload.principal is not None:
        yield "owner", upload.principal
    for key, value in metadata_of(upload).items():
        yield f"metadata {printable(key)}", value
    for number, part in enumerate(upload.parts, 1):
        yield f"part {number}", part
    yield "lease", _LEASES[found.hold]
    yield "data", place
    yield "stored", _bytes(found.stored)
    for key, value in upload.storage.items():
        yield f"storage {printable(key)}", _text(value)
    for segment in found.segments:
        end = segment.start + segment.length
        yield f"segment {segment.index}", f"{segment.start} to {end} {_text(segment.storage)}"
    yield "version", str(upload.version)


def _bytes(count: int) -> str:
    shown = offline.size(count)
    return shown if shown.endswith("bytes") else f"{count} bytes ({shown})"


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json_module.dumps(value)
