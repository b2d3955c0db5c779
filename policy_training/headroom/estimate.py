"""What routing would save against the best single engine, with its interval, and whether that pays.

A gain is the share of the total time of all requests that is saved against the single engine that takes the least of it
(0.05: 5 % less time). The policy that is judged never saw the requests that it is judged by (cross-fitting).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from draftpick.policy_training.data.dataset import DatasetError
from draftpick.policy_training.data.matrix import Matrix
from draftpick.policy_training.data.step_costs import Costs
from draftpick.policy_training.evaluation.bootstrap import Bootstrap, bounds
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
"""What a policy learns from that may not see these requests: their places in the judged matrix."""
ProgressCallback = Callable[[], None]
"""Called after each fit."""

MIN_WORTH = 0.03
MIN_REQUESTS = 40
"""Requests under all arms, below which nothing is said."""
SPLITS, FOLDS = 3, 5
_RESAMPLES = 1000
_FINEST = 0.005
"""Nobody needs to know a gain better than to half a percent."""
_MIN_IN_SLICE = 40
_UNITS = 1000
"""Groups are drawn together where there are more."""
_APART = 2.0
"""All splits learn from mostly the same requests, so that they differ less than policies of other requests would."""


@dataclass(frozen=True, slots=True)
class Gain:
    """Of `n` requests: what routing saves, and what an oracle would that has read each answer (None: not known)."""

    n: int
    routed: Interval
    oracle: Interval | None


@dataclass(frozen=True, slots=True)
class Arm:
    """One arm as the only engine. `time`: its total time over that of the best single one (1: it is the best).

    `share`: of the requests that routing would send to it; `wins`: of those that it is the fastest on, None where that
    is not known. `tau`: mean acceptance length.
    """

    time: Interval
    share: float
    wins: float | None
    tau: float


@dataclass(frozen=True, slots=True)
class Headroom:
    """`best`: the best single arm. `slices`: gains by kind of request, and of those that sample and that do not.

    `effective`: how many requests the logged ones are worth where they were seen under one arm alone, else None;
    `supported`: the share of them in which the log could have taken what is judged. `needs`: how many more requests
    would tell, where the verdict is `cannot tell`.
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
        """Which share of the oracle's gain routing gets."""
        oracle = self.gain.oracle
        return self.gain.routed.value / oracle.value if oracle is not None and oracle.value > 0 else None

    @property
    def worst(self) -> tuple[str, Gain] | None:
        """The kind of request on which routing gains least."""
        return min(self.slices.items(), key=lambda item: item[1].routed.value, default=None)


def context_groups(contexts: npt.NDArray[np.float32]) -> Ids:
    """Numbers [n] of requests: those of one text, with the same context, are one group and are judged together."""
    return np.unique(contexts, axis=0, return_inverse=True)[1].reshape(-1).astype(np.intp)


def assign_folds(groups: Ids, seed: int, folds: int = FOLDS) -> Ids:
    """A fold [n] for every request, by groups at random."""
    order = np.random.default_rng(seed).permutation(int(groups.max()) + 1)
    return np.asarray((order % folds)[groups], np.intp)


@dataclass(frozen=True, slots=True)
class CrossFittedChoice:
    """What is chosen for requests by policies that never saw them, from several splits into folds.

    `shares` [splits, n, arms]; `single` [splits, n]: the arm that was the best single one of what a policy learned
    from; `predicted_tau` [n, arms]: acceptance lengths that were expected, None of policies that expect none.
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
    """What policies of the learner `name` choose, and which arm is the best single one, fold by fold.

    `training_rows` gives the data that they learn from where that is more than the other requests. Raises
    `DatasetError`.
    """
    shares, single = np.zeros((SPLITS, len(data), len(data.arms))), np.zeros((SPLITS, len(data)), np.intp)
    tau = np.zeros((len(data), len(data.arms)))
    for split in range(SPLITS):
        folds = assign_folds(groups, seed + split)
        for fold in range(int(folds.max()) + 1):
            held = np.flatnonzero(folds == fold)
            train = training_rows(held) if training_rows is not None else data.select_rows(folds != fold)
            single[split, held] = usual = int(train.time_s.sum(0).argmin())
            policy = fitted(train, learner(name), LearnerSetting(train.arms[usual], costs, seed))
            judged = data.select_rows(held)
            shares[split, held] = policy_probabilities(policy, judged)
            tau[held] += _predicted_tau(policy, judged) / SPLITS
            on_progress()
    return CrossFittedChoice(shares, single, tau if np.isfinite(tau).all() else None)


def _predicted_tau(policy: Policy, data: Matrix) -> Floats:
    """Acceptance lengths [n, arms] that a policy expects; NaN where it expects none."""
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
    """Judge a choice by the times of all arms. `drawn`: costs that the times might as well come from.

    Intervals are bootstraps over groups of requests, and over `drawn` where the times come from costs; what another
    split into folds would change widens them. The best single arm is chosen without the judged requests, as the policy
    is: one that hindsight takes among arms that are almost alike would be too good. Raises `DatasetError` for fewer
    than `MIN_REQUESTS` requests.
    """
    if len(data) < MIN_REQUESTS:
        raise DatasetError(f"{len(data)} requests were seen under all engines: at least {MIN_REQUESTS} are needed")
    sampled = data.temperatures > 0
    sizes = data.acceptance_length, data.prompt_tokens, data.output_tokens, sampled
    times = np.stack([data.time_s, *(costs.select(data.arms).time_s(*sizes) for costs in drawn)])
    single = [np.eye(len(data.arms))[one] for one in choice.single]
    routed = [(times * one).sum(2) for one in choice.shares]
    columns = time_columns(times, [(times * one).sum(2) for one in single], routed, times.min(2))
    wins = np.bincount(data.time_s.argmin(1), minlength=len(data.arms)) / len(data)
    return build_headroom(data, choice, BootstrapHeadroom(columns, groups, seed), slices, worth=worth, wins=wins)


def build_headroom(
    data: Matrix,
    choice: CrossFittedChoice,
    times: "BootstrapHeadroom",
    slices: Mapping[str, Mask],
    *,
    worth: float,
    wins: Floats | None,
) -> Headroom:
    """All figures, of times in the columns of `time_columns`; without `wins` [arms] there is no oracle."""
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
    verdict = decide_verdict(found, worth)
    return Headroom(
        verdict, data.arms[best], found, arms,
        slices={k: gain(rows) for k, rows in slices.items() if rows.sum() >= _MIN_IN_SLICE},
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
    """Worth it when the whole interval is above `worth`; not, when all of it is below, or all of the oracle's is."""
    if gain.routed.low > worth:
        return "worth it"
    ceiling = gain.routed.high if gain.oracle is None else min(gain.routed.high, gain.oracle.high)
    return "not worth it" if ceiling < worth else "cannot tell"


def additional_requests(gain: Interval, n: int, worth: float) -> int:
    """How many more requests would bring the interval of a gain to one side of `worth`, or to half a percent."""
    half = max(gain.high - gain.low, 1e-9) / 2
    wanted = max(abs(gain.value - worth), _FINEST)
    return max(math.ceil(n * ((half / wanted) ** 2 - 1)), 1)


def sampling_masks(temperatures: Floats) -> dict[str, Mask]:
    """The requests that do not sample, and those that do."""
    return {"greedy": temperatures == 0, "sampled": temperatures > 0}


class BootstrapHeadroom:
    """Sums of columns [draws, n, columns] in resamples of groups: ratios of two of them keep what is common.

    The first draw gives the values; the others, if there are any, their spread.
    """

    def __init__(self, columns: Floats, groups: Ids, seed: int) -> None:
        self._columns, self._groups, self._seed = columns, groups, seed

    def sums(self, rows: Mask) -> Floats:
        """Every column's sum on these rows."""
        return np.asarray(self._columns[0, rows].sum(0))

    def ratios(self, rows: Mask, under: int, over: Sequence[int]) -> list[Interval]:
        """The sums of the columns `over` on these rows, over that of the column `under`."""
        columns = self._columns[:, rows][:, :, [under, *over]]
        names, group = np.unique(self._groups[rows], return_inverse=True)
        rng, units = np.random.default_rng(self._seed), min(len(names), _UNITS)
        unit = (rng.permutation(len(names)) % units)[group.reshape(-1)]
        draws = Bootstrap.of_counts(units, _RESAMPLES, rng).counts
        sources = columns[1:] if len(columns) > 1 else columns
        parts = np.array_split(draws, len(sources))
        sums = np.concatenate([part @ _by_unit(one, unit, units) for part, one in zip(parts, sources, strict=True)])
        values = columns[0].sum(0)
        low, high = bounds(sums[:, 1:] / sums[:, :1])
        return [Interval(*map(float, ends)) for ends in zip(values[1:] / values[0], low, high, strict=True)]


def _by_unit(columns: Floats, unit: Ids, units: int) -> Floats:
    """Sums [units, columns]."""
    return np.stack([np.bincount(unit, column, units) for column in columns.T], axis=1)


def _widen(found: Interval, apart: float) -> Interval:
    """With another half-width, of something that varies by itself."""
    low, high = (math.hypot(end - found.value, apart) for end in (found.low, found.high))
    return Interval(found.value, found.value - low, found.value + high)


def _saving(ratio: Interval) -> Interval:
    """The share that is saved, of a ratio of times."""
    return Interval(1 - ratio.value, 1 - ratio.high, 1 - ratio.low)
