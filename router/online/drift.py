"""Detects drift from the conditions of a policy's training.

By arm: two-sided Page-Hinkley tests (Page 1954) of step time, which depends on hardware and load, and of acceptance
relative to the prediction, which depends on the drafter. Of inputs: the population stability index of clusters.
"""

import math
from collections import Counter, deque
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from draftpick.router.config.sections import DriftConfig
from draftpick.router.online.key_shares import KeyedEvidence, KeyShares

_CHECK_EVERY = 8
"""Requests between two checks of their clusters."""
_MIN_OTHERS, _SHARED = 12, 0.25
"""Requests of other keys from which their part in a change is known, and the least one, relative to that of all."""
_MIN_SIGMA = 0.15
"""Log change below which drift is ignored, even if significant."""


@dataclass(slots=True)
class _CumulativeSum:
    """One of the two sums, and the total deviation of the `count` values since it was last 0."""

    evidence: KeyedEvidence = field(default_factory=KeyedEvidence)
    deviations: float = 0.0
    count: int = 0

    def add(self, exceeding: float, deviation: float, key: str) -> None:
        """Add a value."""
        self.evidence.add(key, exceeding)
        self.deviations, self.count = self.deviations + deviation, self.count + 1
        if self.evidence.sum <= 0.0:
            self.evidence.clear()
            self.deviations, self.count = 0.0, 0


@dataclass(slots=True)
class PageHinkley:
    """Sums of the excess over the allowance, upwards and downwards, of values standardised by their history.

    The first `reference` values are baseline only. A sum above the threshold is a change, unless it is one API key's
    alone while others are answered, too.
    """

    config: DriftConfig
    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    up: _CumulativeSum = field(default_factory=_CumulativeSum)
    down: _CumulativeSum = field(default_factory=_CumulativeSum)

    def update(self, value: float, key: str = "", several: bool = False) -> float | None:
        """Return the shift in the values' unit upon a change: their mean deviation since its start; else None.

        `key`: whose answer has this value; `several`: whether others have been answered lately, too.
        """
        self.count += 1
        deviation = value - self.mean
        before, has_baseline = self.mean, self.count > self.config.reference
        sigma = max(math.sqrt(self.squares / (self.count - 2)), _MIN_SIGMA) if has_baseline else _MIN_SIGMA
        if has_baseline:  # clip outliers at four deviations
            value = min(max(value, before - 4.0 * sigma), before + 4.0 * sigma)
        self.mean += (value - before) / self.count
        self.squares += (value - before) * (value - self.mean)
        if not has_baseline:
            return None
        z = (value - before) / sigma
        self.up.add(z - self.config.page_hinkley_delta, deviation, key)
        self.down.add(-z - self.config.page_hinkley_delta, deviation, key)
        sums = (self.up, self.down)
        over = [one for one in sums if one.evidence.exceeds(self.config.page_hinkley_lambda, several)]
        return over[0].deviations / over[0].count if over else None


@dataclass(slots=True)
class InputDriftDetector:
    """Compares the clusters of requests with the baseline: `baseline` [bins], or the first `window` after the policy's
    start."""

    config: DriftConfig
    num_clusters: int
    baseline: npt.NDArray[np.float64] | None = None
    recent: deque[tuple[int, str]] = field(default_factory=deque)
    counts: Counter[int] = field(default_factory=Counter)
    since_check: int = 0

    def update(self, cluster: int, key: str = "") -> float | None:
        """Return the population stability index if it exceeds its limit, and not by one API key's doing; else None."""
        self.recent.append((cluster, key))
        self.counts[cluster] += 1
        if len(self.recent) < self.config.window:
            return None
        if len(self.recent) > self.config.window:
            self.counts[self.recent.popleft()[0]] -= 1
        self.since_check = (self.since_check + 1) % _CHECK_EVERY
        if self.since_check and self.baseline is not None:
            return None
        now = self._shares()
        if self.baseline is None:
            self.baseline = now
            self.recent.clear()
            self.counts.clear()
            return None
        # The expected index of two samples of one distribution.
        chance = 2.0 * (int(np.count_nonzero(self.baseline + now)) - 1) / self.config.window
        index = stability_index(self.baseline, now) - chance
        return index if index > self.config.psi_threshold and not self._is_of_one_key(now) else None

    def _is_of_one_key(self, now: npt.NDArray[np.float64]) -> bool:
        """True if other keys do not ask more than before for what is asked more."""
        assert self.baseline is not None
        grown = now > self.baseline
        asked = [(key, bool(grown[cluster])) for cluster, key in self.recent]
        most = Counter(key for key, more in asked if more).most_common(1)[0][0]
        others = [more for key, more in asked if key != most]
        before, after = self.baseline[grown].sum(), now[grown].sum()
        return len(others) >= _MIN_OTHERS and np.mean(others) < before + _SHARED * (after - before)

    def _shares(self) -> npt.NDArray[np.float64]:
        return np.asarray([self.counts[i] for i in range(self.num_clusters)], np.float64) / len(self.recent)


def stability_index(baseline: npt.NDArray[np.float64], now: npt.NDArray[np.float64], smoothing: float = 0.01) -> float:
    """Population stability index of two distributions, `sum (q - p) ln(q / p)`, each smoothed towards the uniform."""
    p, q = ((1 - smoothing) * x + smoothing / len(x) for x in (baseline, now))
    return float(((q - p) * np.log(q / p)).sum())


@dataclass(slots=True)
class ArmDriftDetector:
    """The tests of one arm: of acceptance, by cluster, since a change of traffic is no change of the arm; of step time,
    by load (1, 2 to 3, 4 to 7, ... in flight). A change resets all."""

    config: DriftConfig
    drafts: dict[int, PageHinkley] = field(default_factory=dict)
    steps: dict[int, PageHinkley] = field(default_factory=dict)
    keys: KeyShares = field(default_factory=KeyShares)

    def update(
        self,
        cluster: int,
        in_flight: int,
        tpot_s: float | None,
        tau: float | None,
        predicted_tpot_s: float,
        key: str = "",
    ) -> tuple[str, float] | None:
        """Return (`costs` or `drafts`, log change) when either has changed. Without `tpot_s`, a step's time is unknown;
        without `tau`, `tpot_s` is that of a step. `key`: whose answer it is."""
        tau, found, several = tau if tau and tau > 0 else None, None, self.keys.several
        if tpot_s is not None:
            test = self.steps.setdefault(in_flight.bit_length(), PageHinkley(self.config))
            moved = test.update(math.log(tpot_s * (tau or 1.0)), key, several)
            found = ("costs", moved) if moved is not None else None
        if tau is not None:
            # tau / predicted tau, up to a constant of the arm.
            test = self.drafts.setdefault(cluster, PageHinkley(self.config))
            moved = test.update(math.log(tau * predicted_tpot_s), key, several)
            found = found or (("drafts", moved) if moved is not None else None)
        if found:
            self.drafts, self.steps = {}, {}
        return found
