"""Paired data of two policies in service, from records: the candidate, drawn with a known share, and the active one.

The other policy's probabilities are on record for each request (`Decision.other_policy_probabilities`), so every
request informs about both. With `p = share * pi_candidate + (1 - share) * pi_active` and `h` a time predicted
beforehand:

    value of a policy on a request = sum_a pi_a h_a + pi_taken / p_taken * (t - h_taken)

is unbiased (doubly robust, with the propensities of the mixture). If both policies agree, their values are exactly
equal: only disagreements contribute noise.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from draftpick.policy_training.data.key_weights import key_weights
from draftpick.policy_training.data.ridge import predict, ridge
from draftpick.policy_training.evaluation.confidence_sequence import Floats
from draftpick.policy_training.evaluation.ope import doubly_robust
from draftpick.router.types import Decision, Record

MIN_EARLIER = 100
"""Minimum earlier requests for the baseline of a trial."""

_CLIPPED, _RANGE = 0.99, (0.05, 0.95)
_MIN_OF_ARM, _MAX_EARLIER, _MAX_BASELINE = 10, 4000, 1000


@dataclass(frozen=True)
class CanaryExperiment:
    """Requests in order of `time` [n], in seconds since the epoch. Durations in seconds, NaN where undefined.

    `share` [n]: the probability that the candidate was drawn, `by_candidate` [n]: whether it was. `candidate`, `active`
    [n, arms]: probabilities of either; `arm` [n]: the chosen arm. `expected_s` [n, arms]: TPOT predicted beforehand.
    `failed` [n]: by the engine's fault. `key_weight` [n]: of the request's API key, in (0, 1], known beforehand. Raises
    ValueError.
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
    key_weight: Floats

    def __post_init__(self) -> None:
        if not ((self.share > 0) & (self.share < 1)).all():
            raise ValueError("a request of a trial has a share of 0 or 1: only one policy could decide it")
        if len({len(x) for x in vars(self).values()}) != 1:
            raise ValueError("the arrays of a trial must have equal length")

    def __len__(self) -> int:
        return len(self.arm)

    def head(self, n: int) -> "CanaryExperiment":
        """The first n requests."""
        return CanaryExperiment(**{name: x[:n] for name, x in vars(self).items() if name in self.__dataclass_fields__})

    def swapped(self) -> "CanaryExperiment":
        """The same trial with the roles of the policies exchanged."""
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
        """(x, bound) [n]: the excess rate of an event for the candidate's requests, and a bound of -x; see `widen`."""
        ours, theirs = self.weights
        return (ours - theirs) * occurred, self.widen(1.0 / (1.0 - self.share))

    def widen(self, bound: Floats) -> Floats:
        """Bounds [n] of values, wider by 1 / `key_weight`: so much less is bet on a request, whatever its value."""
        return bound / self.key_weight


@dataclass(frozen=True, slots=True)
class BaselineStats:
    """The baseline before a trial. Since it is known beforehand, it favours neither policy.

    `scale_s`: P99 of TPOT; longer times are clipped, since the tail is checked separately. `mean`: of TPOT in this
    unit. `low`, `high`: range of the predictions, in this unit. `ttft_p99_s`.
    """

    scale_s: float
    mean: float
    low: float
    high: float
    ttft_p99_s: float

    @classmethod
    def from_earlier(cls, tpot_s: Floats, ttft_s: Floats, expected_s: Floats) -> "BaselineStats":
        """Compute from earlier requests [n]. Raises ValueError if no TPOT or no TTFT is known."""
        if not (np.isfinite(tpot_s).any() and np.isfinite(ttft_s).any()):
            raise ValueError("no TPOT or TTFT is known: pass earlier finished requests")
        scale_s = float(np.nanquantile(tpot_s, _CLIPPED))
        low, high = np.quantile(np.clip(expected_s / scale_s, 0.0, 1.0), _RANGE)
        mean = float(np.nanmean(np.minimum(tpot_s / scale_s, 1.0)))
        return cls(scale_s, mean, float(low), float(high), float(np.nanquantile(ttft_s, _CLIPPED)))

    def savings(self, experiment: CanaryExperiment) -> "PairedSavings":
        """The candidate's savings. A failed request takes time 1: failing must not look fast. Requests without a TPOT
        are dropped."""
        known = experiment.failed | np.isfinite(experiment.tpot_s)
        t = np.where(experiment.failed, 1.0, np.minimum(experiment.tpot_s / self.scale_s, 1.0))[known]
        h = np.clip(experiment.expected_s[known] / self.scale_s, self.low, self.high)
        ours, theirs = (
            doubly_robust(pi[known], h, w[known], experiment.arm[known], t)
            for pi, w in zip((experiment.candidate, experiment.active), experiment.weights, strict=True)
        )
        share, width = experiment.share[known], self.high - self.low
        wider = experiment.widen(np.ones(len(experiment)))[known]
        # share * w_candidate + (1 - share) * w_active = 1, so the saving is linear in one of them, with extremes at the
        # ends.
        longest, shortest = 1.0 - self.low, self.high
        least = width + np.maximum(longest / share, shortest / (1.0 - share))
        most = width + np.maximum(shortest / share, longest / (1.0 - share))
        return PairedSavings(theirs - ours, wider * least, wider * most, theirs)


class PairedSavings(NamedTuple):
    """Time saved `per_request` [n], in the unit of `BaselineStats.scale_s`: unbiased, between `-max_below` and
    `max_above`; `baseline`: time of the active policy, also unbiased."""

    per_request: Floats
    max_below: Floats
    max_above: Floats
    baseline: Floats


@dataclass(frozen=True, slots=True)
class ExpectedTpot:
    """TPOT by context and arm of earlier requests: ridge regression. `weights` [d + 1, arms]."""

    centre: Floats
    scale: Floats
    weights: Floats

    @classmethod
    def fit(
        cls, contexts: npt.NDArray[np.float32], arm: npt.NDArray[np.int64], tpot_s: Floats, arms: int
    ) -> "ExpectedTpot":
        """Fit to requests [n]; an arm with few requests gets the overall mean."""
        centre, scale = contexts.mean(0).astype(np.float64), contexts.std(0) + 1e-6
        overall_mean = np.full(arms, tpot_s.mean())
        return cls(centre, scale, ridge((contexts - centre) / scale, arm, tpot_s, overall_mean, fewest=_MIN_OF_ARM))

    def __call__(self, contexts: npt.NDArray[np.float32]) -> Floats:
        """Predict seconds [n, arms], at least 0."""
        return np.maximum(predict((contexts - self.centre) / self.scale, self.weights), 0.0)


def canary_experiment(
    records: Sequence[Record], began: float, candidate: str
) -> tuple[CanaryExperiment, BaselineStats] | None:
    """The trial of a candidate, by its policy's id, from `began` on; `records` in order of time.

    The comparison is with the active policy, or with the safe engine while that is in safe mode. None without a
    request of the trial, or with too few earlier ones.
    """
    rows = [r for r in records if r.time > began and _is_in_experiment(r, candidate)]
    if not rows or rows[0].context is None:
        return None
    featurizer = rows[0].context.featurizer
    rows, earlier = (
        [r for r in some if r.context is not None and r.context.featurizer == featurizer]
        for some in (rows, [r for r in records if r.time <= began and _is_timed(r)][-_MAX_EARLIER:])
    )
    baseline = [i for i, r in enumerate(earlier) if r.decision.reason == "policy"][-_MAX_BASELINE:]
    if len(baseline) < MIN_EARLIER:
        return None
    arms = sorted({arm for r in (*rows, *earlier) for arm in r.decision.probabilities})
    taken, contexts = np.asarray([arms.index(r.decision.arm) for r in earlier]), _contexts(earlier)
    tpot_s, ttft_s = _times(earlier)
    model = ExpectedTpot.fit(contexts, taken, tpot_s, len(arms))
    expected_s = model(contexts)[np.arange(len(earlier)), taken]
    return _build_experiment(rows, candidate, arms, model), BaselineStats.from_earlier(
        tpot_s[baseline], ttft_s[baseline], expected_s[baseline]
    )


def _is_in_experiment(record: Record, candidate: str) -> bool:
    """True if the candidate and another policy could have decided a request, and its end was not the client's fault."""
    made = record.decision
    return (
        made.other_policy_probabilities is not None
        and (made.policy == candidate) != (candidate in made.other_policy_probabilities)
        and 0.0 < made.policy_share < 1.0
        and made.reason == "policy"
        and record.attempt == 1
        and (record.outcome.status == "ok" or record.outcome.failed)
    )


def _is_timed(record: Record) -> bool:
    """True if the record has an arm's time."""
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
        np.asarray([r.outcome.failed for r in rows]), key_weights([r.key for r in rows]),
    )  # fmt: skip


def _other(decision: Decision) -> dict[str, float]:
    """Probabilities of the policy that did not decide."""
    return next(iter((decision.other_policy_probabilities or {}).values()))


def _contexts(rows: Sequence[Record]) -> npt.NDArray[np.float32]:
    return np.stack([r.context.vector for r in rows if r.context is not None])


def _times(rows: Sequence[Record]) -> tuple[Floats, Floats]:
    """TPOT and TTFT [n]; NaN where undefined."""
    known = [(r.outcome.tpot_s, r.outcome.ttft_s) for r in rows]
    tpot_s, ttft_s = (np.asarray([np.nan if x is None else x for x in column]) for column in zip(*known, strict=True))
    return tpot_s, ttft_s
