"""Policies take the costs of arms from their profiles, and from another machine what has none."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from draftpick.engines.profile.profile import MODES, Profile
from draftpick.policy_training.learners import learner
from draftpick.policy_training.train import fitted
from draftpick.router.config.router_config import RouterConfig
from draftpick.router.features.lexical import stored_context
from draftpick.router.online.events import EventLog
from draftpick.router.policies import SHIPPED, artifact, read
from draftpick.router.policies.base import Policy
from draftpick.router.policies.costs import FOREIGN, MEASURED, cost_sources
from draftpick.router.registry.active_policy import ActivePolicies
from draftpick.router.types import Context
from tests.policy_training.bandit import ARMS, COSTS, SETTING, Bandit

GREEDY = replace(stored_context(Bandit.draw(1, seed=3).contexts[0], "features"), sampled=False)
SAMPLED = replace(GREEDY, sampled=True)
CONTEXTS = [GREEDY, SAMPLED, replace(SAMPLED, truncated=True)]


@pytest.fixture
def policy() -> Policy:
    return fitted(Bandit.draw(200, seed=7).matrix(), learner("tau_cost"), SETTING)


def profile(*step_s: float) -> Profile:
    return Profile("b", "m", (1,), (64,), tuple(((one,),) for one in step_s), 0.5, 0.001, 4)


def step_s(policy: Policy, context: Context) -> list[float]:
    terms = policy.terms(context)
    assert terms is not None
    return [one.step_s for one in terms]


def test_a_step_costs_what_the_profile_says_in_each_mode(policy: Policy) -> None:
    profiles = {arm: profile(0.01 * (i + 1), 0.02 * (i + 1), 0.05 * (i + 1)) for i, arm in enumerate(ARMS)}
    assert policy.use_profiles(profiles) == list(ARMS)
    for mode, context in enumerate(CONTEXTS):
        assert step_s(policy, context) == pytest.approx([profiles[arm].step(1, 0, mode) for arm in ARMS])
    terms = policy.terms(GREEDY)
    assert terms is not None
    assert terms[0].prompt_s == pytest.approx(0.5 + 0.001 * GREEDY.prompt_tokens)
    assert set(cost_sources(policy).values()) == {MEASURED}
    assert policy.use_profiles(profiles) == []


def test_an_arm_without_a_profile_takes_the_costs_of_another_machine_at_the_speed_of_this_one(policy: Policy) -> None:
    assert set(cost_sources(policy).values()) == {FOREIGN}
    half = {arm: profile(*([2 * COSTS.step_s[ARMS.index(arm), 0]] * len(MODES))) for arm in ("plain", "ngram")}
    assert policy.use_profiles(half) == list(ARMS)
    ratio = np.median(np.outer([2.0], [1.0, 1 / 1.1, 1 / 1.1]))
    assert step_s(policy, GREEDY)[2:] == pytest.approx(ratio * COSTS.step_s[2:, 0])
    assert [arm for arm, source in cost_sources(policy).items() if source == FOREIGN] == ["suffix", "math"]


def test_an_artefact_need_not_hold_costs(tmp_path: Path) -> None:
    manifest, arrays = artifact.read(SHIPPED)
    acceptance = {name: array for name, array in arrays.items() if name not in ("step_s", "start_s", "per_token_s")}
    artifact.write(tmp_path / "policy", {k: manifest[k] for k in ("kind", "arms", "featurizer", "options")}, acceptance)
    made = read(tmp_path / "policy")
    context = stored_context(np.zeros(made.dimension, np.float32), str(made.featurizer))  # type: ignore[attr-defined]
    context = replace(context, max_tokens=100.0)
    assert np.ptp(step_s(made, context)) < 1e-6
    fast, slow = profile(0.01, 0.01, 0.01), profile(0.1, 0.1, 0.1)
    made.use_profiles({arm: slow if i else fast for i, arm in enumerate(made.arms)})
    assert made.probabilities(context, np.ones(len(made.arms), bool)).argmax() == 0


def test_a_profile_that_comes_later_makes_the_level_unknown_again_and_holds_for_later_policies(policy: Policy) -> None:
    served = ActivePolicies(RouterConfig(default_engine="plain"), policy, EventLog())
    online = served.by_id(policy.id).online
    for _ in range(10):
        online.correction.update(0, 1, 0.5)
    served.use_profiles({"ngram": profile(0.02, 0.02, 0.02)})
    assert online.correction.weight(0, 1) == 0
    assert online.level_deviations is not None
    assert online.level_deviations[1] < online.level_deviations[2]  # measured on this machine
    other = fitted(Bandit.draw(200, seed=8).matrix(), learner("tau_cost"), SETTING)
    served.activate(other)
    assert cost_sources(other)["ngram"] == MEASURED
