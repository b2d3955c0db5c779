"""Value of a policy on held-out measurements: its total time against every fixed arm and the oracle."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from draftpick.policy_training.data.dataset import DatasetError
from draftpick.policy_training.data.matrix import Matrix
from draftpick.policy_training.evaluation.bootstrap import Bootstrap, bounds

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Times in seconds over all prompts; speed-ups as ratios of total time (above 1: policy or oracle is faster).

    `output_tokens`: total output in that time.
    """

    n: int
    output_tokens: float
    time_s: dict[str, float]
    policy_time_s: float
    oracle_time_s: float
    best_fixed: str
    policy_vs_plain: Interval
    policy_vs_best_fixed: Interval
    oracle_vs_best_fixed: Interval
    shares: dict[str, dict[str, float]]


def evaluate(
    data: Matrix, policy_time_s: Floats, probabilities: Floats, default: str, *, resamples: int = 2000, seed: int = 0
) -> Evaluation:
    """Evaluate a policy with times `policy_time_s` [n] and arm probabilities [n, arms].

    Intervals are bootstraps over prompts. The best fixed arm is selected in each resample, with hindsight.
    """
    if default not in data.arms:
        raise DatasetError(f"the default engine {default!r} was not measured (measured: {', '.join(data.arms)})")
    draws = Bootstrap.of_places(len(data), resamples, np.random.default_rng(seed))
    fixed, routed, oracle = (draws.sums(times) for times in (data.time_s, policy_time_s, data.time_s.min(1)))
    totals = data.time_s.sum(0)
    best, plain = int(totals.argmin()), data.arms.index(default)

    def interval(value: float, drawn: Floats) -> Interval:
        low, high = bounds(drawn)
        return Interval(float(value), float(low), float(high))

    total = float(policy_time_s.sum())
    least = float(data.time_s.min(1).sum())
    return Evaluation(
        n=len(data),
        output_tokens=float(data.output_tokens.sum()),
        time_s=dict(zip(data.arms, totals.tolist(), strict=True)),
        policy_time_s=total,
        oracle_time_s=least,
        best_fixed=data.arms[best],
        policy_vs_plain=interval(totals[plain] / total, fixed[:, plain] / routed),
        policy_vs_best_fixed=interval(totals[best] / total, fixed.min(1) / routed),
        oracle_vs_best_fixed=interval(totals[best] / least, fixed.min(1) / oracle),
        shares=shares_by_task(data.kinds, data.arms, probabilities),
    )


def shares_by_task(tasks: Sequence[str], arms: Sequence[str], probabilities: Floats) -> dict[str, dict[str, float]]:
    """Mean share of each arm, by task and overall."""
    groups = {"all": np.ones(len(tasks), bool), **{k: np.asarray(tasks) == k for k in sorted(set(tasks))}}
    return {k: dict(zip(arms, probabilities[mask].mean(0).tolist(), strict=True)) for k, mask in groups.items()}
