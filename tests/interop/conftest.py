"""The fixtures of the interoperability tests, and the table that they end with."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, cast

import pytest
from tests.interop.drivers import Drivers
from tests.interop.matrix import CASES, CLIENTS, Client, versions
from tests.interop.stage import SIZE, Stage
from tests.support.postgres import Postgres
from tests.support.proxy import CuttingProxy
from tests.support.s3_server import BUCKET, ENVIRONMENT
from tests.support.server import ServerProcess
from tests.support.swift import swift
from tests.support.valkey import running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

STORES = os.environ.get("TIDEGATE_STORES", "local+sqlite")
"""local or s3, and sqlite, postgresql or redis, where clients upload to."""
TRANSPORT = os.environ.get("TIDEGATE_TRANSPORT", "native")
"""native or asgi, over which they do."""

OUTCOMES = pytest.StashKey[dict[tuple[str, str], str]]()


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that is no multiple of anything, and no two places of which look alike."""
    path = tmp_path_factory.mktemp("source") / "tide mark – 潮.bin"
    path.write_bytes(random.Random(1).randbytes(SIZE))
    return path


@pytest.fixture(scope="session")
def drivers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Drivers]:
    """The programs around the clients. The browser is started only if a test will use it."""
    wanted = [
        cast("Client", item.callspec.params["client"])
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.get_closest_marker("interop")
    ]
    with Drivers(tmp_path_factory.mktemp("drivers"), wanted) as found:
        yield found


class InBucket(ServerProcess):
    """One that keeps its data in a bucket."""

    def argv(self) -> list[str]:
        """See ServerProcess."""
        place = f"s3://{BUCKET}/interop"
        return [place if word == str(self.data) else word for word in super().argv()]


MakeServer = Callable[..., ServerProcess]


@pytest.fixture(scope="session")
def make_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeServer]:
    """Servers on the stores that TIDEGATE_STORES names, over TRANSPORT: see STORES."""
    data, _, metadata = STORES.partition("+")
    flags = ["--transport", TRANSPORT]
    environment: dict[str, str] = {}
    with ExitStack() as stack:
        if metadata == "postgresql":
            postgres = stack.enter_context(closing(Postgres()))
            postgres.start()
            # So that a server that was killed is not waited for.
            flags += ["--metadata", postgres.url("interop", heartbeat=0.2, ttl=1)]
        elif metadata == "redis":
            valkey = stack.enter_context(running())
            flags += ["--metadata", valkey.url("interop", heartbeat="0.2", lease_ttl="1")]
        if data == "s3":
            bucket = stack.enter_context(swift(tmp_path_factory.mktemp("swift"))).make_bucket()
            flags += ["--s3-endpoint", bucket.endpoint, "--s3-path-style"]
            environment |= ENVIRONMENT

        def make(*more: str) -> ServerProcess:
            kind = InBucket if data == "s3" else ServerProcess
            return kind(tmp_path_factory.mktemp("data"), *flags, *more, env=environment)

        yield make


@pytest.fixture(scope="session")
def lasting_server(make_server: MakeServer) -> Iterator[ServerProcess]:
    """A server for all tests that leave it running."""
    with make_server() as server:
        yield server


@pytest.fixture
def own_server(make_server: MakeServer) -> Iterator[ServerProcess]:
    """A server that the test may stop, kill and start again."""
    # A line that is held is a request that never finishes: a stop need not wait for it long.
    with make_server("--shutdown-timeout", "1s") as server:
        yield server


@pytest.fixture
def stage(
    lasting_server: ServerProcess, drivers: Drivers, source: Path, tmp_path: Path
) -> Iterator[Stage]:
    """A stage on the server that lasts."""
    with CuttingProxy(lasting_server.url) as proxy:
        stage = Stage(lasting_server, proxy, drivers, source, tmp_path)
        yield stage
        stage.check_answers()


@pytest.fixture
def own_stage(
    own_server: ServerProcess, drivers: Drivers, source: Path, tmp_path: Path
) -> Iterator[Stage]:
    """A stage on a server of the test's own."""
    with CuttingProxy(own_server.url) as proxy:
        stage = Stage(own_server, proxy, drivers, source, tmp_path)
        yield stage
        stage.check_answers()


# ------------------------------------------------------------ the table


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "interop(case): a case of the table of real clients")
    config.stash[OUTCOMES] = {}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        marker = item.get_closest_marker("interop")
        if marker is not None and isinstance(item, pytest.Function):
            client = cast("Client", item.callspec.params["client"])
            item.user_properties.append(("interop", f"{client.name}|{marker.args[0]}"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    outcomes: dict[tuple[str, str], str] = {}
    words = {"passed": "passed", "skipped": "skipped", "failed": "FAILED", "error": "FAILED"}
    for category, word in words.items():
        for report in terminalreporter.getreports(category):
            noted = dict(getattr(report, "user_properties", []))
            if "interop" in noted:
                name, _, case = str(noted["interop"]).partition("|")
                told = noted.get("instead", word) if category == "passed" else word
                outcomes[name, case] = str(told)
    if outcomes:
        terminalreporter.section(f"real clients over {TRANSPORT}, case by case")
        for line in _table(outcomes):
            terminalreporter.write_line(line)


def _table(outcomes: dict[tuple[str, str], str]) -> list[str]:
    """Cases down, clients across; what a client can't do refers to its reason below."""
    reasons: list[str] = []

    def cell(client: Client, case: str) -> str:
        reason = client.cannot.get(case)
        if reason is None:
            return outcomes.get((client.name, case), "not run")
        if reason not in reasons:
            reasons.append(reason)
        return f"n/a ({reasons.index(reason) + 1})"

    known = versions()
    heads = [f"{client.name} {known.get(client.name, '')}".strip() for client in CLIENTS]
    rows = [["", *heads]]
    rows += [[CASES[case], *(cell(client, case) for client in CLIENTS)] for case in CASES]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    lines.append("")
    lines += [f"({number}) {reason}" for number, reason in enumerate(reasons, 1)]
    return lines
