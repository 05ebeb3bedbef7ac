"""Where settings come from beside the flags: the environment, then a TOML file.

Both know every setting under the name of its flag: `--max-size` is TIDEGATE_MAX_SIZE and `max-size`.
What a flag has set the environment does not touch, and the file touches neither.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cyclopts import Token

from tidegate.cli.config import note_sources
from tidegate.config import Config, ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cyclopts import App, ArgumentCollection
    from cyclopts.argument import Argument

PREFIX: Final = "TIDEGATE_"
FILE: Final = "tidegate.toml"
"""Read when it is in the working directory: a folder's own settings, as compilers and linters do."""

_KEYS: Final = {field.name.replace("_", "-") for field in fields(Config)}


def read_sources(_app: App, _commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Add to the arguments what the flags left open. Raises ConfigError."""
    _read_environment(arguments)
    path = next((a.tokens[-1].value for a in arguments if a.name == "--config" and a.tokens), None)
    if path is not None or os.path.exists(FILE):
        _read_file(Path(path or FILE), arguments)
    note_sources(arguments)


def _read_environment(arguments: ArgumentCollection) -> None:
    for argument in _settable(arguments):
        name = PREFIX + argument.name.removeprefix("--").replace("-", "_").upper()
        # Empty is unset: so do compose files and unit files say "nothing".
        if value := os.environ.get(name):
            argument.append(Token(keyword=name, value=value, source="env"))


def _read_file(path: Path, arguments: ArgumentCollection) -> None:
    try:
        with path.open("rb") as file:
            content = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"{path}: the settings cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from None
    values: dict[str, object] = {}
    for key, value in content.items():
        name = key.replace("_", "-")
        if name not in _KEYS:
            close = difflib.get_close_matches(name, _KEYS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(_KEYS))}"
            raise ConfigError(f"{path}: unknown setting {key!r}; {hint}")
        if name in values:
            raise ConfigError(f"{path}: {name!r} is set twice")
        values[name] = value
    for argument in _settable(arguments):
        name = argument.name.removeprefix("--")
        if name in values:
            for index, text in enumerate(_texts(path, name, values[name])):
                argument.append(
                    Token(keyword=f"{name} in {path}", value=text, source=str(path), index=index)
                )


def _settable(arguments: ArgumentCollection) -> Iterator[Argument]:
    for argument in arguments:
        if argument.name.startswith("--") and not argument.tokens:
            yield argument


def _texts(path: Path, name: str, value: object) -> list[str]:
    """A TOML value as it would be written on the command line."""
    match value:
        case bool():
            return ["true" if value else "false"]
        case str() | int() | float():
            return [str(value)]
        case list() if isinstance(getattr(Config, name.replace("-", "_")), tuple):
            # An empty list says "none of them", which is no value on a command line.
            return [text for item in value for text in _texts(path, name, item)] or ["none"]
        case _:
            kind = "table" if isinstance(value, dict) else type(value).__name__
            raise ConfigError(f"{path}: {name!r} is a {kind}: expected one value")
