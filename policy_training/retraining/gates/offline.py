"""Gates of a retrained policy on logged decisions.

A gain is the share of time per output token saved against the active policy (0.05: 5 % less time).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from draftpick.policy_training.data.logged_feedback import Floats, LoggedFeedback
from draftpick.policy_training.evaluation.bootstrap import Bootstrap, bounds
from draftpick.policy_training.evaluation.ope import MIN_EFFECTIVE, doubly_robust, effective_sample_size, weights
from draftpick.policy_training.retraining.gates.base import MARGIN, MIN_PAIRED, Check

MIN_IN_SLICE = 25.0  # minimum effective records of the candidate and of the default arm per slice


@dataclass(frozen=True, slots=True)
class LoggedEvidence:
    """Later decisions of the active policy, in order of time, with the reward -TPOT in seconds.

    Probabilities (without exploration, to evaluate the policy itself), the reward model `q` and `paired` (replayed
    seconds, NaN where none) are [n, arms]. With at least `MIN_PAIRED` requests with the times of all arms, these
    determine the gain instead of the weighted records. Without `require_significance` a gain need not be proven, which
    is left to live traffic, but no loss may be. The bootstrap resamples `blocks` blocks of consecutive records, since
    these are correlated.
    """

    logged: LoggedFeedback
    pi_candidate: Floats
    pi_active: Floats
    q: Floats
    default: int
    slices: Sequence[str]
    paired: Floats | None = None
    require_significance: bool = True
    blocks: int = 100
    seed: int = 0

    @property
    def paired_rows(self) -> npt.NDArray[np.bool_]:
        """Requests [n] with the times of all arms."""
        if self.paired is None:
            return np.zeros(len(self.logged), bool)
        return np.asarray(np.isfinite(self.paired).all(1))

    @property
    def is_paired(self) -> bool:
        """True if paired requests determine the gain."""
        return bool(self.paired_rows.sum() >= MIN_PAIRED)

    def tpot_terms(self, pi: Floats) -> Floats:
        """Terms [n]; their mean is the doubly robust estimate of a policy's TPOT in seconds."""
        return -doubly_robust(pi, self.q, weights(self.logged, pi), self.logged.arm, self.logged.reward)

    def resampled(self, a: Floats, b: Floats, resamples: int = 2000) -> Floats:
        """Values of 1 - sum(a) / sum(b) under a block bootstrap of consecutive rows; -inf if b sums to 0."""
        starts = np.unique(np.arange(self.blocks) * len(a) // self.blocks)
        draws = Bootstrap.of_counts(len(starts), resamples, np.random.default_rng(self.seed))
        over, under = (draws.sums(np.add.reduceat(terms, starts)) for terms in (a, b))
        return np.asarray(np.where(under > 0.0, 1.0 - over / np.where(under > 0.0, under, 1.0), -np.inf))


def effective_records(evidence: LoggedEvidence) -> Check | None:
    """Is the candidate's effective sample size sufficient?"""
    if evidence.is_paired:
        return None
    logged, size = evidence.logged, effective_sample_size(weights(evidence.logged, evidence.pi_candidate))
    passed = size >= MIN_EFFECTIVE or not evidence.require_significance
    worth = f"{len(logged)} records have an effective sample size of {size:.0f} (raise it by exploration, or more time)"
    return Check("effective_records", passed, size, MIN_EFFECTIVE, worth)


def dr_gain(evidence: LoggedEvidence) -> Check | None:
    """Does the candidate save time, by the doubly robust estimate?"""
    if evidence.is_paired:
        return None
    terms = (evidence.tpot_terms(pi) for pi in (evidence.pi_candidate, evidence.pi_active))
    return _gain("dr_gain", evidence, *terms)


def replay_gain(evidence: LoggedEvidence) -> Check | None:
    """Does the candidate save time on requests with the times of all arms? Raises ValueError without any."""
    if evidence.paired is None:
        return None
    rows = evidence.paired_rows
    if not rows.any():
        raise ValueError("`paired` has no row with the times of all arms: omit it, or replay some requests")
    times = ((pi * evidence.paired)[rows].sum(1) for pi in (evidence.pi_candidate, evidence.pi_active))
    return _gain("replay_gain", evidence, *times)


def _gain(name: str, evidence: LoggedEvidence, candidate: Floats, active: Floats) -> Check:
    """The lower end of the 95 % interval of the gain must be above 0; if no proof is required, the upper end must not
    be below."""
    gain = 1.0 - candidate.sum() / active.sum()
    low, high = map(float, bounds(evidence.resampled(candidate, active), method="lower"))
    value, passed = (low, low > 0.0) if evidence.require_significance else (high, high >= 0.0)
    return Check(name, passed, value, 0.0, f"gains {gain:.1%} of the time ({low:.1%} to {high:.1%})")


def worst_slice(evidence: LoggedEvidence) -> Check:
    """No slice that is significantly slower than the default arm (95 % for all slices together) is so by over 2 %."""
    logged, q, labels = evidence.logged, evidence.q, np.asarray(evidence.slices)
    policies = evidence.pi_candidate, np.eye(q.shape[1])[np.full(len(q), evidence.default)]
    masks = {str(name): labels == name for name in np.unique(labels)}
    w = [weights(logged, one) for one in policies]
    judged = {k: m for k, m in masks.items() if min(effective_sample_size(one[m]) for one in w) >= MIN_IN_SLICE}
    terms = [evidence.tpot_terms(one) for one in policies]
    worst, why = 0.0, "no slice is slower than the default arm"
    for name, mask in judged.items():
        a, b = (one[mask] for one in terms)
        excess = float(a.sum() / b.sum() - 1.0)
        least = -float(np.quantile(evidence.resampled(a, b), 1.0 - 0.05 / len(judged)))
        if least > 0.0 and excess > worst:
            worst, why = excess, f"{name}: {excess:.1%} slower than the default arm (at least {least:.1%})"
    return Check("worst_slice", worst <= MARGIN, worst, MARGIN, f"{why}; {len(judged)} of {len(masks)} slices judged")
