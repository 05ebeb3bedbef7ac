"""`tidegate check`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from msgspec import to_builtins
from rich.console import Console

from tidegate.cli import offline
from tidegate.cli.errors import FAILED
from tidegate.config import StoreConfig
from tidegate.config.events import EventConfig
from tidegate.engine.check import Checked, Finding

if TYPE_CHECKING:
    from tidegate.engine.engine import Engine


def check(
    stores: StoreConfig = StoreConfig(),  # noqa: B008 - immutable
    *,
    repair: Annotated[
        bool, Parameter(negative=(), help="Mend what can be mended without loss")
    ] = False,
    tell: offline.Tell = False,
    listeners: offline.Listeners = EventConfig(),  # noqa: B008 - immutable
    json: offline.Json = False,
    config: offline.ConfigFile = None,
) -> int:
    """Read every record and its bytes, and say what does not agree.

    Beside a running server it is safe; uploads that someone is writing to are left alone. Events of
    what a repair completes are written where the settings name webhooks or a command, for the
    server to deliver. Exit code 1: something does not agree, and was not mended.
    """
    del config  # read with the other sources of settings
    engine = offline.engine(stores, listeners=listeners, tell=tell)
    checked, findings = offline.run(_check(engine, repair=repair, quiet=json))
    if json:
        offline.show(to_builtins({"checked": checked, "findings": findings}))
    else:
        mended = sum(finding.mended for finding in findings)
        print(
            f"{checked.uploads} uploads checked, {checked.in_use} left alone (in use),"
            f" {len(findings)} findings, {mended} mended"
        )
    return 0 if all(finding.mended for finding in findings) else FAILED


async def _check(engine: Engine, *, repair: bool, quiet: bool) -> tuple[Checked, list[Finding]]:
    checked, findings = Checked(), list[Finding]()
    console = Console(stderr=True, quiet=quiet)
    with console.status("checking") as status:
        async with engine:
            async for finding in engine.check(checked, repair=repair):
                findings.append(finding)
                status.update(f"checking: {checked.uploads} uploads")
                if not quiet:
                    print(_line(finding))
    return checked, findings


def _line(finding: Finding) -> str:
    outcome = "mended" if finding.mended else "lost for good" if finding.lost else "not mended"
    return f"{finding.subject}: {finding.problem} ({outcome})"
