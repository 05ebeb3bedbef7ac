"""The command line: `tidegate`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from cyclopts import App, CycloptsError, UnusedCliTokensError

from tidegate import __version__
from tidegate.cli.check import check
from tidegate.cli.config import config
from tidegate.cli.errors import FAILED, WRONG_USE, Failure, complain
from tidegate.cli.events import events
from tidegate.cli.help import HelpFormatter
from tidegate.cli.ls import ls
from tidegate.cli.migrate import migrate
from tidegate.cli.openapi import openapi
from tidegate.cli.rm import rm
from tidegate.cli.serve import serve
from tidegate.cli.show import show
from tidegate.cli.sources import read_sources
from tidegate.cli.sweep import sweep
from tidegate.config import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

app = App(
    name="tidegate",
    help="Resumable uploads (tus 1.0.0): a server, and tools for what it keeps.",
    version=f"tidegate {__version__}",
    config=read_sources,
    help_formatter=HelpFormatter(),
    help_format="plaintext",
)
app.command(serve)
app.command(ls)
app.command(show)
app.command(rm)
app.command(sweep)
app.command(check)
app.command(migrate)
app.command(events)
app.command(config)
app.command(openapi)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line, and end the process with its exit code."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = app(
            tokens,
            exit_on_error=False,
            print_error=False,
            verbose=False,
            result_action="return_value",
        )
    except UnusedCliTokensError as error:
        unused = ", ".join(map(repr, error.unused_tokens or ()))
        complain(f"{unused} is not expected here: all settings are flags, which --help lists")
        return WRONG_USE
    except (CycloptsError, ConfigError) as error:
        complain(error)
        return WRONG_USE
    except Failure as failure:
        complain(failure)
        return FAILED
    return code if isinstance(code, int) else 0
