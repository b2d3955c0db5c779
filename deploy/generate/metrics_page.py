"""docs/metrics.md: `python -m draftpick.deploy.generate.metrics_page` makes it of the code."""

from collections.abc import Sequence
from pathlib import Path

from draftpick.router.monitoring import gauges
from draftpick.router.telemetry import metrics
from draftpick.router.telemetry.metrics import MetricFamily

FILE = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
_HEAD = """\
# Metrics

The metrics on `/metrics` of a router. Generated from the code by `make manifests`. The routers' own metrics come first,
with the label `router`; then those of all engines under vLLM's names, such as `vllm:spec_decode_num_drafts_total`, with
`arm` and `replica`. Any router shows all routers and all engines: scrape one address.

Sum counters over routers (`sum by (arm) (rate(...))`); for gauges of the same engine from several routers take the
maximum (`max by (arm) (draftpick_arm_load_requests)`). On Ray Serve the most important ones are also on Ray's own
metrics page (`ray_draftpick_...`), copied every ten seconds, histograms as sum and count.

"""
_BUCKETS = """
Buckets of times double from one to the next, from the times of a small model to those of a long answer. Buckets of
`draftpick_tpot_seconds` are a quarter apart, because routing mostly gains a tenth to a half.
"""


def text() -> str:
    """The page."""
    parts = [
        ("Per request", metrics.METRICS),
        ("State, read at scrape time", gauges.METRICS),
    ]
    tables = [f"## {title}\n\n{_table(described)}" for title, described in parts]
    return _HEAD + "\n".join(tables) + _BUCKETS


def _table(described: Sequence[MetricFamily]) -> str:
    rows = [f"| `{m.name}` | {m.kind} | {', '.join(f'`{name}`' for name in m.labels)} | {m.help} |" for m in described]
    return "\n".join(["| metric | kind | labels | what it is |", "|---|---|---|---|", *rows]) + "\n"


def main() -> None:
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(text())
    print(FILE)


if __name__ == "__main__":
    main()
