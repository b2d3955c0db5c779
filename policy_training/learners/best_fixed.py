"""The arm with the lowest total time, for every request: the baseline of routing."""

from draftpick.policy_training.data.matrix import Matrix
from draftpick.policy_training.learners.base import Fit, Learner, LearnerSetting


class BestFixed(Learner):
    """Ignores the context."""

    def fit(self, data: Matrix, setting: LearnerSetting) -> Fit:
        return Fit("fixed", {"arm": data.arms[int(data.time_s.sum(0).argmin())]})
