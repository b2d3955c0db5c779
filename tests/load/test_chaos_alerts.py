"""Alerts of the chaos run: each is told of the fault that raised it, and a slice of the run itself."""

import asyncio
from pathlib import Path

import pytest
import yaml

from deploy.console import progress_bar
from deploy.fleet import free_port
from tests.deploy.prometheus import Alert, hurried, prometheus, rules
from tests.deploy.test_assets import tool
from tests.load.chaos import suffering
from tests.load.chaos_alerts import DUE, FASTER, Raised, raised, watched
from tests.load.clients import Clients

SLICE = ["fail", "reload_policy", "offer_broken_policy"]


def test_what_is_due_are_alerts_that_there_are() -> None:
    named = {name for due in DUE.values() for name, _ in due.must | due.may}
    assert named <= {rule["alert"] for rule in rules()}


def test_an_alert_belongs_to_the_last_fault_before_it() -> None:
    alerts = [
        Alert("DraftpickAbsent", "", 1, 2),
        Alert("DraftpickEngineFails", "suffix", 12, 40),
        Alert("DraftpickEngineFails", "math", 13, 14),
        Alert("DraftpickPolicyRefused", "", 31, 33),
    ]
    calm, hang, offer = raised(alerts, {"offer_broken_policy": 30, "hang": 10})
    assert calm.fault == ""
    assert calm.unexpected == {("DraftpickAbsent", "")}
    assert hang.fault == "hang"
    assert hang.missing == {("DraftpickBreakerOpen", "suffix")}
    assert hang.unexpected == {("DraftpickEngineFails", "math")}
    assert (offer.fault, offer.missing, offer.unexpected) == ("offer_broken_policy", frozenset(), frozenset())


@pytest.mark.ray
@pytest.mark.load
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_alerts_fire_where_they_should_and_nowhere_else(tmp_path: Path) -> None:
    tool("prometheus")
    for turn in ("first", "second"):  # where the machine itself stood still for seconds, rules this fast see a fault
        found = _suffered(tmp_path / turn)
        assert [one.fault for one in found] == ["", *SLICE]
        amiss = {one.fault: (one.missing, one.unexpected) for one in found if one.missing or one.unexpected}
        if not amiss:
            break
    assert amiss == {}


def _suffered(folder: Path) -> list[Raised]:
    """What was raised in a run with a slice of the faults."""
    folder.mkdir()
    hurried_rules = folder / "rules.yaml"
    hurried_rules.write_text(yaml.safe_dump(hurried(FASTER)))
    with suffering(folder, None, free_port()) as (chaos, url), progress_bar() as bar:
        faults = [fault for fault in chaos.mock_faults() if fault.name in SLICE]

        async def run() -> list[Raised]:
            async with prometheus(url, folder, hurried_rules) as server:
                return await watched(chaos, faults, Clients(url, chaos.model, 6), 90, server, bar)

        return asyncio.run(run())
