"""Off-policy evaluation: what a policy would have earned, from decisions that another policy made and logged.

With `w = pi(a|x) / p0(a|x)` for the arm taken, `q` a model of rewards and `V = sum_a pi(a|x) q(x, a)`:
IPS mean(w r) · SNIPS sum(w r) / sum(w) · DM mean(V) · DR mean(V + w (r - q)) ·
SWITCH mean(V + 1{w <= t} w (r - q)) (Wang, Agarwal, Dudik 2017, arXiv 1612.01205) ·
DRos mean(V + l w / (w^2 + l) (r - q)) (Su et al. 2020, arXiv 1907.09623).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from policy_training.evaluate import Interval
from policy_training.logged_feedback import Floats, Logged

FEWEST_EFFECTIVE = 200.0
"""A verdict needs logged decisions worth at least so many drawn by the judged policy itself."""

_BETS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.7)
_GRID = 400


@dataclass(frozen=True, slots=True)
class Estimate:
    """A policy's value with its 95 % bootstrap interval, and the effective number of decisions behind it."""

    value: Interval
    effective: float

    @property
    def reliable(self) -> bool:
        """Whether the decisions are enough for a verdict."""
        return self.effective >= FEWEST_EFFECTIVE


def weights(logged: Logged, pi: Floats) -> Floats:
    """Importance weights [n] of a policy that gives the arms the probabilities `pi` [n, arms]."""
    return np.asarray(pi[np.arange(len(logged)), logged.arm] / logged.propensity)


def effective_size(w: Floats) -> float:
    """Kish's effective sample size, (sum w)^2 / sum w^2; 0 where no weight is positive."""
    return float(w.sum() ** 2 / np.square(w).sum()) if w.any() else 0.0


def estimate_all(logged: Logged, pi: Floats, q: Floats, *, resamples: int = 1000, seed: int = 0) -> dict[str, Estimate]:
    """Every estimator's estimate of the policy `pi` [n, arms], with a model of rewards `q` [n, arms]."""
    w = weights(logged, pi)
    effective = effective_size(w)
    draws = np.random.default_rng(seed).multinomial(len(w), np.full(len(w), 1 / len(w)), resamples).astype(np.float64)
    found = {}
    for name, terms in _ESTIMATORS.items():
        numerator, denominator = terms(logged, w, pi, q)
        value = numerator.sum() / denominator.sum()
        resampled = (draws @ numerator) / np.maximum(draws @ denominator, 1e-300)
        low, high = np.quantile(resampled, [0.025, 0.975])
        found[name] = Estimate(Interval(float(value), float(low), float(high)), effective)
    return found


Terms = tuple[Floats, Floats]
"""Numerators and denominators of the decisions [n]: an estimate is the sum of the ones over the sum of the others."""


def _ips(logged: Logged, w: Floats, pi: Floats, q: Floats) -> Terms:
    return w * logged.reward, np.ones_like(w)


def _snips(logged: Logged, w: Floats, pi: Floats, q: Floats) -> Terms:
    return w * logged.reward, w


def _dm(logged: Logged, w: Floats, pi: Floats, q: Floats) -> Terms:
    return (pi * q).sum(1), np.ones_like(w)


def _corrected(shrunk: Floats, logged: Logged, pi: Floats, q: Floats) -> Terms:
    """The direct method, corrected by what the model of rewards missed, in these weights."""
    missed = logged.reward - q[np.arange(len(logged)), logged.arm]
    return (pi * q).sum(1) + shrunk * missed, np.ones_like(shrunk)


def _dr(logged: Logged, w: Floats, pi: Floats, q: Floats) -> Terms:
    return _corrected(w, logged, pi, q)


def _switch(logged: Logged, w: Floats, pi: Floats, q: Floats) -> Terms:
    return _least_error([np.where(w <= t, w, 0.0) for t in np.quantile(w, _QUANTILES)], logged, w, pi, q)


def _dros(logged: Logged, w: Floats, pi: Floats, q: Floats) -> Terms:
    return _least_error([s * w / (w**2 + s) for s in _SHRINKAGE], logged, w, pi, q)


_QUANTILES = (0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
_SHRINKAGE = tuple(10.0**e for e in range(-1, 7))


def _least_error(candidates: Sequence[Floats], logged: Logged, w: Floats, pi: Floats, q: Floats) -> Terms:
    """The candidate weights of the least estimated squared error: variance, and the square of the bias against DR."""
    full = _dr(logged, w, pi, q)[0]
    terms = [_corrected(shrunk, logged, pi, q) for shrunk in candidates]
    errors = [t.var() / len(w) + (t - full).mean() ** 2 for t, _ in terms]
    return terms[int(np.argmin(errors))]


_ESTIMATORS: dict[str, Callable[[Logged, Floats, Floats, Floats], Terms]] = {
    "ips": _ips,
    "snips": _snips,
    "dm": _dm,
    "dr": _dr,
    "switch": _switch,
    "dros": _dros,
}
ESTIMATORS = tuple(_ESTIMATORS)


def reward_model(contexts: npt.NDArray[np.float32], logged: Logged, arms: int, *, folds: int = 5) -> Floats:
    """A model of rewards q [n, arms]: ridge regression per arm, cross-fitted so that no decision judges itself.

    An arm that was hardly taken gets the mean of what was seen of it, or of all.
    """
    from sklearn.linear_model import Ridge

    q = np.full((len(logged), arms), logged.reward.mean())
    fold = np.arange(len(logged)) % folds
    scale = contexts.std(0) + 1e-6
    x = (contexts - contexts.mean(0)) / scale
    for held in range(folds):
        for arm in range(arms):
            seen = (fold != held) & (logged.arm == arm)
            if seen.sum() >= 2 * folds:
                model = Ridge(alpha=x.shape[1]).fit(x[seen], logged.reward[seen])
                q[fold == held, arm] = model.predict(x[fold == held])
            elif seen.any():
                q[fold == held, arm] = logged.reward[seen].mean()
    return q


def confidence_sequence(w: Floats, reward: Floats, *, alpha: float = 0.05) -> tuple[Floats, Floats]:
    """Bounds (low, high), each [n], that hold for all n at once with probability 1 - alpha: look as often as you like.

    Rewards in [0, 1], weights of any size. A gambler who bets that `w r` exceeds v multiplies the stake by
    1 + b (w r - v) / v; if the value is at most v, no strategy reaches 1/alpha with more than probability alpha, so
    what the bets ruin is refuted (Waudby-Smith, Ramdas 2020; for weights Karampatziakis, Mineiro, Ramdas 2021,
    arXiv 2102.09540). The upper bound is one less the lower bound of 1 - r, since weights have mean 1.
    """
    if not ((reward >= 0) & (reward <= 1)).all():
        raise ValueError("rewards must lie in [0, 1]")
    low = _lower(w * reward, alpha / 2)
    high = 1.0 - _lower(w * (1.0 - reward), alpha / 2)
    return low, np.maximum(high, low)


def _lower(x: Floats, alpha: float) -> Floats:
    """Lower confidence sequence of the mean of x >= 0: the largest v on a grid that some stake has refuted so far."""
    grid = np.arange(1, _GRID) / _GRID
    refuted = np.zeros(len(x))
    wealth = np.full((len(grid), len(_BETS)), -np.log(len(_BETS)))
    threshold, best = np.log(1 / alpha), 0.0
    factors = np.asarray(_BETS)[None, :] / grid[:, None]
    for t, value in enumerate(x):
        wealth += np.log1p(factors * (value - grid[:, None]))
        ruined = np.logaddexp.reduce(wealth, axis=1) >= threshold
        if ruined.any():
            best = max(best, float(grid[ruined].max()))
        refuted[t] = best
    return refuted
