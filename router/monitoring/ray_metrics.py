"""The figures of a router on Ray's own metrics page, for those who watch a whole cluster by it (`ray_draftpick_...`).

They are copied every few seconds, so that a request pays nothing for them. Of histograms Ray gets sum and count, by
which means are made over any number of routers.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

from prometheus_client.registry import Collector

from draftpick.router.monitoring import gauges
from draftpick.router.telemetry import metrics

_EVERY_S = 10.0
_TOTAL = "_total"
_COUNTS = (
    *(metrics.REQUESTS, metrics.ATTEMPTS, metrics.DECISIONS, metrics.ERRORS, metrics.EVENTS_TOTAL),
    *(metrics.PROMPT_TOKENS, metrics.OUTPUT_TOKENS, metrics.DECODING_S, metrics.DECODING_BASELINE_S),
    *(gauges.FALLBACKS, gauges.DROPPED),
)
_SUMS = (metrics.TTFT, metrics.TPOT, metrics.E2E, metrics.ACCEPTANCE, metrics.PREDICTION)
_VALUES = (
    gauges.IN_FLIGHT,
    gauges.QUEUED,
    gauges.ARM_LOAD,
    gauges.ARM_WAITING,
    gauges.REPLICAS,
    gauges.QUARANTINE_STATE,
)


class RayMetricsExporter:
    """Copies what is collected in this process, of the router `name`. Needs a Ray worker."""

    def __init__(self, collectors: Sequence[Collector], name: str) -> None:
        from ray.util.metrics import Counter, Gauge

        self._collectors, self._name = collectors, name
        self._last: dict[tuple[str, tuple[str, ...]], float] = {}
        counters = {described.name: described for described in _COUNTS}
        counters |= {f"{described.name}{part}": described for described in _SUMS for part in ("_sum", "_count")}
        self._counters = {
            name: Counter(name.removesuffix(_TOTAL), described.help, ("router", *described.labels))
            for name, described in counters.items()
        }
        self._gauges = {d.name: Gauge(d.name, d.help, ("router", *d.labels)) for d in _VALUES}

    async def run(self) -> None:
        """Copy for ever."""
        while True:
            await asyncio.sleep(_EVERY_S)
            self.export()

    def export(self) -> None:
        """Copy once: what was added since the last time, and what is so now."""
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
