"""Gates of live traffic: how far a candidate may go, stage by stage, and whether a promoted policy must go back.

Look as often as you like: every check holds at all sample sizes at once, and evidence adds up over the stages. All of
them read both policies' choices for every request (`draftpick.policy_training.retraining.canary_data`), so few requests
suffice.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from draftpick.policy_training.evaluation.confidence_sequence import Floats, confidence_bounds, p_value
from draftpick.policy_training.retraining.canary_data import BaselineStats, CanaryExperiment, PairedSavings
from draftpick.policy_training.retraining.gates.base import MARGIN, Check, as_json

STAGES = (0.01, 0.1, 0.5)
"""Shares of requests that a candidate decides, one stage after the other, before it decides all."""

_BEYOND = 0.01
"""Share of requests that P99 leaves beyond it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """`margin`: share of all time that a stage may cost; `tail`: P99 over what it was.

    `min_requests`: of the candidate's own in a stage; `most_requests`: in all stages, until it is refused as undecided.
    `alpha`: how probably the gain is proven in error, and how probably any of the harms is, in a whole rollout.
    """

    margin: float = MARGIN
    max_p99_ratio: float = 1.25
    min_requests: int = 50
    max_requests: int = 4000
    alpha: float = 0.05


_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Step:
    """What to do with a candidate now, and why."""

    action: Literal["advance", "hold", "roll_back"]
    checks: tuple[Check, ...]
    why: str

    def as_json(self) -> dict[str, Any]:
        return {"action": self.action, "checks": as_json(self.checks)}


def evaluate_stage(
    trial: CanaryExperiment, baseline: BaselineStats, *, since: float, next_share: float, limits: Limits = _LIMITS
) -> Step:
    """What to do with a candidate; `trial`: of all its stages, of which this one began at `since`.

    advance: what it may lose, at the share that comes next, is within the margin of all time; before it decides all,
    a gain is proven. roll_back: it is worse beyond the margin, fails more or has a longer tail; or it is undecided
    after `most_requests`, since what is not provably better is not worth a change.
    """
    low, harms = _gain_and_harms(trial, baseline, limits)
    said, needed = harms[0].why, 0.0 if next_share >= 1.0 else -limits.margin / next_share
    own, requests = int(trial.by_candidate.sum()), int((trial.by_candidate & (trial.time > since)).sum())
    proven, enough = low > needed, requests >= limits.min_requests
    undecided = own >= limits.max_requests and not proven
    counted = f"undecided after {own} requests" if undecided else f"{requests} requests"
    bound = limits.max_requests if undecided else limits.min_requests
    gain = Check("gain", proven, low, needed, said)
    checks = (*harms, gain, Check("requests", enough and not undecided, requests, bound, counted))
    if bad := [harm.why for harm in harms if not harm.passed] or [f"{counted}: {said}"] * undecided:
        return Step("roll_back", checks, "; ".join(bad))
    return Step("advance" if proven and enough else "hold", checks, said)


def evaluate_holdout(trial: CanaryExperiment, baseline: BaselineStats, limits: Limits = _LIMITS) -> Step:
    """Whether a promoted policy, the `candidate` of this trial, must go back to the one before it, which still decides
    the rest of the requests: it is worse beyond the margin, fails more or has a longer tail."""
    harms = _gain_and_harms(trial, baseline, limits)[1]
    bad = [harm.why for harm in harms if not harm.passed]
    return Step("roll_back" if bad else "hold", harms, "; ".join(bad) or harms[0].why)


def _gain_and_harms(
    trial: CanaryExperiment, baseline: BaselineStats, limits: Limits
) -> tuple[float, tuple[Check, ...]]:
    """The lower bound of the gain, and the harms: that of time errs with half of alpha, the others with a sixth."""
    saved = baseline.savings(trial)
    bounds = confidence_bounds(saved.per_request, saved.max_below, saved.max_above, limits.alpha)
    low, high = (bound / baseline.mean for bound in bounds)
    said = _describe_savings(saved, bounds)
    alpha = limits.alpha / 6
    p = p_value(*trial.excess_rate(trial.failed))
    return low, (
        Check("not_worse", high >= -limits.margin, high, -limits.margin, said),
        Check("failures", p > alpha, p, alpha, f"fails {_describe_rates(trial, trial.failed)}"),
        _tail("p99_tpot", trial, trial.tpot_s, limits.max_p99_ratio * baseline.scale_s, alpha),
        _tail("p99_ttft", trial, trial.ttft_s, limits.max_p99_ratio * baseline.ttft_p99_s, alpha),
    )


def _describe_savings(saved: PairedSavings, bounds: tuple[float, float]) -> str:
    """What is saved, in words: as a share of what the active policy takes now. Stages count by what they tell."""
    if not len(saved.per_request):
        return "nothing is known yet"
    now = float(np.average(saved.baseline, weights=1.0 / saved.max_below))
    middle = float(np.average(saved.per_request, weights=1.0 / saved.max_below))
    middle, low, high = (value / now for value in (middle, *bounds))
    return f"saves {middle:.1%} of the time, between {low:.1%} and {high:.1%} at every look so far"


def _tail(name: str, trial: CanaryExperiment, times_s: Floats, limit_s: float, alpha: float) -> Check:
    """Its P99 is beyond the limit, and it is beyond it more often than the other policy is now: both are shown."""
    beyond = times_s > limit_s
    p = max(p_value(*trial.excess_rate(beyond)), p_value(trial.weights[0] * beyond - _BEYOND, _BEYOND))
    return Check(
        name, p > alpha, p, alpha, f"{name.replace('_', ' ')}: beyond {limit_s:.4g} s {_describe_rates(trial, beyond)}"
    )


def _describe_rates(trial: CanaryExperiment, occurred: npt.NDArray[np.bool_]) -> str:
    """How often something happened to either policy's requests, in words."""
    if not len(trial):
        return "unknown"
    ours, theirs = (float(np.mean(w * occurred)) for w in trial.weights)
    return f"in {ours:.2%} of the requests, the other policy in {theirs:.2%}"
