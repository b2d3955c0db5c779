"""Value of a policy on held-out measurements: its total time against every fixed arm and the oracle."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from draftpick.policy_training.data.dataset import DatasetError
from draftpick.policy_training.data.matrix import Matrix
from draftpick.policy_training.evaluation.bootstrap import Bootstrap, bounds, source_blocks

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float

    def meets(self, bar: float) -> bool:
        """Whether the figure is proved to reach the bar: its lower bound does."""
        return self.low >= bar


@dataclass(frozen=True, slots=True)
class Comparison:
    """A policy on some requests: speed-ups as ratios of total time, above 1 where the policy is faster.

    `sources`: number of their sources; `blocks`: what the bootstrap draws, sources, or requests where these are few.
    """

    n: int
    sources: int
    blocks: Literal["source", "request"]
    policy_vs_plain: Interval
    policy_vs_best_fixed: Interval


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Times in seconds over all prompts; speed-ups as ratios of total time (above 1: policy or oracle is faster).

    `output_tokens`: total output in that time. `slices`: by task, the worst against the best fixed arm first. `blocks`:
    what the bootstrap draws, see `Comparison`.
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
    slices: dict[str, Comparison]
    blocks: Literal["source", "request"]


def evaluate(
    data: Matrix, policy_time_s: Floats, probabilities: Floats, default: str, *, resamples: int = 2000, seed: int = 0
) -> Evaluation:
    """Evaluate a policy with times `policy_time_s` [n] and arm probabilities [n, arms].

    Intervals are block bootstraps by source. The best fixed arm is selected in each resample, with hindsight; that of a
    slice is the best one of all requests.
    """
    if default not in data.arms:
        raise DatasetError(f"the default engine {default!r} was not measured (measured: {', '.join(data.arms)})")
    draws, blocks = _resample(data, resamples, seed)
    fixed, routed, oracle = (draws.sums(times) for times in (data.time_s, policy_time_s, data.time_s.min(1)))
    totals = data.time_s.sum(0)
    best, plain = int(totals.argmin()), data.arms.index(default)
    total = float(policy_time_s.sum())
    least = float(data.time_s.min(1).sum())
    return Evaluation(
        n=len(data),
        output_tokens=float(data.output_tokens.sum()),
        time_s=dict(zip(data.arms, totals.tolist(), strict=True)),
        policy_time_s=total,
        oracle_time_s=least,
        best_fixed=data.arms[best],
        policy_vs_plain=_interval(totals[plain] / total, fixed[:, plain] / routed),
        policy_vs_best_fixed=_interval(totals[best] / total, fixed.min(1) / routed),
        oracle_vs_best_fixed=_interval(totals[best] / least, fixed.min(1) / oracle),
        shares=shares_by_task(data.kinds, data.arms, probabilities),
        slices=slices_by_task(data, policy_time_s, plain, best, resamples=resamples, seed=seed),
        blocks=blocks,
    )


def slices_by_task(
    data: Matrix, policy_time_s: Floats, plain: int, best: int, *, resamples: int = 2000, seed: int = 0
) -> dict[str, Comparison]:
    """The policy on the requests of each task against the arms `plain` and `best`, the worst against `best` first."""
    found = {}
    for task in sorted(set(data.kinds)):
        mask = np.asarray(data.kinds) == task
        rows, routed = data.select_rows(mask), policy_time_s[mask]
        draws, blocks = _resample(rows, resamples, seed)
        plain_s, best_s = rows.time_s[:, plain], rows.time_s[:, best]
        found[task] = Comparison(
            len(rows),
            len(set(rows.sources)),
            blocks,
            _interval(plain_s.sum() / routed.sum(), draws.ratios(plain_s, routed)),
            _interval(best_s.sum() / routed.sum(), draws.ratios(best_s, routed)),
        )
    return dict(sorted(found.items(), key=lambda item: item[1].policy_vs_best_fixed.value))


def _resample(data: Matrix, resamples: int, seed: int) -> tuple[Bootstrap, Literal["source", "request"]]:
    rng, known = np.random.default_rng(seed), any(data.sources)
    blocks = source_blocks(data.sources, len(data)) if known else None
    if blocks is None:
        return Bootstrap.of_places(len(data), resamples, rng), "request"
    return Bootstrap.of_blocks(blocks, resamples, rng), "source"


def _interval(value: float, drawn: Floats) -> Interval:
    low, high = bounds(drawn)
    return Interval(float(value), float(low), float(high))


def shares_by_task(tasks: Sequence[str], arms: Sequence[str], probabilities: Floats) -> dict[str, dict[str, float]]:
    """Mean share of each arm, by task and overall."""
    groups = {"all": np.ones(len(tasks), bool), **{k: np.asarray(tasks) == k for k in sorted(set(tasks))}}
    return {k: dict(zip(arms, probabilities[mask].mean(0).tolist(), strict=True)) for k, mask in groups.items()}
