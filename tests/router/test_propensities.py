"""Logged propensities are right: decisions can be replayed from their records, and importance weights have mean 1."""

import numpy as np
import pytest

from policy_training.learners import learner
from policy_training.train import fitted
from router.exploration import ExplorationConfig
from router.policies.base import Policy
from router.records import decode, encode
from router.types import Context, Decision, Outcome, Record
from tests.policy_training.bandit import ARMS, SETTING, Bandit

DRAWS = 100_000
EXPLORATION = ExplorationConfig(gamma=20.0, floor=0.01)
FRESH = Bandit.draw(400, seed=8)


@pytest.fixture(scope="module")
def policy() -> Policy:
    return fitted(Bandit.draw(400, seed=7).matrix(), learner("tau_cost"), SETTING)


def shifts_of(policy: Policy, rng: np.random.Generator) -> list[list[float]]:
    assert policy.clusters is not None
    return rng.normal(0, 0.3, (2 * len(policy.clusters), len(ARMS))).tolist()  # type: ignore[no-any-return]


def some_of(rng: np.random.Generator) -> list[str]:
    """At least two arms: others are masked, or in quarantine."""
    there = [arm for arm in ARMS if rng.random() < 0.7]
    return there if len(there) > 1 else ["plain", "math"]


def test_the_importance_weighted_mean_of_1_is_1_over_100_000_decisions(policy: Policy) -> None:
    rng, weights = np.random.default_rng(0), np.empty(DRAWS)
    contexts = [Context(v, "features") for v in FRESH.contexts]
    for i in range(DRAWS):
        if i % 5000 == 0:
            shifts = shifts_of(policy, rng)
        eligible = some_of(rng)
        made = policy.decide(contexts[i % len(contexts)], eligible, rng, 0.3, shifts, EXPLORATION)
        assert made.propensity == made.probabilities[made.arm]
        assert all(made.probabilities[arm] == 0 for arm in set(ARMS) - set(eligible))
        weights[i] = 1 / len(eligible) / made.propensity
    assert abs(weights.mean() - 1) < 4 * weights.std() / DRAWS**0.5
    assert weights.std() / DRAWS**0.5 < 0.02


def test_a_decision_is_reproduced_from_its_record(policy: Policy) -> None:
    rng = np.random.default_rng(1)
    for vector in FRESH.contexts:
        shifts, eligible = shifts_of(policy, rng), some_of(rng)
        decision = policy.decide(Context(vector, "features"), eligible, rng, 0.2, shifts, EXPLORATION)
        found = decode(encode(logged(Context(vector, "features"), decision)))
        assert found.context is not None
        may = [probability > 0 for probability in found.decision.probabilities.values()]
        assert found.decision.shift is not None
        again, forecast = policy.shares(found.context, may, found.decision.explore, [found.decision.shift], EXPLORATION)
        assert again == pytest.approx(list(found.decision.probabilities.values()), abs=1e-9)
        assert forecast is not None
        assert found.decision.predicted_tpot_s == pytest.approx(forecast.tpot_s)


def logged(context: Context, decision: Decision) -> Record:
    return Record("r", 1, 0.0, "/v1/chat/completions", True, {}, {}, context, decision, Outcome("ok"))
