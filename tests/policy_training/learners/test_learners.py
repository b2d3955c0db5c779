"""Learners on a bandit whose best arms are known: what they reach, that they repeat, that serving computes the same."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import linear

from draftpick.policy_training.data.dataset import DatasetError
from draftpick.policy_training.learners import LEARNERS, learner
from draftpick.policy_training.learners.base import FeatureScaling
from draftpick.policy_training.learners.networks import SoftmaxOptions
from draftpick.policy_training.learners.policy_gradient import ExactGradient
from draftpick.policy_training.learners.tau_cost import TauCost
from draftpick.policy_training.train import fit, fitted, policy_probabilities
from draftpick.router import policies
from draftpick.router.errors import PolicyRejected
from draftpick.router.features.lexical import FEATURES, stored_context
from draftpick.router.policies.base import Policy
from draftpick.router.policies.mlp import MLPPolicy
from draftpick.router.policies.tau_cost import TauCostPolicy
from tests.policy_training.bandit import ARMS, BEST, COSTS, SETTING, TAU, Bandit

FIT, FRESH = Bandit.draw(300, seed=0), Bandit.draw(400, seed=1)
REGRESSIONS = ("domain_lookup", "knn", "ridge", "boosting", "mlp_regression", "tau_cost")


@cache
def fit_once(name: str) -> tuple[Policy, list[tuple[int, int]]]:
    """The policy of a learner on `FIT`, and what it told of its progress."""
    seen: list[tuple[int, int]] = []
    made = fitted(FIT.matrix(), learner(name), replace(SETTING, progress=lambda *told: seen.append(told)))
    return made, seen


def chosen(policy: Policy, test: Bandit = FRESH) -> np.ndarray:
    return policy_probabilities(policy, test.matrix()).argmax(1)


@pytest.mark.parametrize("name", [name for name in LEARNERS if name != "best_fixed"])
def test_fresh_requests_get_most_of_what_is_possible(name: str) -> None:
    share = 0.75 if name == "reinforce" else 0.95
    found = chosen(fit_once(name)[0])
    assert FRESH.share_of_possible(found) >= share
    assert (found == BEST[FRESH.clusters]).mean() >= share


def test_best_fixed_is_one_arm() -> None:
    found = chosen(fit_once("best_fixed")[0])
    assert set(found) == {FIT.time_s.sum(0).argmin()}


@pytest.mark.parametrize("name", LEARNERS)
def test_a_seed_repeats_bit_for_bit(name: str) -> None:
    data = Bandit.draw(80, seed=3).matrix()
    (one, arrays), (same, again) = (fit(data, learner(name), replace(SETTING, seed=3)) for _ in range(2))
    assert one == same
    assert arrays.keys() == again.keys()
    assert all(arrays[name].tobytes() == again[name].tobytes() for name in arrays)


@pytest.mark.parametrize("name", LEARNERS)
def test_a_default_that_is_always_fastest_gets_all_requests(name: str) -> None:
    data = FIT.matrix().select_rows(np.arange(100))
    slow = replace(data, acceptance_length=np.ones_like(data.time_s), time_s=np.tile([0.5, 1.0, 1.0, 1.0], (100, 1)))
    assert (chosen(fitted(slow, learner(name), SETTING)) == 0).mean() > 0.95


def test_an_unknown_learner_is_named_with_those_there_are() -> None:
    with pytest.raises(DatasetError, match=r"unknown learner 'rigde' \(did you mean 'ridge'\?.*known: best_fixed"):
        learner("rigde")


@pytest.mark.parametrize("name", REGRESSIONS)
def test_predicted_tau_is_near_the_truth(name: str) -> None:
    policy, _ = fit_once(name)
    assert isinstance(policy, TauCostPolicy)
    tau = np.stack([policy.tau(stored_context(v, "features")) for v in FRESH.contexts])
    error = np.abs(tau / TAU[FRESH.clusters] - 1).mean()
    assert error < 0.1


def homes(*arms: str) -> dict[str, np.ndarray]:
    """Requests like those of the clusters that the arms are best in."""
    draw = Bandit.draw(300, seed=5)
    return {arm: draw.contexts[draw.clusters == BEST.tolist().index(ARMS.index(arm))] for arm in arms}


def test_a_home_tells_of_requests_that_were_never_seen() -> None:
    """The third cluster is unknown; that `math` was made for it is not."""
    seen = FIT.matrix().select_rows(FIT.clusters != 2)
    unseen = FRESH.matrix().select_rows(FRESH.clusters == 2)
    setting = replace(SETTING, training_domains=homes("ngram", "suffix", "math"))
    blind, told = (policy_probabilities(fitted(seen, TauCost(), s), unseen).argmax(1) for s in (SETTING, setting))
    assert (blind == 3).mean() < 0.1
    assert (told == 3).mean() > 0.9
    everywhere = policy_probabilities(fitted(FIT.matrix(), TauCost(), setting), FRESH.matrix()).argmax(1)
    assert FRESH.share_of_possible(everywhere) > 0.95


def test_homes_that_tell_nothing_are_refused() -> None:
    with pytest.raises(DatasetError, match="a training domain of one arm"):
        fit(FIT.matrix(), TauCost(), replace(SETTING, training_domains=homes("math")))
    with pytest.raises(DatasetError, match="training domain of eagle, which was not measured"):
        fit(FIT.matrix(), TauCost(), replace(SETTING, training_domains=homes("math") | {"eagle": FIT.contexts}))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"domain_arms": [3, 4]}, "domain_arms must name two arms or more"),
        ({"domain_arms": [1], "domain_centres": 1}, "domain_arms must name two arms or more"),
        ({"domain_centres": 30}, "domain_centres has dimension 30"),
    ],
)
def test_homes_that_do_not_fit_are_refused(change: dict[str, Any], problem: str) -> None:
    manifest, arrays = fit(FIT.matrix(), TauCost(), replace(SETTING, training_domains=homes("ngram", "math")))
    homed = np.asarray(change.get("domain_arms", [1, 3]), np.int32)
    directions = change["domain_centres"] if change.get("domain_centres", 1) != 1 else arrays["domain_centres"].shape[2]
    damaged = {**arrays, "domain_arms": homed, "domain_centres": np.zeros((len(homed), 16, directions), np.float32)}
    with pytest.raises(PolicyRejected, match=problem):
        policies.make({**manifest, "arrays_sha256": "0" * 64}, damaged)


def test_another_load_needs_other_costs_and_no_training() -> None:
    """Where drafting costs twice as much, the same regression sends most requests elsewhere, and rightly."""
    dear = replace(COSTS, step_s=COSTS.step_s * np.asarray([1.0, 3.0, 3.0, 3.0])[:, None])
    policy = fitted(FIT.matrix(), learner("ridge"), replace(SETTING, costs=dear))
    found = policy_probabilities(policy, FRESH.matrix()).argmax(1)
    assert (found == (dear.step_s[:, 0] / TAU).argmin(1)[FRESH.clusters]).mean() > 0.9


def test_a_policy_that_is_not_sure_keeps_the_usual_arm() -> None:
    rng = np.random.default_rng(0)
    data = FIT.matrix()
    noise = np.exp(rng.normal(0, 0.5, data.time_s.shape))
    lost = replace(data, acceptance_length=noise + 1, contexts=rng.normal(size=data.contexts.shape).astype(np.float32))  # type: ignore[union-attr]
    sure, unsure = (
        policy_probabilities(fitted(lost, TauCost(z=z), SETTING), replace(lost, prompt_ids=lost.prompt_ids))
        for z in (0.0, 3.0)
    )
    usual = ARMS.index(ARMS[int(data.time_s.sum(0).argmin())])
    assert (unsure.argmax(1) == usual).mean() > (sure.argmax(1) == usual).mean()
    assert (unsure.argmax(1) == usual).mean() > 0.9


def test_time_counts_and_not_how_often_an_arm_wins() -> None:
    data = FIT.matrix().select_rows(np.arange(100))
    often_a_little_faster = np.where(np.arange(100) % 5, 0.9, 3.0)
    times = np.stack([np.ones(100), often_a_little_faster, np.full(100, 4.0), np.full(100, 4.0)], axis=1)
    alike = replace(data, time_s=times, contexts=np.zeros_like(data.contexts))
    for name in ("exact", "best_fixed"):
        assert policy_probabilities(fitted(alike, learner(name), SETTING), alike).argmax(1)[0] == 0


def test_numpy_scores_as_torch_does() -> None:
    _, arrays = fit(FIT.matrix(), ExactGradient(options=SoftmaxOptions(epochs=5)), SETTING)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    x = (torch.from_numpy(FRESH.contexts) - tensors["mean"]) / tensors["scale"]
    for layer in "12":
        x = linear(x, tensors[f"w{layer}"].T, tensors[f"b{layer}"]).relu()
    expected = linear(x, tensors["w3"].T, tensors["b3"]).numpy()
    served = MLPPolicy("mlp:test", ARMS, "features", arrays)
    scores = np.stack([served.logits(stored_context(vector, "features")) for vector in FRESH.contexts])
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)


def test_trees_in_numpy_predict_as_scikit_learn_does() -> None:
    from sklearn.ensemble import HistGradientBoostingRegressor

    data = FIT.matrix()
    scaling = FeatureScaling.from_contexts(FIT.contexts)
    x = np.concatenate([scaling(FIT.contexts), (data.temperatures > 0)[:, None]], axis=1).astype(np.float64)
    options = {"max_iter": 150, "max_leaf_nodes": 8, "min_samples_leaf": 15, "l2_regularization": 1.0}
    model = HistGradientBoostingRegressor(
        **options, max_features=0.3, learning_rate=0.1, early_stopping=True, random_state=0
    ).fit(x, np.log(FIT.tau[:, 1]))
    policy, _ = fit_once("boosting")
    assert isinstance(policy, TauCostPolicy)
    served = np.stack([policy.tau(stored_context(v, "features"))[1] for v in FIT.contexts])
    np.testing.assert_allclose(served, np.exp(np.maximum(model.predict(x), 0)), rtol=1e-5)


def test_the_embedding_varies_in_all_as_much_as_lexical_features_may() -> None:
    scaling = FeatureScaling.from_contexts(FIT.contexts)
    variances = scaling(FIT.contexts).var(0)
    embedding, lexical = variances[: -len(FEATURES)], variances[-len(FEATURES) :]
    np.testing.assert_allclose(embedding.sum(), 1, rtol=1e-3)
    np.testing.assert_allclose(lexical[lexical > 1e-6], 1 / len(FEATURES), rtol=1e-3)


@pytest.mark.parametrize("value", [0.55, 0.69])
@pytest.mark.parametrize("name", ["exact", "ridge", "tau_cost", "boosting"])
def test_a_feature_that_never_varied_does_not_decide_alone(name: str, value: float) -> None:
    def widened(bandit: Bandit, value: float) -> Bandit:
        contexts = bandit.contexts.copy()
        contexts[:, -1] = value
        return replace(bandit, contexts=contexts)

    found = chosen(fitted(widened(FIT, 0.42).matrix(), learner(name), SETTING), widened(FRESH, value))
    assert FRESH.share_of_possible(found) >= 0.9


@pytest.mark.parametrize("name", ["exact", "mlp_regression", "boosting"])
def test_progress_is_told_to_its_end(name: str) -> None:
    _, seen = fit_once(name)
    assert seen[-1][0] == seen[-1][1] == len(seen)


def test_the_length_of_an_answer_is_learned_and_never_more_than_is_allowed() -> None:
    made, rng = Bandit.draw(600, seed=3), np.random.default_rng(0)
    tokens = np.asarray([10.0, 40.0, 160.0, 640.0])[made.clusters] * rng.lognormal(0, 0.2, len(made))
    contexts = made.contexts.copy()
    contexts[:, made.contexts.shape[1] - len(FEATURES) + FEATURES.index("log_max_tokens")] = np.log1p(300) / 10
    policy = fitted(replace(made.matrix(), output_tokens=tokens, contexts=contexts), learner("tau_cost"), SETTING)
    assert isinstance(policy, TauCostPolicy)
    expected = np.asarray([policy.tokens(stored_context(v, "features")) for v in contexts])
    for cluster, usual in enumerate([10, 40, 160, 300]):
        assert np.median(expected[made.clusters == cluster]) == pytest.approx(usual, rel=0.45)
    assert expected.max() <= 300.01
