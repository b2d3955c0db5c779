"""Logged propensities are right: decisions can be replayed from their records, and importance weights have mean 1."""

import itertools

import numpy as np
import pytest

from draftpick.policy_training.learners import learner
from draftpick.policy_training.train import fitted
from draftpick.router.config.sections import ExplorationConfig
from draftpick.router.features.featurizer import Featurizer
from draftpick.router.features.lexical import stored_context
from draftpick.router.openai_request import Request
from draftpick.router.policies.base import DecisionInput, Policy
from draftpick.router.records import decode, encode
from draftpick.router.types import Context, Decision, LoadTerms, Outcome, Record
from tests.fleet import FAST, StartRouter
from tests.policy_training.bandit import ARMS, SETTING, Bandit

DRAWS = 10_000
EXPLORATION = ExplorationConfig(gamma=20.0, min_probability=0.01)
FRESH = Bandit.draw(400, seed=8)


@pytest.fixture(scope="module", params=["tau_cost", "calibrated"])
def policy(request: pytest.FixtureRequest) -> Policy:
    return fitted(Bandit.draw(400, seed=7).matrix(), learner(request.param), SETTING)


def shifts_of(policy: Policy, rng: np.random.Generator) -> list[list[float]]:
    assert policy.clusters is not None
    return rng.normal(0, 0.3, (2 * len(policy.clusters), len(ARMS))).tolist()  # type: ignore[no-any-return]


def some_of(rng: np.random.Generator) -> list[str]:
    """At least two arms: others are masked, or in quarantine."""
    there = [arm for arm in ARMS if rng.random() < 0.7]
    return there if len(there) > 1 else ["plain", "math"]


def test_the_importance_weighted_mean_of_1_is_1_over_many_decisions(policy: Policy) -> None:
    rng, weights = np.random.default_rng(0), np.empty(DRAWS)
    contexts = [stored_context(v, "features") for v in FRESH.contexts]
    for i in range(DRAWS):
        if i % 5000 == 0:
            shifts = shifts_of(policy, rng)
        eligible = some_of(rng)
        made = policy.decide(DecisionInput(contexts[i % len(contexts)], eligible, 0.3, EXPLORATION), rng, shifts)
        assert made.propensity == made.probabilities[made.arm]
        assert all(made.probabilities[arm] == 0 for arm in set(ARMS) - set(eligible))
        weights[i] = 1 / len(eligible) / made.propensity
    assert abs(weights.mean() - 1) < 4 * weights.std() / DRAWS**0.5
    assert weights.std() / DRAWS**0.5 < 0.05


def test_a_decision_is_reproduced_from_its_record(policy: Policy) -> None:
    rng = np.random.default_rng(1)
    for vector in FRESH.contexts:
        shifts, eligible = shifts_of(policy, rng), some_of(rng)
        slowdown, weight, wait_s, prefill_weight = rng.uniform(1, 3, (4, len(ARMS))).tolist()
        load = LoadTerms(slowdown, weight, wait_s, rng.integers(0, 50, len(ARMS)).tolist(), prefill_weight)
        decision = policy.decide(
            DecisionInput(stored_context(vector, "features"), eligible, 0.2, EXPLORATION, lambda arms, load=load: load),
            rng,
            shifts,
        )
        found = decode(encode(logged(stored_context(vector, "features"), decision)))
        assert found.context is not None
        made = found.decision
        assert made.residual is not None
        again = decided_again(policy, found, EXPLORATION)
        assert list(again.probabilities.values()) == pytest.approx(list(made.probabilities.values()), abs=1e-9)
        assert made.predicted_tpot_s == pytest.approx(again.predicted_tpot_s)


def logged(context: Context, decision: Decision) -> Record:
    return Record("r", 1, 0.0, "/v1/chat/completions", True, {}, {}, context, decision, Outcome("ok"))


def test_a_decision_without_exploration_or_corrections_is_reproduced_too(policy: Policy) -> None:
    rng = np.random.default_rng(2)
    for vector in FRESH.contexts:
        decision = policy.decide(DecisionInput(stored_context(vector, "features"), some_of(rng)), rng)
        found = decode(encode(logged(stored_context(vector, "features"), decision)))
        assert found.decision.residual is None
        assert replayed(policy, found, EXPLORATION) == list(found.decision.probabilities.values())


class Drawn(Featurizer):
    """Gives the contexts of `FRESH` one after the other, whatever is asked."""

    id, dimension, waits = "features", FRESH.contexts.shape[1], False

    def __init__(self) -> None:
        self._rows = itertools.cycle(FRESH.contexts)

    async def __call__(self, request: Request) -> Context:
        return stored_context(next(self._rows), self.id)


@pytest.mark.asyncio(loop_scope="module")
async def test_what_a_router_records_can_be_replayed_while_it_learns_and_engines_come_and_go(
    router_app: StartRouter, policy: Policy
) -> None:
    engines = {arm: FAST.model_copy(update={"step_s": 2e-4}) for arm in ARMS}
    # A better default arm found on the way would decide otherwise than the records before it.
    online = {"correction": {"enabled": True}, "drift": {"enabled": False}, "safe_mode": {"enabled": False}}
    router = await router_app(
        engines, policy=policy, featurizer=Drawn(), exploration={**EXPLORATION.model_dump(), "rate": 0.3}, online=online
    )
    urls, rng = router.replicas.urls(), np.random.default_rng(0)
    for _ in range(60):
        there = some_of(rng)
        for arm in ARMS:
            router.replicas.update(arm, urls[arm] if arm in there else [])
        assert (await router.post(stream=True)).status_code == 200
    found = [record for record in await router.records(60) if record.decision.reason == "policy"]
    assert len(found) == 60
    assert sum(record.decision.residual is not None for record in found) > 30
    assert len({arm for record in found for arm, p in record.decision.probabilities.items() if p == 0}) == len(ARMS)
    same_costs = 0
    for record in found:
        made, again = record.decision, decided_again(policy, record, EXPLORATION)
        assert made.propensity == made.probabilities[made.arm]
        if made.predicted_tpot_s == pytest.approx(again.predicted_tpot_s):  # the engines' profiles had come by then
            same_costs += 1
            assert list(again.probabilities.values()) == pytest.approx(list(made.probabilities.values()), abs=1e-9)
    assert same_costs > 30


def replayed(policy: Policy, record: Record, exploration: ExplorationConfig) -> list[float]:
    """The probabilities of a decision, from its record alone."""
    return list(decided_again(policy, record, exploration).probabilities.values())


def decided_again(policy: Policy, record: Record, exploration: ExplorationConfig) -> Decision:
    """A decision by what its record says of the former one."""
    made = record.decision
    eligible = [arm for arm, probability in made.probabilities.items() if probability > 0]
    shifts = None if made.residual is None else [made.residual]
    given = DecisionInput(record.context, eligible, made.exploration_rate, exploration, lambda arms: made.load)
    return policy.decide(given, np.random.default_rng(0), shifts, made.level_deviations)
