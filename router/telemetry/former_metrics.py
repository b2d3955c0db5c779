"""Former names of metrics and alerts, and recording rules that provide the metrics under them.

`deploy/prometheus/rules/former-names.yaml` contains these rules for one release, so that custom dashboards and rules
keep working. Alerts have no aliases.
"""

from collections.abc import Mapping
from typing import Any

METRICS: Mapping[str, str] = {
    "draftpick_continued_total": "draftpick_streams_resumed_total",
    "draftpick_queue_refused_total": "draftpick_queue_rejected_total",
    "draftpick_decoding_plain_seconds_total": "draftpick_decoding_baseline_seconds_total",
    "draftpick_arm_drafts": "draftpick_arm_quarantine_state",
    "draftpick_arm_stale": "draftpick_arm_report_stale",
    "draftpick_policy_put_aside": "draftpick_safe_mode",
    "draftpick_policy_refused": "draftpick_policy_rejected",
    "ray_draftpick_decoding_plain_seconds_total": "ray_draftpick_decoding_baseline_seconds_total",
    "ray_draftpick_arm_drafts": "ray_draftpick_arm_quarantine_state",
}
"""Former name of a metric -> name."""

ALERTS: Mapping[str, str] = {
    "DraftpickFailsInside": "DraftpickInternalFailures",
    "DraftpickSavesNothing": "DraftpickNoSpeedup",
    "DraftpickRoutersDisagree": "DraftpickRouterStateDivergence",
    "DraftpickRequestsRefused": "DraftpickRequestsRejected",
    "DraftpickPolicyRefused": "DraftpickPolicyRejected",
    "DraftpickPolicyLoses": "DraftpickSafeMode",
}
"""Former name of an alert -> name."""

LABELS: Mapping[str, str] = {
    'draftpick_decisions_total{reason="continued"}': 'draftpick_decisions_total{reason="resumed"}',
    'draftpick_events_total{kind="policy_loses"}': 'draftpick_events_total{kind="safe_mode_entered"}',
    'draftpick_events_total{kind="policy_tried_again"}': 'draftpick_events_total{kind="safe_mode_left"}',
    'draftpick_events_total{kind="policy_taken"}': 'draftpick_events_total{kind="policy_activated"}',
    'draftpick_events_total{kind="policy_refused"}': 'draftpick_events_total{kind="policy_rejected"}',
}
"""Series with a renamed label value: not recorded under the former one, or sums would count them twice."""


def recording_rules() -> dict[str, Any]:
    """Prometheus rules that record every metric under its former name, with the same labels."""
    rules = [{"record": old, "expr": new} for old, new in METRICS.items()]
    return {"groups": [{"name": "draftpick-former-names", "rules": rules}]}
