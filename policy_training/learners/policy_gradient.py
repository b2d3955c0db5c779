"""The seed paper's learner, and its variant without sampling (arXiv 2408.08470).

`Reinforce` samples one arm per example, as the paper does. `ExactGradient` computes the full gradient, which is
possible since every arm's reward is known: dJ/dlogit_a = pi_a (r_a - sum_b pi_b r_b).
"""

from dataclasses import dataclass, field

import torch

from draftpick.policy_training.data.matrix import Matrix
from draftpick.policy_training.data.reward import relative_seconds_saved
from draftpick.policy_training.learners.base import Fit, Learner, LearnerSetting
from draftpick.policy_training.learners.networks import SoftmaxOptions, fit_softmax


@dataclass(frozen=True, slots=True)
class ExactGradient(Learner):
    """Maximises the expected reward plus an entropy bonus.

    It starts from the arms' mean rewards, so that it departs from the best fixed arm only on evidence.
    """

    on_workers = True

    entropy: float = 0.3
    options: SoftmaxOptions = field(default_factory=SoftmaxOptions)

    def fit(self, data: Matrix, setting: LearnerSetting) -> Fit:
        reward = relative_seconds_saved(data.time_s, data.arms.index(setting.default))
        # The optimum of the regularised objective for a context-free policy.
        return fit_softmax(data, reward, reward.mean(0) / self.entropy, self.loss, self.options, setting)

    def loss(self, logits: torch.Tensor, reward: torch.Tensor) -> torch.Tensor:
        log_pi = logits.log_softmax(1)
        return -(log_pi.exp() * reward).sum(1).mean() - self.entropy * _entropy(log_pi)


@dataclass(frozen=True, slots=True)
class Reinforce(ExactGradient):
    """The same objective with gradients of sampled arms and the batch's mean reward as baseline."""

    def loss(self, logits: torch.Tensor, reward: torch.Tensor) -> torch.Tensor:
        log_pi = logits.log_softmax(1)
        arm = torch.multinomial(log_pi.detach().exp(), 1)
        gained = reward.gather(1, arm).squeeze(1)
        advantage = gained - gained.mean()
        return -(advantage * log_pi.gather(1, arm).squeeze(1)).mean() - self.entropy * _entropy(log_pi)


def _entropy(log_pi: torch.Tensor) -> torch.Tensor:
    return -(log_pi.exp() * log_pi).sum(1).mean()
