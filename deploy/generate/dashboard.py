"""Generates the Grafana dashboard from deploy/grafana/panels.yaml: `python -m draftpick.deploy.generate.dashboard`."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from draftpick.router.monitoring import gauges
from draftpick.router.telemetry import metrics

GRAFANA = Path(__file__).resolve().parents[2] / "deploy" / "grafana"
FILE, PANELS = GRAFANA / "dashboards" / "draftpick.json", GRAFANA / "panels.yaml"
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_HAS_ARM = {m.name for m in (*metrics.METRICS, *gauges.METRICS) if "arm" in m.labels}
_OF_ENGINES = "vllm:"
_SELECTED = re.compile(r"([a-z][\w:]*)\{([^}]*)\}")
_PARTS = re.compile(r"_(bucket|sum|count)$")
_WIDTH, _HEIGHT = 24, 8


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel: queries with their legends, in a Grafana unit. `kind`: its visualisation."""

    title: str
    about: str
    queries: dict[str, str]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    stacked: bool = False
    least: float | None = 0.0


ROWS: dict[str, list[Panel]] = {
    title: [Panel(**fields) for fields in row] for title, row in yaml.safe_load(PANELS.read_text()).items()
}
"""Panels by title of their row."""


def expanded(query: str) -> str:
    """Insert the dashboard's selection into a query."""

    def select(match: re.Match[str]) -> str:
        name, own = match.groups()
        chosen = ['job=~"$job"']
        if _PARTS.sub("", name) in _HAS_ARM or name in _HAS_ARM or name.startswith(_OF_ENGINES):
            chosen.append('arm=~"$arm"')
        return f"{name}{{{','.join([*chosen, *filter(None, [own])])}}}"

    return _SELECTED.sub(select, query).replace("[_]", "[$__rate_interval]")


def dashboard() -> dict[str, Any]:
    """The whole dashboard."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS.items():
        panels.append({"type": "row", "title": title, "collapsed": False, "gridPos": _place(0, y, _WIDTH, 1)})
        x, y = 0, y + 1
        height = 4 if row[0].kind == "stat" else _HEIGHT
        for panel in row:
            if x + panel.width > _WIDTH:
                x, y = 0, y + height
            panels.append(_panel(panel, _place(x, y, panel.width, height)))
            x += panel.width
        y += height
    for number, made in enumerate(panels, start=1):
        made["id"] = number
    return {
        "uid": "draftpick",
        "title": "Draftpick",
        "description": "Routing over vLLM engines that differ in their drafter. Each metric: docs/metrics.md.",
        "tags": ["draftpick", "vllm"],
        "schemaVersion": 41,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": _variables()},
        "annotations": {"list": [_events()]},
        "panels": panels,
    }


def _panel(panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    custom: dict[str, Any] = {"fillOpacity": 25 if panel.stacked else 8, "lineWidth": 1, "showPoints": "never"}
    custom |= {"stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"}}
    defaults: dict[str, Any] = {"unit": panel.unit}
    if panel.least is not None:
        defaults["min"] = panel.least
    if panel.kind == "timeseries":
        defaults["custom"] = custom
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": _SOURCE,
        "gridPos": place,
        "targets": [
            {
                "refId": chr(ord("A") + i),
                "datasource": _SOURCE,
                "expr": expanded(query),
                "legendFormat": legend or "__auto",
                "instant": panel.kind == "bargauge",
                "range": panel.kind != "bargauge",
            }
            for i, (legend, query) in enumerate(panel.queries.items())
        ],
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": _OPTIONS[panel.kind],
    }


_OPTIONS: dict[str, dict[str, Any]] = {
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {
        "graphMode": "area",
        "colorMode": "none",
        "textMode": "value",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    },
    "bargauge": {
        "displayMode": "basic",
        "orientation": "horizontal",
        "valueMode": "hidden",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    },
}


def _place(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


def _variables() -> list[dict[str, Any]]:
    shares = ("0.5", "0.9", "0.95", "0.99")
    return [
        {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
        _labels("job", "Fleet", "label_values(draftpick_build_info, job)"),
        _labels("arm", "Engine", 'label_values(draftpick_attempts_total{job=~"$job"}, arm)'),
        {
            "name": "quantile",
            "label": "Quantile",
            "type": "custom",
            "query": ",".join(shares),
            "current": {"text": "0.95", "value": "0.95"},
            "options": [{"text": s, "value": s, "selected": s == "0.95"} for s in shares],
        },
    ]


def _labels(name: str, label: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def _events() -> dict[str, Any]:
    return {
        "name": "Events",
        "datasource": _SOURCE,
        "enable": True,
        "iconColor": "orange",
        "expr": expanded("sum by (kind) (increase(draftpick_events_total{}[_])) > 0"),
        "titleFormat": "{{kind}}",
        "step": "30s",
    }


def queries() -> dict[str, str]:
    """All queries of the dashboard by panel and legend."""
    found = {
        f"{panel['title']}: {target['legendFormat']}": target["expr"]
        for panel in dashboard()["panels"]
        for target in panel.get("targets", ())
    }
    return {**found, "annotation": _events()["expr"]}


def text() -> str:
    """The file."""
    return json.dumps(dashboard(), indent=1) + "\n"


def main() -> None:
    FILE.write_text(text())


if __name__ == "__main__":
    main()
