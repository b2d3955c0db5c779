"""Gates on live traffic: the progress of a candidate by stage, and the rollback of a promoted policy.

All checks are anytime-valid, and evidence accumulates over the stages. They use both policies' choices for every
request (`draftpick.policy_training.retraining.canary_data`), so few requests suffice.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from draftpick.policy_training.evaluation.confidence_sequence import Floats, confidence_bounds, p_value
from draftpick.policy_training.retraining.canary_data import BaselineStats, CanaryExperiment, PairedSavings
from draftpick.policy_training.retraining.gates.base import MARGIN, Check, as_json

STAGES = (0.01, 0.1, 0.5)
"""Canary shares of a candidate by stage, before it decides all requests."""

_BEYOND = 0.01
"""Share of requests beyond P99."""


@dataclass(frozen=True, slots=True)
class Limits:
    """`margin`: maximum loss of a stage, a share of total time; `max_p99_ratio`: maximum P99 over its baseline.

    `min_requests`: the candidate's own per stage; `max_requests`: in all stages, until it is rejected as undecided.
    `alpha`: error probability of the proof of a gain, and of all harm checks together, per rollout.
    """

    margin: float = MARGIN
    max_p99_ratio: float = 1.25
    min_requests: int = 50
    max_requests: int = 4000
    alpha: float = 0.05


_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Step:
    """The next action for a candidate, and the reason."""

    action: Literal["advance", "hold", "roll_back"]
    checks: tuple[Check, ...]
    why: str

    def as_json(self) -> dict[str, Any]:
        return {"action": self.action, "checks": as_json(self.checks)}


def evaluate_stage(
    trial: CanaryExperiment, baseline: BaselineStats, *, since: float, next_share: float, limits: Limits = _LIMITS
) -> Step:
    """Decide on a candidate; `trial`: of all its stages, of which the current one started at `since`.

    advance: its possible loss at the next share is within the margin of total time; before it decides all requests, a
    gain is proven. roll_back: it is slower beyond the margin, fails more or has a longer tail; or it is undecided after
    `max_requests`, since an unproven gain does not justify a change.
    """
    low, harms = _gain_and_harms(trial, baseline, limits)
    savings, needed = harms[0].why, 0.0 if next_share >= 1.0 else -limits.margin / next_share
    own, requests = int(trial.by_candidate.sum()), int((trial.by_candidate & (trial.time > since)).sum())
    proven, enough = low > needed, requests >= limits.min_requests
    undecided = own >= limits.max_requests and not proven
    counted = f"undecided after {own} requests" if undecided else f"{requests} requests"
    bound = limits.max_requests if undecided else limits.min_requests
    gain = Check("gain", proven, low, needed, savings)
    checks = (*harms, gain, Check("requests", enough and not undecided, requests, bound, counted))
    if bad := [harm.why for harm in harms if not harm.passed] or [f"{counted}: {savings}"] * undecided:
        return Step("roll_back", checks, "; ".join(bad))
    return Step("advance" if proven and enough else "hold", checks, savings)


def evaluate_holdout(trial: CanaryExperiment, baseline: BaselineStats, limits: Limits = _LIMITS) -> Step:
    """Decide whether a promoted policy, the `candidate` of this trial, must be rolled back to the previous one, which
    still decides the remaining requests: it is slower beyond the margin, fails more or has a longer tail."""
    harms = _gain_and_harms(trial, baseline, limits)[1]
    bad = [harm.why for harm in harms if not harm.passed]
    return Step("roll_back" if bad else "hold", harms, "; ".join(bad) or harms[0].why)


def _gain_and_harms(
    trial: CanaryExperiment, baseline: BaselineStats, limits: Limits
) -> tuple[float, tuple[Check, ...]]:
    """The lower bound of the gain, and the harm checks: time uses half of alpha, each of the others a sixth."""
    saved = baseline.savings(trial)
    bounds = confidence_bounds(saved.per_request, saved.max_below, saved.max_above, limits.alpha)
    low, high = (bound / baseline.mean for bound in bounds)
    savings = _describe_savings(saved, bounds)
    alpha = limits.alpha / 6
    p = p_value(*trial.excess_rate(trial.failed))
    return low, (
        Check("not_worse", high >= -limits.margin, high, -limits.margin, savings),
        Check("failures", p > alpha, p, alpha, f"fails {_describe_rates(trial, trial.failed)}"),
        _tail("p99_tpot", trial, trial.tpot_s, limits.max_p99_ratio * baseline.scale_s, alpha),
        _tail("p99_ttft", trial, trial.ttft_s, limits.max_p99_ratio * baseline.ttft_p99_s, alpha),
    )


def _describe_savings(saved: PairedSavings, bounds: tuple[float, float]) -> str:
    """Describe the saving as a share of the active policy's time. Stages are weighted by information."""
    if not len(saved.per_request):
        return "no data yet"
    now = float(np.average(saved.baseline, weights=1.0 / saved.max_below))
    middle = float(np.average(saved.per_request, weights=1.0 / saved.max_below))
    middle, low, high = (value / now for value in (middle, *bounds))
    return f"saves {middle:.1%} of the time, anytime-valid bounds {low:.1%} to {high:.1%}"


def _tail(name: str, trial: CanaryExperiment, times_s: Floats, limit_s: float, alpha: float) -> Check:
    """Check that the candidate exceeds the P99 limit, and does so more often than the other policy now."""
    beyond = times_s > limit_s
    beyond_now = trial.weights[0] * beyond - _BEYOND
    p = max(p_value(*trial.excess_rate(beyond)), p_value(beyond_now, trial.widen(np.full(len(trial), _BEYOND))))
    return Check(
        name, p > alpha, p, alpha, f"{name.replace('_', ' ')}: beyond {limit_s:.4g} s {_describe_rates(trial, beyond)}"
    )


def _describe_rates(trial: CanaryExperiment, occurred: npt.NDArray[np.bool_]) -> str:
    """Describe the rate of an event for both policies."""
    if not len(trial):
        return "unknown"
    ours, theirs = (float(np.mean(w * occurred)) for w in trial.weights)
    return f"in {ours:.2%} of the requests, the other policy in {theirs:.2%}"
