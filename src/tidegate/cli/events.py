"""`tidegate events`: what is to be delivered yet, and what was given up."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

from cyclopts import App, Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tidegate.cli import offline
from tidegate.cli.errors import FAILED, complain, printable
from tidegate.cli.help import HelpFormatter
from tidegate.config import ConfigError, StoreConfig
from tidegate.config.flags import one
from tidegate.config.parsers import parse_count
from tidegate.ports import Undelivered

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tidegate.ports import MetadataStore

PIPED_COLUMNS: Final = 1000
"""How wide a table may be that is no terminal's: nothing is cut off."""

Lines = Annotated[
    bool,
    Parameter(
        name="--json",
        group=offline.OUTPUT,
        negative=(),
        help="One JSON object per line, for programs",
    ),
]

events = App(
    name="events",
    help="List the events that are to be delivered yet; have those given up delivered after all.",
    help_formatter=HelpFormatter(),
    help_format="plaintext",
)


@events.command(name="list")
def list_(
    stores: StoreConfig = StoreConfig(),  # noqa: B008 - immutable
    *,
    given_up: Annotated[bool, Parameter(negative=(), help="Only those that were given up")] = False,
    upload: Annotated[
        str | None,
        # One in 64 ids begins with a hyphen.
        Parameter(metavar="ID", allow_leading_hyphen=True, help="Only those of one upload"),
    ] = None,
    limit: Annotated[
        int | None,
        Parameter(
            converter=one(parse_count),
            metavar="N",
            show_default="all",
            help="How many, the oldest first",
        ),
    ] = None,
    json: Lines = False,
    config: offline.ConfigFile = None,
) -> int:
    """List events that are pending, or were given up.

    What is delivered is not kept.
    """
    del config  # read with the other sources of settings
    metadata = offline.records(stores)
    rows = list[Undelivered]()

    async def work() -> None:
        async with offline.opened(metadata) as records:
            found = _find(records, given_up=given_up, upload=upload, limit=limit)
            async for each in found:
                if json:
                    offline.show(_fields(each))
                else:
                    rows.append(each)

    offline.run(work())
    if rows:
        _print(rows)
    elif not json:
        print("no events")
    return 0


@events.command
def replay(
    *sequences: Annotated[int, Parameter(metavar="SEQUENCE")],
    stores: StoreConfig = StoreConfig(),  # noqa: B008 - immutable
    all_: Annotated[
        bool, Parameter(name="--all", negative=(), help="All that were given up")
    ] = False,
    json: offline.Json = False,
    config: offline.ConfigFile = None,
) -> int:
    """Have events that were given up delivered after all.

    It is as if they had never been tried. SEQUENCE is what the log and `events list` call them. A running server delivers them within
    seconds, else the next that starts. Exit code 1: some were not among those that were given up.
    """
    del config  # read with the other sources of settings
    if all_ == bool(sequences):
        raise ConfigError("expected either the sequences of events, or --all")
    replayed, unknown = offline.run(_replay(offline.records(stores), None if all_ else sequences))
    if json:
        offline.show({"replayed": replayed, "unknown": unknown})
    else:
        print(f"{len(replayed)} events are delivered again")
        for sequence in unknown:
            complain(f"event {sequence}: there is none that was given up")
    return FAILED if unknown else 0


async def _find(
    records: MetadataStore, *, given_up: bool, upload: str | None, limit: int | None
) -> AsyncIterator[Undelivered]:
    left = limit
    async for each in records.events():
        if left == 0:
            return
        if given_up and not each.given_up:
            continue
        if upload is not None and each.delivery.event.upload.id != upload:
            continue
        if left is not None:
            left -= 1
        yield each


async def _replay(
    metadata: MetadataStore, sequences: tuple[int, ...] | None
) -> tuple[list[int], list[int]]:
    """The events that are delivered again, and those that are not there."""
    async with offline.opened(metadata) as records:
        if sequences is None:
            # All at first: what is replayed stands where it stood, and is listed once.
            wanted = [each.delivery.sequence async for each in records.events() if each.given_up]
        else:
            wanted = list(dict.fromkeys(sequences))
        outcome: tuple[list[int], list[int]] = ([], [])
        for sequence in wanted:
            outcome[not await records.replay(sequence)].append(sequence)
        replayed, unknown = outcome
    # With --all, one that is not there any more is one that someone else has replayed.
    return replayed, [] if sequences is None else unknown


def _fields(found: Undelivered) -> dict[str, Any]:
    delivery = found.delivery
    return {
        "sequence": delivery.sequence,
        "type": delivery.event.type.value,
        "upload": delivery.event.upload.id,
        "at": delivery.event.at,
        "attempts": delivery.attempts,
        "due_at": found.due_at,
        "given_up": found.given_up,
        "done": list(delivery.done),
        "retries": [
            {"sink": retry.sink, "attempts": retry.attempts, "due_at": retry.due_at}
            for retry in delivery.retries
        ],
    }


def _print(found: list[Undelivered]) -> None:
    console = Console(width=None if sys.stdout.isatty() else PIPED_COLUMNS, highlight=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("event", "failed"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("type", "when"):
        table.add_column(name, no_wrap=True)
    table.add_column("upload", overflow="fold")
    table.add_column("next", no_wrap=True)
    now = time.time()
    for each in found:
        delivery = each.delivery
        when = datetime.fromtimestamp(delivery.event.at, UTC).strftime("%m-%d %H:%MZ")
        cells = (
            str(delivery.sequence),
            str(delivery.attempts),
            delivery.event.type.value,
            when,
            printable(delivery.event.upload.id),
            _next(each, now),
        )
        table.add_row(*(Text(cell) for cell in cells))
    console.print(table)


def _next(found: Undelivered, now: float) -> str:
    if found.given_up:
        return "given up"
    if found.due_at is None:
        return "waits"
    left = found.due_at - now
    if left <= 0:
        return "due"
    for unit, seconds in (("d", 86_400), ("h", 3600), ("m", 60)):
        if left >= seconds:
            return f"in {left / seconds:.0f}{unit}"
    return f"in {left:.0f}s"
