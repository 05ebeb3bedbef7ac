"""`tidegate openapi`."""

from __future__ import annotations

import json
import sys
from typing import Annotated

from cyclopts import Parameter

from tidegate.cli.errors import Failure
from tidegate.config import Config
from tidegate.config.flags import one
from tidegate.config.parsers import parse_base_path
from tidegate.engine.engine import WEEK
from tidegate.protocol.capabilities import NEEDS, Offer
from tidegate.protocol.checksums import algorithms
from tidegate.transports import openapi as made
from tidegate.transports.monitoring import HEALTH, OPENAPI


def openapi(
    output: Annotated[
        str | None, Parameter(metavar="FILE", show_default="stdout", help="Where to write it")
    ] = None,
    *,
    base_path: Annotated[
        str,
        Parameter(
            converter=one(parse_base_path), metavar="PATH", help="Path under which uploads live"
        ),
    ] = Config.base_path,
) -> int:
    """Write the OpenAPI 3.1 document of the HTTP interface, with all that it can offer.

    A server answers with its own at /openapi.json. Exit code 1: the file cannot be written.
    """
    text = document(base_path)
    if output is None:
        sys.stdout.write(text)
        return 0
    try:
        with open(output, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise Failure(f"{output}: cannot be written: {error.strerror}") from error
    return 0


def document(base_path: str = Config.base_path) -> str:
    """The document as text."""
    offer = Offer(extensions=tuple(NEEDS), algorithms=algorithms(), expire_after=WEEK)
    found = made.document(offer, base_path, (*HEALTH, OPENAPI))
    return json.dumps(found, indent=2) + "\n"
