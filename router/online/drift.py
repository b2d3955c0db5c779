"""Notices that the world is no longer the one that a policy was made for.

By arm: two-sided Page-Hinkley tests (Page 1954) of what a decoding step takes, which hardware and load decide, and of
how much more is accepted than predicted, which the drafter decides. Of inputs: the population stability index of the
kinds of requests. Of the policy: whether it still saves time against its own default engine.
"""

import math
from collections import Counter, deque
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from draftpick.router.config.sections import DriftConfig

_CHECK_EVERY = 8
"""Requests between two looks at their kinds."""
_MIN_SIGMA = 0.15
"""As a logarithm: changes of a few percent are nobody's concern, however sure they are."""


@dataclass(slots=True)
class _CumulativeSum:
    """One of the two sums, and by how much the `count` values since it was last 0 deviated in all."""

    sum: float = 0.0
    deviations: float = 0.0
    count: int = 0

    def add(self, exceeding: float, deviation: float) -> float:
        """The sum with one value more."""
        self.sum += exceeding
        self.deviations, self.count = self.deviations + deviation, self.count + 1
        if self.sum <= 0.0:
            self.sum, self.deviations, self.count = 0.0, 0.0, 0
        return self.sum


@dataclass(slots=True)
class PageHinkley:
    """Sums of what exceeds the allowance, upwards and downwards, of values standardised by all before them.

    The first `reference` values are only learned from. A sum above the threshold is a change.
    """

    config: DriftConfig
    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    up: _CumulativeSum = field(default_factory=_CumulativeSum)
    down: _CumulativeSum = field(default_factory=_CumulativeSum)

    def update(self, value: float) -> float | None:
        """How far the values have moved, in their own unit, when they have: the mean since they began to."""
        self.count += 1
        deviation = value - self.mean
        before, has_baseline = self.mean, self.count > self.config.reference
        sigma = max(math.sqrt(self.squares / (self.count - 2)), _MIN_SIGMA) if has_baseline else _MIN_SIGMA
        if has_baseline:  # an outlier is no change: one answer counts four deviations at most
            value = min(max(value, before - 4.0 * sigma), before + 4.0 * sigma)
        self.mean += (value - before) / self.count
        self.squares += (value - before) * (value - self.mean)
        if not has_baseline:
            return None
        z = (value - before) / sigma
        sums = ((self.up, z), (self.down, -z))
        over = [one for one, way in sums if one.add(way - self.config.allowance, deviation) > self.config.threshold]
        return over[0].deviations / over[0].count if over else None


@dataclass(slots=True)
class InputDriftDetector:
    """Whether the kinds of requests (bins) are those that were usual: the first `window` after the policy's start,
    where `baseline` [bins] is not given."""

    config: DriftConfig
    num_clusters: int
    baseline: npt.NDArray[np.float64] | None = None
    recent: deque[int] = field(default_factory=deque)
    counts: Counter[int] = field(default_factory=Counter)
    since_check: int = 0

    def update(self, cluster: int) -> float | None:
        """The population stability index, when it is above its limit."""
        self.recent.append(cluster)
        self.counts[cluster] += 1
        if len(self.recent) < self.config.window:
            return None
        if len(self.recent) > self.config.window:
            self.counts[self.recent.popleft()] -= 1
        self.since_check = (self.since_check + 1) % _CHECK_EVERY
        if self.since_check and self.baseline is not None:
            return None
        now = self._shares()
        if self.baseline is None:
            self.baseline = now
            self.recent.clear()
            self.counts.clear()
            return None
        # Two samples of one distribution differ, too: by about so much.
        chance = 2.0 * (int(np.count_nonzero(self.baseline + now)) - 1) / self.config.window
        index = stability_index(self.baseline, now) - chance
        return index if index > self.config.stability else None

    def _shares(self) -> npt.NDArray[np.float64]:
        return np.asarray([self.counts[i] for i in range(self.num_clusters)], np.float64) / len(self.recent)


def stability_index(baseline: npt.NDArray[np.float64], now: npt.NDArray[np.float64], smoothing: float = 0.01) -> float:
    """Population stability index of two distributions, `sum (q - p) ln(q / p)`, each smoothed towards the uniform."""
    p, q = ((1 - smoothing) * x + smoothing / len(x) for x in (baseline, now))
    return float(((q - p) * np.log(q / p)).sum())


class RegretMonitor:
    """Whether the policy still saves time against its own default: a confidence bound on the mean of what it saved.

    Of answers that another arm gave: log(TPOT expected of the default, as that was last seen / TPOT observed).
    """

    def __init__(self, min_samples: int = 60) -> None:
        self._recent: deque[float] = deque(maxlen=2 * min_samples)
        self._min_samples = min_samples

    def update(self, saved: float) -> float | None:
        """The mean of what was lost, when the policy has surely lost."""
        self._recent.append(saved)
        if len(self._recent) < self._min_samples:
            return None
        values = np.asarray(self._recent)
        upper = values.mean() + 4.0 * values.std(ddof=1) / math.sqrt(len(values))
        return float(-values.mean()) if upper < 0 else None


@dataclass(slots=True)
class ArmDriftDetector:
    """The tests of one arm: of acceptance, one for each kind of requests (a bin), since other kinds are no change of
    the arm; of a step's time, one for each load (1, 2 to 3, 4 to 7, ... in flight). A change begins all anew.
    """

    config: DriftConfig
    drafts: dict[int, PageHinkley] = field(default_factory=dict)
    steps: dict[int, PageHinkley] = field(default_factory=dict)

    def update(
        self, cluster: int, in_flight: int, tpot_s: float, tau: float | None, predicted_tpot_s: float
    ) -> tuple[str, float] | None:
        """(`costs` or `drafts`, how far, as a logarithm) when either has changed."""
        load, tau = in_flight.bit_length(), tau if tau and tau > 0 else None
        moved = self.steps.setdefault(load, PageHinkley(self.config)).update(math.log(tpot_s * (tau or 1.0)))
        found = ("costs", moved) if moved is not None else None
        if tau is not None:
            # tau / predicted tau, but for a constant of the arm.
            moved = self.drafts.setdefault(cluster, PageHinkley(self.config)).update(math.log(tau * predicted_tpot_s))
            found = found or (("drafts", moved) if moved is not None else None)
        if found:
            self.drafts, self.steps = {}, {}
        return found
