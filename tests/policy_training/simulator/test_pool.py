"""A pool in the simulator: every request has the drafter that serves the batch best."""

from dataclasses import replace

import numpy as np
import pytest

from draftpick.engines.profile.profile import Profile
from draftpick.policy_training.simulator.arrivals import poisson
from draftpick.policy_training.simulator.capacity_plan import PlanQuestion, plan
from draftpick.policy_training.simulator.engine import Arm
from draftpick.policy_training.simulator.fleet import Fleet
from draftpick.policy_training.simulator.requests import Requests
from draftpick.policy_training.simulator.routing import LeastLoaded, strategy
from draftpick.policy_training.simulator.simulate import Run, simulate
from draftpick.policy_training.simulator.traffic import SyntheticTraffic, TrafficSpec
from tests.policy_training.simulated import arm, profile, requests

PROFILES = {"plain": profile(0.010), "a": profile(0.012), "b": profile(0.013)}
ABOUT = 0.06
"""Requests that come together begin one after the other."""
POOL = Arm.as_pool("pool", PROFILES)


def run(pool: Arm, arrivals: list[float], a: list[float], b: list[float], tokens: float = 61.0) -> Run:
    made = requests(arrivals, {"plain": 1.0, "a": a, "b": b}, tokens)
    return simulate(Fleet((pool,), (1,)), made, LeastLoaded())


@pytest.mark.parametrize(
    ("a", "b", "steps", "step_s"), [(3.0, 1.0, 20, 0.012), (1.0, 2.0, 30, 0.013), (1.1, 1.2, 60, 0.010)]
)
def test_a_request_alone_has_the_drafter_that_is_fastest_for_it(a: float, b: float, steps: int, step_s: float) -> None:
    assert run(POOL, [0.0], [a], [b]).latency_s == pytest.approx([0.02 + steps * step_s])


def test_requests_with_different_drafters_share_a_step_that_has_both() -> None:
    found = run(POOL, [0.0, 0.0], [3.0, 1.0], [1.0, 3.0])
    assert found.latency_s == pytest.approx([0.02 + 20 * (0.010 + 0.002 + 0.003)] * 2, rel=ABOUT)


def test_a_full_batch_drafts_nothing_that_does_not_pay() -> None:
    """Alone, `a` takes 1.2 times a step for 1.6 tokens; of 16 it would take 2.1 times one."""
    dear = Arm.as_pool("pool", {"plain": profile(0.010), "a": profile(0.012, 0.0006), "b": profile(0.1)})
    one, all_together = run(dear, [0.0], [1.6], [1.0]), run(dear, [0.0] * 16, [1.6] * 16, [1.0] * 16)
    assert one.latency_s == pytest.approx([0.02 + 38 * 0.012])
    assert all_together.latency_s == pytest.approx([0.02 + 60 * 0.010] * 16, rel=ABOUT)


def test_drafters_change_as_a_batch_empties() -> None:
    dear = Arm.as_pool("pool", {"plain": profile(0.010), "a": profile(0.012, 0.0006), "b": profile(0.1)})
    made = requests([0.0] * 16, {"plain": 1.0, "a": 1.6, "b": 1.0}, [21.0] * 15 + [61.0])
    found = simulate(Fleet((dear,), (1,)), made, LeastLoaded())
    assert found.latency_s[-1] == pytest.approx(0.02 + 20 * 0.010 + 25 * 0.012, rel=ABOUT)


def rows(share: float) -> Requests:
    """Requests of which this share is at home in `a`, the others in `b`."""
    home = np.random.default_rng(1).random(2000) < share
    tau = {"plain": np.ones(2000), "a": np.where(home, 3.0, 1.2), "b": np.where(home, 1.2, 3.0)}
    return requests([0.0] * 2000, tau)


@pytest.mark.parametrize(("share", "pool_wins"), [(0.5, True), (1.0, False)])
def test_a_plan_takes_a_pool_where_requests_differ(share: float, pool_wins: bool) -> None:
    arms = {name: arm(name, one.step(1), 0.001) for name, one in PROFILES.items()}
    pool = Arm.as_pool("pool", {name: profile(one.step(1), 0.001) for name, one in PROFILES.items()})
    question = PlanQuestion({**arms, "pool": pool}, SyntheticTraffic(rows(share), 600, 3.0), 2, evaluation_seeds=3)
    found = plan(question)
    assert found.pool == {"pool": 2}
    assert found.pool_speed is not None
    assert found.single in ({"a": 2}, {"b": 2})
    if pool_wins:
        assert found.pool_speed.low > 1.1
        assert found.chosen == {"pool": 2}
    else:
        assert found.pool_speed.value == pytest.approx(1.0, abs=0.02)


def test_a_specification_gives_the_drafters_of_a_pool_what_their_engines_accept() -> None:
    spec = TrafficSpec.model_validate({"tasks": {"t": {"tau": {"a": 2.0, "pool/b": 3.0}}}, "spread": 0})
    made = spec.rows(["pool/none", "pool/a", "pool/b"])
    assert made.tau[0].tolist() == [1.0, 2.0, 3.0]


def sampling_costs(greedy_s: float, sampled_s: float) -> Profile:
    """Steps that take longer as soon as one request samples."""
    tables = tuple(tuple((s + 0.0002 * (n - 1),) for n in (1, 16)) for s in (greedy_s, sampled_s))
    return Profile("build", "machine", (1, 16), (0,), tables, 0.02, 0.0, 16)


@pytest.mark.parametrize("mixed_by", ["sampling", "heads"])
def test_requests_that_share_a_steps_cost_meet_on_one_of_several_pools(mixed_by: str) -> None:
    """At random, nearly every step would have a sampled request in it, or both heads."""
    rng = np.random.default_rng(3)
    half = rng.random(400) < 0.5
    made = requests(poisson(400, 10.0, rng), {"plain": 1.0, "a": np.where(half, 3.0, 1.0), "b": np.where(half, 1, 3.0)})
    profiles = {"plain": profile(0.010), "a": profile(0.013), "b": profile(0.013)}
    if mixed_by == "sampling":
        made = replace(made, sampled=half, tau=np.ones_like(made.tau))
        profiles = {"plain": sampling_costs(0.010, 0.020)}
    fleet = Fleet((Arm.as_pool("pool", profiles),), (2,))
    placed, least_loaded = (
        simulate(fleet, made, strategy(name, fleet, made, made.tau)).figures(0.1)["latency_s/mean"]
        for name in ("throughput", "least_loaded")
    )
    assert least_loaded / placed > 1.05


def test_one_pool_has_no_placement() -> None:
    made = requests(np.arange(30) * 0.05, {"plain": 1.0, "a": 2.0, "b": 1.5})
    fleet = Fleet((POOL,), (1,))
    both = [simulate(fleet, made, strategy(name, fleet, made, made.tau)) for name in ("throughput", "least_loaded")]
    assert both[0].finish_s.tolist() == both[1].finish_s.tolist()
