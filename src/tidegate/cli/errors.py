"""What ends a command, said in one line."""

from __future__ import annotations

import sys
from typing import Final

FAILED: Final = 1
WRONG_USE: Final = 2
"""As argparse, getopt and the shell's own commands say it."""


class Failure(Exception):
    """The command can't do its work; the message is one line for the operator."""


def complain(message: object) -> None:
    """Say on stderr what went wrong, in one line, whatever is in it."""
    text = printable(" ".join(str(message).split()))
    print(f"tidegate: {text}", file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """`text` without what ends a line or steers a terminal."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )
