"""Two policies in service at once, as records tell of it: the candidate, drawn with a known share, and the active one.

Whatever the other policy would have done with a request is on record (`Decision.other_policy_probabilities`), so every
request tells of both. With `p = share * pi_candidate + (1 - share) * pi_active` and `h` a time that was to be
expected, known before:

    value of a policy on a request = sum_a pi_a h_a + pi_taken / p_taken * (t - h_taken)

is unbiased (doubly robust, with the propensities of both together). Where both give the same, their values are equal
to the last digit: only what they disagree on is noise.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from draftpick.policy_training.data.ridge import predict, ridge
from draftpick.policy_training.evaluation.confidence_sequence import Floats
from draftpick.policy_training.evaluation.ope import doubly_robust
from draftpick.router.types import Decision, Record

MIN_EARLIER = 100
"""Earlier requests, for a trial to be compared with what was usual."""

_FAILED = ("engine_error", "timeout", "broken")
_NOT_THEIRS = ("client_error", "cancelled")
_CLIPPED, _RANGE = 0.99, (0.05, 0.95)
_MIN_OF_ARM, _MAX_EARLIER, _MAX_BASELINE = 10, 4000, 1000


@dataclass(frozen=True)
class CanaryExperiment:
    """Requests in order of `time` [n], in seconds since the epoch. Durations in seconds, NaN where undefined.

    `share` [n]: the probability that the candidate was drawn, `own` [n]: whether it was. `candidate`, `active`
    [n, arms]: what either gives the arms; `arm` [n]: which was taken. `expected_s` [n, arms]: TPOT that was to be
    expected, by what was known before. `failed` [n]: by the engine's fault. Raises ValueError.
    """

    time: Floats
    share: Floats
    by_candidate: npt.NDArray[np.bool_]
    candidate: Floats
    active: Floats
    arm: npt.NDArray[np.int64]
    expected_s: Floats
    tpot_s: Floats
    ttft_s: Floats
    failed: npt.NDArray[np.bool_]

    def __post_init__(self) -> None:
        if not ((self.share > 0) & (self.share < 1)).all():
            raise ValueError("a request of a trial has a share of 0 or 1: one policy alone decided it")
        if len({len(x) for x in vars(self).values()}) != 1:
            raise ValueError("the arrays of a trial must be of one length")

    def __len__(self) -> int:
        return len(self.arm)

    def head(self, n: int) -> "CanaryExperiment":
        """Its first n requests."""
        return CanaryExperiment(**{name: x[:n] for name, x in vars(self).items() if name in self.__dataclass_fields__})

    def swapped(self) -> "CanaryExperiment":
        """The same, with the roles of the two exchanged."""
        return replace(
            self, share=1.0 - self.share, by_candidate=~self.by_candidate, candidate=self.active, active=self.candidate
        )

    @cached_property
    def weights(self) -> tuple[Floats, Floats]:
        """pi_taken / p_taken [n] of the candidate and of the active policy; at most 1 / share and 1 / (1 - share)."""
        rows = np.arange(len(self))
        ours, theirs = (pi[rows, self.arm] for pi in (self.candidate, self.active))
        p = self.share * ours + (1.0 - self.share) * theirs
        return ours / p, theirs / p

    def excess_rate(self, occurred: npt.NDArray[np.bool_]) -> tuple[Floats, Floats]:
        """(x, least) [n]: how much more often it happens to the candidate's requests, and -x at most."""
        ours, theirs = self.weights
        return (ours - theirs) * occurred, 1.0 / (1.0 - self.share)


@dataclass(frozen=True, slots=True)
class BaselineStats:
    """What was usual before a trial. Being known before, it favours nobody.

    `scale_s`: P99 of TPOT; times beyond count alike, since the tail is looked at apart. `mean`: of TPOT in this unit.
    `low`, `high`: what may be expected of a request, in this unit. `ttft_p99_s`.
    """

    scale_s: float
    mean: float
    low: float
    high: float
    ttft_p99_s: float

    @classmethod
    def from_earlier(cls, tpot_s: Floats, ttft_s: Floats, expected_s: Floats) -> "BaselineStats":
        """Of earlier requests [n]. Raises ValueError where no TPOT or no TTFT is known."""
        if not (np.isfinite(tpot_s).any() and np.isfinite(ttft_s).any()):
            raise ValueError("no time is known: give earlier finished requests")
        scale_s = float(np.nanquantile(tpot_s, _CLIPPED))
        low, high = np.quantile(np.clip(expected_s / scale_s, 0.0, 1.0), _RANGE)
        mean = float(np.nanmean(np.minimum(tpot_s / scale_s, 1.0)))
        return cls(scale_s, mean, float(low), float(high), float(np.nanquantile(ttft_s, _CLIPPED)))

    def savings(self, experiment: CanaryExperiment) -> "PairedSavings":
        """What the candidate saves. A failed request takes 1: failing is no way to be fast. Requests without a TPOT
        are left out."""
        known = experiment.failed | np.isfinite(experiment.tpot_s)
        t = np.where(experiment.failed, 1.0, np.minimum(experiment.tpot_s / self.scale_s, 1.0))[known]
        h = np.clip(experiment.expected_s[known] / self.scale_s, self.low, self.high)
        ours, theirs = (
            doubly_robust(pi[known], h, w[known], experiment.arm[known], t)
            for pi, w in zip((experiment.candidate, experiment.active), experiment.weights, strict=True)
        )
        share, width = experiment.share[known], self.high - self.low
        # share * w_candidate + (1 - share) * w_active = 1, so what is saved is a line in one of them, from end to end.
        longest, shortest = 1.0 - self.low, self.high
        least = width + np.maximum(longest / share, shortest / (1.0 - share))
        return PairedSavings(
            theirs - ours, least, width + np.maximum(shortest / share, longest / (1.0 - share)), theirs
        )


class PairedSavings(NamedTuple):
    """Time saved on each request `x` [n], in the unit of `Usual.scale_s`: unbiased, between `-least` and `most`;
    `of`: what the active policy takes, unbiased too."""

    per_request: Floats
    max_below: Floats
    max_above: Floats
    baseline: Floats


@dataclass(frozen=True, slots=True)
class ExpectedTpot:
    """TPOT by context and arm, as earlier requests had it: ridge regression. `weights` [d + 1, arms]."""

    centre: Floats
    scale: Floats
    weights: Floats

    @classmethod
    def fit(
        cls, contexts: npt.NDArray[np.float32], arm: npt.NDArray[np.int64], tpot_s: Floats, arms: int
    ) -> "ExpectedTpot":
        """Of requests [n]; an arm that was hardly seen is expected to take what all take in the mean."""
        centre, scale = contexts.mean(0).astype(np.float64), contexts.std(0) + 1e-6
        usual = np.full(arms, tpot_s.mean())
        return cls(centre, scale, ridge((contexts - centre) / scale, arm, tpot_s, usual, fewest=_MIN_OF_ARM))

    def __call__(self, contexts: npt.NDArray[np.float32]) -> Floats:
        """Seconds [n, arms]; not below 0."""
        return np.maximum(predict((contexts - self.centre) / self.scale, self.weights), 0.0)


def canary_experiment(
    records: Sequence[Record], began: float, candidate: str
) -> tuple[CanaryExperiment, BaselineStats] | None:
    """The trial of a candidate, by its policy's id, that began at a time; `records` in order of time.

    It is compared with what serves beside it: the active policy, or the engine that serves while that is put aside.
    None while it has no request, or too few earlier ones are there.
    """
    rows = [r for r in records if r.time > began and _is_in_experiment(r, candidate)]
    if not rows or rows[0].context is None:
        return None
    featurizer = rows[0].context.featurizer
    rows, seen = (
        [r for r in some if r.context is not None and r.context.featurizer == featurizer]
        for some in (rows, [r for r in records if r.time <= began and _is_timed(r)][-_MAX_EARLIER:])
    )
    usual = [i for i, r in enumerate(seen) if r.decision.reason == "policy"][-_MAX_BASELINE:]
    if len(usual) < MIN_EARLIER:
        return None
    arms = sorted({arm for r in (*rows, *seen) for arm in r.decision.probabilities})
    taken, contexts = np.asarray([arms.index(r.decision.arm) for r in seen]), _contexts(seen)
    tpot_s, ttft_s = _times(seen)
    model = ExpectedTpot.fit(contexts, taken, tpot_s, len(arms))
    expected_s = model(contexts)[np.arange(len(seen)), taken]
    return _build_experiment(rows, candidate, arms, model), BaselineStats.from_earlier(
        tpot_s[usual], ttft_s[usual], expected_s[usual]
    )


def _is_in_experiment(record: Record, candidate: str) -> bool:
    """Whether two in service might have decided a request, it and another, and no client is to blame for the end."""
    made = record.decision
    return (
        made.other_policy_probabilities is not None
        and (made.policy == candidate) != (candidate in made.other_policy_probabilities)
        and 0.0 < made.policy_share < 1.0
        and made.reason == "policy"
        and record.attempt == 1
        and record.outcome.status not in _NOT_THEIRS
    )


def _is_timed(record: Record) -> bool:
    """Whether it says how long an arm took."""
    known = record.outcome.status == "ok" and record.outcome.tpot_s is not None and record.context is not None
    return known and record.decision.reason in ("policy", "shadow")


def _build_experiment(
    rows: Sequence[Record], candidate: str, arms: Sequence[str], model: ExpectedTpot
) -> CanaryExperiment:
    made = [r.decision for r in rows]
    own = np.asarray([one.policy == candidate for one in made])
    drawn = np.asarray([one.policy_share for one in made])
    mine, other = (
        np.asarray([[shares.get(arm, 0.0) for arm in arms] for shares in some])
        for some in ([one.probabilities for one in made], [_other(one) for one in made])
    )
    ours, theirs = (np.where(own[:, None], *both) for both in ((mine, other), (other, mine)))
    return CanaryExperiment(
        np.asarray([r.time for r in rows]), np.where(own, drawn, 1.0 - drawn), own, ours, theirs,
        np.asarray([arms.index(one.arm) for one in made]), model(_contexts(rows)), *_times(rows),
        np.asarray([r.outcome.status in _FAILED for r in rows]),
    )  # fmt: skip


def _other(decision: Decision) -> dict[str, float]:
    """What the policy that did not decide would have given the arms."""
    return next(iter((decision.other_policy_probabilities or {}).values()))


def _contexts(rows: Sequence[Record]) -> npt.NDArray[np.float32]:
    return np.stack([r.context.vector for r in rows if r.context is not None])


def _times(rows: Sequence[Record]) -> tuple[Floats, Floats]:
    """TPOT and TTFT [n]; NaN where undefined."""
    known = [(r.outcome.tpot_s, r.outcome.ttft_s) for r in rows]
    tpot_s, ttft_s = (np.asarray([np.nan if x is None else x for x in column]) for column in zip(*known, strict=True))
    return tpot_s, ttft_s
