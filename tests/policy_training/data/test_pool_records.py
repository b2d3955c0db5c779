"""An answer of a pool is a measurement of each of its drafters."""

from dataclasses import replace

import numpy as np
import pytest

from draftpick.engines.pool.report import DrafterReport
from draftpick.policy_training.data.from_records import dataset_of, logged_feedback, paired_rows, random_arm_rows
from draftpick.policy_training.headroom.from_records import Traffic
from draftpick.router.types import Context, Decision, Outcome, Record

ARMS = ("pool/none", "pool/suffix", "pool/math")
REPORT = {
    "none": DrafterReport(2),
    "suffix": DrafterReport(3, 9, 4, 20, 1.5),
    "math": DrafterReport(15, 60, 40, 20, 3.0),
}


def record(i: int = 0, report: dict[str, DrafterReport] | None = REPORT, arm: str = "pool/math") -> Record:
    """An answer at 10 ms a token. A step was predicted to take 10, 12 and 20 ms, with 1, 2 and 2 tokens."""
    shares = {one: float(one == arm) for one in ARMS}
    predicted = {"predicted_tpot_s": [0.010, 0.006, 0.010], "predicted_tau": [1.0, 2.0, 2.0]}
    decision = Decision(arm, 1.0, shares, "p", **predicted)  # type: ignore[arg-type]
    outcome = Outcome("ok", 200, 0.1, 0.010, 1.0, 10, 60, acceptance_length=2.5, drafters=report)
    context = Context(np.full(2, i, np.float32), "f")
    return Record(
        f"r{i}", 1, float(i), "/v1/chat/completions", False, {"temperature": 0.0}, {}, context, decision, outcome
    )


def test_every_scored_drafter_becomes_a_measurement_of_its_arm() -> None:
    data = dataset_of([record()])
    found = {m.arm: m for m in data.measurements}
    assert {arm: m.outcome.acceptance_length for arm, m in found.items()} == {
        "pool/none": 1.0, "pool/suffix": 1.5, "pool/math": 3.0,
    }  # fmt: skip
    # 10 ms a token, 3 tokens a step of math: 30 ms, 10 more than predicted; suffix takes 0.6 of that, none 0.5.
    tpot_s = {arm: m.outcome.tpot_s for arm, m in found.items()}
    assert tpot_s == pytest.approx({"pool/none": 0.015, "pool/suffix": 0.012, "pool/math": 0.010})
    assert all(m.outcome.drafters is None for m in data.measurements)


def test_only_the_served_arm_has_a_propensity() -> None:
    data = dataset_of([record()])
    assert [m.arm for m in random_arm_rows(data).measurements] == ["pool/math"]
    assert logged_feedback(data, ARMS).reward.tolist() == [-0.010]
    assert np.isfinite(paired_rows(data, random_arm_rows(data), ARMS)).all()


@pytest.mark.parametrize("report", [None, {"suffix": DrafterReport(5, 9, 4, 0, None)}])
def test_a_drafter_that_was_not_scored_is_unknown(report: dict[str, DrafterReport] | None) -> None:
    found = {m.arm: m.outcome.acceptance_length for m in dataset_of([record(report=report)]).measurements}
    assert found == {"pool/math": 2.5} | ({"pool/none": 1.0} if report else {})


def test_answers_before_a_drafters_change_are_outdated_for_it_alone() -> None:
    data = dataset_of([record(1)], {"pool/suffix": 2.0})
    assert sorted(m.arm for m in data.measurements) == ["pool/math", "pool/none"]
    assert data.dropped == {"before_change:pool/suffix": 1}


def test_answers_of_a_pool_are_compared_without_shadows() -> None:
    records = [replace(record(i), request_id=f"r{i}") for i in range(60)]
    traffic = Traffic.from_records(records)
    found = traffic.paired_matrix()
    assert found is not None
    assert (len(found), found.arms) == (60, tuple(sorted(ARMS)))
    assert found.acceptance_length[0].tolist() == [3.0, 1.0, 1.5]
