"""The default: `KernelRegression` that keeps the best fixed arm unless the predicted gain is significant.

With the training domains of drafters it uses them as a prior.
"""

from dataclasses import dataclass, field
from typing import Any

from draftpick.policy_training.data.matrix import Matrix
from draftpick.policy_training.learners.base import Fit, Learner, LearnerSetting, regression
from draftpick.policy_training.learners.kernel import KernelRegression
from draftpick.policy_training.learners.training_domains import TrainingDomains


@dataclass(frozen=True, slots=True)
class TauCost(Learner):
    """`z` and `switch_cost`: minimum predicted gain of another arm, in deviations and as a share of the time."""

    z: float = 0.02
    switch_cost: float = 0.0
    model: KernelRegression = field(default_factory=KernelRegression)

    def fit(self, data: Matrix, setting: LearnerSetting) -> Fit:
        best_fixed = data.arms[int(data.time_s.sum(0).argmin())]
        options: dict[str, Any] = {"default": best_fixed, "z": self.z, "switch_cost": self.switch_cost}
        if not setting.training_domains:
            return regression("kernel", *self.model.regressor(data, setting), data, setting, **options)
        homes = TrainingDomains.fit(data, setting)
        arrays, scaling, sigma = self.model.regressor(data, setting, homes.steps)
        return regression("home_kernel", {**arrays, **homes.arrays}, scaling, sigma, data, setting, **options)
