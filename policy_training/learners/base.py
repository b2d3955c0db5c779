"""Common to all learners: their interface, the scaling of contexts, and the labels of a regression on log tau."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from draftpick.policy_training.data import reward
from draftpick.policy_training.data.matrix import Matrix
from draftpick.policy_training.data.step_costs import Costs
from draftpick.policy_training.learners.ray_train import Workers
from draftpick.router.features.lexical import TABLE
from draftpick.router.policies.shapes import Arrays

Floats = npt.NDArray[np.float64]
ProgressCallback = Callable[[int, int], None]
"""Called with (steps done, total steps)."""

_CONSTANT = 1e-3
_LENGTH_PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0)


@dataclass(frozen=True, slots=True)
class LearnerSetting:
    """Settings besides the data: default arm, step costs of every arm, seed.

    `training_domains`: contexts [n, d] of requests from the training domain of an arm's drafter, by arm. `workers`:
    where to fit a network; None: in this process.
    """

    default: str
    costs: Costs
    seed: int = 0
    progress: ProgressCallback = lambda done, total: None
    training_domains: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    workers: Workers | None = None


@dataclass(frozen=True, slots=True)
class Fit:
    """The learner's parts of an artefact: kind of the policy, its options and arrays."""

    kind: str
    options: dict[str, Any]
    arrays: Arrays = field(default_factory=dict)


class Learner(ABC):
    """Fits a policy to times of all arms. The same data and seed give bit-identical arrays, in one process."""

    on_workers: ClassVar[bool] = False
    """Whether it is a network that several workers can fit in parallel."""

    @abstractmethod
    def fit(self, data: Matrix, setting: LearnerSetting) -> Fit:
        """Fit to contexts [n, d] and times [n, arms] of `data`."""


@dataclass(frozen=True, slots=True)
class FeatureScaling:
    """z = (context - mean) / scale; the lexical features together have variance 1, and so does the embedding.

    The embedding has one scale: directions of low variance carry less information. Each lexical feature has its own
    scale and a weight; a feature that is constant in the data keeps that of the context: it must not dominate when it
    changes in service.
    """

    mean: npt.NDArray[np.float32]
    scale: npt.NDArray[np.float32]

    @classmethod
    def from_contexts(cls, contexts: npt.NDArray[np.float32]) -> "FeatureScaling":
        """Fit to contexts [n, d]."""
        deviation = contexts.std(axis=0)
        scale = np.where(deviation < _CONSTANT, 1.0, deviation)
        embedded = max(contexts.shape[1] - len(TABLE), 0)
        scale[:embedded] = np.sqrt(np.square(deviation[:embedded]).sum()) or 1.0
        weights = [feature.weight for feature in TABLE]
        scale[embedded:] *= np.sqrt(len(TABLE)) / np.asarray(weights)[-(contexts.shape[1] - embedded) :]
        return cls(contexts.mean(axis=0).astype(np.float32), scale.astype(np.float32))

    def __call__(self, contexts: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return np.asarray((contexts - self.mean) / self.scale, np.float32)

    @property
    def arrays(self) -> Arrays:
        """Return the arrays of a policy artefact."""
        return {"mean": self.mean, "scale": self.scale}


def contexts_of(data: Matrix) -> npt.NDArray[np.float32]:
    """The contexts [n, d], which learners require."""
    assert data.contexts is not None, "the data has no contexts"
    return data.contexts


def prepared(data: Matrix) -> tuple[FeatureScaling, npt.NDArray[np.float32], Floats, npt.NDArray[np.int64]]:
    """The inputs of a regression: scaling, scaled contexts [n, d], log tau [n, arms], and sampling modes [n].

    Log tau is 0 where nothing is drafted; the mode is 1 for sampled requests, 0 for greedy ones.
    """
    scaling = FeatureScaling.from_contexts(contexts_of(data))
    halves = np.asarray(data.temperatures > 0, np.int64)
    return scaling, scaling(contexts_of(data)), reward.log_tau(data.acceptance_length), halves


def deviations(residuals: Floats, halves: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Root mean squares of residuals [n, arms], greedy and sampled [2, arms]; of all where a mode has no requests."""
    rows = [residuals[halves == half] if (halves == half).any() else residuals for half in (0, 1)]
    return np.asarray([np.sqrt(np.square(r).mean(0)) for r in rows], np.float32)


def regression(
    regressor: str, arrays: Arrays, scaling: FeatureScaling, sigma: npt.NDArray[np.float32], data: Matrix,
    setting: LearnerSetting,
    **options: Any,
) -> Fit:  # fmt: skip
    """A policy that minimises expected time, with this regressor of log tau and the setting's costs."""
    costs = setting.costs.select(data.arms)
    cost_arrays = {name: getattr(costs, name).astype(np.float32) for name in ("step_s", "start_s", "per_token_s")}
    named = {"regressor": regressor, "default": setting.default, "output_tokens": float(data.output_tokens.mean())}
    learned = {**arrays, **scaling.arrays, "sigma": sigma, "length": length_weights(data, scaling)}
    return Fit("tau_cost", {**named, **options}, {**learned, **cost_arrays})


def length_weights(data: Matrix, scaling: FeatureScaling) -> npt.NDArray[np.float32]:
    """Weights of the expected number of tokens `exp(z w + b)`: w followed by b [d + 1].

    A ridge regression of the logarithm; b includes half the residual variance, so that it is the mean of a log-normal.
    """
    from sklearn.linear_model import RidgeCV

    z, y = scaling(contexts_of(data)).astype(np.float64), np.log(np.maximum(data.output_tokens, 1.0))
    model = RidgeCV(alphas=_LENGTH_PENALTIES, store_cv_results=True).fit(z, y)
    variance = model.cv_results_[:, _LENGTH_PENALTIES.index(float(model.alpha_))].mean()
    return np.append(model.coef_, model.intercept_ + variance / 2).astype(np.float32)
