"""Kernel ridge regression of steps per token (1 / tau).

Expected time needs the mean of 1 / tau; the mean of log tau favours arms with a high variance of tau. Far from all
requests it predicts their mean, so that a policy falls back to the best fixed arm.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from draftpick.policy_training.data.matrix import Matrix
from draftpick.policy_training.learners.base import (
    FeatureScaling,
    Fit,
    Floats,
    Learner,
    LearnerSetting,
    deviations,
    prepared,
    regression,
)


@dataclass(frozen=True, slots=True)
class KernelRegression(Learner):
    """`exp(-gamma |x - x'|^2)` at up to `points` requests (Nystroem); the penalty is chosen by leave-one-out.

    `apart`: the distance between a greedy and a sampled request of the same text.
    """

    points: int = 500
    gamma: float = 0.2
    apart: float = 0.5
    penalties: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0)

    def fit(self, data: Matrix, setting: LearnerSetting) -> Fit:
        arrays, scaling, sigma = self.regressor(data, setting)
        return regression("kernel", arrays, scaling, sigma, data, setting)

    def regressor(
        self, data: Matrix, setting: LearnerSetting, known: Floats | float = 0.0
    ) -> tuple[dict[str, npt.NDArray[np.float32]], FeatureScaling, npt.NDArray[np.float32]]:
        """Return arrays of `draftpick.router.policies.regressors.Kernel`, its scaling, and the residual deviations.

        `known`: a known offset of the steps per token [n, arms]; it is not learned.
        """
        from sklearn.kernel_approximation import Nystroem
        from sklearn.linear_model import RidgeCV

        scaling, z, log_tau, half = prepared(data)
        steps = np.exp(-log_tau)
        y = steps - known
        x = np.concatenate([z, self.apart * half[:, None]], axis=1).astype(np.float64)
        points = min(self.points, len(data))
        features: Any = Nystroem(gamma=self.gamma, n_components=points, random_state=setting.seed)
        model = RidgeCV(alphas=self.penalties, store_cv_results=True).fit(features.fit_transform(x), y)
        squared = model.cv_results_[:, :, self.penalties.index(float(model.alpha_))]
        arrays = {
            "points": features.components_,
            "weights": features.normalization_.T @ model.coef_.T,
            "base": model.intercept_,
            "shape": np.asarray([self.gamma, self.apart]),
        }
        made = {name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()}
        # d log tau = -d steps / steps
        return made, scaling, deviations(np.sqrt(squared) / steps, half)
