"""Exports a router's metrics to Ray's metrics page (`ray_draftpick_...`).

They are copied every few seconds, at no cost per request. Histograms are exported as sum and count, which give means
over any number of routers.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

from prometheus_client.registry import Collector

from draftpick.router.monitoring import gauges
from draftpick.router.telemetry import metrics

_EVERY_S = 10.0
_TOTAL = "_total"
_COPIED = tuple(metric for metric in (*metrics.METRICS, *gauges.METRICS) if metric.on_ray)


class RayMetricsExporter:
    """Exports this process's collectors, for the router `name`. Needs a Ray worker."""

    def __init__(self, collectors: Sequence[Collector], name: str) -> None:
        from ray.util.metrics import Counter, Gauge

        self._collectors, self._name = collectors, name
        self._last: dict[tuple[str, tuple[str, ...]], float] = {}
        counters = {described.name: described for described in _COPIED if described.kind == "counter"}
        counters |= {
            f"{described.name}{part}": described
            for described in _COPIED
            if described.kind == "histogram"
            for part in ("_sum", "_count")
        }
        self._counters = {
            name: Counter(name.removesuffix(_TOTAL), described.help, ("router", *described.labels))
            for name, described in counters.items()
        }
        self._gauges = {d.name: Gauge(d.name, d.help, ("router", *d.labels)) for d in _COPIED if d.kind == "gauge"}

    async def run(self) -> None:
        """Export periodically, forever."""
        while True:
            await asyncio.sleep(_EVERY_S)
            self.export()

    def export(self) -> None:
        """Export once: increments of counters since the last export, and current gauges."""
        for collector in self._collectors:
            for family in collector.collect():
                for sample in family.samples:
                    if (counter := self._counters.get(sample.name)) is not None:
                        self._add(counter, sample.name, sample.labels, sample.value)
                    elif (gauge := self._gauges.get(sample.name)) is not None:
                        gauge.set(sample.value, {"router": self._name, **sample.labels})

    def _add(self, counter: Any, name: str, labels: dict[str, str], value: float) -> None:
        series = name, tuple(labels.values())
        added = value - self._last.get(series, 0.0)
        self._last[series] = value
        if added > 0:
            counter.inc(added, {"router": self._name, **labels})
