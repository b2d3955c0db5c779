"""Cross-entropy to softmax(reward / temperature): a classifier with graded labels."""

from dataclasses import dataclass, field

import numpy as np
import torch

from draftpick.policy_training.data.matrix import Matrix
from draftpick.policy_training.data.reward import relative_seconds_saved
from draftpick.policy_training.learners.base import Fit, Learner, LearnerSetting
from draftpick.policy_training.learners.networks import SoftmaxOptions, fit_softmax


@dataclass(frozen=True, slots=True)
class SoftLabel(Learner):
    """`temperature` relative to the default's mean time: smaller reward differences count as ties.

    A weakness of classifiers: a frequent small gain may win over a rare large one.
    """

    on_workers = True

    temperature: float = 0.05
    options: SoftmaxOptions = field(default_factory=SoftmaxOptions)

    def fit(self, data: Matrix, setting: LearnerSetting) -> Fit:
        reward = relative_seconds_saved(data.time_s, data.arms.index(setting.default))
        scaled = reward / self.temperature
        label = np.exp(scaled - scaled.max(1, keepdims=True))
        label /= label.sum(1, keepdims=True)
        return fit_softmax(data, label, np.log(label.mean(0) + 1e-6), _cross_entropy, self.options, setting)


def _cross_entropy(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    return -(label * logits.log_softmax(1)).sum(1).mean()
