"""How `--help` looks: a line per flag, its default at the end, in 80 columns."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from rich.text import Text

if TYPE_CHECKING:
    from cyclopts.help import HelpEntry, HelpPanel
    from rich.console import Console, ConsoleOptions

COLUMN: Final = 27
"""Where descriptions begin: the longest name that is a flag's, and a gap."""
DEFAULTS: Final = {"True": "on", "False": "off", "None": "", "()": ""}


class HelpFormatter:
    """A `cyclopts.help.HelpFormatter`."""

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:  # noqa: ARG002
        """Print one group of flags or commands."""
        if not panel.entries:
            return
        console.print(Text(str(panel.title), style="bold"))
        for entry in panel.entries:
            line = _name(entry)
            line.append(" " * max(2, COLUMN - len(line)))
            line.append_text(_description(entry))
            console.print(line, soft_wrap=True)
        console.print()

    def render_usage(self, console: Console, options: ConsoleOptions, usage: object) -> None:  # noqa: ARG002
        """Print how the command is called."""
        console.print(Text(f"Usage: {str(usage).strip()}"))
        console.print()

    def render_description(
        self,
        console: Console,
        options: ConsoleOptions,  # noqa: ARG002
        description: object,
    ) -> None:
        """Print what the command does."""
        for paragraph in re.split(r"\n\s*\n", _plain(description)):
            console.print(Text(" ".join(paragraph.split())))
            console.print()


def _plain(description: object) -> str:
    """The text that cyclopts made of a docstring, or of a `help`."""
    found = getattr(description, "primary_renderable", description)
    return str(found or "").strip()


def _name(entry: HelpEntry) -> Text:
    names = [*entry.positive_shorts, *entry.positive_names]
    if entry.negative_names:
        names = [name.replace("--", "--[no-]", 1) for name in names]
    text = Text("  ").append(", ".join(names), style="cyan")
    if entry.metavar:
        text.append(f" {entry.metavar}", style="dim")
    return text


def _description(entry: HelpEntry) -> Text:
    text = Text(_plain(entry.description).removesuffix("."))
    default = str(entry.default or "")
    if default := DEFAULTS.get(default, default):
        text.append(f" [{default}]", style="dim")
    return text
