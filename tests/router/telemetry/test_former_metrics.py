"""Former names of metrics, alerts and label values: each leads to one that exists, and nothing of ours uses it."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from draftpick.deploy.generate import dashboard
from draftpick.router.monitoring import gauges
from draftpick.router.online.events import FORMER_KINDS
from draftpick.router.telemetry import metrics
from draftpick.router.telemetry.former_metrics import ALERTS, LABELS, METRICS, recording_rules
from tests.router.config.test_former_fields import upgrading

RULES = Path(__file__).parents[3] / "deploy" / "prometheus" / "rules"
KNOWN = {described.name for described in (*metrics.METRICS, *gauges.METRICS)}


@pytest.mark.parametrize(("old", "new"), METRICS.items())
def test_a_former_metric_is_recorded_from_one_that_exists(old: str, new: str) -> None:
    assert new.removeprefix("ray_") in KNOWN
    assert old.removeprefix("ray_") not in KNOWN
    (group,) = recording_rules()["groups"]
    assert {"record": old, "expr": new} in group["rules"]
    rules, panels = (RULES / "draftpick.yaml").read_text(), dashboard.text()
    assert old not in rules + panels


def test_a_former_alert_leads_to_one_that_exists() -> None:
    groups = yaml.safe_load((RULES / "draftpick.yaml").read_text())["groups"]
    names = {rule["alert"] for group in groups for rule in group["rules"]}
    assert set(ALERTS.values()) <= names
    assert not set(ALERTS) & names


def test_former_label_values_lead_to_those_of_today() -> None:
    values = {text.split('"')[1] for text in LABELS.values()}
    assert values <= {*metrics.REASONS, *metrics.EVENTS}
    former = {text.split('"')[1] for text in LABELS}
    assert not former & {*metrics.REASONS, *metrics.EVENTS}
    assert former - {"continued"} <= set(FORMER_KINDS)


@pytest.mark.parametrize("table", [METRICS, ALERTS, LABELS, FORMER_KINDS])
def test_the_changelog_lists_every_row(table: Mapping[str, str]) -> None:
    assert {f"  - `{old}` -> `{new}`" for old, new in table.items()} <= set(upgrading())
