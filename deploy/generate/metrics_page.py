"""Generates docs/metrics.md from the code: `python -m draftpick.deploy.generate.metrics_page`."""

from collections.abc import Sequence
from pathlib import Path

import yaml

from draftpick.router.monitoring import gauges
from draftpick.router.telemetry import former_metrics, metrics
from draftpick.router.telemetry.metrics import MetricFamily

_ROOT = Path(__file__).resolve().parents[2]
FILE = _ROOT / "docs" / "metrics.md"
FORMER_NAMES = _ROOT / "deploy" / "prometheus" / "rules" / "former-names.yaml"
_RULES_HEAD = """\
# Metrics under their former names, for dashboards and rules of your own (docs/metrics.md, "Former names").
# Generated from the code by `make manifests`; the next release does not have this file.
"""
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
_FORMER = """
## Former names

Some metrics and alerts were renamed. `deploy/prometheus/rules/former-names.yaml` records each metric under its former
name as well, for dashboards and rules of your own; the next release does not have it. Alerts and label values are not
aliased: rename them in silences, routes and queries.

"""


def text() -> str:
    """The page."""
    parts = [
        ("Per request", metrics.METRICS),
        ("State, read at scrape time", gauges.METRICS),
    ]
    tables = [f"## {title}\n\n{_table(described)}" for title, described in parts]
    return _HEAD + "\n".join(tables) + _BUCKETS + _FORMER + _former_names()


def _former_names() -> str:
    """Tables of former metrics, alerts and label values."""
    tables = {"metric": former_metrics.METRICS, "alert": former_metrics.ALERTS, "series": former_metrics.LABELS}
    return "\n".join(
        "\n".join(
            [f"| former {what} | {what} |", "|---|---|", *(f"| `{old}` | `{new}` |" for old, new in table.items())]
        )
        + "\n"
        for what, table in tables.items()
    )


def _table(described: Sequence[MetricFamily]) -> str:
    rows = [f"| `{m.name}` | {m.kind} | {', '.join(f'`{name}`' for name in m.labels)} | {m.help} |" for m in described]
    return "\n".join(["| metric | kind | labels | what it is |", "|---|---|---|---|", *rows]) + "\n"


def former_names() -> str:
    """The Prometheus rules file that records metrics under their former names."""
    return _RULES_HEAD + yaml.safe_dump(former_metrics.recording_rules(), sort_keys=False, width=160)


def main() -> None:
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(text())
    FORMER_NAMES.write_text(former_names())
    print(FILE)


if __name__ == "__main__":
    main()
