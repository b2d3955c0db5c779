"""The offline gate of a retrained policy, on logged decisions, before live traffic
(`draftpick.policy_training.retraining.canary`).

A gain is the share of time per output token saved against the active policy (0.05: 5 % less time).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from draftpick.policy_training.data.logged_feedback import Floats, LoggedFeedback
from draftpick.policy_training.evaluation.bootstrap import Bootstrap, bounds
from draftpick.policy_training.evaluation.ope import MIN_EFFECTIVE, doubly_robust, effective_sample_size, weights

MARGIN = 0.02
MIN_PAIRED = 20
"""Minimum requests with the times of all arms to use instead of weighted records."""
MIN_IN_SLICE = 25.0  # minimum effective records of the candidate and of the default arm per slice
_Drawn = Callable[[Floats, Floats], Floats]


@dataclass(frozen=True, slots=True)
class Check:
    """One condition: the value (not finite: unknown yet), its limit, and both in words."""

    name: str
    passed: bool
    value: float
    limit: float
    why: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a candidate passes, and why."""

    passed: bool
    checks: tuple[Check, ...]

    def with_checks(self, checks: Sequence[Check]) -> "Verdict":
        """Return the verdict with additional checks."""
        return Verdict(self.passed and all(check.passed for check in checks), (*self.checks, *checks))

    def as_json(self) -> dict[str, Any]:
        return {"passed": self.passed, "checks": as_json(self.checks)}


def as_json(checks: Sequence[Check]) -> list[dict[str, Any]]:
    """Fields of the checks; null for values that are not finite, which JSON lacks."""
    return [asdict(c) | {"value": c.value if math.isfinite(c.value) else None} for c in checks]


def evaluate_offline(
    logged: LoggedFeedback,
    pi_candidate: Floats,
    pi_active: Floats,
    q: Floats,
    *,
    default: int,
    slices: Sequence[str],
    paired: Floats | None = None,
    require_significance: bool = True,
    blocks: int = 100,
    seed: int = 0,
) -> Verdict:
    """Evaluate a candidate on later decisions of the active policy, in order of time, with the reward -TPOT in seconds.

    Probabilities (without exploration, to evaluate the policy itself), the reward model `q` and `paired` (replayed
    seconds, NaN where none) are [n, arms]. With at least `MIN_PAIRED` requests with the times of all arms, these
    determine the gain instead of the weighted records. Without `require_significance` a gain need not be proven, which
    is left to live traffic, but no loss may be. The bootstrap resamples `blocks` blocks of consecutive records, since
    these are correlated. Raises ValueError.
    """
    candidate = _tpot_terms(logged, pi_candidate, q)
    draw = partial(_resampled, blocks=blocks, seed=seed)
    size = effective_sample_size(weights(logged, pi_candidate))
    worth = f"{len(logged)} records have an effective sample size of {size:.0f} (raise it by exploration, or more time)"
    check_gain = partial(_gain, draw=draw, require_significance=require_significance)
    checks = [_worst_slice(logged, pi_candidate, q, default, slices, draw)]
    rows = np.isfinite(paired).all(1) if paired is not None else np.zeros(len(logged), bool)
    if paired is None or rows.sum() < MIN_PAIRED:
        checks += [
            Check("effective_records", size >= MIN_EFFECTIVE or not require_significance, size, MIN_EFFECTIVE, worth),
            check_gain("dr_gain", candidate, _tpot_terms(logged, pi_active, q)),
        ]
    if paired is not None:
        if not rows.any():
            raise ValueError("`paired` has no row with the times of all arms: omit it, or replay some requests")
        ours, theirs = ((pi * paired)[rows].sum(1) for pi in (pi_candidate, pi_active))
        checks.append(check_gain("replay_gain", ours, theirs))
    return Verdict(all(check.passed for check in checks), tuple(checks))


def _tpot_terms(logged: LoggedFeedback, pi: Floats, q: Floats) -> Floats:
    """Terms [n]; their mean is the doubly robust estimate of a policy's TPOT in seconds."""
    return -doubly_robust(pi, q, weights(logged, pi), logged.arm, logged.reward)


def _resampled(a: Floats, b: Floats, blocks: int, seed: int, resamples: int = 2000) -> Floats:
    """Values of 1 - sum(a) / sum(b) under a block bootstrap of consecutive rows; -inf if b sums to 0."""
    starts = np.unique(np.arange(blocks) * len(a) // blocks)
    draws = Bootstrap.of_counts(len(starts), resamples, np.random.default_rng(seed))
    over, under = (draws.sums(np.add.reduceat(terms, starts)) for terms in (a, b))
    return np.asarray(np.where(under > 0.0, 1.0 - over / np.where(under > 0.0, under, 1.0), -np.inf))


def _gain(name: str, candidate: Floats, active: Floats, draw: _Drawn, require_significance: bool) -> Check:
    """The lower end of the 95 % interval of the gain must be above 0; without `require_significance`, the upper end
    must not be below."""
    gain = 1.0 - candidate.sum() / active.sum()
    low, high = map(float, bounds(draw(candidate, active), method="lower"))
    passed = low > 0.0 if require_significance else high >= 0.0
    return Check(
        name,
        passed,
        low if require_significance else high,
        0.0,
        f"gains {gain:.1%} of the time ({low:.1%} to {high:.1%})",
    )


def _worst_slice(
    logged: LoggedFeedback, pi: Floats, q: Floats, default: int, slices: Sequence[str], draw: _Drawn
) -> Check:
    """No slice that is significantly slower than the default arm (95 % for all slices together) is so by over 2 %."""
    labels, policies = np.asarray(slices), (pi, np.eye(q.shape[1])[np.full(len(q), default)])
    masks = {str(name): labels == name for name in np.unique(labels)}
    w = [weights(logged, one) for one in policies]
    evaluated = {k: m for k, m in masks.items() if min(effective_sample_size(one[m]) for one in w) >= MIN_IN_SLICE}
    terms = [_tpot_terms(logged, one, q) for one in policies]
    worst, why = 0.0, "no slice is slower than the default arm"
    for name, mask in evaluated.items():
        a, b = (one[mask] for one in terms)
        excess = float(a.sum() / b.sum() - 1.0)
        least = -float(np.quantile(draw(a, b), 1.0 - 0.05 / len(evaluated)))
        if least > 0.0 and excess > worst:
            worst, why = excess, f"{name}: {excess:.1%} slower than the default arm (at least {least:.1%})"
    return Check(
        "worst_slice", worst <= MARGIN, worst, MARGIN, f"{why}; {len(evaluated)} of {len(masks)} slices judged"
    )
