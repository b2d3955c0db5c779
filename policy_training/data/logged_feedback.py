"""Logged decisions, their propensities and rewards, as arrays."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from draftpick.policy_training.data.dataset import DatasetError

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LoggedFeedback:
    """Decisions of the logging policy: index of the chosen arm, its reward and its propensity; each [n].

    Raises `DatasetError` for unequal shapes, for rewards that are not finite and propensities outside (0, 1].
    """

    arm: npt.NDArray[np.int64]
    reward: Floats
    propensity: Floats

    def __post_init__(self) -> None:
        if not (self.arm.shape == self.reward.shape == self.propensity.shape) or self.arm.ndim != 1 or not len(self):
            raise DatasetError("arms, rewards and propensities must have equal length, at least 1")
        if not np.isfinite(self.reward).all():
            raise DatasetError("rewards must be finite")
        if not ((self.propensity > 0) & (self.propensity <= 1)).all():
            raise DatasetError("propensities must be in (0, 1]")

    def __len__(self) -> int:
        return len(self.arm)
