"""Estimators against the truth of a synthetic bandit, against each other, and against Vowpal Wabbit."""

from dataclasses import astuple, replace

import numpy as np
import pytest

from draftpick.policy_training.data.dataset import DatasetError
from draftpick.policy_training.data.logged_feedback import LoggedFeedback
from draftpick.policy_training.evaluation.ope import (
    ESTIMATORS,
    effective_sample_size,
    estimate_all,
    reward_model,
    weights,
)
from tests.policy_training.bandit import ARMS, BEST, Bandit

BANDIT = Bandit.draw(4000, seed=5)
TRUTH = BANDIT.reward()
GOOD = np.full((len(BANDIT), len(ARMS)), 0.1)
GOOD[np.arange(len(BANDIT)), BEST[BANDIT.clusters]] = 0.7
"""A policy that takes the best arm seven times in ten."""
VALUE = float((GOOD * TRUTH).sum(1).mean())


def test_two_decisions_by_hand() -> None:
    """Weights 0.8 / 0.5 and 0.6 / 0.25, rewards 1 and 2, of which the model predicts 1 and 1."""
    logged = LoggedFeedback(np.asarray([0, 1]), np.asarray([1.0, 2.0]), np.asarray([0.5, 0.25]))
    pi, q = np.asarray([[0.8, 0.2], [0.4, 0.6]]), np.eye(2)
    assert weights(logged, pi) == pytest.approx([1.6, 2.4])
    found = estimate_all(logged, pi, q, resamples=200)
    values = {name: found[name].value.value for name in ("ips", "snips", "dm", "dr", "switch")}
    assert values == pytest.approx({"ips": 3.2, "snips": 1.6, "dm": 0.7, "dr": 1.9, "switch": 1.9})
    assert found["dr"].effective_sample_size == pytest.approx(16 / 8.32)
    same = estimate_all(logged, 0.1 * pi, q, resamples=200)["snips"].value
    assert astuple(same) == pytest.approx(astuple(found["snips"].value))
    # A resample has one decision twice, or each once.
    assert (found["ips"].value.low, found["ips"].value.high) == pytest.approx((1.6, 4.8))
    assert (found["snips"].value.low, found["snips"].value.high) == pytest.approx((1.0, 2.0))


def test_a_verdict_needs_200_effective_decisions() -> None:
    found = estimate_all(BANDIT.logged(0), GOOD, np.zeros_like(GOOD), resamples=10)["dr"]
    assert replace(found, effective_sample_size=200.0).reliable
    assert not replace(found, effective_sample_size=199.0).reliable


@pytest.mark.parametrize("seed", range(3))
def test_estimates_cover_the_truth(seed: int) -> None:
    logged = BANDIT.logged(seed)
    q = reward_model(BANDIT.contexts, logged, len(ARMS))
    for name, found in estimate_all(logged, GOOD, q, seed=seed).items():
        slack = 0.02 if name == "dm" else 0.005  # a model of rewards has a bias that no interval knows
        assert found.value.low - slack <= VALUE <= found.value.high + slack, name
        assert found.reliable


def test_nine_in_ten_intervals_or_more_hold_the_truth() -> None:
    held = dict.fromkeys(ESTIMATORS, 0)
    for seed in range(40):
        rows = np.random.default_rng(seed).permutation(len(BANDIT))[:800]
        logged = BANDIT.logged(seed)
        part = LoggedFeedback(logged.arm[rows], logged.reward[rows], logged.propensity[rows])
        q = reward_model(BANDIT.contexts[rows], part, len(ARMS))
        for name, found in estimate_all(part, GOOD[rows], q, resamples=200, seed=seed).items():
            held[name] += found.value.low <= VALUE <= found.value.high
    assert all(held[name] >= 34 for name in ("ips", "snips", "dr", "switch", "dros")), held


def test_dr_is_nearer_than_ips() -> None:
    errors = {"ips": [], "dr": []}  # type: dict[str, list[float]]
    for seed in range(20):
        logged = BANDIT.logged(seed)
        found = estimate_all(logged, GOOD, reward_model(BANDIT.contexts, logged, len(ARMS)), resamples=10)
        for name in errors:
            errors[name].append((found[name].value.value - VALUE) ** 2)
    assert np.mean(errors["dr"]) < np.mean(errors["ips"])


def test_switch_and_dros_follow_no_heavy_weights() -> None:
    """Two decisions of weight 1000, whose errors nearly cancel out, among many of weight 1."""
    n = 1000
    arm, reward, propensity = np.zeros(n, np.int64), np.ones(n), np.ones(n)
    reward[:2], propensity[:2] = (9.0, -8.0), 0.001
    logged, pi = LoggedFeedback(arm, reward, propensity), np.ones((n, 1))
    found = estimate_all(logged, pi, np.zeros((n, 1)), resamples=10)
    assert found["switch"].value.value == pytest.approx(1, abs=0.01)
    assert found["dros"].value.value == pytest.approx(1, abs=0.05)
    assert found["dr"].value.value == pytest.approx(1.998)


def test_no_decision_predicts_itself() -> None:
    logged = BANDIT.logged(0)
    before = reward_model(BANDIT.contexts, logged, len(ARMS))
    logged.reward[7] += 100.0
    changed = (reward_model(BANDIT.contexts, logged, len(ARMS)) != before).any(1)
    assert not changed[7]
    assert changed.mean() == pytest.approx(0.8, abs=0.01)


def test_all_agree_where_the_policy_is_the_logging_policy() -> None:
    logged = BANDIT.logged(0)
    pi = np.zeros_like(GOOD)
    pi[np.arange(len(BANDIT)), logged.arm] = logged.propensity
    q = np.zeros_like(pi)
    found = estimate_all(logged, pi, q, resamples=10)
    assert effective_sample_size(weights(logged, pi)) == pytest.approx(len(BANDIT))
    for name in ("ips", "snips", "dr", "switch"):
        assert found[name].value.value == pytest.approx(logged.reward.mean()), name


def test_few_effective_decisions_are_no_verdict() -> None:
    logged = BANDIT.logged(0)
    rows = np.arange(100)
    part = LoggedFeedback(logged.arm[rows], logged.reward[rows], logged.propensity[rows])
    assert not estimate_all(part, GOOD[rows], np.zeros_like(GOOD[rows]), resamples=10)["dr"].reliable
    assert effective_sample_size(np.zeros(5)) == 0


@pytest.mark.parametrize(
    ("arm", "reward", "propensity", "problem"),
    [
        ([], [], [], "equal length"),
        ([0, 1], [1.0], [0.5, 0.5], "equal length"),
        ([0], [np.nan], [0.5], "finite"),
        ([0], [1.0], [0.0], "propensities"),
        ([0], [1.0], [1.5], "propensities"),
    ],
)
def test_logs_that_cannot_be_weighed_are_refused(
    arm: list[int], reward: list[float], propensity: list[float], problem: str
) -> None:
    with pytest.raises(DatasetError, match=problem):
        LoggedFeedback(np.asarray(arm, np.int64), np.asarray(reward), np.asarray(propensity))


def test_vowpal_wabbit_estimates_the_same() -> None:
    """IPS of a deterministic policy: VW's own average reward over the same logs."""
    vw = pytest.importorskip("vowpalwabbit")
    logged = BANDIT.logged(2)
    wanted = BEST[BANDIT.clusters]
    learner = vw.Workspace(f"--cb {len(ARMS)} --cb_type ips --eval --quiet")
    for taken, arm, reward, p in zip(wanted, logged.arm, logged.reward, logged.propensity, strict=True):
        learner.learn(f"{taken + 1} {arm + 1}:{-reward}:{p} | x")
    theirs = -learner.get_sum_loss() / len(BANDIT)
    learner.finish()
    pi = np.eye(len(ARMS))[wanted]
    ours = estimate_all(logged, pi, np.zeros_like(pi), resamples=10)["ips"].value.value
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_an_arm_with_few_decisions_gets_its_mean_reward() -> None:
    """A ridge regression needs twice as many decisions as there are folds."""
    n = 60
    x = np.random.default_rng(0).normal(size=(n, 2)).astype(np.float32)
    arm = np.zeros(n, np.int64)
    arm[:11], arm[11] = 1, 2
    reward = np.where(arm == 0, 5.0 * x[:, 0], np.where(arm == 1, 3.0 + x[:, 0], 9.0))
    logged = LoggedFeedback(arm, reward, np.full(n, 0.5))
    q = reward_model(x, logged, 4)
    assert np.corrcoef(q[:, 0], x[:, 0])[0, 1] > 0.99
    fold = np.arange(n) % 5
    for held in range(5):
        training = fold != held
        of_one = reward[training & (arm == 1)]
        assert q[fold == held, 1] == pytest.approx(of_one.mean())  # of 11, 8 or 9 are left
        rare = reward[training & (arm == 2)]
        assert q[fold == held, 2] == pytest.approx(rare.mean() if len(rare) else reward.mean())
        assert q[fold == held, 3] == pytest.approx(reward.mean())


def test_an_estimate_depends_on_its_seed_in_its_interval_alone() -> None:
    logged = BANDIT.logged(0)
    q = np.zeros_like(GOOD)
    one, same, other = (estimate_all(logged, GOOD, q, resamples=50, seed=seed)["dr"].value for seed in (0, 0, 1))
    assert one == same
    assert other.value == one.value
    assert other.low != one.low
