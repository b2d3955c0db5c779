"""Splits of increasing distribution shift, and the score of a learner on each.

iid: requests of the same tasks. source: sources that the training data lacks. domain: leave one task out, each in turn.
rewording: the same tasks in other words.
load: step costs under load, with unchanged text.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from draftpick.policy_training.data.folds import group_folds, source_groups
from draftpick.policy_training.data.matrix import Matrix
from draftpick.policy_training.data.step_costs import Costs
from draftpick.policy_training.learners import learner
from draftpick.policy_training.learners.base import LearnerSetting
from draftpick.policy_training.train import fitted, policy_probabilities

Floats = npt.NDArray[np.float64]
ProgressCallback = Callable[[str], None]
"""Called with the name of the split just evaluated."""


@dataclass(frozen=True, slots=True)
class Split:
    """Training and test data of a learner; `costs` hold for the test data."""

    name: str
    train: Matrix
    test: Matrix
    costs: Costs | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """One learner on one split. Ratios of total time; above 1: the policy is faster.

    `share_of_oracle`: the policy's gain over the best fixed arm of training, relative to the per-request oracle's gain;
    `worst_domain_vs_plain`: the minimum speed-up over the default engine on any task.
    """

    vs_best_fixed: float
    vs_plain: float
    share_of_oracle: float
    oracle_vs_best_fixed: float
    worst_domain_vs_plain: float


def score(test: Matrix, probabilities: Floats, best_fixed: str, baseline: str) -> Score:
    """Score a policy by its arm probabilities [n, arms]."""
    routed = (probabilities * test.time_s).sum(1)
    fixed, default = test.time_s[:, test.arms.index(best_fixed)], test.time_s[:, test.arms.index(baseline)]
    oracle = test.time_s.min(1)
    kinds = np.asarray(test.kinds)
    worst = min(float(default[kinds == k].sum() / routed[kinds == k].sum()) for k in set(test.kinds))
    room = fixed.sum() - oracle.sum()
    return Score(
        vs_best_fixed=float(fixed.sum() / routed.sum()),
        vs_plain=float(default.sum() / routed.sum()),
        share_of_oracle=float((fixed.sum() - routed.sum()) / room) if room > 0 else 1.0,
        oracle_vs_best_fixed=float(fixed.sum() / oracle.sum()),
        worst_domain_vs_plain=worst,
    )


def evaluate_learner(name: str, split: Split, setting: LearnerSetting) -> Score:
    """Fit the learner on the split's training half and score its choices on the other."""
    test = split.test
    policy = fitted(split.train, learner(name), setting)
    best_fixed = split.train.arms[int(split.train.time_s.sum(0).argmin())]
    return score(test, policy_probabilities(policy, test), best_fixed, setting.default)


def iid(data: Matrix, seed: int, share: float = 0.5) -> Split:
    """A random half for training, the other for the test, stratified by task."""
    train, test = split_half(data, seed, share)
    return Split("iid", data.select_rows(train), data.select_rows(test))


def sources(data: Matrix, seed: int, folds: int = 5) -> Iterator[Split]:
    """Leave out each fold of sources in turn; nothing for data of one source."""
    fold_of = group_folds(source_groups(data), folds, seed)
    for fold in range(int(fold_of.max()) + 1) if fold_of.any() else ():
        yield Split(f"source:{fold}", data.select_rows(fold_of != fold), data.select_rows(fold_of == fold))


def domains(data: Matrix) -> Iterator[Split]:
    """Leave out each task in turn."""
    kinds = np.asarray(data.kinds)
    for kind in sorted(set(data.kinds)):
        yield Split(f"domain:{kind}", data.select_rows(kinds != kind), data.select_rows(kinds == kind))


def rewording(data: Matrix, reworded: Matrix, seed: int) -> tuple[Split, Split]:
    """Train on half of the requests, test on the other half reworded; `reworded` has the same ids.

    The second split has the same answers, but the policy reads the original wording: its choice without the rewording.
    """
    train, test = split_half(data, seed, 0.5)
    ids = {data.prompt_ids[i]: i for i in test}
    other = reworded.select_rows(np.asarray([i in ids for i in reworded.prompt_ids]))
    assert data.contexts is not None
    first = replace(other, contexts=data.contexts[[ids[i] for i in other.prompt_ids]])
    return Split("rewording", data.select_rows(train), other), Split("own_words", data.select_rows(train), first)


def split_half(data: Matrix, seed: int, share: float) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Indices of a share of the requests of every task, and of the others."""
    rng, kinds = np.random.default_rng(seed), np.asarray(data.kinds)
    first = []
    for kind in sorted(set(data.kinds)):
        places = rng.permutation(np.flatnonzero(kinds == kind))
        first.append(places[: round(share * len(places))])
    train = np.sort(np.concatenate(first))
    return train, np.setdiff1d(np.arange(len(data)), train)
