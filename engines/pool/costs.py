"""Seconds of a step by its number of verified tokens, and of a head's passes by their rows, measured on this engine."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

_EXACT, _GROWTH = 24, 1.12
"""Counts up to the first have a bin of their own; further bins are wider by this factor."""
_MEMORY = 40.0
"""Observations of a bin that count."""
_PRIOR = 2.0
_UNSEEN = 1e-3
"""Weight of a bin without measurements against its neighbours."""
_OUTLIER = 3.0
"""A measurement above this many times the expected is cut: a pause, not a cost."""
_REFIT = 8
"""Observations between two fits."""


class CostTable:
    """Seconds by a count, never falling: means of what was measured, shrunk to a prior shape of the measured level.

    `prior(count)`: relative seconds, before anything is measured seconds.
    """

    def __init__(self, prior: Sequence[float]) -> None:
        self._ends = _bins(len(prior) - 1)
        self._shape = np.asarray(prior, float)
        self._at = np.searchsorted(self._ends, np.arange(len(prior)))
        centers = [0, *self._ends]
        self._centers = np.asarray([(a + 1 + b) / 2 for a, b in pairwise(centers)])
        self._bin_shape = np.interp(self._centers, np.arange(len(prior)), self._shape)
        self._means, self._weights = np.zeros(len(self._ends)), np.zeros(len(self._ends))
        self._new = 0
        self._seconds: list[float] = self._shape.tolist()
        self.measured = 0

    def seconds(self, count: int) -> float:
        """Return the expected seconds of `count`, at least one."""
        return self._seconds[min(count, len(self._seconds) - 1)]

    def add(self, count: int, seconds: float) -> None:
        """Learn from one measurement."""
        if count >= len(self._seconds):
            return
        if self.measured > _REFIT:
            seconds = min(seconds, _OUTLIER * self._seconds[count])
        at = self._at[count]
        self._weights[at] = min(self._weights[at] + 1, _MEMORY)
        self._means[at] += (seconds - self._means[at]) / self._weights[at]
        self.measured += 1
        self._new += 1
        if self._new >= min(_REFIT, self.measured):
            self._fit()

    def _fit(self) -> None:
        self._new = 0
        level = float((self._weights * self._means).sum() / (self._weights * self._bin_shape).sum())
        means = (self._weights * self._means + _PRIOR * level * self._bin_shape) / (self._weights + _PRIOR)
        weights = self._weights + _UNSEEN
        self._seconds = np.interp(np.arange(len(self._seconds)), self._centers, nondecreasing(means, weights)).tolist()


class Costs:
    """All costs of one engine. A step's depend on its verified tokens, on whether a request is sampled, and on the
    number of requests: each reads a context of its own."""

    def __init__(self, max_tokens: int, max_requests: int, step_s: float = 0.02) -> None:
        tokens, rows = np.arange(max_tokens + 1), np.arange(max_requests + 1)
        # Four rows cost what one does, on CPUs with packed weights as on GPUs; further ones a twentieth each at first.
        step = (step_s * (1 + 0.05 * np.maximum(0, tokens - 4))).tolist()
        # By the number of requests: 1, 2 to 3, 4 to 7, 8 to 15, ...
        self._verify = [(CostTable(step), CostTable(step)) for _ in range(max_requests.bit_length() + 1)]
        self.read = CostTable((step_s * (0.12 + 0.01 * rows)).tolist())
        self.extend = CostTable((step_s * (0.08 + 0.005 * rows)).tolist())

    def verify(self, requests: int, sampled: bool) -> CostTable:
        """Costs of the target's step by its verified tokens, one of each request included."""
        return self._verify[min(requests.bit_length(), len(self._verify) - 1)][sampled]


def nondecreasing(values: npt.NDArray[np.float64], weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the closest nondecreasing values by weighted squares (pool adjacent violators)."""
    blocks: list[tuple[float, float, int]] = []
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        size = 1
        while blocks and blocks[-1][0] > value:
            before, its_weight, its_size = blocks.pop()
            value = (before * its_weight + value * weight) / (its_weight + weight)
            weight, size = its_weight + weight, its_size + size
        blocks.append((value, weight, size))
    return np.repeat([value for value, _, _ in blocks], [size for _, _, size in blocks])


def _bins(most: int) -> list[int]:
    """Return the last count of each bin."""
    ends = list(range(1, min(most, _EXACT) + 1))
    while ends[-1] < most:
        ends.append(min(most, max(ends[-1] + 1, round(ends[-1] * _GROWTH))))
    return ends
