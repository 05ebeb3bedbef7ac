"""What operators ask for: whether it lives, whether it can work, what was measured."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import anyio
import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.support.exchange import AsgiClient
from tests.support.serving import in_memory, listening, served

from tidegate.measures import Measures
from tidegate.metadata.memory import MemoryMetadataStore
from tidegate.ports import DataError, UnavailableError
from tidegate.protocol.capabilities import Capability
from tidegate.protocol.model import UploadId
from tidegate.stores.memory import MemoryStore
from tidegate.transports import monitoring

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.http.conftest import Serve

    from tidegate.ports import Counts, Loaded
    from tidegate.transports.asgi import Tidegate

pytestmark = pytest.mark.anyio

PAGES = (*monitoring.HEALTH, monitoring.METRICS, monitoring.OPENAPI)
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


class Sick(MemoryStore):
    """A data store that can be made to fail, or to hang."""

    def __init__(self) -> None:
        super().__init__(2**20)
        self.error: Exception | None = None
        self.hangs = False
        self.asked = 0

    async def probe(self) -> None:
        self.asked += 1
        while self.hangs:
            await asyncio.sleep(0.001)
        if self.error is not None:
            raise self.error


class Blind(MemoryMetadataStore):
    """A metadata store that can be made unreachable, and counts how often it is asked to count."""

    def __init__(self) -> None:
        super().__init__()
        self.gone = False
        self.counted = 0

    async def load(self, upload_id: UploadId) -> Loaded | None:
        if self.gone:
            raise UnavailableError("connection refused by db.internal")
        return await super().load(upload_id)

    async def counts(self) -> Counts:
        self.counted += 1
        if self.gone:
            raise UnavailableError("connection refused by db.internal")
        return await super().counts()


async def ready(app: Tidegate, *, details: bool = True) -> tuple[int, dict[str, Any]]:
    reply = await AsgiClient(app.monitoring if details else app).request("GET", "/readyz")
    return reply.status, json.loads(reply.body)


@pytest.fixture
async def sick() -> AsyncIterator[tuple[Tidegate, Sick, Blind]]:
    data, metadata = Sick(), Blind()
    app = in_memory(
        data=data, metadata=metadata, base_path="/files/", pages=PAGES, measures=Measures()
    )
    async with app:
        yield app, data, metadata


def forget(app: Tidegate) -> None:
    """As if the last look was long ago."""
    app.readiness._looked_at = -100.0


async def samples(app: Tidegate) -> Samples:
    reply = await AsgiClient(app.monitoring).request("GET", "/metrics")
    assert reply.status == 200
    assert reply["content-type"].startswith("text/plain; version=")
    return {
        (sample.name.removeprefix("tidegate_"), tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(reply.text)
        for sample in family.samples
    }


# --------------------------------------------------------------------------------- the pages


@pytest.mark.parametrize("way", ["asgi", "h11", "native"])
@pytest.mark.parametrize("base_path", ["/files/", "/"])
async def test_the_pages_stand_beside_the_uploads(way: str, base_path: str) -> None:
    """Over both transports; outside of the base path, whatever that is."""
    app = in_memory(base_path=base_path, pages=PAGES, measures=Measures())
    async with app, served(app, way) as client:
        for page in PAGES:
            got = await client.request("GET", page)
            assert got.status == 200, page
            head = await client.request("HEAD", page)
            assert (head.status, head.body) == (200, b"")
            assert (await client.request("POST", page))["allow"] == "GET, HEAD"
        assert (await client.request("GET", "/healthz/")).status in (404, 412)


async def test_without_being_asked_for_there_are_none(serve: Serve) -> None:
    client = await serve()
    for page in PAGES:
        assert (await client.request("GET", page)).status == 404


async def test_what_is_not_measured_is_not_told() -> None:
    async with in_memory() as app:
        assert (await AsgiClient(app.monitoring).request("GET", "/metrics")).status == 404


async def test_they_are_mounted_alone_in_an_application() -> None:
    """A framework passes where it mounted them as root_path."""
    app = in_memory(measures=Measures())
    async with app:
        client = AsgiClient(app.monitoring, root_path="/ops")
        assert (await client.request("GET", "/ops/healthz")).status == 200
        assert (await client.request("GET", "/ops/files")).status == 404


# --------------------------------------------------------------------------------- readiness


async def test_it_is_ready_when_its_stores_are(sick: tuple[Tidegate, Sick, Blind]) -> None:
    app, _, _ = sick
    fine = {"data": {"ok": True}, "metadata": {"ok": True}}
    assert await ready(app) == (200, {"status": "ready", "dependencies": fine})


async def test_each_store_that_is_not_there_is_named(sick: tuple[Tidegate, Sick, Blind]) -> None:
    """Why is for operators: others see which."""
    app, data, metadata = sick
    data.error, metadata.gone = DataError("no bucket uploads-eu"), True
    status, found = await ready(app)
    assert (status, found["status"]) == (503, "not ready")
    assert found["dependencies"] == {
        "data": {"ok": False, "why": "no bucket uploads-eu"},
        "metadata": {"ok": False, "why": "connection refused by db.internal"},
    }
    status, found = await ready(app, details=False)
    assert status == 503
    assert found["dependencies"] == {"data": {"ok": False}, "metadata": {"ok": False}}
    # It lives all the same: to start it again would not help.
    assert (await AsgiClient(app).request("GET", "/healthz")).status == 200
    data.error, metadata.gone = None, False
    forget(app)
    assert (await ready(app))[0] == 200


async def test_it_looks_once_a_second_whoever_asks(sick: tuple[Tidegate, Sick, Blind]) -> None:
    app, data, _ = sick
    async with asyncio.TaskGroup() as tasks:
        for _ in range(20):
            tasks.create_task(ready(app))
    await ready(app)
    assert data.asked == 1


async def test_a_store_that_hangs_is_not_waited_for(
    sick: tuple[Tidegate, Sick, Blind], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor asked again, as long as it did not answer."""
    app, data, _ = sick
    monkeypatch.setattr(monitoring, "PROBE_WITHIN", 0.02)
    data.hangs = True
    for _ in range(2):
        with anyio.fail_after(5):
            status, found = await ready(app)
        assert status == 503
        assert found["dependencies"]["data"] == {"ok": False, "why": "no answer within 0.02 s"}
        assert found["dependencies"]["metadata"] == {"ok": True}
        forget(app)
    assert data.asked == 1
    data.hangs = False
    with anyio.fail_after(5):
        while (await ready(app))[0] != 200:
            forget(app)
            await anyio.sleep(0.001)


async def test_a_probe_that_hangs_at_the_end_does_not_keep_it_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(monitoring, "PROBE_WITHIN", 0.01)
    data = Sick()
    data.hangs = True
    with anyio.fail_after(5):
        async with in_memory(data=data) as app:
            assert (await ready(app))[0] == 503


async def test_it_is_not_ready_before_it_is_open_nor_while_it_drains() -> None:
    app = in_memory(base_path="/files/", pages=PAGES)
    status, found = await ready(app)
    assert (status, found["dependencies"]["server"]) == (503, {"ok": False, "why": "is not open"})
    async with app:
        assert (await ready(app))[0] == 200
        app.drain()
        status, found = await ready(app)
        assert status == 503
        assert found["dependencies"]["server"]["why"] == "is about to stop"
    assert (await ready(app))[0] == 503


# ----------------------------------------------------------------------------------- metrics


@pytest.mark.parametrize("way", ["asgi", "h11", "native"])
async def test_what_was_done_is_counted(way: str) -> None:
    app = in_memory(
        base_path="/files/",
        measures=Measures(),
        transport=Capability.TRAILERS if way == "native" else Capability.NONE,
    )
    async with app, served(app, way) as client:
        path = await client.create(5)
        await client.patch(path, 0, b"hel")
        await client.patch(path, 0, b"hel")  # 409
        await client.patch(path, 3, b"lo")
        assert await client.content(path) == b"hello"
        await client.head(path)
        await client.request("BREW", path)
        await client.delete(path)
        await client.create(5)
        found = await samples(app)

    def requests(method: str, status: int, outcome: str) -> float:
        labels = (("method", method), ("outcome", outcome), ("status", str(status)))
        return found.get(("requests_total", labels), 0)

    assert requests("POST", 201, "ok") == 2
    assert requests("PATCH", 204, "ok") == 2
    assert requests("PATCH", 409, "offset_mismatch") == 1
    assert requests("GET", 200, "ok") == requests("HEAD", 200, "ok") == 1
    assert requests("DELETE", 204, "ok") == 1
    refused = {("405", "method_not_allowed"), ("501", "bad_request")}
    assert sum(requests("other", int(status), outcome) for status, outcome in refused) == 1
    assert found["received_bytes_total", ()] == 5
    assert found["sent_bytes_total", ()] >= 5
    assert found["uploads_created_total", ()] == 2
    assert found["uploads_completed_total", ()] == 1
    assert found["uploads_terminated_total", ()] == 1
    assert found["uploads", (("state", "receiving"),)] == 1
    assert found["uploads", (("state", "terminated"),)] == 1
    assert found["request_duration_seconds_count", (("method", "PATCH"),)] == 3
    assert found["request_duration_seconds_bucket", (("le", "+Inf"), ("method", "PATCH"))] == 3
    commits = (("operation", "commit"), ("store", "metadata"))
    assert found["storage_duration_seconds_count", commits] >= 3
    writes = (("operation", "write"), ("store", "data"))
    assert found["storage_duration_seconds_count", writes] == 2
    assert found["storage_errors_total", writes] == 0
    assert found["workers", ()] == 1
    assert found["requests_in_flight", ()] == found["bodies_in_flight", ()] == 0


async def test_a_body_is_in_flight_and_its_bytes_count_as_they_come() -> None:
    app = in_memory(base_path="/files/", measures=Measures())
    async with app, served(app, "native") as client:
        path = await client.create(10)
        patch = await client.start_patch(path, 0, 10)
        await patch.send(b"hello")
        with anyio.fail_after(5):
            while (found := await samples(app))["received_bytes_total", ()] < 5:
                await anyio.sleep(0.001)
        assert found["bodies_in_flight", ()] == found["requests_in_flight", ()] == 1
        await patch.send(b"world")
        await patch.end()
        assert (await patch.reply()).status == 204


async def test_who_goes_away_is_told_from_who_is_refused() -> None:
    for way in ("asgi", "h11", "native"):
        app = in_memory(base_path="/files/", measures=Measures())
        async with app, served(app, way) as client:
            path = await client.create(10)
            patch = await client.start_patch(path, 0, 10)
            await patch.send(b"hello")
            await patch.drop()
            with anyio.fail_after(5):
                while not any(
                    name == "requests_total" and ("outcome", "dropped") in labels
                    for name, labels in await samples(app)
                ):
                    await anyio.sleep(0.001)


async def test_lease_waits_and_takeovers_are_counted() -> None:
    app = in_memory(base_path="/files/", measures=Measures())
    async with app, served(app, "native") as client:
        path = await client.create(10)
        patch = await client.start_patch(path, 0, 10)
        await patch.send(b"hello")
        await client.until(path, lambda reply: reply["Upload-Offset"] == "5")
        found = await samples(app)
        await patch.drop()
    assert found["lease_wait_seconds_count", ()] >= 1


async def test_failures_of_a_store_are_counted(sick: tuple[Tidegate, Sick, Blind]) -> None:
    """And without counts the rest is told."""
    app, _, metadata = sick
    metadata.gone = True
    assert (await AsgiClient(app).head("/files/abc")).status == 503
    found = await samples(app)
    assert found["storage_errors_total", (("operation", "load"), ("store", "metadata"))] == 1
    assert not any(name == "uploads" for name, _ in found)


async def test_uploads_are_not_counted_for_every_scrape(
    sick: tuple[Tidegate, Sick, Blind],
) -> None:
    app, _, metadata = sick
    for _ in range(3):
        await samples(app)
    assert metadata.counted == 1


async def test_openmetrics_is_spoken_with_who_asks_for_it() -> None:
    async with in_memory(measures=Measures()) as app:
        accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
        reply = await AsgiClient(app.monitoring).request("GET", "/metrics", accept)
        assert reply["content-type"].startswith("application/openmetrics-text")
        assert reply.text.endswith("# EOF\n")


async def test_every_name_and_unit_is_as_prometheus_wants_it() -> None:
    """`promtool check metrics` says the same: prefix, base units, `_total` on counters alone."""
    async with in_memory(measures=Measures()) as app:
        reply = await AsgiClient(app.monitoring).request("GET", "/metrics")
    families = list(text_string_to_metric_families(reply.text))
    assert len({family.name for family in families}) == len(families) > 20
    for family in families:
        assert family.name.startswith("tidegate_")
        assert family.documentation
        total = any(sample.name.endswith("_total") for sample in family.samples)
        assert not total or family.type == "counter", family.name
        assert not family.name.endswith(("_ms", "_milliseconds", "_kb", "_mib"))
        if family.type == "histogram":
            assert "_seconds" in family.name


async def test_the_pages_are_not_told_of() -> None:
    """A probe every few seconds would be most of the log."""
    lines: list[Any] = []
    app = in_memory(base_path="/files/", pages=PAGES, measures=Measures(), tell=lines.append)
    async with app:
        await AsgiClient(app).request("GET", "/healthz")
        await AsgiClient(app).head("/files/a")
    assert [line.path for line in lines] == ["/files/a"]


async def test_a_real_client_of_http_reads_them() -> None:
    app = in_memory(base_path="/files/", pages=PAGES, measures=Measures())
    async with app, listening(app, "native") as port, httpx.AsyncClient() as client:
        for page in PAGES:
            reply = await client.get(f"http://127.0.0.1:{port}{page}")
            assert reply.status_code == 200
            assert int(reply.headers["content-length"]) == len(reply.content)
