"""How `--help` looks: a line per flag, its default at the end, in 80 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from cyclopts.help import HelpEntry, HelpPanel
    from rich.console import Console, ConsoleOptions


class HelpFormatter:
    """A `cyclopts.help.HelpFormatter`."""

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:  # noqa: ARG002
        """Print one group of flags or commands."""
        if not panel.entries:
            return
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for entry in panel.entries:
            table.add_row(_name(entry), _description(entry))
        console.print(Text(str(panel.title), style="bold"))
        console.print(table)
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
        console.print(_plain(description))
        console.print()


def _plain(description: object) -> Text:
    """The text that cyclopts made of a docstring, or of a `help`."""
    found = getattr(description, "primary_renderable", description)
    return Text(str(found or "").strip())


def _name(entry: HelpEntry) -> Text:
    names = [*entry.positive_shorts, *entry.positive_names, *entry.negative_names]
    text = Text("  ")
    text.append(", ".join(sorted(names, key=len)), style="cyan")
    if entry.metavar:
        text.append(f" {entry.metavar}", style="dim")
    return text


def _description(entry: HelpEntry) -> Text:
    text = _plain(entry.description)
    # What is off is off by itself, and what is empty is nothing to tell.
    if entry.default and entry.default not in ("None", "False", "()"):
        text.append(f" [{entry.default}]", style="dim")
    return text
