"""Commands that work on the stores of a server, beside it or without it."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

from cyclopts import Group, Parameter
from rich.console import Console

from tidegate import registry
from tidegate.cli import logs
from tidegate.cli.errors import Failure
from tidegate.config.events import EventConfig
from tidegate.engine.engine import Engine
from tidegate.ports import DataError, MetadataError
from tidegate.protocol.model import STORED_EVENTS, EventType

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine

    from tidegate.config import StoreConfig
    from tidegate.engine.core import Settings
    from tidegate.ports import MetadataStore

T = TypeVar("T")

OUTPUT = Group("Output", sort_key=9)

PIPED_COLUMNS: Final = 1000
"""How wide a table may be that is no terminal's: nothing is cut off."""

Tell = Annotated[
    bool,
    Parameter(negative=(), help="Write events for listeners of an application, too"),
]
Listeners = Annotated[EventConfig, Parameter(show=False)]
"""What a server's own settings say of it, read from the same sources."""
Lines = Annotated[
    bool,
    Parameter(
        name="--json",
        group=OUTPUT,
        negative=(),
        help="One JSON object per line, for programs",
    ),
]
Json = Annotated[
    bool, Parameter(name="--json", group=OUTPUT, negative=(), help="One JSON object, for programs")
]
ConfigFile = Annotated[
    str | None,
    Parameter(
        name="--config",
        group=OUTPUT,
        metavar="FILE",
        show_default="tidegate.toml, if there",
        help="Settings as TOML",
    ),
]


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's work to its end. Raises Failure."""
    logs.configure("warning", "console")
    try:
        return asyncio.run(work)
    except (DataError, MetadataError) as error:
        raise Failure(str(error)) from error
    except KeyboardInterrupt:
        raise Failure("interrupted; what was done is done, and nothing is left half done") from None


def engine(
    stores: StoreConfig,
    settings: Settings | None = None,
    *,
    listeners: EventConfig | None = None,
    tell: bool = False,
) -> Engine:
    """An engine on the stores, not opened yet, with nothing going on behind. Raises Failure.

    Events are written for the `listeners` of a server, or with `tell` all of them: it delivers
    them.
    """
    _check_folders(stores)
    data = registry.data_store(stores.data, stores.data_options)
    wanted = listeners.wanted_events if listeners else frozenset[EventType]()
    tells = STORED_EVENTS if tell else wanted
    # An operator is nobody's owner, and may see and end every upload.
    return Engine(
        data, metadata(stores), settings=settings, tells=tells, owners=False, tending=False
    )


def records(stores: StoreConfig) -> MetadataStore:
    """The metadata store alone, which is there already, not opened yet. Raises Failure."""
    path = registry.metadata_path(stores.metadata_url)
    if path is not None and not path.is_file():
        raise Failure(f"{path}: there is no such file, so there are no records in it")
    return metadata(stores)


def _check_folders(stores: StoreConfig) -> None:
    for folder in registry.folders(stores.data, stores.metadata_url):
        if not folder.is_dir():
            raise Failure(f"{folder}: there is no such folder, so there are no uploads in it")


def metadata(stores: StoreConfig) -> MetadataStore:
    """The metadata store, not opened yet. Raises Failure."""
    try:
        return registry.metadata_store(stores.metadata_url)
    except registry.StoreURLError as error:
        raise Failure(str(error)) from error


@asynccontextmanager
async def opened(store: MetadataStore) -> AsyncIterator[MetadataStore]:
    """A metadata store, open. Raises MetadataError."""
    try:
        await store.open()
        yield store
    finally:
        await store.close()


def console() -> Console:
    """What tables are printed on: as wide as the terminal; elsewhere as wide as they are."""
    return Console(width=None if sys.stdout.isatty() else PIPED_COLUMNS, highlight=False)


def show(value: object) -> None:
    """Print a value as one line of JSON."""
    json.dump(value, sys.stdout)
    sys.stdout.write("\n")


def size(count: int) -> str:
    """Bytes as people read them: `1.5 GiB`."""
    amount, units = float(count), iter(("KiB", "MiB", "GiB", "TiB"))
    unit = "bytes"
    while amount >= 1024 and (larger := next(units, None)):
        amount, unit = amount / 1024, larger
    return f"{count} bytes" if unit == "bytes" else f"{amount:.1f} {unit}"
