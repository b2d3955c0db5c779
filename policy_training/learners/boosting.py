"""Gradient-boosted trees on log tau, one ensemble per arm."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from draftpick.policy_training.data.matrix import Matrix
from draftpick.policy_training.learners.base import Fit, Learner, LearnerSetting, deviations, prepared, regression


@dataclass(frozen=True, slots=True)
class Boosting(Learner):
    """Early stopping on a held-out tenth of the requests."""

    trees: int = 150
    leaves: int = 8
    learning_rate: float = 0.1

    def fit(self, data: Matrix, setting: LearnerSetting) -> Fit:
        from sklearn.ensemble import HistGradientBoostingRegressor

        scaling, z, y, half = prepared(data)
        x = np.concatenate([z, half[:, None]], axis=1).astype(np.float64)
        models = []
        for arm in range(len(data.arms)):
            model = HistGradientBoostingRegressor(
                max_iter=self.trees,
                max_leaf_nodes=self.leaves,
                learning_rate=self.learning_rate,
                min_samples_leaf=max(3, min(20, len(data) // 20)),
                l2_regularization=1.0,
                max_features=0.3,
                early_stopping=len(data) >= 100,
                random_state=setting.seed,
            )
            models.append(model.fit(x, y[:, arm]))
            setting.progress(arm + 1, len(data.arms))
        predicted = np.stack([model.predict(x) for model in models], axis=1)
        return regression("trees", _arrays(models), scaling, deviations(y - predicted, half), data, setting)


def _arrays(models: list[Any]) -> dict[str, npt.NDArray[np.float32]]:
    """Convert scikit-learn's trees, padded with leaves of value 0 to one shape [arms, trees, nodes]."""
    forests = [[predictors[0].nodes for predictors in model._predictors] for model in models]
    trees = max(len(forest) for forest in forests)
    nodes = max(len(tree) for forest in forests for tree in forest)
    shape = (len(models), max(trees, 1), nodes)
    arrays = {name: np.zeros(shape, np.float32) for name in ("threshold", "left", "right", "value")}
    feature = np.full(shape, -1.0, np.float32)
    depth = 0
    for a, forest in enumerate(forests):
        for t, tree in enumerate(forest):
            leaf, size = tree["is_leaf"].astype(bool), len(tree)
            feature[a, t, :size] = np.where(leaf, -1, tree["feature_idx"])
            arrays["threshold"][a, t, :size] = _rounded_down(np.where(leaf, 0.0, tree["num_threshold"]))
            arrays["left"][a, t, :size] = np.where(leaf, 0, tree["left"])
            arrays["right"][a, t, :size] = np.where(leaf, 0, tree["right"])
            arrays["value"][a, t, :size] = np.where(leaf, tree["value"], 0.0)
            depth = max(depth, int(tree["depth"].max()))
    base = np.asarray([np.ravel(model._baseline_prediction)[0] for model in models], np.float32)
    return {**arrays, "feature": feature, "base": base, "depth": np.asarray([depth], np.float32)}


def _rounded_down(threshold: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Round down to float32, so that the same float32 values compare less or equal."""
    near = threshold.astype(np.float32)
    return np.where(near > threshold, np.nextafter(near, np.float32(-np.inf)), near)
