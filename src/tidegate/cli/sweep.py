"""`tidegate sweep`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Console

from tidegate.cli import offline
from tidegate.cli.errors import FAILED, Failure
from tidegate.config import StoreConfig
from tidegate.config.events import EventConfig
from tidegate.config.flags import one
from tidegate.config.parsers import parse_duration
from tidegate.engine.core import Settings

if TYPE_CHECKING:
    from tidegate.engine.engine import Engine
    from tidegate.engine.sweep import Swept


def sweep(
    stores: StoreConfig = StoreConfig(),  # noqa: B008 - immutable
    *,
    dry_run: Annotated[bool, Parameter(negative=(), help="Only say what would be deleted")] = False,
    orphan_age: Annotated[
        float | None,
        Parameter(
            converter=one(parse_duration),
            metavar="TIME",
            show_default="7d",
            help="Of unfinished bytes without a record",
        ),
    ] = Settings().orphan_age,
    tell: offline.Tell = False,
    listeners: offline.Listeners = EventConfig(),  # noqa: B008 - immutable
    json: offline.Json = False,
    config: offline.ConfigFile = None,
) -> int:
    """Give up what expired, forget what ended long ago, delete what belongs to nothing.

    A server does this by itself; beside a running one it is safe. A completed upload is never
    touched. Events are written where the settings name webhooks or a command, for the server to
    deliver. Exit code 1: something could not be done.
    """
    del config  # read with the other sources of settings
    settings = Settings(orphan_age=float("inf") if orphan_age is None else orphan_age)
    engine = offline.engine(stores, settings, listeners=listeners, tell=tell)
    with Console(stderr=True, quiet=json).status("sweeping"):
        swept = offline.run(_sweep(engine, dry_run=dry_run))
    if json:
        offline.show(
            {
                "dry_run": dry_run,
                "expired": swept.expired,
                "forgotten": swept.forgotten,
                "orphans": swept.orphans,
                "freed": swept.freed,
                "failed": swept.failed,
            }
        )
    else:
        _print(swept, dry_run=dry_run)
    return FAILED if swept.failed else 0


async def _sweep(engine: Engine, *, dry_run: bool) -> Swept:
    async with engine:
        swept = await engine.sweep(dry_run=dry_run)
    if swept is None:
        raise Failure("a sweep is at work already; --dry-run does not mind")
    return swept


def _print(swept: Swept, *, dry_run: bool) -> None:
    would = "would be " if dry_run else ""
    for upload in swept.expired:
        print(f"{upload}: {would}expired")
    for upload in swept.forgotten:
        print(f"{upload}: {would}forgotten")
    for place in swept.orphans:
        print(f"{place}: {would}deleted, belongs to nothing")
    for failure in swept.failed:
        print(f"{failure} (not done)")
    print(
        f"{len(swept.expired)} {would}expired, {len(swept.forgotten)} {would}forgotten,"
        f" {len(swept.orphans)} orphans {would}deleted: {offline.size(swept.freed)} {would}freed"
    )
