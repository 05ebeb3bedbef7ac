"""`tidegate config`."""

from __future__ import annotations

import re
from contextvars import ContextVar
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final

from rich.table import Table
from rich.text import Text

from tidegate.cli import offline
from tidegate.cli.errors import printable
from tidegate.config import Config

if TYPE_CHECKING:
    from cyclopts import ArgumentCollection

_PASSWORD: Final = re.compile(r"(?<=://)([^/@:]*):[^/@]*@")
_SECRET: Final = re.compile(r"secret|token|password|credential|_key$")
_PATHS: Final = frozenset({"tls_key"})
"""Names that sound like it, and only say where the secret is."""
HIDDEN: Final = "***"

_found: ContextVar[dict[str, str]] = ContextVar("sources")
"""Where each setting came from, by its name, as the command line was read."""


def config(
    settings: Config = Config(),  # noqa: B008 - immutable
    *,
    json: offline.Json = False,
    file: offline.ConfigFile = None,
) -> int:
    """Say which settings are in force for `serve`, and where each came from.

    Takes the flags of `serve`. Secrets are not shown. Exit code 0; 2: they do not fit together.
    """
    del file  # read with the other sources of settings
    sources = _found.get({})
    rows = [
        (field.name.replace("_", "-"), masked(field.name, getattr(settings, field.name)))
        for field in fields(settings)
    ]
    if json:
        offline.show(
            {name: {"value": value, "source": sources.get(name, "default")} for name, value in rows}
        )
        return 0
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("setting", no_wrap=True)
    table.add_column("value", overflow="fold")
    table.add_column("from", overflow="fold")
    for name, value in rows:
        table.add_row(
            Text(name), Text(_shown(value)), Text(printable(sources.get(name, "default")))
        )
    offline.console().print(table)
    return 0


def note_sources(arguments: ArgumentCollection) -> None:
    """Remember where settings came from, once all sources have been read."""
    found: dict[str, str] = {}
    for argument in arguments:
        if argument.tokens and argument.name.startswith("--"):
            token = argument.tokens[-1]
            source = {"cli": "flag", "env": f"environment ({token.keyword})"}.get(
                token.source, f"file ({token.source})"
            )
            found[argument.name.removeprefix("--")] = source
    _found.set(found)


def masked(name: str, value: Any) -> Any:
    """A value without what is secret in it."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, tuple):
        return [masked(name, each) for each in value]
    if _SECRET.search(name) and name not in _PATHS:
        return HIDDEN
    return _PASSWORD.sub(rf"\1:{HIDDEN}@", str(value))


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_shown, value)) or "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    return "" if value is None else printable(str(value))
