"""`tidegate rm`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from tidegate.cli import offline
from tidegate.cli.errors import FAILED, complain, printable
from tidegate.config import ConfigError, StoreConfig
from tidegate.config.events import EventConfig
from tidegate.ports import BodyEnd
from tidegate.protocol.commands import Terminate
from tidegate.protocol.errors import Refusal
from tidegate.protocol.model import UploadId

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    import anyio

    from tidegate.engine.engine import Engine
    from tidegate.ports import Body, Sink
    from tidegate.protocol.commands import Checksum


def rm(
    *ids: Annotated[
        str, Parameter(name="ID", allow_leading_hyphen=True, help="The end of its URL")
    ],
    stores: StoreConfig = StoreConfig(),  # noqa: B008 - immutable
    yes: Annotated[bool, Parameter(negative=(), help="Do not ask, delete")] = False,
    listeners: offline.Listeners = EventConfig(),  # noqa: B008 - immutable
    tell: offline.Tell = False,
    json: offline.Lines = False,
    config: offline.ConfigFile = None,
) -> int:
    """Delete uploads, complete ones too, as a client's DELETE does.

    A writer at work is stopped. Beside a running server it is safe. Exit code 0: all are gone; 1:
    some could not be deleted, which stderr tells of, or you said no; 2: wrong use.
    """
    del config  # read with the other sources of settings
    if not ids:
        raise ConfigError("expected the ids of uploads")
    wanted = [UploadId(each) for each in dict.fromkeys(ids)]
    if not yes and not _confirmed(len(wanted)):
        complain("nothing was deleted")
        return FAILED
    return offline.run(
        _remove(offline.engine(stores, listeners=listeners, tell=tell), wanted, json=json)
    )


def _confirmed(count: int) -> bool:
    if not sys.stdin.isatty():
        raise ConfigError("nobody is here to ask: expected --yes")
    what = "1 upload" if count == 1 else f"{count} uploads"
    print(f"Delete {what} for good? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


async def _remove(engine: Engine, ids: Sequence[UploadId], *, json: bool) -> int:
    code = 0
    async with engine:
        async for upload_id, why_not in _removed(engine, ids):
            if why_not is not None:
                code = FAILED
            if json:
                gone = why_not is None
                offline.show(
                    {"id": upload_id, "deleted": gone} | ({} if gone else {"why": why_not})
                )
            elif why_not is None:
                print(f"{printable(upload_id)}: deleted")
            else:
                complain(f"{upload_id}: {why_not}")
    return code


async def _removed(
    engine: Engine, ids: Sequence[UploadId]
) -> AsyncIterator[tuple[UploadId, str | None]]:
    for upload_id in ids:
        try:
            await engine.handle(Terminate(id=upload_id), _NOTHING)
        except Refusal as refusal:
            yield upload_id, refusal.message
        else:
            yield upload_id, None


class _NoBody:
    async def copy_to(self, sink: Sink, stop: anyio.Event) -> BodyEnd:
        del sink, stop
        return BodyEnd.WHOLE

    def trailing_checksum(self) -> Checksum:
        raise NotImplementedError


_NOTHING = _NoBody()

if TYPE_CHECKING:
    _: type[Body] = _NoBody
