"""What a running router learns: corrections that converge, changes that are noticed, and no change where is none."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from draftpick.engines.pool.report import DrafterReport
from draftpick.policy_training.learners import learner
from draftpick.policy_training.train import fitted
from draftpick.router.config.sections import CorrectionConfig, ExplorationConfig, OnlineConfig
from draftpick.router.features.lexical import stored_context
from draftpick.router.online.events import Event
from draftpick.router.online.online_learner import OnlineLearner
from draftpick.router.online.residual_correction import ResidualCorrection
from draftpick.router.policies.base import DecisionInput, Policy
from draftpick.router.policies.baselines import FixedPolicy
from draftpick.router.types import Decision, LoadTerms, Outcome
from tests.policy_training.bandit import ARMS, COSTS, SETTING, TAU, Bandit


@pytest.fixture(scope="module")
def policy() -> Policy:
    return fitted(Bandit.draw(600, seed=7).matrix(), learner("tau_cost"), SETTING)


class World:
    """Engines of the bandit's truth, and a policy that decides and learns."""

    def __init__(self, policy: Policy, **online: object) -> None:
        self.policy, self.events, self.rng = policy, list[Event](), np.random.default_rng(0)
        self.online = OnlineLearner(OnlineConfig.model_validate(online), policy, self.events.append)
        self.tau, self.times = TAU.copy(), np.ones(len(ARMS))
        self.taken_s, self.plain_s = list[float](), list[float]()

    def go(self, n: int, clusters: Sequence[int] = range(len(TAU)), seed: int = 1) -> list[str]:
        """Route n requests of these clusters; the arms that were taken."""
        drawn = Bandit.draw(4 * n, seed=seed)
        rows = [i for i in range(len(drawn)) if drawn.clusters[i] in clusters and not drawn.sampled[i]][:n]
        taken = []
        for i in rows:
            context = stored_context(drawn.contexts[i], "features")
            given = DecisionInput(context, ARMS, 0.1, may_explore_widely=True)
            made = self.policy.decide(given, self.rng, self.online.shifts, self.online.level_deviations)
            made = self.online.safe_mode.decide(made, ARMS, self.rng.random())
            arm = ARMS.index(made.arm)
            tau = max(float(self.tau[drawn.clusters[i], arm] * self.rng.lognormal(0, 0.1)), 1.0)
            tpot_s = float(COSTS.step_s[arm, 0]) * float(self.times[arm]) / tau
            outcome = Outcome("ok", 200, tpot_s=tpot_s, output_tokens=32, acceptance_length=tau if arm else None)
            self.online.observe(self.policy.cluster(context), made, outcome, 1)
            taken.append(made.arm)
            self.taken_s.append(tpot_s)
            self.plain_s.append(float(COSTS.step_s[0, 0] * self.times[0]))
        return taken


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


def test_a_losing_policy_gives_way_to_the_best_arm_and_comes_back(policy: Policy) -> None:
    """All arms but one become slow; while routing adapts to it no more, that one serves."""
    world = World(policy, correction={"enabled": False}, drift={"page_hinkley_lambda": 1e9})
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
    world = World(policy, drift={"enabled": False}, correction={"enabled": False}, safe_mode={"enabled": False})
    world.go(300)
    world.times[:] = 5.0
    world.go(300, seed=2)
    assert world.events == []
    assert world.online.shifts is None
    assert world.online.level_deviations is None


# --- levels of arms on this machine ---


def test_exploration_is_wide_until_the_levels_are_known_and_no_longer_than_is_stated(policy: Policy) -> None:
    world = World(policy, drift={"enabled": False})
    limit, deviations = ExplorationConfig().wide_answers, [world.online.level_deviations]
    for _ in range(limit * len(ARMS)):
        world.go(1, seed=len(deviations))
        deviations.append(world.online.level_deviations)
    assert deviations[0] == pytest.approx([0.35] * len(ARMS))  # costs of another machine
    assert deviations[-1] is None
    _, errors = world.online.correction.level_errors()
    before = next(i for i, found in enumerate(deviations) if found is None)
    for arm, error in enumerate(errors):
        if (last := deviations[before - 1]) is not None and last[arm] == 0.0:
            assert error < 0.05 or world.online.correction.answers[arm] >= limit
    world.online.reset_arm("suffix")
    assert world.online.level_deviations is not None
    assert world.online.level_deviations[ARMS.index("suffix")] == pytest.approx(0.35)
    world.go(limit * len(ARMS), seed=9)
    assert world.online.level_deviations is None


def test_every_changed_arm_prolongs_wide_exploration_up_to_that_of_all(policy: Policy) -> None:
    world, limit = World(policy, drift={"enabled": False}), ExplorationConfig().wide_answers
    made = policy.decide(DecisionInput(stored_context(Bandit.draw(1, seed=3).contexts[0], "features"), ARMS), world.rng)
    for changed, answers in ((0, 4 * limit), (1, limit), (2, 2 * limit), (6, 4 * limit)):
        for one in range(changed):
            world.online.reset_arm(ARMS[one % 4])
        seen = 0
        while world.online.level_deviations is not None:
            world.online.observe(0, made, Outcome("ok", 200, output_tokens=32), 1)  # without a time
            seen += 1
        assert seen == answers


def test_the_deviation_of_a_level_is_that_of_its_mean_residual() -> None:
    made, rng = ResidualCorrection(CorrectionConfig(window=1e6, max_log_step=9), 1, 2), np.random.default_rng(0)
    for _ in range(400):
        made.update(0, 0, float(rng.normal(0.5, 0.4)))
    _, errors = made.level_errors()
    assert errors[0] == pytest.approx(0.4 / 20, rel=0.15)
    assert errors[1] == math.inf


@pytest.mark.parametrize("times", [(1, 1, 1, 1), (1, 1.6, 1.6, 1.6), (1.3, 1, 1.5, 1), (1, 2, 1, 2)])
def test_a_cold_start_with_costs_of_another_machine_is_not_slower_than_plain(
    policy: Policy, times: tuple[float, ...]
) -> None:
    ratios = []
    for seed in range(8):
        world = World(policy, drift={"enabled": False})
        world.times[:] = times
        world.go(50, seed=seed)
        ratios.append(sum(world.plain_s) / sum(world.taken_s))
    assert np.mean(ratios) >= 1.0


def test_answers_too_short_or_without_a_time_are_passed_over(policy: Policy) -> None:
    world = World(policy, correction={"enabled": True})
    made = policy.decide(DecisionInput(stored_context(Bandit.draw(1, seed=3).contexts[0], "features"), ARMS), world.rng)
    ok = Outcome("ok", 200, tpot_s=0.01, output_tokens=32)
    for outcome in (replace(ok, tpot_s=None), replace(ok, output_tokens=1)):
        world.online.observe(0, made, outcome, 1)
    world.online.observe(0, replace(made, predicted_tpot_s=None), ok, 1)
    assert world.online.shifts is None


@pytest.mark.parametrize("seed", range(2))
def test_a_drafter_that_dies_is_told_of_within_twenty_of_its_answers(policy: Policy, seed: int) -> None:
    world = World(policy, correction={"enabled": True})
    world.go(600, seed=seed)
    world.tau[:, ARMS.index("math")] = 1.0
    answers = 0
    while not world.events and answers <= 20:
        answers += world.go(10, seed=100 + answers + 1000 * seed).count("math")
    assert [(event.kind, event.arm) for event in world.events[:1]] == [("arm_changed", "math")]
    assert answers <= 20


@pytest.mark.parametrize("seed", range(2))
def test_requests_that_change_again_and_again_never_blame_an_arm(policy: Policy, seed: int) -> None:
    world = World(policy, correction={"enabled": True})
    for part, clusters in enumerate([[0, 1], [2, 3], [0, 3], [1]]):
        world.go(350, clusters, seed=10 * seed + part)
    assert {event.kind for event in world.events} == {"inputs_changed"}
    assert 3 <= len(world.events) <= 4


def test_of_2000_answers_of_a_world_that_stays_as_it_is_nothing_is_told(policy: Policy) -> None:
    for options in ({}, {"correction": {"enabled": True}}):
        world = World(policy, **options)
        world.go(2000, seed=11)
        assert world.events == []


# --- one answer ---


def answered(tpot_s: float = 0.02, tokens: int = 32, tau: float | None = None) -> Outcome:
    return Outcome("ok", 200, tpot_s=tpot_s, output_tokens=tokens, acceptance_length=tau)


def decided(arm: str = "a", slowdown: float = 1.0, expected_s: float = 0.01) -> Decision:
    """A decision for an arm that is predicted to take so long, under a load that lengthens its steps so much."""
    load = LoadTerms((slowdown, 1.0), (1.0, 1.0), (0.0, 0.0), (0, 0), (0.0, 0.0)) if slowdown != 1.0 else None
    shares = {"a": float(arm == "a"), "b": float(arm == "b")}
    return Decision(arm, 1.0, shares, "fixed:a", predicted_tpot_s=[expected_s, expected_s], load=load)


def learner_of_two(**online: object) -> tuple[OnlineLearner, list[Event]]:
    """A learner of the arms `a` and `b`, and its events."""
    events = list[Event]()
    config = {"correction": {"max_log_step": 9.0, "window": 1e6}, **online}
    return OnlineLearner(OnlineConfig.model_validate(config), FixedPolicy(("a", "b"), "a"), events.append), events


@pytest.mark.parametrize(
    ("assumed", "slowdown", "residual"),
    [(1.0, 1.0, math.log(2)), (2.0, 1.0, math.log(4)), (1.0, 4.0, math.log(0.5)), (2.0, 4.0, 0.0)],
)
def test_a_residual_is_that_of_a_request_without_load(assumed: float, slowdown: float, residual: float) -> None:
    """Twice the prediction, which holds for the load that the decision assumed; the answer has its own."""
    learner, _ = learner_of_two()
    learner.observe(0, decided(slowdown=assumed), answered(0.02), 1, slowdown)
    assert learner.correction.local_state()["sums"] == [[pytest.approx(residual), 0.0]]


@pytest.mark.parametrize(
    ("outcome", "learned"),
    [
        (answered(tokens=4), 1.0),
        (answered(tokens=3), 0.0),
        (answered(tpot_s=0.0), 0.0),
        (answered(tpot_s=-0.01), 0.0),
        (answered(tpot_s=1e-9), 1.0),
        (replace(answered(), output_tokens=None), 0.0),
    ],
    ids=str,
)
def test_an_answer_teaches_from_four_tokens_on(outcome: Outcome, learned: float) -> None:
    learner, _ = learner_of_two()
    learner.observe(0, decided(), outcome, 1)
    assert learner.correction.weight(0, 0) == learned


def test_keys_share_what_an_arm_teaches() -> None:
    learner, _ = learner_of_two()
    for i in range(400):
        learner.observe(0, decided(), answered(), 1, key="few" if i % 10 == 0 else "many")
    assert learner.correction.answers[0] == pytest.approx(80, rel=0.2)


@pytest.mark.parametrize("enabled", [False, True])
def test_a_changed_arm_is_treated_with_caution_for_thirty_answers(enabled: bool) -> None:
    correction = {"enabled": enabled, "max_log_step": 1e-9}
    learner, events = learner_of_two(correction=correction, safe_mode={"enabled": False})

    def caution() -> list[float]:
        return [0.0, 0.0] if learner.shifts is None else [round(one, 6) for one in learner.shifts[0]]

    learner.observe(0, decided(), answered(0.01), 1)
    assert caution() == [0.0, 0.0]
    while not events:
        learner.observe(0, decided(), answered(0.01 if learner._arm_detectors[0].steps[1].count < 60 else 0.1), 1)
    (event,) = events
    assert (event.kind, event.arm, event.policy) == ("arm_changed", "a", "fixed:a")
    times = math.exp(event.figures["costs"])
    assert event.text == f"engine a: a step takes {times:.2f} times as long as before; its history is forgotten"
    assert 9 < times < 10.5
    for _ in range(29):
        assert caution() == [0.05, 0.0]
        learner.observe(0, decided("b"), answered(0.01), 1)
        assert caution() == [0.05, 0.0]
        learner.observe(0, decided(), answered(0.01), 1)
    assert caution() == [0.0, 0.0]


def test_other_requests_leave_a_fifth_of_what_was_learned() -> None:
    learner, events = learner_of_two(drift={"window": 50, "psi_threshold": 0.5}, safe_mode={"enabled": False})
    learner = OnlineLearner(learner._config, Clustered(("a", "b"), "a"), events.append)
    for cluster in [0] * 50 + [1] * 60:
        learner.observe(cluster, decided(), answered(), 1)
        if events:
            break
    (event,) = events
    assert (event.kind, event.arm) == ("inputs_changed", None)
    assert event.text == f"the mix of requests has changed (stability index {event.figures['stability_index']:.2f})"
    assert learner.correction.weight(0, 0) == pytest.approx(0.2 * 50, rel=1e-3)
    learner.observe(1, decided(), answered(), 1)
    assert len(events) == 1


@pytest.mark.parametrize("reason", ["fallback", "pinned", "resumed", "shadow"])
def test_only_what_the_policy_is_asked_is_the_mix_of_requests(reason: Any) -> None:
    config = OnlineConfig.model_validate({"drift": {"window": 50, "psi_threshold": 0.5}})
    events = list[Event]()
    learner = OnlineLearner(config, Clustered(("a", "b"), "a"), events.append)
    for cluster in [0] * 60 + [1] * 60:
        learner.observe(cluster, replace(decided(), reason=reason), answered(), 1)
    assert events == []


class Clusters:
    """Of one cluster, sampled or not: two numbers."""

    def __len__(self) -> int:
        return 1


class Clustered(FixedPolicy):
    clusters = Clusters()  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("assumed", "slowdown", "compared"), [(1.0, 1.24, 1), (1.0, 1.25, 0), (1.25, 1.0, 0), (1.24, 1.24, 1)]
)
def test_routing_is_compared_with_one_engine_while_there_is_little_load(
    assumed: float, slowdown: float, compared: int
) -> None:
    learner, _ = learner_of_two()
    learner.observe(0, decided(slowdown=assumed), answered(), 1, slowdown)
    assert learner.safe_mode.comparison.requests == compared


@pytest.mark.parametrize(
    ("decision", "requests"),
    [
        (decided(), 1),
        (replace(decided(), policy="another"), 0),
        (replace(decided(), reason="shadow"), 0),
        (replace(decided(), probabilities={"a": 0.4, "b": 0.6}, propensity=0.4), 0),  # explored
        (replace(decided(), probabilities={"b": 0.0, "a": 1.0}), 0),  # of another fleet
    ],
    ids=str,
)
def test_only_what_the_policy_prefers_is_compared(decision: Decision, requests: int) -> None:
    learner, _ = learner_of_two(correction={"enabled": False})
    learner.observe(0, decision, answered(), 1)
    assert learner.safe_mode.comparison.requests == requests


def test_costs_of_this_machine_are_nearly_known() -> None:
    learner, _ = learner_of_two()
    assert learner.level_deviations == [0.15, 0.15]
    learner.observe(0, decided(), answered(), 1)
    _, (error, _) = learner.correction.level_errors()
    assert learner.level_deviations == [pytest.approx((0.15**-2 + error**-2) ** -0.5), 0.15]


def test_a_policy_of_the_same_id_keeps_the_default_that_was_learned() -> None:
    learner, _ = learner_of_two()
    learner._policy.default_arm = 1
    again = FixedPolicy(("a", "b"), "a")
    learner.attach(again)
    assert again.default_arm == 1
    again.default_arm = 0
    learner.attach(again)
    assert again.default_arm == 0


def test_safe_mode_is_told_with_what_it_costs() -> None:
    learner, events = learner_of_two(correction={"enabled": False}, drift={"enabled": False}, safe_mode={"window": 40})
    assert learner.safe_mode_state() is None
    explored = replace(decided("b"), probabilities={"a": 0.9, "b": 0.1}, propensity=0.1)
    for _ in range(40):
        learner.observe(0, explored, answered(0.01), 1)
        learner.observe(0, decided(), answered(0.02), 1)
    (event,) = events
    assert (event.kind, event.arm) == ("safe_mode_entered", "b")
    lost, least = event.figures["lost"], event.figures["at_least"]
    assert lost == pytest.approx(1.0, rel=0.01)
    assert 0 < least < lost
    assert event.text == (
        f"routing was {lost:.0%} slower than b alone over the last 40 requests (at least {least:.1%}): "
        "safe mode, b serves"
    )
    assert learner.safe_mode_state() == {"policy": "fixed:a", "arm": "b", "lost": pytest.approx(lost)}


def test_a_better_default_is_looked_for_every_sixteen_requests() -> None:
    learner, _ = learner_of_two(correction={"enabled": False}, drift={"enabled": False}, safe_mode={"window": 400})
    learner._policy.default_arm = 0
    explored = replace(decided("b"), probabilities={"a": 0.9, "b": 0.1}, propensity=0.1)
    for number in range(1, 17):
        learner.observe(0, explored, answered(0.01), 1)
        learner.observe(0, decided(), answered(0.02), 1)
        assert learner._policy.default_arm == (1 if number == 16 else 0)


def test_a_level_is_known_from_a_weight_of_five_on() -> None:
    events, config = list[Event](), OnlineConfig.model_validate({"correction": {"window": 1e6}})
    policy = FixedPolicy(("a", "b"), "a")
    learner = OnlineLearner(config, policy, events.append, ExplorationConfig(level_error=0.2))
    for number in range(1, 7):  # each answer weighs a little less than one
        learner.observe(0, decided(), answered(0.01), 1)
        assert learner.level_deviations is not None
        assert (learner.level_deviations[0] == 0.0) is (number == 6)


def test_what_is_compared_is_without_load() -> None:
    learner, _ = learner_of_two(correction={"enabled": False})
    learner.observe(0, decided(slowdown=1.2), answered(), 1)
    seen = np.exp(learner.safe_mode.comparison._log_s[0])
    assert seen == pytest.approx([0.01 / 1.2, 0.01])


POOL = ("pool/none", "pool/x", "pool/y", "a")


def pool_answer(**scored: tuple[int, float]) -> Outcome:
    """An answer of a pool at 2.5 tokens a step, which scored these drafters on so many tokens."""
    reports = {name: DrafterReport(scored=tokens, tau=tau) for name, (tokens, tau) in scored.items()}
    return Outcome("ok", 200, tpot_s=0.02, output_tokens=32, acceptance_length=2.5, drafters=reports)


POOL_DECISION = Decision(
    "pool/x", 1.0, {"pool/none": 0.0, "pool/x": 1.0, "pool/y": 0.0, "a": 0.0}, "fixed:pool/x",
    predicted_tpot_s=[0.03, 0.02, 0.01, 0.05], predicted_tau=[1.0, 2.0, 4.0, 1.0],
)  # fmt: skip


def test_one_answer_of_a_pool_corrects_every_drafter_that_it_scored() -> None:
    config = OnlineConfig.model_validate({"correction": {"max_log_step": 9.0, "window": 1e6}})
    learner = OnlineLearner(config, FixedPolicy(POOL, "pool/x"))
    learner.observe(0, POOL_DECISION, pool_answer(x=(20, 2.5), y=(4, 3.0), none=(20, 1.0), z=(20, 9.0)), 1)
    (sums,) = learner.correction.local_state()["sums"]
    steps = math.log(2.5 / 2.0)  # longer than predicted, since as long a token had more accepted
    assert sums == pytest.approx([steps, 0.0, steps + math.log(4 / 3), 0.0])
    learner.observe(0, POOL_DECISION, pool_answer(x=(20, 2.0), y=(3, 3.0)), 1)  # on too few tokens
    (weights,) = learner.correction.local_state()["weights"]
    assert weights == pytest.approx([2.0, 2.0, 1.0, 0.0], rel=1e-5)
    learner.observe(0, replace(POOL_DECISION, predicted_tau=None), pool_answer(x=(20, 2.0)), 1)
    (weights,) = learner.correction.local_state()["weights"]
    assert weights == pytest.approx([2.0, 3.0, 1.0, 0.0], rel=1e-5)


def test_the_drafts_of_every_drafter_of_a_pool_are_watched() -> None:
    config = OnlineConfig.model_validate({"correction": {"enabled": False}, "safe_mode": {"enabled": False}})
    events = list[Event]()
    learner = OnlineLearner(config, FixedPolicy(POOL, "pool/x"), events.append)
    for tau in [3.0] * 60 + [9.0] * 60:
        learner.observe(0, POOL_DECISION, pool_answer(x=(20, 2.0), y=(20, tau)), 1)
        if events:
            break
    (event,) = events
    assert (event.kind, event.arm) == ("arm_changed", "pool/y")
    times = math.exp(event.figures["drafts"])
    assert times == pytest.approx(3.0, rel=0.1)
    assert (
        event.text
        == f"engine pool/y: {times:.2f} times as many tokens are accepted as before; its history is forgotten"
    )
    learner = OnlineLearner(config, FixedPolicy(POOL, "pool/x"), events.append)
    for number in range(120):
        slow = pool_answer(x=(20, 2.0), y=(20, 3.0))
        learner.observe(0, POOL_DECISION, replace(slow, tpot_s=0.02 if number < 60 else 0.06), 1)
    assert (events[1].arm, [*events[1].figures]) == ("pool/x", ["costs"])


@pytest.mark.parametrize(
    ("decision", "weight", "in_safe_mode"),
    [
        (decided(), 1.0, 0),
        (replace(decided("b"), probabilities={"a": 0.9, "b": 0.1}, propensity=0.1), 20.0, 0),
        (replace(decided("b"), probabilities={"a": 0.5, "b": 0.5}, propensity=0.5), 1.0, 0),
        (replace(decided("b"), policy="safe_mode:b"), 20.0, 1),  # it serves whatever the request
        (replace(decided(), policy="safe_mode:b"), 1.0, 1),
        (replace(decided(), reason="shadow"), 20.0, 0),
        (replace(decided(), reason="shadow", policy="safe_mode:b"), 1.0, 0),
    ],
    ids=str,
)
def test_answers_to_requests_that_the_policy_sends_elsewhere_count_more(
    decision: Decision, weight: float, in_safe_mode: int
) -> None:
    learner, _ = learner_of_two(correction={"enabled": False})
    learner.observe(0, decision, answered(0.02), 1)
    arm = "ab".index(decision.arm)
    assert learner.safe_mode.comparison._residuals[arm, 0] == pytest.approx([weight, math.log(2)])
    assert learner.safe_mode.requests == in_safe_mode
