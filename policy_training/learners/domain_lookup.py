"""k-means over contexts, and the mean log tau of each cluster: a lookup table of learned domains."""

from dataclasses import dataclass

import numpy as np

from draftpick.policy_training.data.matrix import Matrix
from draftpick.policy_training.learners.base import Fit, Learner, LearnerSetting, deviations, prepared, regression


@dataclass(frozen=True, slots=True)
class DomainLookup(Learner):
    """`clusters`: maximum number, limited to a tenth of the requests. Small clusters are shrunk to the overall mean."""

    clusters: int = 24
    shrinkage: float = 3.0

    def fit(self, data: Matrix, setting: LearnerSetting) -> Fit:
        from sklearn.cluster import KMeans

        scaling, z, y, half = prepared(data)
        clusters = max(1, min(self.clusters, len(data) // 10))
        found = KMeans(clusters, n_init=4, random_state=setting.seed).fit(z)
        values = np.empty((2, clusters, len(data.arms)))
        for h in (0, 1):
            overall = y[half == h].mean(0) if (half == h).any() else y.mean(0)
            for c in range(clusters):
                rows = y[(half == h) & (found.labels_ == c)]
                values[h, c] = (rows.sum(0) + self.shrinkage * overall) / (len(rows) + self.shrinkage)
        sigma = deviations(y - values[half, found.labels_], half)
        arrays = {"centroids": found.cluster_centers_.astype(np.float32), "values": values.astype(np.float32)}
        return regression("centroids", arrays, scaling, sigma, data, setting)
