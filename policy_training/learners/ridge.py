"""Ridge regression of log tau, one model per sampling mode with a shared part."""

from dataclasses import dataclass

import numpy as np

from draftpick.policy_training.data.matrix import Matrix
from draftpick.policy_training.learners.base import Fit, Learner, LearnerSetting, deviations, prepared, regression


@dataclass(frozen=True, slots=True)
class RidgeRegression(Learner):
    """The penalty is chosen among `penalties` by leave-one-out."""

    penalties: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)

    def fit(self, data: Matrix, setting: LearnerSetting) -> Fit:
        from sklearn.linear_model import RidgeCV

        scaling, z, y, half = prepared(data)
        d = z.shape[1]
        x = np.concatenate([z, half[:, None] * z, half[:, None]], axis=1).astype(np.float64)
        model = RidgeCV(alphas=self.penalties, store_cv_results=True).fit(x, y)
        best = self.penalties.index(float(model.alpha_))
        squared = model.cv_results_[:, :, best]
        shared, own, shift = model.coef_.T[:d], model.coef_.T[d : 2 * d], model.coef_.T[-1]
        arrays = {
            "w": np.stack([shared, shared + own]).astype(np.float32),
            "b": np.stack([model.intercept_, model.intercept_ + shift]).astype(np.float32),
        }
        return regression("linear", arrays, scaling, deviations(np.sqrt(squared), half), data, setting)
