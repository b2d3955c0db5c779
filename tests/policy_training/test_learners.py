"""Learners on a bandit whose best arms are known: what they reach, that they repeat, that serving computes the same."""

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
from torch.nn.functional import linear

from policy_training.learners import Arrays, TrainOptions, train
from router.features import SAMPLING_FEATURES
from router.policies.mlp import MLPPolicy
from router.types import Context
from tests.policy_training.bandit import ARMS, BEST, Bandit

pytestmark = pytest.mark.usefixtures("one_thread")

SHORT = TrainOptions(epochs=20)
FIT, FRESH = Bandit.draw(200, seed=0), Bandit.draw(400, seed=1)


def fitted(options: TrainOptions = SHORT, bandit: Bandit = FIT) -> Arrays:
    return train(bandit.contexts, bandit.time_s, 0, options)


def policy(arrays: Arrays) -> MLPPolicy:
    return MLPPolicy("mlp:test", ARMS, "features", arrays)


def logits(arrays: Arrays, bandit: Bandit) -> np.ndarray:
    made = policy(arrays)
    return np.stack([made.logits(Context(vector, "features")) for vector in bandit.contexts])


@pytest.mark.parametrize(("learner", "share"), [("exact", 0.95), ("reinforce", 0.8)])
@pytest.mark.parametrize("seed", [0, 1])
def test_fresh_prompts_get_most_of_what_is_possible(
    learner: Literal["exact", "reinforce"], share: float, seed: int
) -> None:
    chosen = logits(fitted(TrainOptions(learner=learner, epochs=250, seed=seed)), FRESH).argmax(1)
    assert FRESH.share_of_possible(chosen) >= share
    assert (chosen == BEST[FRESH.clusters]).mean() >= share


def test_time_counts_and_not_how_often_an_arm_wins() -> None:
    often_a_little_faster = np.where(np.arange(100) % 5, 0.9, 3.0)
    times = np.stack([np.ones(100), often_a_little_faster], axis=1)
    arrays = train(np.zeros((100, 3), np.float32), times, 0, TrainOptions(epochs=100))
    scores = MLPPolicy("mlp:test", ("plain", "often"), "features", arrays).logits(Context(np.zeros(3), "features"))
    assert scores.argmax() == 0


def test_a_default_that_is_always_fastest_gets_all_prompts() -> None:
    times = np.tile([0.5, 1.0, 1.0, 1.0], (60, 1))
    arrays = train(FIT.contexts[:60], times, 0, TrainOptions(epochs=250, seed=1))
    assert (logits(arrays, FRESH).argmax(1) == 0).mean() > 0.95


def test_few_prompts_are_enough() -> None:
    chosen = logits(fitted(TrainOptions(seed=1), Bandit.draw(60, seed=1)), FRESH).argmax(1)
    assert FRESH.share_of_possible(chosen) >= 0.95


@pytest.mark.parametrize("learner", ["exact", "reinforce"])
def test_a_seed_repeats_bit_for_bit(learner: Literal["exact", "reinforce"]) -> None:
    one, same, other = (fitted(TrainOptions(learner=learner, epochs=20, seed=seed)) for seed in (3, 3, 4))
    assert one.keys() == same.keys()
    assert all(one[name].tobytes() == same[name].tobytes() for name in one)
    assert (one["w1"] != other["w1"]).any()


def test_arrays_are_those_of_an_mlp_policy() -> None:
    arrays = fitted(TrainOptions(epochs=2, hidden=5))
    shapes = {name: array.shape for name, array in arrays.items()}
    weights = {"w1": (8, 5), "b1": (5,), "w2": (5, 5), "b2": (5,), "w3": (5, 4), "b3": (4,)}
    assert shapes == {"mean": (8,), "scale": (8,), **weights}
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}
    assert policy(arrays).dimension == 8


def test_numpy_scores_as_torch_does() -> None:
    arrays = fitted()
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    x = (torch.from_numpy(FRESH.contexts) - tensors["mean"]) / tensors["scale"]
    for layer in "12":
        x = linear(x, tensors[f"w{layer}"].T, tensors[f"b{layer}"]).relu()
    expected = linear(x, tensors["w3"].T, tensors["b3"]).numpy()
    np.testing.assert_allclose(logits(arrays, FRESH), expected, rtol=1e-4, atol=1e-5)


def test_the_embedding_varies_in_all_as_much_as_one_sampling_feature() -> None:
    arrays = fitted()
    np.testing.assert_allclose(arrays["mean"], FIT.contexts.mean(0), rtol=1e-6)
    variances = (FIT.contexts / arrays["scale"]).var(0)
    embedding = variances[: -len(SAMPLING_FEATURES)]
    np.testing.assert_allclose([embedding.sum(), *variances[len(embedding) :]], 1, rtol=1e-3)


def test_a_feature_that_never_varies_does_no_harm() -> None:
    contexts = np.concatenate([FIT.contexts, np.full((len(FIT), 1), 7, np.float32)], axis=1)
    arrays = train(contexts, FIT.time_s, 0, SHORT)
    assert all(np.isfinite(array).all() for array in arrays.values())


@pytest.mark.parametrize("value", [0.55, 0.69])
def test_a_feature_that_never_varied_does_not_decide_alone(value: float) -> None:
    def widened(bandit: Bandit, value: float) -> Bandit:
        column = np.full((len(bandit), 1), value, np.float32)
        return replace(bandit, contexts=np.concatenate([bandit.contexts, column], axis=1))

    arrays = fitted(TrainOptions(epochs=250), widened(FIT, 0.42))
    chosen = logits(arrays, widened(FRESH, value)).argmax(1)
    assert FRESH.share_of_possible(chosen) >= 0.95


def test_progress_tells_each_epoch_and_a_falling_loss() -> None:
    seen: list[tuple[int, int, float]] = []
    train(FIT.contexts, FIT.time_s, 0, SHORT, lambda *told: seen.append(told))
    assert [told[:2] for told in seen] == [(epoch, 20) for epoch in range(1, 21)]
    assert seen[-1][2] < seen[0][2]
