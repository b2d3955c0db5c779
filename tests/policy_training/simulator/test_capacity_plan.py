"""Plans: a mixture where it pays, one engine where it does not, and never more accelerators than there are."""

import numpy as np
import pytest

from draftpick.policy_training.data.dataset import DatasetError
from draftpick.policy_training.simulator.capacity_plan import Plan, PlanQuestion, plan
from draftpick.policy_training.simulator.engine import Arm
from draftpick.policy_training.simulator.requests import Requests
from draftpick.policy_training.simulator.traffic import SyntheticTraffic
from tests.policy_training.simulated import arm, requests


def rows(share: float) -> Requests:
    """Requests of which this share is at home in `a`, the others in `b`."""
    home = np.random.default_rng(1).random(2000) < share
    tau = {"a": np.where(home, 3.0, 1.5), "b": np.where(home, 1.5, 3.0), "plain": np.ones(2000)}
    return requests([0.0] * 2000, tau)


ARMS = {name: arm(name, step, 0.001) for name, step in (("a", 0.011), ("b", 0.011), ("plain", 0.01))}


def planned(
    share: float,
    arms: dict[str, Arm] = ARMS,
    accelerators: int = 8,
    rate: float = 8.0,
    objective: str = "latency_s/mean",
) -> Plan:
    question = PlanQuestion(
        arms,
        SyntheticTraffic(rows(share), 800, rate),
        accelerators,
        predictability=0.9,
        evaluation_seeds=4,
        objective=objective,
    )
    return plan(question)


def test_two_kinds_get_two_engines() -> None:
    found = planned(0.5)
    assert set(found.replicas) == {"a", "b"}
    assert sum(found.replicas.values()) == 8
    assert found.better
    assert found.chosen == found.replicas
    assert found.speed.low > 1.1
    assert found.value.value * found.speed.value == pytest.approx(found.single_value.value, rel=0.02)
    assert found.figures["share/a"].value == pytest.approx(0.5, abs=0.15)


def test_one_kind_gets_one_engine() -> None:
    found = planned(1.0)
    assert found.single == {"a": 8}
    assert found.chosen == {"a": 8}
    assert not found.better
    assert found.speed.value == pytest.approx(1.0, abs=0.02)


def test_shares_follow_the_traffic() -> None:
    found = planned(0.75)
    assert found.replicas["a"] > found.replicas["b"]


def test_an_engine_that_needs_several_accelerators_counts_as_many() -> None:
    arms = {**ARMS, "a": arm("a", 0.011, 0.001, accelerators=3)}
    found = planned(0.5, arms)
    needs = {name: one.accelerators for name, one in arms.items()}
    assert sum(needs[name] * count for name, count in found.replicas.items()) <= 8
    assert found.single in ({"b": 8}, {"a": 2}, {"plain": 8})
    with pytest.raises(DatasetError, match="too few"):
        planned(0.5, {"a": arms["a"]}, accelerators=2)


def test_tails_can_be_the_objective() -> None:
    found = planned(0.5, objective="latency_s/p95")
    assert found.value.value == pytest.approx(found.figures["latency_s/p95"].value)
    with pytest.raises(ValueError, match="unknown objective"):
        planned(0.5, objective="latency")


def test_the_same_question_has_the_same_answer() -> None:
    assert planned(0.6) == planned(0.6)
