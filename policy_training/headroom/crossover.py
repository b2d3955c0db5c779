"""The load at which drafting stops paying off: seconds per token of every arm, by its requests in flight.

    TPOT_a(B) = step_a(B) * mean(1 / tau_a)        step = TPOT * tau of each answer

Step time depends on the load alone and tau on the text alone, so arms that served different requests are comparable.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from draftpick.policy_training.data.dataset import Dataset
from draftpick.policy_training.evaluation.evaluate import Interval

Floats = npt.NDArray[np.float64]
_MIN_ANSWERS = 20


@dataclass(frozen=True, slots=True)
class Bucket:
    """`least` to `most` requests in flight on an engine; `share`: of all answers. `tpot_s`: by arm, for arms with
    enough answers at that load."""

    least: int
    most: int
    share: float
    tpot_s: dict[str, Interval]

    @property
    def label(self) -> str:
        return f"{self.least}" if self.least == self.most else f"{self.least}-{self.most}"


def bucket_of(in_flight: int) -> int:
    """Index of the bucket: 0 for one request, 1 for two or three, 2 for four to seven, and so on."""
    return max(in_flight, 1).bit_length() - 1


def buckets_by_load(data: Dataset, arms: Sequence[str], steps_per_token: Mapping[str, float]) -> list[Bucket]:
    """Buckets of the timed answers, in order of load; `steps_per_token`: mean of 1 / tau of all requests by arm."""
    rows: dict[int, dict[str, list[float]]] = {}
    total = 0
    for m in data.measurements:
        o = m.outcome
        if m.source != "replay" and m.arm in arms and o.status == "ok" and o.tpot_s:
            step_s = o.tpot_s * (o.acceptance_length or 1.0)
            rows.setdefault(bucket_of(m.in_flight), {}).setdefault(m.arm, []).append(step_s)
            total += 1
    found = []
    for bucket in sorted(rows):
        share = sum(map(len, rows[bucket].values())) / total
        tpot = {
            arm: _median(np.asarray(steps), steps_per_token[arm])
            for arm, steps in sorted(rows[bucket].items())
            if len(steps) >= _MIN_ANSWERS
        }
        found.append(Bucket(2**bucket, 2 ** (bucket + 1) - 1, share, tpot))
    return found


def crossover(buckets: Sequence[Bucket], arm: str, baseline: str) -> Bucket | None:
    """The lowest load from which on an arm is significantly slower than the baseline, wherever both are known."""
    known = [one for one in buckets if arm in one.tpot_s and baseline in one.tpot_s]
    found = None
    for one in reversed(known):
        if one.tpot_s[arm].low <= one.tpot_s[baseline].high:
            break
        found = one
    return found


def lost_share(buckets: Sequence[Bucket], baseline: str) -> float:
    """Share of the answers at loads where the baseline is the fastest known arm."""
    lost = [b for b in buckets if baseline in b.tpot_s and len(b.tpot_s) > 1 and _fastest(b) == baseline]
    return sum(one.share for one in lost)


def _fastest(bucket: Bucket) -> str:
    return min(bucket.tpot_s, key=lambda arm: bucket.tpot_s[arm].value)


def _median(steps: Floats, steps_per_token: float) -> Interval:
    """The median step, with bounds by order statistics (95 %), times steps per token."""
    from scipy.stats import binom

    steps = np.sort(steps)
    low, high = (int(binom.ppf(q, len(steps), 0.5)) for q in (0.025, 0.975))
    ends = float(np.median(steps)), float(steps[max(low - 1, 0)]), float(steps[min(high, len(steps) - 1)])
    return Interval(*(steps_per_token * end for end in ends))
