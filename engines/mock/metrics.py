"""The metrics page of a mock engine, with the vLLM names and labels that fleet dashboards use."""

from collections import Counter

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from draftpick.engines.mock.decoding import Decoding

_LABELS = ("model_name", "engine")
_COUNTERS = {
    "prompt_tokens": "Prompt tokens.",
    "generation_tokens": "Output tokens.",
    "spec_decode_num_drafts": "Steps with a draft.",
    "spec_decode_num_draft_tokens": "Drafted tokens.",
    "spec_decode_num_accepted_tokens": "Accepted tokens.",
}


class MockMetrics(Collector):
    """Counters of one engine without a cache. Set `running` and `waiting` before rendering a page."""

    def __init__(self, model: str) -> None:
        self._values = (model, "0")
        self._counts = Counter(dict.fromkeys(_COUNTERS, 0))
        self._accepted: Counter[int] = Counter()
        self.running = self.waiting = 0

    def ended(self, decoding: Decoding) -> None:
        """Count the generated tokens of a request, regardless of its outcome."""
        self._counts["prompt_tokens"] += decoding.prompt_tokens
        self._counts["generation_tokens"] += decoding.output_tokens
        drafts, most = sum(decoding.histogram), len(decoding.histogram) - 1
        if not most:
            return
        self._counts["spec_decode_num_drafts"] += drafts
        self._counts["spec_decode_num_draft_tokens"] += drafts * most
        for position in range(most):
            accepted = sum(decoding.histogram[position + 1 :])
            self._counts["spec_decode_num_accepted_tokens"] += accepted
            self._accepted[position] += accepted

    def collect(self) -> list[CounterMetricFamily | GaugeMetricFamily]:
        """Return the metric families under vLLM's names; those of speculation only after a draft, as in vLLM."""
        drafts = self._counts["spec_decode_num_drafts"] > 0
        families: list[CounterMetricFamily | GaugeMetricFamily] = []
        for name, text in _COUNTERS.items():
            if drafts or not name.startswith("spec_decode"):
                families.append(CounterMetricFamily(f"vllm:{name}", text, labels=_LABELS))
                families[-1].add_metric(self._values, self._counts[name])
        if drafts:
            name = "vllm:spec_decode_num_accepted_tokens_per_pos"
            families.append(CounterMetricFamily(name, "Accepted tokens by position.", labels=(*_LABELS, "position")))
            for position, accepted in sorted(self._accepted.items()):
                families[-1].add_metric((*self._values, str(position)), accepted)
        now = {"num_requests_running": self.running, "num_requests_waiting": self.waiting, "kv_cache_usage_perc": 0}
        for name, value in now.items():
            families.append(GaugeMetricFamily(f"vllm:{name}", "Current value.", labels=_LABELS))
            families[-1].add_metric(self._values, value)
        return families

    def page(self) -> bytes:
        registry = CollectorRegistry()
        registry.register(self)
        return generate_latest(registry)
