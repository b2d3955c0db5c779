"""What answers of a pool teach: its own time, and its drafters' acceptance."""

from dataclasses import replace

import numpy as np
import pytest

from draftpick.engines.pool.report import DrafterReport
from draftpick.router.config.sections import OnlineConfig
from draftpick.router.online.online_learner import OnlineLearner
from draftpick.router.policies.baselines import UniformPolicy
from draftpick.router.policies.pool_arms import MENDING
from draftpick.router.types import Decision, Outcome

ARMS = ("plain", "suffix", "pool/none", "pool/suffix", "pool/math")
TAU, STEP_S = (1.0, 2.0, 1.0, 2.0, 2.0), 0.02
PREDICTED_S = tuple(STEP_S / tau for tau in TAU)


def learner() -> OnlineLearner:
    online = {"correction": {"enabled": True, "max_log_step": 10.0}, "drift": {"enabled": False}}
    return OnlineLearner(OnlineConfig.model_validate(online), UniformPolicy(ARMS))


def answer(online: OnlineLearner, arm: str, step_s: float, accepted: float, **drafters: float) -> None:
    """One answer, `accepted` tokens a step; what drafts of full length of each drafter would have had accepted."""
    decision = Decision(arm, 1.0, dict.fromkeys(ARMS, 0.2), "uniform", predicted_tpot_s=PREDICTED_S, predicted_tau=TAU)
    reports = {name: DrafterReport(scored=40, tau=tau) for name, tau in drafters.items()} or None
    outcome = Outcome("ok", 200, tpot_s=step_s / accepted, output_tokens=64, acceptance_length=accepted)
    online.observe(0, decision, replace(outcome, drafters=reports), 1)


def times(online: OnlineLearner) -> dict[str, float]:
    """Corrected predictions, relative to the uncorrected ones."""
    assert online.shifts is not None
    return dict(zip(ARMS, np.exp(online.shifts[0]), strict=True))


def test_a_pool_is_expected_to_be_a_little_faster_than_its_fastest_drafter_at_first() -> None:
    assert times(learner()) == pytest.approx(dict(zip(ARMS, (1.0, 1.0, MENDING, MENDING, MENDING), strict=True)))


def test_a_pool_is_as_fast_as_measured_whatever_full_drafts_of_its_drafter_would_have_had_accepted() -> None:
    online = learner()
    for _ in range(200):
        answer(online, "pool/suffix", STEP_S, 2.5, suffix=2.0, math=1.5)
    found = times(online)
    assert found["pool/suffix"] == pytest.approx(2.0 / 2.5, rel=0.02)
    assert found["pool/math"] == pytest.approx(2.0 / 2.5 * 2.0 / 1.5, rel=0.02)


def test_slow_steps_of_a_pool_are_no_worse_acceptance() -> None:
    online = learner()
    for _ in range(200):
        answer(online, "pool/suffix", 1.5 * STEP_S, 2.0, suffix=2.0, math=1.5)
    found = times(online)
    assert found["pool/suffix"] / found["pool/none"] == pytest.approx(1.0, rel=0.02)
    assert found["pool/math"] / found["pool/none"] == pytest.approx(2.0 / 1.5, rel=0.02)


def test_engines_with_drafters_of_a_pool_are_not_widely_explored() -> None:
    levels = dict(zip(ARMS, learner().level_deviations or (), strict=True))
    assert levels["suffix"] == levels["plain"] == 0.0
    assert levels["pool/suffix"] > 0.0
