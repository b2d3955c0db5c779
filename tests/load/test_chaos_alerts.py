"""Alerts of the chaos run: each is told of the fault that raised it. The run is part of tests.bench.operations."""

from tests.deploy.prometheus import Alert, rules
from tests.load.chaos_alerts import DUE, raised


def test_what_is_due_are_alerts_that_there_are() -> None:
    named = {name for due in DUE.values() for name, _ in due.must | due.may}
    assert named <= {rule["alert"] for rule in rules()}


def test_an_alert_belongs_to_the_last_fault_before_it() -> None:
    alerts = [
        Alert("DraftpickAbsent", "", 1, 2),
        Alert("DraftpickEngineFails", "suffix", 12, 40),
        Alert("DraftpickEngineFails", "math", 13, 14),
        Alert("DraftpickPolicyRejected", "", 31, 33),
    ]
    calm, hang, offer = raised(alerts, {"offer_broken_policy": 30, "hang": 10})
    assert calm.fault == ""
    assert calm.unexpected == {("DraftpickAbsent", "")}
    assert hang.fault == "hang"
    assert hang.missing == {("DraftpickBreakerOpen", "suffix")}
    assert hang.unexpected == {("DraftpickEngineFails", "math")}
    assert (offer.fault, offer.missing, offer.unexpected) == ("offer_broken_policy", frozenset(), frozenset())
