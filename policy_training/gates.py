"""Promotion gates of a retrained policy: `offline` judges it by logged decisions, `online` stage by stage by traffic.

A gain is the share of time per output token that is saved against the active policy (0.05: 5 % less time).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.stats import binom

from policy_training.ope import FEWEST_EFFECTIVE, Floats, Logged, effective_size, weights

STAGES = (0.01, 0.1, 0.5, 1.0)
"""Shares of requests that a candidate decides, one stage after the other; at the last one it is the active policy."""

MARGIN, KEPT_GAIN = 0.02, 0.95
FEWEST_PAIRED = 20
"""Requests with the times of all arms that are better evidence than any number of weighted records."""
FEWEST_IN_SLICE = 25.0  # effective records of the candidate and of the default arm, for anything to be said of it
FEWEST_IN_TAIL = 200  # times of each policy

_BETS = np.asarray([0.05, 0.1, 0.2, 0.4, 0.7, 0.95])
_Drawn = Callable[[Floats, Floats], Floats]


@dataclass(frozen=True, slots=True)
class Check:
    """One condition: what was found (not finite: nothing is known yet), its limit, and both in words."""

    name: str
    passed: bool
    value: float
    limit: float
    why: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a candidate may go on, and why."""

    passed: bool
    checks: tuple[Check, ...]

    def as_json(self) -> dict[str, Any]:
        return {"passed": self.passed, "checks": _as_json(self.checks)}


def _as_json(checks: Sequence[Check]) -> list[dict[str, Any]]:
    """All fields; null for what is not finite, which JSON does not know."""
    return [asdict(c) | {"value": c.value if math.isfinite(c.value) else None} for c in checks]


@dataclass(frozen=True, slots=True)
class Stream:
    """One policy's requests of a stage in order of time; each [n]. Times in seconds, NaN where undefined.

    `failed`: by the engine's fault. Leave out what is the client's. Raises ValueError for lengths that differ.
    """

    tpot_s: Floats
    ttft_s: Floats
    failed: npt.NDArray[np.bool_]

    def __post_init__(self) -> None:
        if not (self.tpot_s.shape == self.ttft_s.shape == self.failed.shape) or self.failed.ndim != 1:
            raise ValueError("tpot_s, ttft_s and failed must be of one length: give NaN where a time is undefined")

    def rewards(self, scale_s: float) -> Floats:
        """`scaled` times of the requests that have one. A failed request earns 0: failing is no way to be fast."""
        known = self.failed | np.isfinite(self.tpot_s)
        return np.asarray(np.where(self.failed, 0.0, scaled(self.tpot_s, scale_s))[known])


@dataclass(frozen=True, slots=True)
class Step:
    """What to do with a candidate now, and why."""

    action: Literal["advance", "hold", "roll_back"]
    checks: tuple[Check, ...]

    def as_json(self) -> dict[str, Any]:
        return {"action": self.action, "checks": _as_json(self.checks)}


@dataclass(frozen=True, slots=True)
class Limits:
    """Of a stage; requests are the candidate's. alpha: how probably each check errs in a whole rollout, at any look."""

    margin: float = MARGIN
    tail: float = 1.25
    min_requests: int = 200
    most_requests: int = 4000
    alpha: float = 0.05


def scale_of(tpot_s: Floats) -> float:
    """The scale of `scaled`: 90 % quantile of the active policy's earlier TPOT. Raises ValueError for none."""
    if not np.isfinite(tpot_s).any():
        raise ValueError("no TPOT is known: give earlier finished requests of the active policy")
    return float(np.nanquantile(tpot_s, 0.9))


def scaled(tpot_s: Floats, scale_s: float) -> Floats:
    """Rewards in [0, 1], clip(1 - tpot_s / (2 scale_s), 0, 1): 1 for no time at all, 0 for twice the scale and beyond.

    Times beyond twice the scale count alike. That is conservative for the active policy's (who removes them gains less
    than is due) and not for the candidate's: it hides how slow they are, if not how many, so P99 is checked apart.
    """
    return np.asarray(np.clip(1.0 - tpot_s / (2.0 * scale_s), 0.0, 1.0))


def offline(
    logged: Logged,
    pi_candidate: Floats,
    pi_active: Floats,
    q: Floats,
    *,
    default: int,
    slices: Sequence[str],
    paired: Floats | None = None,
    reworded: Floats | None = None,
    prove: bool = True,
    blocks: int = 100,
    seed: int = 0,
) -> Verdict:
    """Judge a candidate by later decisions of the active policy, in order of time, with the reward -TPOT in seconds.

    Probabilities (without exploration, to judge the policy itself), the model of rewards `q` and `paired` (replayed
    seconds, NaN where none) are [n, arms]; `reworded`: the candidate's probabilities for the same tasks in other words,
    judged by `paired`. Where at least `FEWEST_PAIRED` requests have the times of all arms, these decide of the gain,
    and not the weighted records. Without `prove` a gain need not be proven, for that is left to live traffic, but no
    loss may be. The bootstrap draws `blocks` of records near in time, as these are alike. Raises ValueError.
    """
    if reworded is not None and paired is None:
        raise ValueError("rewording is judged by replayed times: give `paired` with `reworded`")
    candidate = _tpot_terms(logged, pi_candidate, q)
    draw = partial(_resampled, blocks=blocks, seed=seed)
    size = effective_size(weights(logged, pi_candidate))
    worth = f"{len(logged)} records are worth {size:.0f} of its own (more with more exploration, or in more time)"
    judge = partial(_gain, draw=draw, prove=prove)
    checks = [_worst_slice(logged, pi_candidate, q, default, slices, draw)]
    rows = np.isfinite(paired).all(1) if paired is not None else np.zeros(len(logged), bool)
    if paired is None or rows.sum() < FEWEST_PAIRED:
        checks += [
            Check("effective_records", size >= FEWEST_EFFECTIVE or not prove, size, FEWEST_EFFECTIVE, worth),
            judge("dr_gain", candidate, _tpot_terms(logged, pi_active, q)),
        ]
    if paired is not None:
        if not rows.any():
            raise ValueError("`paired` has no row with the times of all arms: leave it out, or replay some requests")
        ours, theirs = ((pi * paired)[rows].sum(1) for pi in (pi_candidate, pi_active))
        checks.append(judge("replay_gain", ours, theirs))
        if reworded is not None:
            checks.append(_rewording(paired[rows], pi_candidate[rows], reworded[rows], default))
    return Verdict(all(check.passed for check in checks), tuple(checks))


def _tpot_terms(logged: Logged, pi: Floats, q: Floats) -> Floats:
    """Terms [n] whose mean is the doubly robust estimate of a policy's TPOT in seconds."""
    missed = logged.reward - q[np.arange(len(logged)), logged.arm]
    return -np.asarray((pi * q).sum(1) + weights(logged, pi) * missed)


def _resampled(a: Floats, b: Floats, blocks: int, seed: int, resamples: int = 2000) -> Floats:
    """Values of 1 - sum(a) / sum(b) under a bootstrap of blocks of neighbouring rows; -inf where b has no sum."""
    starts = np.unique(np.arange(blocks) * len(a) // blocks)
    draws = np.random.default_rng(seed).multinomial(len(starts), np.full(len(starts), 1 / len(starts)), resamples)
    over, under = (draws @ np.add.reduceat(terms, starts) for terms in (a, b))
    return np.asarray(np.where(under > 0.0, 1.0 - over / np.where(under > 0.0, under, 1.0), -np.inf))


def _gain(name: str, candidate: Floats, active: Floats, draw: _Drawn, prove: bool) -> Check:
    """The lower end of the 95 % interval of the gain must be above 0; without `prove`, the upper one not below."""
    gain = 1.0 - candidate.sum() / active.sum()
    low, high = map(float, np.quantile(draw(candidate, active), [0.025, 0.975], method="lower"))
    passed = low > 0.0 if prove else high >= 0.0
    return Check(name, passed, low if prove else high, 0.0, f"gains {gain:.1%} of the time ({low:.1%} to {high:.1%})")


def _worst_slice(logged: Logged, pi: Floats, q: Floats, default: int, slices: Sequence[str], draw: _Drawn) -> Check:
    """No slice, of those shown to be slower than with the default arm (95 % for all slices at once), is by over 2 %."""
    labels, policies = np.asarray(slices), (pi, np.eye(q.shape[1])[np.full(len(q), default)])
    masks = {str(name): labels == name for name in np.unique(labels)}
    w = [weights(logged, one) for one in policies]
    judged = {k: m for k, m in masks.items() if min(effective_size(one[m]) for one in w) >= FEWEST_IN_SLICE}
    terms = [_tpot_terms(logged, one, q) for one in policies]
    worst, why = 0.0, "none is slower than the default arm"
    for name, mask in judged.items():
        a, b = (one[mask] for one in terms)
        excess = float(a.sum() / b.sum() - 1.0)
        least = -float(np.quantile(draw(a, b), 1.0 - 0.05 / len(judged)))
        if least > 0.0 and excess > worst:
            worst, why = excess, f"{name}: {excess:.1%} slower than the default arm (at least {least:.1%})"
    return Check("worst_slice", worst <= MARGIN, worst, MARGIN, f"{why}; {len(judged)} of {len(masks)} slices judged")


def _rewording(paired: Floats, own: Floats, reworded: Floats, default: int) -> Check:
    """Of what the candidate saves against the default arm, other words for the same tasks must leave 95 %."""
    saved, left = (float(1.0 - (pi * paired).sum() / paired[:, default].sum()) for pi in (own, reworded))
    kept = left / saved if saved > 0.0 else 0.0
    why = f"saves {left:.1%} against the default arm in other words, {saved:.1%} in its own"
    return Check("rewording", kept >= KEPT_GAIN, kept, KEPT_GAIN, why)


def online(candidate: Stream, active: Stream, *, share: float, scale_s: float, limits: Limits = Limits()) -> Step:
    """What to do with a candidate that decided `share` of the requests of this stage, drawn request by request.

    Look as often as you like: every check holds at all sample sizes at once. `scale_s` is `scale_of` earlier data.
    advance: a loss beyond the margin is excluded; at the last stage before the whole, a gain is proven. roll_back: it
    is worse beyond the margin, fails more or has a longer tail; or it is undecided after `most_requests`, since what
    is not provably better is not worth a change. Raises ValueError for an unknown share.
    """
    if share not in STAGES[:-1]:
        raise ValueError(f"no stage has the share {share}: give one of {', '.join(map(str, STAGES[:-1]))}")
    alpha, others = limits.alpha / (len(STAGES) - 1), round((1.0 - share) / share)
    low, high = gain_bounds(1.0 - candidate.rewards(scale_s), 1.0 - active.rewards(scale_s), others, alpha)
    needed, n = 0.0 if share == STAGES[-2] else -limits.margin, len(candidate.failed)
    said = f"gain between {low:.1%} and {high:.1%}, at every look so far"
    harms = (
        Check("not_worse", high >= -limits.margin, high, -limits.margin, said),
        _failures(candidate.failed, active.failed, others, alpha),
        _tail("p99_tpot", candidate.tpot_s, active.tpot_s, limits, alpha),
        _tail("p99_ttft", candidate.ttft_s, active.ttft_s, limits, alpha),
    )
    proven, enough = low > needed, n >= limits.min_requests
    undecided = n >= limits.most_requests and not proven
    bound = limits.most_requests if undecided else limits.min_requests
    counted = Check("requests", enough and not undecided, n, bound, f"{n} requests" + undecided * ", undecided")
    checks = (*harms, Check("gain", proven, low, needed, said), counted)
    if undecided or not all(harm.passed for harm in harms):
        return Step("roll_back", checks)
    return Step("advance" if proven and enough else "hold", checks)


def gain_bounds(candidate: Floats, active: Floats, others: int, alpha: float) -> tuple[float, float]:
    """Bounds of 1 - mean(candidate) / mean(active) that hold at all sample sizes at once with probability 1 - alpha.

    Times in [0, 1] in order. Each of the candidate's is set against the mean of the next `others` of the active policy:
    requests are assigned at random, so they differ by what the policies do, whatever the traffic. A gambler bets on
    `ratio * a - c`, whose mean is not positive where the candidate takes `ratio` of the time or more, and no strategy
    reaches 1 / alpha with more than probability alpha (Waudby-Smith, Ramdas 2020, arXiv 2010.09686). Infinite: unknown.
    """
    c, a = _pairs(candidate, active, others)
    return 1.0 - _most(c, a, alpha / 2), 1.0 - 1.0 / _most(a, c, alpha / 2)


def _pairs(candidate: npt.NDArray[Any], active: npt.NDArray[Any], others: int) -> tuple[Floats, Floats]:
    n = min(len(candidate), len(active) // others)
    return candidate[:n] * 1.0, active[: n * others].reshape(n, others).mean(1)


def _most(c: Floats, a: Floats, alpha: float) -> float:
    """Upper bound of mean(c) / mean(a): the least ratio from 1/4 to 4 ever refuted. Stakes grow with the ratio."""
    needed, low, high = math.log(1.0 / alpha), 0.25, 4.0
    if _log_stake(high * a - c) < needed:
        return math.inf
    for _ in range(13):
        ratio = math.sqrt(low * high)
        low, high = (low, ratio) if _log_stake(ratio * a - c) >= needed else (ratio, high)
    return high


def _log_stake(x: Floats) -> float:
    """The highest logarithm that the mean stake of all bets on x > 0 ever had; x in order of time, at least -1."""
    logs = np.log1p(np.outer(_BETS, x)).cumsum(1)
    top = logs.max(0)
    return float((top + np.log(np.exp(logs - top).mean(0))).max(initial=0.0))


def _failures(candidate: npt.NDArray[np.bool_], active: npt.NDArray[np.bool_], others: int, alpha: float) -> Check:
    """The same bet: does the candidate fail more often? The value is a p-value that holds at every look."""
    c, a = _pairs(candidate, active, others)
    p = math.exp(-_log_stake(c - a))
    why = f"{candidate.sum()} of {len(candidate)} requests failed, {active.sum()} of {len(active)} of the active policy"
    return Check("failures", p > alpha, p, alpha, why)


def _tail(name: str, candidate: Floats, active: Floats, limits: Limits, alpha: float) -> Check:
    """The least that the candidate's P99 may be, over the most that the active policy's may."""
    c, a = (one[np.isfinite(one)] for one in (candidate, active))
    if min(len(c), len(a)) < FEWEST_IN_TAIL:
        return Check(name, True, 0.0, limits.tail, f"fewer than {FEWEST_IN_TAIL} times known")
    least, most = _p99(c, alpha / 2)[0], _p99(a, alpha / 2)[1]
    why = f"P99 of at least {least:.4g} s, the active policy's at most {most:.4g} s"
    return Check(name, least <= limits.tail * most, least / most, limits.tail, why)


def _p99(x: Floats, alpha: float) -> tuple[float, float]:
    """Bounds of the 99 % quantile by order statistics, each with probability 1 - alpha at all sample sizes at once."""
    # Renewed when the sample has grown by half, the k-th time at alpha / (k (k + 1)), which make alpha in all.
    k = int(math.log(len(x) / FEWEST_IN_TAIL, 1.5)) + 1
    n = min(math.ceil(FEWEST_IN_TAIL * 1.5 ** (k - 1)), len(x))
    low, high = _ranks(n, alpha / (k * (k + 1)))
    largest = np.sort(np.partition(x[:n], n - low)[n - low :])[::-1]
    return float(largest[low - 1]), float(largest[high - 1]) if high else math.inf


@cache
def _ranks(n: int, alpha: float) -> tuple[int, int]:
    """Ranks, from the largest of n down, that bound the 99 % quantile from below and from above (0: none does)."""
    return int(binom.isf(alpha, n, 0.01)) + 1, int(binom.ppf(alpha, n, 0.01))
