"""k nearest neighbours within the same sampling mode: a baseline that learned routers often fail to beat."""

from dataclasses import dataclass

import numpy as np

from draftpick.policy_training.data.matrix import Matrix
from draftpick.policy_training.learners.base import Fit, Learner, LearnerSetting, deviations, prepared, regression


@dataclass(frozen=True, slots=True)
class Knn(Learner):
    """`neighbours`: number of averaged requests; None: square root of the number of requests."""

    neighbours: int | None = None

    def fit(self, data: Matrix, setting: LearnerSetting) -> Fit:
        scaling, z, y, half = prepared(data)
        k = self.neighbours or max(3, round(np.sqrt(len(data))))
        sigma = deviations(y - _without_oneself(z, y, half, k), half)
        arrays = {
            "points": z,
            "values": y.astype(np.float32),
            "halves": half.astype(np.float32),
            "neighbours": np.asarray([k], np.float32),
        }
        return regression("neighbours", arrays, scaling, sigma, data, setting)


def _without_oneself(z: np.ndarray, y: np.ndarray, half: np.ndarray, k: int) -> np.ndarray:
    """Leave-one-out predictions [n, arms]."""
    from sklearn.neighbors import NearestNeighbors

    predicted = np.tile(y.mean(0), (len(y), 1))
    for h in (0, 1):
        rows = np.flatnonzero(half == h)
        if len(rows) > 1:
            nearest = NearestNeighbors(n_neighbors=min(k + 1, len(rows))).fit(z[rows])
            others = nearest.kneighbors(z[rows], return_distance=False)[:, 1:]
            predicted[rows] = y[rows[others]].mean(1)
    return predicted
