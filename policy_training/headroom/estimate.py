"""Estimated saving of routing against the best single engine, with its interval and a verdict.

A gain is the share of total time saved against the single engine with the lowest total time (0.05: 5 % less time). The
evaluated policy never saw the requests of its evaluation (cross-fitting).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from draftpick.policy_training.data.dataset import DatasetError
from draftpick.policy_training.data.matrix import Matrix
from draftpick.policy_training.data.step_costs import Costs
from draftpick.policy_training.evaluation.bootstrap import Bootstrap, bounds, source_blocks
from draftpick.policy_training.evaluation.evaluate import Interval
from draftpick.policy_training.learners import learner
from draftpick.policy_training.learners.base import LearnerSetting
from draftpick.policy_training.train import fitted, policy_probabilities
from draftpick.router.policies.base import Policy

Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.intp]
Mask = npt.NDArray[np.bool_]
Verdict = Literal["worth it", "not worth it", "cannot tell"]
TrainingRows = Callable[[Ids], Matrix]
"""From indices of held-out requests to the training data of a policy."""
ProgressCallback = Callable[[], None]
"""Called after each fit."""

MIN_WORTH = 0.03
MIN_REQUESTS = 40
"""Minimum number of requests under all arms."""
SPLITS, FOLDS = 3, 5
_RESAMPLES = 1000
_FINEST = 0.005
"""A gain need not be known better than to half a percent."""
_MIN_IN_SLICE = 40
_UNITS = 1000
"""Maximum bootstrap units; more groups are merged."""
_APART = 2.0
"""Splits share most training requests, so they differ less than policies of independent requests would."""


@dataclass(frozen=True, slots=True)
class Gain:
    """Of `n` requests: the saving of routing, and of an oracle that knows each answer (None: unknown)."""

    n: int
    routed: Interval
    oracle: Interval | None


@dataclass(frozen=True, slots=True)
class Arm:
    """One arm as the only engine. `time`: its total time relative to the best single one (1: it is the best).

    `share`: of the requests that routing would send to it; `wins`: of the requests where it is the fastest, None if
    unknown. `tau`: mean acceptance length.
    """

    time: Interval
    share: float
    wins: float | None
    tau: float


@dataclass(frozen=True, slots=True)
class Headroom:
    """`best`: the best single arm. `slices`: gains by slice, the lowest first, and of sampled and greedy requests.

    `effective`: effective sample size of requests logged under one arm each, else None; `supported`: share of them
    whose logging policy could have taken the evaluated choice. `needs`: number of additional requests for a verdict, if
    it is `cannot tell`.
    """

    verdict: Verdict
    best: str
    gain: Gain
    arms: dict[str, Arm]
    slices: dict[str, Gain]
    halves: dict[str, Gain]
    output_tokens: float
    effective: float | None = None
    supported: float | None = None
    needs: int | None = None

    @property
    def share_of_oracle(self) -> float | None:
        """Routing's share of the oracle's gain."""
        oracle = self.gain.oracle
        return self.gain.routed.value / oracle.value if oracle is not None and oracle.value > 0 else None

    @property
    def worst(self) -> tuple[str, Gain] | None:
        """The slice with the lowest gain."""
        return min(self.slices.items(), key=lambda item: item[1].routed.value, default=None)


def context_groups(contexts: npt.NDArray[np.float32]) -> Ids:
    """Group ids [n]: requests with the same context have the same text and stay in one group."""
    return np.unique(contexts, axis=0, return_inverse=True)[1].reshape(-1).astype(np.intp)


def assign_folds(groups: Ids, seed: int, folds: int = FOLDS) -> Ids:
    """A fold [n] for every request, by groups at random."""
    order = np.random.default_rng(seed).permutation(int(groups.max()) + 1)
    return np.asarray((order % folds)[groups], np.intp)


@dataclass(frozen=True, slots=True)
class CrossFittedChoice:
    """Choices for requests by policies that never saw them, from several splits into folds.

    `shares` [splits, n, arms]; `single` [splits, n]: the best single arm of the policy's training data; `predicted_tau`
    [n, arms]: predicted acceptance lengths, None if the policies predict none.
    """

    shares: Floats
    single: Ids
    predicted_tau: Floats | None


def cross_fit(
    data: Matrix,
    name: str,
    costs: Costs,
    groups: Ids,
    *,
    seed: int = 0,
    training_rows: TrainingRows | None = None,
    on_progress: ProgressCallback = lambda: None,
) -> CrossFittedChoice:
    """Choices of policies of the learner `name`, and the best single arm, fold by fold.

    `training_rows` returns training data beyond the other requests. Raises `DatasetError`.
    """
    shares, single = np.zeros((SPLITS, len(data), len(data.arms))), np.zeros((SPLITS, len(data)), np.intp)
    tau = np.zeros((len(data), len(data.arms)))
    for split in range(SPLITS):
        folds = assign_folds(groups, seed + split)
        for fold in range(int(folds.max()) + 1):
            held = np.flatnonzero(folds == fold)
            train = training_rows(held) if training_rows is not None else data.select_rows(folds != fold)
            single[split, held] = best_fixed = int(train.time_s.sum(0).argmin())
            policy = fitted(train, learner(name), LearnerSetting(train.arms[best_fixed], costs, seed))
            held_out = data.select_rows(held)
            shares[split, held] = policy_probabilities(policy, held_out)
            tau[held] += _predicted_tau(policy, held_out) / SPLITS
            on_progress()
    return CrossFittedChoice(shares, single, tau if np.isfinite(tau).all() else None)


def _predicted_tau(policy: Policy, data: Matrix) -> Floats:
    """Acceptance lengths [n, arms] predicted by a policy; NaN where it predicts none."""
    found = None if data.contexts is None else policy.acceptance_lengths(data.contexts)
    if found is None:
        return np.full((len(data), len(data.arms)), np.nan)
    return np.asarray(found[:, [policy.arms.index(arm) for arm in data.arms]], np.float64)


def evaluate_choice(
    data: Matrix,
    choice: CrossFittedChoice,
    groups: Ids,
    slices: Mapping[str, Mask],
    *,
    worth: float = MIN_WORTH,
    drawn: Sequence[Costs] = (),
    seed: int = 0,
) -> Headroom:
    """Evaluate a choice by the times of all arms. `drawn`: resampled costs of the times.

    Intervals are bootstraps over groups of requests, and over `drawn` where the times come from costs; the variation
    between splits into folds widens them. The best single arm is chosen without the evaluated requests, like the
    policy: a hindsight choice among similar arms would be optimistic. Raises `DatasetError` for fewer than
    `MIN_REQUESTS` requests.
    """
    if len(data) < MIN_REQUESTS:
        raise DatasetError(f"{len(data)} requests have measurements of all engines: at least {MIN_REQUESTS} are needed")
    sampled = data.temperatures > 0
    sizes = data.acceptance_length, data.prompt_tokens, data.output_tokens, sampled
    times = np.stack([data.time_s, *(costs.select(data.arms).time_s(*sizes) for costs in drawn)])
    single = [np.eye(len(data.arms))[one] for one in choice.single]
    routed = [(times * one).sum(2) for one in choice.shares]
    columns = time_columns(times, [(times * one).sum(2) for one in single], routed, times.min(2))
    wins = np.bincount(data.time_s.argmin(1), minlength=len(data.arms)) / len(data)
    return build_headroom(
        data, choice, BootstrapHeadroom(columns, groups, seed, data.sources), slices, worth=worth, wins=wins
    )


def build_headroom(
    data: Matrix,
    choice: CrossFittedChoice,
    times: "BootstrapHeadroom",
    slices: Mapping[str, Mask],
    *,
    worth: float,
    wins: Floats | None,
) -> Headroom:
    """Compute all figures, from times in the columns of `time_columns`; without `wins` [arms] there is no oracle."""
    single, routed, oracle, n_arms = *range(len(data.arms), len(data.arms) + 3), len(data.arms)

    def gain(rows: Mask) -> Gain:
        saved, most = (_saving(one) for one in times.ratios(rows, single, (routed, oracle)))
        by_split = times.sums(rows)[oracle + 1 :].reshape(-1, 2)
        apart = float(np.std(by_split[:, 1] / by_split[:, 0], ddof=1)) if len(by_split) > 1 else 0.0
        return Gain(int(rows.sum()), _widen(saved, 1.96 * _APART * apart), most if wins is not None else None)

    whole = np.ones(len(data), bool)
    best = int(times.sums(whole)[:n_arms].argmin())
    shares, tau, found = choice.shares.mean((0, 1)), data.acceptance_length.mean(0), gain(whole)
    ratios = times.ratios(whole, best, range(n_arms))
    arms = {
        name: Arm(ratios[i], float(shares[i]), None if wins is None else float(wins[i]), float(tau[i]))
        for i, name in enumerate(data.arms)
    }
    by_slice = {name: gain(rows) for name, rows in slices.items() if rows.sum() >= _MIN_IN_SLICE}
    verdict = decide_verdict(found, worth)
    return Headroom(
        verdict, data.arms[best], found, arms,
        slices=dict(sorted(by_slice.items(), key=lambda item: item[1].routed.value)),
        halves={k: gain(rows) for k, rows in sampling_masks(data.temperatures).items() if rows.sum() >= _MIN_IN_SLICE},
        output_tokens=float(np.median(data.output_tokens)),
        needs=additional_requests(found.routed, len(data), worth) if verdict == "cannot tell" else None,
    )  # fmt: skip


def time_columns(arms: Floats, single: Sequence[Floats], routed: Sequence[Floats], oracle: Floats) -> Floats:
    """Times [draws, n, columns]: of all arms [draws, n, arms], of the best single one, of routing and of the oracle,
    each [draws, n], the middle two as means over splits; and then both by split."""
    whole = [np.mean(single, axis=0), np.mean(routed, axis=0), oracle]
    by_split = [one for pair in zip(single, routed, strict=True) for one in pair]
    return np.concatenate([arms, np.stack([*whole, *by_split], axis=2)], axis=2)


def decide_verdict(gain: Gain, worth: float) -> Verdict:
    """Return "worth it" if the whole interval is above `worth`; "not worth it" if it, or the oracle's, is below."""
    if gain.routed.low > worth:
        return "worth it"
    ceiling = gain.routed.high if gain.oracle is None else min(gain.routed.high, gain.oracle.high)
    return "not worth it" if ceiling < worth else "cannot tell"


def additional_requests(gain: Interval, n: int, worth: float) -> int:
    """Number of additional requests that bring the interval of a gain to one side of `worth`, or to half a percent."""
    half = max(gain.high - gain.low, 1e-9) / 2
    wanted = max(abs(gain.value - worth), _FINEST)
    return max(math.ceil(n * ((half / wanted) ** 2 - 1)), 1)


def sampling_masks(temperatures: Floats) -> dict[str, Mask]:
    """Masks of greedy and of sampled requests."""
    return {"greedy": temperatures == 0, "sampled": temperatures > 0}


class BootstrapHeadroom:
    """Sums of columns [draws, n, columns] in resamples of groups: ratios of two of them cancel common variation.

    The first draw gives the values; further draws, if any, their spread.
    """

    def __init__(self, columns: Floats, groups: Ids, seed: int, sources: Sequence[str] = ()) -> None:
        """`sources` [n]: of the requests, if known; resamples draw them whole where there are enough."""
        self._columns, self._groups, self._seed, self._sources = columns, groups, seed, np.asarray(sources)

    def sums(self, rows: Mask) -> Floats:
        """Sums of every column on these rows."""
        return np.asarray(self._columns[0, rows].sum(0))

    def ratios(self, rows: Mask, under: int, over: Sequence[int]) -> list[Interval]:
        """Ratios of the sums of the columns `over` on these rows to the sum of the column `under`."""
        columns = self._columns[:, rows][:, :, [under, *over]]
        names, group = np.unique(self._blocks(rows), return_inverse=True)
        rng, units = np.random.default_rng(self._seed), min(len(names), _UNITS)
        unit = (rng.permutation(len(names)) % units)[group.reshape(-1)]
        draws = Bootstrap.of_counts(units, _RESAMPLES, rng).counts
        sources = columns[1:] if len(columns) > 1 else columns
        parts = np.array_split(draws, len(sources))
        sums = np.concatenate([part @ _by_unit(one, unit, units) for part, one in zip(parts, sources, strict=True)])
        values = columns[0].sum(0)
        low, high = bounds(sums[:, 1:] / sums[:, :1])
        return [Interval(*map(float, ends)) for ends in zip(values[1:] / values[0], low, high, strict=True)]

    def _blocks(self, rows: Mask) -> npt.NDArray[Any]:
        """The units of a resample: sources, or groups of requests where sources are few or unknown."""
        groups = self._groups[rows]
        if not self._sources.any():
            return groups
        known = [source or f"\0{group}" for source, group in zip(self._sources[rows], groups, strict=True)]
        return groups if (blocks := source_blocks(known, len(groups))) is None else np.asarray(blocks)


def _by_unit(columns: Floats, unit: Ids, units: int) -> Floats:
    """Sums [units, columns]."""
    return np.stack([np.bincount(unit, column, units) for column in columns.T], axis=1)


def _widen(found: Interval, apart: float) -> Interval:
    """Add the independent half-width `apart`."""
    low, high = (math.hypot(end - found.value, apart) for end in (found.low, found.high))
    return Interval(found.value, found.value - low, found.value + high)


def _saving(ratio: Interval) -> Interval:
    """The saved share, from a ratio of times."""
    return Interval(1 - ratio.value, 1 - ratio.high, 1 - ratio.low)
