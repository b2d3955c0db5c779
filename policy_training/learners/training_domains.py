"""Where drafters are at home: a policy that never saw a kind of request still knows which drafter was made for it.

Of two drafters, the one whose training texts are nearer accepts more. How much more is learned from all arms with a
home together, so that it holds for a kind of request, and for a drafter, that has not been measured yet.
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
    """`arrays`: those of `draftpick.router.policies.regressors.DomainKernel`; `steps` [n, arms]: what homes say of the
    data's steps per token, against each other (0 for arms without a home)."""

    arrays: dict[str, npt.NDArray[np.float32]]
    steps: Floats

    @classmethod
    def fit(cls, data: Matrix, setting: LearnerSetting) -> "TrainingDomains":
        """Raises `DatasetError` for homes of arms that were not measured, and for less than two."""
        from sklearn.cluster import KMeans
        from sklearn.linear_model import Ridge

        if unknown := sorted(setting.training_domains.keys() - set(data.arms)):
            raise DatasetError(
                f"a home of {', '.join(unknown)}, which was not measured (measured: {', '.join(data.arms)})"
            )
        if len(setting.training_domains) < 2:
            raise DatasetError("a home of one arm alone tells nothing: give those of two or more")
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
        return cls(
            {"domain_centres": homes, "domain_arms": at.astype(np.int32), "margin_weights": pull.astype(np.float32)},
            steps,
        )
