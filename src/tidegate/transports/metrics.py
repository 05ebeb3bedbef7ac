"""Measures as Prometheus reads them."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Final

from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector, CollectorRegistry

from tidegate import __version__
from tidegate.measures import (
    EVENTS_GIVEN_UP,
    EVENTS_PENDING,
    FAMILIES,
    OLDEST_EVENT,
    REQUESTS,
    UPLOADS,
    Family,
    Measures,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PREFIX: Final = "tidegate_"
NOTED_FOR: Final = 60.0
"""Seconds after which it is better to say nothing than what was so then."""
_APART: Final = {"said_at", "noted_at", OLDEST_EVENT.name}
_NOTED: Final = (UPLOADS, EVENTS_PENDING, EVENTS_GIVEN_UP)


class Metrics(Collector):
    """What was measured, as metrics; also to be registered with an application's own registry.

    `bodies` tells how many bodies are being received.
    """

    def __init__(self, measures: Measures, bodies: Callable[[], int]) -> None:
        self._measures = measures
        self._bodies = bodies
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def render(self, accept: str) -> tuple[bytes, str]:
        """The text, and its content type: Prometheus's own, or OpenMetrics when it is asked for."""
        encoder, content_type = choose_encoder(accept)
        return encoder(self._registry), content_type

    def describe(self) -> list[Metric]:
        """Nothing: what it collects it says when it is asked. See prometheus_client."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All metrics, of all processes together."""
        cells = self._measures.totals()
        yield InfoMetricFamily(f"{PREFIX}build", "What runs here.", value={"version": __version__})
        known = self._measures.noted_for() <= NOTED_FOR
        for family in FAMILIES:
            if family.name not in _APART and (known or family.kind != "noted"):
                yield _metric(family, cells)
        if known:
            oldest = cells[OLDEST_EVENT.start]
            yield GaugeMetricFamily(
                f"{PREFIX}event_lag_seconds",
                "How long the oldest event that is still to be delivered has waited.",
                value=max(0.0, time.time() - oldest) if oldest else 0.0,
            )
        yield GaugeMetricFamily(
            f"{PREFIX}bodies_in_flight", "Bodies that are being received.", value=self._bodies()
        )


def _metric(family: Family, cells: list[float]) -> Metric:
    name = PREFIX + family.name
    if family.kind == "histogram":
        histogram = HistogramMetricFamily(name, family.help, labels=family.labels)
        for labels, row in _rows(family, cells):
            total, buckets = 0.0, []
            for bound, count in zip((*family.bounds, math.inf), row, strict=False):
                total += count
                buckets.append((str(bound) if bound != math.inf else "+Inf", total))
            histogram.add_metric(labels, buckets, row[-1])
        return histogram
    kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    metric = kind(name, family.help, labels=family.labels)
    for labels, (value,) in _rows(family, cells):
        # Of the many combinations that there may be, those that there were.
        if value or family is not REQUESTS:
            metric.add_metric(labels, value)
    return metric


def _rows(family: Family, cells: list[float]) -> Iterator[tuple[tuple[str, ...], list[float]]]:
    for number, labels in enumerate(family.rows):
        start = family.start + number * family.width
        yield labels, cells[start : start + family.width]
