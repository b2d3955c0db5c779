"""docs/metrics.md: `python -m draftpick.deploy.generate.metrics_page` makes it of the code."""

from pathlib import Path

from draftpick.router.monitoring import gauges
from draftpick.router.telemetry import metrics
from draftpick.router.telemetry.metrics import MetricFamily

FILE = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
_HEAD = """\
# Metrics

What `/metrics` of a router shows; `make manifests` makes this page of the code. The routers'
own metrics come first, each with the label `router`; then those of all engines under vLLM's names, as
`vllm:spec_decode_num_drafts_total`, with `arm` and `replica`. Any router shows all routers and all engines: scrape one
address.

Sum over routers what is counted (`sum by (arm) (rate(...))`); of what several routers see of the same engines take the
greatest (`max by (arm) (draftpick_arm_load_requests)`). On Ray Serve the most important of them are also on Ray's own
metrics page (`ray_draftpick_...`), copied every ten seconds, of histograms sum and count.

"""
_BUCKETS = """
Buckets of times are twice as long each as the one before, from a small model's to a long answer's, wide enough for any
threshold. Those of `draftpick_tpot_seconds` are a quarter apart, since what routing gains is mostly a tenth to a half.
"""


def text() -> str:
    """The page."""
    parts = [
        ("Counted and measured of requests", metrics.METRICS),
        ("Read when somebody asks", gauges.METRICS),
    ]
    tables = [f"## {title}\n\n{_table(described)}" for title, described in parts]
    return _HEAD + "\n".join(tables) + _BUCKETS


def _table(described: tuple[MetricFamily, ...]) -> str:
    rows = [f"| `{m.name}` | {m.kind} | {', '.join(f'`{name}`' for name in m.labels)} | {m.help} |" for m in described]
    return "\n".join(["| metric | kind | labels | what it is |", "|---|---|---|---|", *rows]) + "\n"


def main() -> None:
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(text())
    print(FILE)


if __name__ == "__main__":
    main()
