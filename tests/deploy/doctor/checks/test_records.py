"""What the last records tell."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from draftpick.engines.pool.forecast import Forecast
from draftpick.engines.pool.report import DrafterReport
from tests.deploy.doctor.ward import fleet, found, logged, one


@pytest.mark.parametrize(
    ("check", "changes", "what"),
    [
        ("lost_drafts", {"acceptance_length": 1.0}, "1.00 tokens per step"),
        ("lost_drafts", {"acceptance_length": None}, "have no acceptance metrics"),
        ("wasted_drafts", {"acceptance_rate": 0.04}, "4% of its drafted tokens"),
        ("failures", {"status": "engine_error"}, "60 of its last 60 requests failed"),
        ("stale_costs", {"predicted_tpot_s": [0.001] * 4}, "10 times the predicted time"),
        ("traffic", {"output_tokens": 5}, "5 tokens or fewer"),
    ],
)
def test_what_records_tell(tmp_path: Path, check: str, changes: dict[str, Any], what: str) -> None:
    assert what in one(found(fleet(tmp_path), check, records=logged(60, **changes))).what
    healthy = logged(60, predicted_tpot_s=[0.01] * 4, residual=[0.0] * 4)
    assert not found(fleet(tmp_path), check, records=healthy)
    assert not found(fleet(tmp_path), check, records=logged(10, **changes))


def test_sampled_traffic(tmp_path: Path) -> None:
    hot = [replace(one, sampling={"temperature": 0.9}) for one in logged(60)]
    assert "100% of requests are sampled" in one(found(fleet(tmp_path), "traffic", records=hot)).what


def test_routers_in_safe_mode(tmp_path: Path) -> None:
    usual, safe = logged(40), logged(20)
    safe = [replace(one, decision=replace(one.decision, policy="safe_mode:suffix")) for one in safe]
    finding = one(found(fleet(tmp_path), "safe_mode", records=[*usual, *safe]))
    assert (finding.level, finding.where) == ("warning", "suffix")
    assert finding.what == "served 20 of the last 60 requests in safe mode"
    assert not found(fleet(tmp_path), "safe_mode", records=[*safe, *logged(200)])


def test_forecasts_that_a_pool_ignores(tmp_path: Path) -> None:
    told = {"arm": "pool/math", "forecast": Forecast({"math": 2.0})}
    silent, pool = logged(12, **told), logged(8, **told, drafters={"math": DrafterReport(4, 8, 6, 4, 2.5)})
    finding = one(found(fleet(tmp_path), "ignored_forecasts", records=[*silent, *pool]))
    assert (finding.level, finding.where) == ("warning", "pool")
    assert finding.what == "ignored 12 of the last 20 forecasts of its drafters"
    assert not found(fleet(tmp_path), "ignored_forecasts", records=[*pool, *logged(20)])


def test_records_that_cannot_be_read(tmp_path: Path) -> None:
    assert one(found(fleet(tmp_path), "readable", records="damaged")).level == "problem"
