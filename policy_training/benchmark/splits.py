"""The ladder: every learner on the same data, under splits that ask what a policy is worth when the world has changed.

iid: requests of the same kind. domain: a kind of prompt that training never saw, each in turn. rewording: the same
tasks asked in other words. load: the costs of a step under load, with text as before.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from draftpick.policy_training.data.matrix import Matrix
from draftpick.policy_training.data.step_costs import Costs
from draftpick.policy_training.learners import learner
from draftpick.policy_training.learners.base import LearnerSetting
from draftpick.policy_training.train import fitted, policy_probabilities

Floats = npt.NDArray[np.float64]
ProgressCallback = Callable[[str], None]
"""Called with what was just judged."""


@dataclass(frozen=True, slots=True)
class Split:
    """What a learner sees and what it is judged by; `costs` are those that hold where it is judged."""

    name: str
    train: Matrix
    test: Matrix
    costs: Costs | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """One learner on one split. Ratios of total time; above 1: the policy is faster.

    `share_of_oracle`: what the policy gains over the best fixed arm of training, over what the oracle of each request
    gains; `worst_domain_vs_plain`: the least speed-up over the default engine on any kind of prompt.
    """

    vs_best_fixed: float
    vs_plain: float
    share_of_oracle: float
    oracle_vs_best_fixed: float
    worst_domain_vs_plain: float


def score(test: Matrix, probabilities: Floats, best_fixed: str, baseline: str) -> Score:
    """Of the shares `chosen` [n, arms] that a policy gave the arms."""
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
    """Fit the learner on the split's training half and score what it chooses on the other."""
    test = split.test
    policy = fitted(split.train, learner(name), setting)
    best_fixed = split.train.arms[int(split.train.time_s.sum(0).argmin())]
    return score(test, policy_probabilities(policy, test), best_fixed, setting.default)


def iid(data: Matrix, seed: int, share: float = 0.5) -> Split:
    """A random half to train on, the other half to judge by; every kind alike in both."""
    train, test = split_half(data, seed, share)
    return Split("iid", data.select_rows(train), data.select_rows(test))


def domains(data: Matrix) -> Iterator[Split]:
    """Each kind of prompt in turn is what training did not see."""
    kinds = np.asarray(data.kinds)
    for kind in sorted(set(data.kinds)):
        yield Split(f"domain:{kind}", data.select_rows(kinds != kind), data.select_rows(kinds == kind))


def rewording(data: Matrix, reworded: Matrix, seed: int) -> tuple[Split, Split]:
    """Train on half of the requests, judge by the other half in other words; `reworded` names them by the same ids.

    The second split judges by the same answers, but the policy reads each request in its first words: what it would
    have chosen without the change.
    """
    train, test = split_half(data, seed, 0.5)
    ids = {data.prompt_ids[i]: i for i in test}
    other = reworded.select_rows(np.asarray([i in ids for i in reworded.prompt_ids]))
    assert data.contexts is not None
    first = replace(other, contexts=data.contexts[[ids[i] for i in other.prompt_ids]])
    return Split("rewording", data.select_rows(train), other), Split("own_words", data.select_rows(train), first)


def split_half(data: Matrix, seed: int, share: float) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Places of a share of the requests of every kind, and of the others."""
    rng, kinds = np.random.default_rng(seed), np.asarray(data.kinds)
    first = []
    for kind in sorted(set(data.kinds)):
        places = rng.permutation(np.flatnonzero(kinds == kind))
        first.append(places[: round(share * len(places))])
    train = np.sort(np.concatenate(first))
    return train, np.setdiff1d(np.arange(len(data)), train)
