"""Safe mode in simulated traffic: false alarms, detection, probing and leaving, and the comparison behind it."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from draftpick.engines.arms import drafter_of
from draftpick.engines.pool.forecast import Forecast
from draftpick.router.config.sections import SafeModeConfig
from draftpick.router.online.arm_comparison import ArmComparison
from draftpick.router.online.safe_mode import PREFIX, SafeMode
from draftpick.router.types import Decision

ARMS = ("a", "b", "c", "d")
WIDE, WIDE_RATE, RATE, ONSET = 160, 0.3, 0.03, 200
"""Exploration: wide for the first requests, then narrow; at `ONSET` the policy goes wrong."""


@dataclass(slots=True)
class Traffic:
    """Requests on four arms. The policy predicts log times with an error and prefers the least.

    `text`: deviation of log times between texts; `error`, `noise`: of predictions and of measured times. From `ONSET`
    to `end`, a `share` of the requests looks best for arm a, which then takes exp(`worse`) times as long as predicted.
    """

    seed: int
    text: float = 0.1
    error: float = 0.1
    noise: float = 0.25
    share: float = 0.0
    worse: float = 0.0
    end: int = 10**9
    rate: float = RATE
    changes: list[tuple[int, str | None]] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    safe_mode: SafeMode = field(default_factory=lambda: SafeMode(SafeModeConfig(), ARMS))

    def run(self, n: int, until: Callable[["Traffic"], bool] = lambda traffic: False) -> "Traffic":
        rng, k = np.random.default_rng(self.seed), len(ARMS)
        for i in range(n):
            truth = rng.normal(np.log(0.01), self.text, k)
            predicted = truth + rng.normal(0, self.error, k)
            if i >= ONSET and rng.random() < self.share:
                predicted[0] = predicted.min() - 0.3
                truth[0] = predicted[0] + (self.worse if i < self.end else 0.0)
            preferred, rate = int(predicted.argmin()), WIDE_RATE if i < WIDE else self.rate
            shares = np.full(k, rate / k)
            shares[preferred] += 1 - rate
            arm = preferred if rng.random() >= rate else int(rng.integers(k))
            made = Decision(ARMS[arm], float(shares[arm]), dict(zip(ARMS, shares.tolist(), strict=True)), "policy")
            made = self.safe_mode.decide(made, ARMS, float(rng.random()))
            arm = ARMS.index(made.arm)
            residual = float(truth[arm] + rng.normal(0, self.noise) - predicted[arm])
            self.decisions.append(made)
            self.safe_mode.comparison.observe(arm, residual, arm == preferred)
            if self.safe_mode.observe(made, arm, residual, np.exp(predicted), int(rng.integers(16, 256))):
                now = self.safe_mode.arm
                self.changes.append((i, None if now is None else ARMS[now]))
                if until(self):
                    break
        return self


@pytest.mark.parametrize(
    ("text", "error", "noise", "rate"),
    [(0.3, 0.15, 0.25, RATE), (0.0, 0.15, 0.25, RATE), (0.0, 0.15, 0.4, RATE), (0.0, 0.15, 0.25, 0.0)],
    ids=["it saves", "all arms alike", "noisy", "without exploration"],
)
def test_false_alarms_are_rare(text: float, error: float, noise: float, rate: float) -> None:
    """A policy that loses nothing: at most 5 % of routers enter safe mode within 1,000 requests."""
    alarms = sum(bool(Traffic(seed, text, error, noise, rate=rate).run(1000, bool).changes) for seed in range(40))
    assert alarms <= 2


@pytest.mark.parametrize(("share", "worse"), [(1.0, 0.65), (0.6, 1.0)])
def test_a_policy_that_loses_is_noticed_within_its_window(share: float, worse: float) -> None:
    """Routing takes some 20 to 40 % longer than the best arm alone."""
    runs = [Traffic(seed, share=share, worse=worse).run(ONSET + 200, bool).changes for seed in range(25)]
    found = [changes[0] for changes in runs if changes]
    assert len(found) >= 20
    assert all(at >= ONSET and arm != "a" for at, arm in found)


def test_it_stays_while_routing_loses_and_leaves_when_the_gain_is_back() -> None:
    for seed in range(6):
        lasting = Traffic(seed, share=1.0, worse=0.6).run(1500)
        assert [arm is None for _, arm in lasting.changes] == [False]
        healed = Traffic(seed, share=1.0, worse=0.8, end=600).run(1200)
        assert [arm is None for _, arm in healed.changes] == [False, True]
        assert 600 < healed.changes[1][0] < 1000


def test_decisions_in_safe_mode_have_the_propensity_of_their_arm() -> None:
    traffic = Traffic(0, share=1.0, worse=0.6).run(4000)
    safe = [made for made in traffic.decisions if made.policy.startswith(PREFIX)]
    assert len(safe) == traffic.safe_mode.requests > 3000
    assert all(made.propensity == made.probabilities[made.arm] for made in safe)
    weights = np.asarray([(made.arm == "a") / made.probabilities["a"] for made in safe])
    assert weights.mean() == pytest.approx(1, abs=4 * weights.std() / len(safe) ** 0.5)


def test_an_arm_that_was_not_measured_is_no_alternative() -> None:
    made = ArmComparison(3, 100)
    for _ in range(60):
        made.observe(0, 0.5, preferred=True)
        made.add_request(0, 0.5, np.full(3, 0.01), 50)
    assert made.level(1) is None
    mean, error = made.losses()
    assert (mean[1], error[1]) == (0.0, np.inf)
    for _ in range(12):
        made.observe(1, 0.0, preferred=False)
    mean, error = made.losses()
    assert mean[1] == pytest.approx(0.5)
    assert 0 < error[1] < 0.05
    assert made.best_arm(0) == 1
    made.reset_arm(1)
    assert (made.level(1), made.requests, made.best_arm(0)) == (None, 0, 0)


def test_answers_to_requests_that_were_meant_for_others_count_more() -> None:
    made = ArmComparison(2, 100)
    for _ in range(40):
        made.observe(0, 0.4, preferred=True)
    for _ in range(10):
        made.observe(0, 0.0, preferred=False)
    level = made.level(0)
    assert level is not None
    assert level[0] == pytest.approx(40 * 0.4 / (40 + 200))


def test_long_answers_count_more_and_old_requests_do_not() -> None:
    made = ArmComparison(2, 50)
    for _ in range(20):
        made.observe(1, 0.0, preferred=False)
    for tokens, residual in [(1000, 0.3)] * 40 + [(30, 0.0), (10, 0.4)] * 25:
        made.add_request(0, residual, np.full(2, 0.01), tokens)
    assert made.losses()[0][1] == pytest.approx(0.1)


# --- pools ---

POOL_ARMS = ("plain", "pool/none", "pool/math", "suffix")


def pooled(**options: float) -> SafeMode:
    return SafeMode(SafeModeConfig(**options), POOL_ARMS)


def routed(arm: str) -> Decision:
    shares = {name: float(name == arm) for name in POOL_ARMS}
    return Decision(arm, 1.0, shares, "policy", forecast=Forecast({"math": 2.0}) if drafter_of(arm) else None)


def test_a_pool_is_one_engine_with_the_time_of_its_fastest_drafter() -> None:
    made = pooled()
    assert made.engines == ("plain", "pool", "suffix")
    residual, predicted_s = made.by_engine(1, 0.1, np.asarray([0.01, 0.01, 0.005, 0.02]))
    assert residual == pytest.approx(0.1 + np.log(2))
    assert predicted_s.tolist() == [0.01, 0.005, 0.02]
    assert [made.arm_of(i) for i in range(3)] == [0, 1, 3]


@pytest.mark.parametrize(("eligible", "arm"), [(POOL_ARMS, "pool/none"), (POOL_ARMS[2:], "pool/math")])
def test_a_safe_pool_chooses_its_drafters_without_a_forecast(eligible: tuple[str, ...], arm: str) -> None:
    made = pooled(probe_rate=0.1)
    made.arm = made.engines.index("pool")
    decision = made.decide(routed("pool/math"), eligible, 0.5)
    assert (decision.arm, decision.policy, decision.forecast) == (arm, PREFIX + "pool", Forecast())
    assert sum(decision.probabilities.values()) == pytest.approx(1.0)
    assert decision.propensity == decision.probabilities[arm]
    probe = made.decide(routed("pool/math"), eligible, 0.05)
    assert (probe.arm, probe.forecast) == ("pool/math", Forecast({"math": 2.0}))
    assert made.decide(routed("plain"), ("plain",), 0.5) == routed("plain")


def test_a_safe_engine_that_is_no_pool_never_sees_the_forecast_of_one() -> None:
    made = pooled()
    made.arm = made.engines.index("plain")
    decision = made.decide(routed("pool/math"), POOL_ARMS, 0.9)
    assert (decision.arm, decision.forecast) == ("plain", None)


def test_routing_that_loses_against_a_pool_is_noticed_from_the_answers_of_all_its_arms() -> None:
    """Half of the requests go to `plain`, which takes twice as long as predicted; the pool takes what is predicted,
    whichever of its drafters was named."""
    made, rng = pooled(window=200), np.random.default_rng(0)
    predicted_s = np.asarray([0.009, 0.02, 0.01, 0.02])
    for i in range(200):
        arm = 0 if i % 2 else int(rng.integers(1, 3))
        took_s = 0.018 if arm == 0 else 0.01
        residual, fastest_s = made.by_engine(arm, float(np.log(took_s / predicted_s[arm])), predicted_s)
        made.comparison.observe(made.place(arm), residual, preferred=True)
        if made.observe(routed(POOL_ARMS[arm]), arm, residual, fastest_s, 50):
            break
    assert made.arm == made.engines.index("pool")
