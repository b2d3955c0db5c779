"""Off-policy evaluation: the value of a policy, estimated from another policy's logged decisions.

With `w = pi(a|x) / p0(a|x)` for the logged arm, `q` a reward model and `V = sum_a pi(a|x) q(x, a)`:
IPS mean(w r) · SNIPS sum(w r) / sum(w) · DM mean(V) · DR mean(V + w (r - q)) ·
SWITCH mean(V + 1{w <= t} w (r - q)) (Wang, Agarwal, Dudik 2017, arXiv 1612.01205) ·
DRos mean(V + l w / (w^2 + l) (r - q)) (Su et al. 2020, arXiv 1907.09623).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from draftpick.policy_training.data.logged_feedback import Floats, LoggedFeedback
from draftpick.policy_training.data.ridge import predict, ridge
from draftpick.policy_training.evaluation.bootstrap import Bootstrap, bounds
from draftpick.policy_training.evaluation.evaluate import Interval

MIN_EFFECTIVE = 200.0
"""Minimum effective sample size for a verdict."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A policy's value with its 95 % bootstrap interval, and the effective sample size."""

    value: Interval
    effective_sample_size: float

    @property
    def reliable(self) -> bool:
        """True if the effective sample size suffices for a verdict."""
        return self.effective_sample_size >= MIN_EFFECTIVE


def weights(logged: LoggedFeedback, pi: Floats) -> Floats:
    """Importance weights [n] of a policy with probabilities `pi` [n, arms]."""
    return np.asarray(pi[np.arange(len(logged)), logged.arm] / logged.propensity)


def effective_sample_size(w: Floats) -> float:
    """Kish's effective sample size, (sum w)^2 / sum w^2; 0 without a positive weight."""
    return float(w.sum() ** 2 / np.square(w).sum()) if w.any() else 0.0


def estimate_all(
    logged: LoggedFeedback, pi: Floats, q: Floats, *, resamples: int = 1000, seed: int = 0
) -> dict[str, Estimate]:
    """Estimate of the policy `pi` [n, arms] by every estimator, with a reward model `q` [n, arms]."""
    w = weights(logged, pi)
    effective = effective_sample_size(w)
    draws = Bootstrap.of_counts(len(w), resamples, np.random.default_rng(seed))
    found = {}
    for name, terms in _ESTIMATORS.items():
        numerator, denominator = terms(logged, w, pi, q)
        value = numerator.sum() / denominator.sum()
        low, high = bounds(draws.sums(numerator) / np.maximum(draws.sums(denominator), 1e-300))
        found[name] = Estimate(Interval(float(value), float(low), float(high)), effective)
    return found


Terms = tuple[Floats, Floats]
"""Numerators and denominators by decision [n]: an estimate is the ratio of their sums."""


def _ips(logged: LoggedFeedback, w: Floats, pi: Floats, q: Floats) -> Terms:
    return w * logged.reward, np.ones_like(w)


def _snips(logged: LoggedFeedback, w: Floats, pi: Floats, q: Floats) -> Terms:
    return w * logged.reward, w


def _dm(logged: LoggedFeedback, w: Floats, pi: Floats, q: Floats) -> Terms:
    return (pi * q).sum(1), np.ones_like(w)


def doubly_robust(pi: Floats, q: Floats, w: Floats, arm: npt.NDArray[np.int64], observed: Floats) -> Floats:
    """Terms [n] of the doubly robust estimate of a policy `pi` [n, arms]: sum_a pi q + w (observed - q_arm).

    The direct method with a model `q` [n, arms], corrected by the weighted (`w` [n]) residuals of the observed values
    `observed` [n] of the logged arm.
    """
    return np.asarray((pi * q).sum(1) + w * (observed - q[np.arange(len(q)), arm]))


def _doubly_robust_terms(shrunk: Floats, logged: LoggedFeedback, pi: Floats, q: Floats) -> Terms:
    return doubly_robust(pi, q, shrunk, logged.arm, logged.reward), np.ones_like(shrunk)


def _dr(logged: LoggedFeedback, w: Floats, pi: Floats, q: Floats) -> Terms:
    return _doubly_robust_terms(w, logged, pi, q)


def _switch(logged: LoggedFeedback, w: Floats, pi: Floats, q: Floats) -> Terms:
    return _least_error([np.where(w <= t, w, 0.0) for t in np.quantile(w, _QUANTILES)], logged, w, pi, q)


def _dros(logged: LoggedFeedback, w: Floats, pi: Floats, q: Floats) -> Terms:
    return _least_error([s * w / (w**2 + s) for s in _SHRINKAGE], logged, w, pi, q)


_QUANTILES = (0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
_SHRINKAGE = tuple(10.0**e for e in range(-1, 7))


def _least_error(candidates: Sequence[Floats], logged: LoggedFeedback, w: Floats, pi: Floats, q: Floats) -> Terms:
    """The candidate weights with the lowest estimated mean squared error: variance plus squared bias against DR."""
    full = _dr(logged, w, pi, q)[0]
    terms = [_doubly_robust_terms(shrunk, logged, pi, q) for shrunk in candidates]
    errors = [t.var() / len(w) + (t - full).mean() ** 2 for t, _ in terms]
    return terms[int(np.argmin(errors))]


_ESTIMATORS: dict[str, Callable[[LoggedFeedback, Floats, Floats, Floats], Terms]] = {
    "ips": _ips,
    "snips": _snips,
    "dm": _dm,
    "dr": _dr,
    "switch": _switch,
    "dros": _dros,
}
ESTIMATORS = tuple(_ESTIMATORS)


def reward_model(contexts: npt.NDArray[np.float32], logged: LoggedFeedback, arms: int, *, folds: int = 5) -> Floats:
    """A reward model q [n, arms]: ridge regression per arm, cross-fitted so that no decision predicts itself.

    An arm with few decisions gets its mean reward, or the overall mean.
    """
    q, everywhere = np.zeros((len(logged), arms)), logged.reward.mean()
    fold = np.arange(len(logged)) % folds
    scale = contexts.std(0) + 1e-6
    x = (contexts - contexts.mean(0)) / scale
    for held in range(folds):
        training = fold != held
        arm, reward = logged.arm[training], logged.reward[training]
        means = np.asarray([reward[arm == one].mean() if (arm == one).any() else everywhere for one in range(arms)])
        q[~training] = predict(x[~training], ridge(x[training], arm, reward, means, fewest=2 * folds))
    return q
