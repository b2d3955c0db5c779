"""How the simulated router chooses: the score by hand, what each strategy does not see, and which of them pays."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftpick.policy_training.simulator.arrivals import poisson
from draftpick.policy_training.simulator.engine import Arm
from draftpick.policy_training.simulator.fleet import Fleet
from draftpick.policy_training.simulator.requests import Requests
from draftpick.policy_training.simulator.routing import STRATEGIES, Floats, Objective, Routed, StrategyCosts, strategy
from draftpick.policy_training.simulator.simulate import simulate
from draftpick.policy_training.simulator.traffic import predicted_tau
from tests.policy_training.simulated import arm, requests

FAST_ALONE = arm("spec", 0.012, 0.006, most=4)
FLAT = arm("plain", 0.010, 0.0005, most=32)
FLEET = Fleet((FAST_ALONE, FLAT), (1, 1))


def made(n: int = 1, tau: npt.ArrayLike = 2.0, rate: float = 1.0, seed: int = 0) -> Requests:
    at_s = poisson(n, rate, np.random.default_rng(seed))
    return requests(at_s, {"spec": tau, "plain": 1.0})


@pytest.mark.parametrize(
    ("objective", "running", "expected"),
    [
        ("latency", 0, 0.02 + 50 * 0.012),
        ("throughput", 0, 0.02 + 50 * 0.012),
        ("latency", 2, 0.02 + 50 * 0.024),
        ("throughput", 2, 3 * 0.02 + 50 * (0.024 + 2 * 0.006)),
        ("cost", 2, 1.1 * 0.02 + 50 * (0.024 / 3 + 0.0024)),
        ("throughput", 5, 4 * 0.02 + 2 * (50 * 0.030) / 4 + 50 * (0.030 + 3 * 0.006)),  # the second that waits
    ],
)
def test_the_score_by_hand(objective: Objective, running: int, expected: float) -> None:
    one = made()
    routed = Routed(StrategyCosts.from_arms(FLEET.arms, one, one.tau), one, one.tau, 101.0, objective)
    assert routed.scores(0, [running, 0])[0] == pytest.approx(expected)


def chosen(name: str, least: list[int], fleet: Fleet = FLEET, i: int = 0) -> str:
    one = made(8)
    return fleet.names[strategy(name, fleet, one, one.tau).choose(i, least)]


def test_what_each_strategy_sees_of_the_load() -> None:
    assert {chosen(name, [0, 0]) for name in ("throughput", "latency", "text", "oracle")} == {"spec"}
    # Own time at 1: 50 * 0.018 = 0.90 < 1.00; with what it costs the other one, 50 * 0.024 = 1.20.
    assert (chosen("latency", [1, 0]), chosen("throughput", [1, 0])) == ("spec", "plain")
    assert (chosen("latency", [3, 0]), chosen("text", [3, 0])) == ("plain", "spec")
    assert chosen("least_loaded", [2, 1]) == "plain"


def test_ties_and_turns_go_round() -> None:
    turns = [chosen("round_robin", [0, 0], Fleet(FLEET.arms, (2, 1)), i) for i in range(6)]
    assert turns == ["spec", "plain", "spec"] * 2
    assert {chosen("least_loaded", [1, 1], i=i) for i in range(2)} == {"spec", "plain"}


def test_to_be_cheap_is_to_fill_the_engines_that_run() -> None:
    assert (chosen("cost", [0, 2]), chosen("throughput", [0, 2])) == ("plain", "spec")
    dear = Fleet((FAST_ALONE, replace(FLAT, price=8.0)), (1, 1))
    assert chosen("cost", [0, 2], dear) == "spec"


def test_an_unknown_strategy_is_told_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown strategy 'best'.*throughput"):
        strategy("best", FLEET, made(), made().tau)


@given(least=st.lists(st.integers(0, 100), min_size=2, max_size=2), name=st.sampled_from(STRATEGIES))
def test_every_strategy_chooses_an_arm_at_any_load(least: list[int], name: str) -> None:
    assert chosen(name, least) in FLEET.names


def test_scores_rise_with_the_load() -> None:
    one = made()
    routed = Routed(StrategyCosts.from_arms(FLEET.arms, one, one.tau), one, one.tau, 101.0)
    scores = [routed.scores(0, [n, n]) for n in range(40)]
    assert (np.diff(scores, axis=0) >= 0).all()


def mean_latency(name: str, fleet: Fleet, some: Requests, tau: Floats) -> float:
    return float(simulate(fleet, some, strategy(name, fleet, some, tau)).latency_s.mean())


def test_load_aware_routing_beats_reading_text_alone_where_speculation_costs() -> None:
    two = np.random.default_rng(3).uniform(1.2, 3.5, 3000)
    some = made(3000, two, rate=6.0)
    text, routed, oracle = (mean_latency(name, FLEET, some, some.tau) for name in ("text", "throughput", "oracle"))
    assert routed < 0.8 * text
    assert oracle < 1.05 * routed


def test_specialists_beat_either_one_when_the_policy_knows_which_is_at_home() -> None:
    arms: tuple[Arm, ...] = (arm("a", 0.01, 0.0005), arm("b", 0.01, 0.0005))
    at_s = poisson(3000, 1.0, np.random.default_rng(0))
    home = np.random.default_rng(1).random(3000) < 0.5
    some = requests(at_s, {"a": np.where(home, 3.0, 1.5), "b": np.where(home, 1.5, 3.0)})
    single = mean_latency("least_loaded", Fleet(arms[:1], (2,)), some, some.tau)
    known, unknown = (
        mean_latency("throughput", Fleet(arms, (1, 1)), some, predicted_tau(some.tau, skill, 0)) for skill in (0.9, 0.0)
    )
    assert known < 0.8 * single
    assert unknown == pytest.approx(single, rel=0.1)


@pytest.mark.parametrize("skill", [0.0, 0.3, 0.8, 1.0])
def test_skill_is_the_share_of_the_variance_that_is_foreseen(skill: float) -> None:
    tau = 1.0 + np.random.default_rng(0).lognormal(1.0, 0.4, (20_000, 2))
    log, seen = np.log(tau), np.log(predicted_tau(tau, skill, 1))
    residual = (log - seen)[:, 0]
    assert 1 - residual.var() / log[:, 0].var() == pytest.approx(skill, abs=0.02)
    assert residual.mean() == pytest.approx(0.0, abs=0.01)
    if 0 < skill < 1:  # as a regression: nothing of the error can be told from what is foreseen
        assert np.corrcoef(residual, seen[:, 0])[0, 1] == pytest.approx(0.0, abs=0.03)
