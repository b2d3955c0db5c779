"""Training domains of drafters as a prior: for an unseen task, the policy knows which drafter was trained for it.

Of two drafters, the one with nearer training texts accepts more. How much more is fitted jointly over all arms with a
training domain, so that it generalises to unmeasured tasks and drafters.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from draftpick.policy_training.data.dataset import DatasetError
from draftpick.policy_training.data.matrix import Matrix
from draftpick.policy_training.learners.base import Floats, LearnerSetting, prepared
from draftpick.router.features.lexical import FEATURES
from draftpick.router.policies.regressors import NoveltyMargin

CENTRES = 16
_PENALTY = 1.0


@dataclass(frozen=True, slots=True)
class TrainingDomains:
    """`arrays`: those of `draftpick.router.policies.regressors.DomainKernel`; `steps` [n, arms]: relative effect of the
    domains on the data's steps per token (0 for arms without a domain)."""

    arrays: dict[str, npt.NDArray[np.float32]]
    steps: Floats

    @classmethod
    def fit(cls, data: Matrix, setting: LearnerSetting) -> "TrainingDomains":
        """Fit; raises `DatasetError` for domains of arms without measurements, and for fewer than two."""
        from sklearn.cluster import KMeans
        from sklearn.linear_model import Ridge

        if unknown := sorted(setting.training_domains.keys() - set(data.arms)):
            raise DatasetError(
                f"training domain of {', '.join(unknown)}, which was not measured (measured: {', '.join(data.arms)})"
            )
        if len(setting.training_domains) < 2:
            raise DatasetError("a training domain of one arm has no effect: give those of two or more")
        scaling, z, log_tau, half = prepared(data)
        centres = min(CENTRES, *map(len, setting.training_domains.values()))
        clusters = (
            KMeans(centres, n_init=1, random_state=setting.seed).fit(scaling(home)[:, : -len(FEATURES)])
            for home in setting.training_domains.values()
        )
        homes = np.stack([found.cluster_centers_ for found in clusters]).astype(np.float32)
        at = np.asarray([data.arms.index(arm) for arm in setting.training_domains])
        nearness = NoveltyMargin(homes)
        features = np.stack([nearness.features(one, h) for one, h in zip(z, half.tolist(), strict=True)])
        homed = np.exp(-log_tau)[:, at]
        against = homed - homed.mean(1, keepdims=True)
        pull = Ridge(_PENALTY, fit_intercept=False).fit(features.reshape(-1, 3), against.ravel()).coef_
        steps = np.zeros_like(log_tau)
        steps[:, at] = features @ pull
        return cls({"homes": homes, "homed": at.astype(np.int32), "pull": pull.astype(np.float32)}, steps)
