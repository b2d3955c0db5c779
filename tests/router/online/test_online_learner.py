"""What a running router learns: corrections that converge, changes that are noticed, and no change where is none."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from draftpick.policy_training.learners import learner
from draftpick.policy_training.train import fitted
from draftpick.router.config.sections import CorrectionConfig, DriftConfig, OnlineConfig
from draftpick.router.features.lexical import stored_context
from draftpick.router.online.drift import InputDriftDetector, PageHinkley, stability_index
from draftpick.router.online.events import Event
from draftpick.router.online.online_learner import OnlineLearner
from draftpick.router.online.residual_correction import ResidualCorrection
from draftpick.router.policies.base import DecisionInput, Policy
from draftpick.router.types import Outcome
from tests.policy_training.bandit import ARMS, COSTS, SETTING, TAU, Bandit

CONFIG = DriftConfig()


# --- corrections ---


def test_a_correction_comes_to_the_true_residual_in_bounded_steps() -> None:
    made, rng = ResidualCorrection(CorrectionConfig(enabled=True), 4, 3), np.random.default_rng(0)
    made.update(0, 0, 50.0)
    assert made.residual(0, 0) < 0.71
    for _ in range(300):
        made.update(0, 0, float(rng.normal(-0.5, 0.2)))
    assert made.residual(0, 0) == pytest.approx(-0.5, abs=0.1)
    assert made.residuals()[0, 0] == pytest.approx(made.residual(0, 0))


def test_a_cell_without_answers_leans_on_its_arm_and_an_arm_on_all() -> None:
    made = ResidualCorrection(CorrectionConfig(), 4, 3)
    for _ in range(50):
        made.update(0, 0, 0.6)
    assert made.residual(0, 0) > made.residual(1, 0) > made.residual(1, 1) > 0
    assert made.weight(1, 0) == 0


def test_what_is_forgotten_or_doubted_counts_no_more_or_less() -> None:
    made = ResidualCorrection(CorrectionConfig(), 2, 2)
    for _ in range(50):
        made.update(0, 0, 0.6)
        made.update(0, 1, -0.6)
    before = made.weight(0, 1)
    made.discount(0.2)
    assert made.weight(0, 1) == pytest.approx(0.2 * before)
    made.reset_arm(0)
    assert made.weight(0, 0) == 0
    assert made.residual(0, 1) < -0.3


def test_routers_add_up_and_what_is_of_another_shape_is_left_out() -> None:
    one, other, both = (ResidualCorrection(CorrectionConfig(), 2, 2) for _ in range(3))
    for _ in range(20):
        one.update(0, 0, 0.4)
        other.update(1, 1, -0.4)
        both.update(0, 0, 0.4)
        both.update(1, 1, -0.4)
    one.merge([other.local_state(), {"weights": [[1.0]], "sums": [[1.0]]}])
    assert one.residuals() == pytest.approx(both.residuals(), abs=0.02)


# --- tests of change ---


@pytest.mark.parametrize("heavy", [False, True])
def test_values_that_do_not_move_raise_no_alarm(heavy: bool) -> None:
    rng, alarms = np.random.default_rng(3), 0
    for _ in range(20):
        watch = PageHinkley(CONFIG)
        values = rng.standard_t(4, 1000) * 0.2 if heavy else rng.normal(0, 0.3, 1000)
        alarms += any(watch.update(float(value)) is not None for value in values)
    assert alarms <= 2


def test_a_step_that_takes_twice_as_long_is_noticed_within_twelve_answers() -> None:
    rng, delays = np.random.default_rng(4), []
    for _ in range(50):
        watch = PageHinkley(CONFIG)
        for _ in range(200):
            watch.update(float(rng.normal(0, 0.3)))
        moved = [watch.update(float(rng.normal(math.log(2), 0.3))) for _ in range(40)]
        delays.append(next(i for i, one in enumerate(moved, 1) if one is not None))
    assert np.quantile(delays, 0.9) <= 14
    assert np.median(delays) <= 12


def test_other_kinds_of_requests_are_noticed_and_the_usual_ones_are_not() -> None:
    rng = np.random.default_rng(5)
    usual, other = rng.dirichlet(np.full(16, 0.5)), rng.dirichlet(np.full(16, 0.5))
    inputs = InputDriftDetector(CONFIG, 16)
    assert all(inputs.update(int(rng.choice(16, p=usual))) is None for _ in range(5000))
    found = [inputs.update(int(rng.choice(16, p=other))) for _ in range(2 * CONFIG.window)]
    assert any(index is not None for index in found)
    assert stability_index(usual, usual) == 0


# --- all together ---


@pytest.fixture(scope="module")
def policy() -> Policy:
    return fitted(Bandit.draw(600, seed=7).matrix(), learner("tau_cost"), SETTING)


class World:
    """Engines of the bandit's truth, and a policy that decides and learns."""

    def __init__(self, policy: Policy, **online: object) -> None:
        self.policy, self.events, self.rng = policy, list[Event](), np.random.default_rng(0)
        self.online = OnlineLearner(OnlineConfig.model_validate(online), policy, self.events.append)
        self.tau, self.times = TAU.copy(), np.ones(len(ARMS))

    def go(self, n: int, clusters: Sequence[int] = range(len(TAU)), seed: int = 1) -> list[str]:
        """Route n requests of these clusters; the arms that were taken."""
        drawn = Bandit.draw(4 * n, seed=seed)
        rows = [i for i in range(len(drawn)) if drawn.clusters[i] in clusters and not drawn.sampled[i]][:n]
        taken = []
        for i in rows:
            context = stored_context(drawn.contexts[i], "features")
            made = self.policy.decide(DecisionInput(context, ARMS, 0.1), self.rng, self.online.shifts)
            made = self.online.safe_mode.decide(made, ARMS, self.rng.random())
            arm = ARMS.index(made.arm)
            tau = max(float(self.tau[drawn.clusters[i], arm] * self.rng.lognormal(0, 0.1)), 1.0)
            tpot_s = float(COSTS.step_s[arm, 0]) * float(self.times[arm]) / tau
            outcome = Outcome("ok", 200, tpot_s=tpot_s, output_tokens=32, acceptance_length=tau if arm else None)
            self.online.observe(self.policy.cluster(context), made, outcome, 1)
            taken.append(made.arm)
        return taken


def test_nothing_is_told_of_a_world_that_stays_as_it_is(policy: Policy) -> None:
    world = World(policy, correction={"enabled": True})
    world.go(1500)
    assert world.events == []


def test_a_drafter_that_dies_is_told_of_and_loses_its_requests(policy: Policy) -> None:
    world = World(policy, correction={"enabled": True})
    world.go(600)
    world.tau[:, ARMS.index("math")] = 1.0
    taken = world.go(300, seed=2)
    assert [e.arm for e in world.events if e.kind == "arm_changed"][:1] == ["math"]
    assert "drafts" in world.events[0].figures
    assert taken[150:].count("math") < 10


def test_a_dearer_step_is_told_of_as_a_cost(policy: Policy) -> None:
    world = World(policy, correction={"enabled": True})
    world.go(600)
    world.times[ARMS.index("ngram")] = 1.6
    world.go(200, seed=2)
    (event, *_) = [e for e in world.events if e.kind == "arm_changed"]
    assert event.arm == "ngram"
    assert event.figures["costs"] == pytest.approx(math.log(1.6), abs=0.15)


def test_other_kinds_are_no_change_of_an_arm(policy: Policy) -> None:
    world = World(policy, correction={"enabled": True})
    world.go(500, [0, 1])
    world.go(300, [2, 3], seed=2)
    assert {e.kind for e in world.events} == {"inputs_changed"}


def test_a_losing_policy_gives_way_to_the_best_arm_and_comes_back(policy: Policy) -> None:
    """All arms but one become slow; while routing adapts to it no more, that one serves."""
    world = World(policy)
    world.go(300)
    assert world.events == []
    world.times[:] = [1.0, 3.0, 3.0, 3.0]
    taken = world.go(800, seed=2)
    entered = next(e for e in world.events if e.kind == "safe_mode_entered")
    assert entered.arm == "plain"
    assert entered.figures["lost"] > entered.figures["at_least"] > 0
    assert taken[-200:].count("plain") > 150
    world.times[:] = 1.0
    world.go(1500, seed=3)
    assert "safe_mode_left" in {e.kind for e in world.events}
    assert world.online.safe_mode.arm is None


def test_the_default_becomes_the_arm_that_has_proved_best(policy: Policy) -> None:
    before = policy.default_arm
    world = World(policy, drift={"enabled": False}, safe_mode={"window": 400})
    world.times[:] = [0.2, 1.0, 1.0, 1.0]
    world.go(800)
    try:
        assert policy.default_arm == 0
    finally:
        policy.default_arm = before


def test_what_is_switched_off_learns_nothing(policy: Policy) -> None:
    world = World(policy, drift={"enabled": False}, safe_mode={"enabled": False})
    world.go(300)
    world.times[:] = 5.0
    world.go(300, seed=2)
    assert world.events == []
    assert world.online.shifts is None


def test_answers_too_short_or_without_a_time_are_passed_over(policy: Policy) -> None:
    world = World(policy, correction={"enabled": True})
    made = policy.decide(DecisionInput(stored_context(Bandit.draw(1, seed=3).contexts[0], "features"), ARMS), world.rng)
    ok = Outcome("ok", 200, tpot_s=0.01, output_tokens=32)
    for outcome in (replace(ok, tpot_s=None), replace(ok, output_tokens=1)):
        world.online.observe(0, made, outcome, 1)
    world.online.observe(0, replace(made, predicted_tpot_s=None), ok, 1)
    assert world.online.shifts is None


@pytest.mark.parametrize("seed", range(4))
def test_a_drafter_that_dies_is_told_of_within_twenty_of_its_answers(policy: Policy, seed: int) -> None:
    world = World(policy, correction={"enabled": True})
    world.go(600, seed=seed)
    world.tau[:, ARMS.index("math")] = 1.0
    answers = 0
    while not world.events and answers <= 20:
        answers += world.go(10, seed=100 + answers + 1000 * seed).count("math")
    assert [(event.kind, event.arm) for event in world.events[:1]] == [("arm_changed", "math")]
    assert answers <= 20


@pytest.mark.parametrize("seed", range(4))
def test_requests_that_change_again_and_again_never_blame_an_arm(policy: Policy, seed: int) -> None:
    world = World(policy, correction={"enabled": True})
    for part, clusters in enumerate([[0, 1], [2, 3], [0, 3], [1]]):
        world.go(350, clusters, seed=10 * seed + part)
    assert {event.kind for event in world.events} == {"inputs_changed"}
    assert 3 <= len(world.events) <= 4


def test_of_3000_answers_of_a_world_that_stays_as_it_is_nothing_is_told(policy: Policy) -> None:
    for options in ({}, {"correction": {"enabled": True}}):
        world = World(policy, **options)
        world.go(3000, seed=11)
        assert world.events == []
